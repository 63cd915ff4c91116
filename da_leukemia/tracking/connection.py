"""Whether a tracking server can be used, found out in seconds; wandb itself tries for 100 s."""

from __future__ import annotations

import netrc
import os
import threading
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE_S = 6.0
"""How long the server may take to answer before a run is written offline."""

DEFAULT_SERVER = "https://api.wandb.ai"

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Say each thing once in a process."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(f"Weights & Biases: {message}", stacklevel=4)


def server_address() -> str:
    """Return the address that wandb would use, without a slash at its end."""
    if server := os.environ.get("WANDB_BASE_URL"):
        return server.rstrip("/")
    try:
        import wandb

        return str(wandb.Settings().base_url).rstrip("/")
    except Exception:
        return DEFAULT_SERVER


def has_credentials() -> bool:
    """Whether wandb would find a key: in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server_address()).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / n for n in (".netrc", "_netrc")]:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def is_reachable(server: str) -> bool:
    """Whether the server answers anything within `PATIENCE_S`."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{server}/healthz", timeout=PATIENCE_S).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    # A thread, because looking up a host name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S + 1)
    reached = bool(answers) and answers[0]
    if not reached:
        warn_once(f"{server} does not answer; tracking offline")
    return reached
