"""The errors a user can act on, exit codes, and words that messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it."""


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback."""


class _Problems(UserError):
    """Carries every problem that was found."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(_Problems):
    """An experiment file or an override that cannot be used."""


class DataError(_Problems):
    """A data set that cannot be used. Names the file and the field, and says what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz")


def no_such_folder(folder: Path) -> str:
    """Say that there is no such folder, and name the one beside it that was meant."""
    if folder.is_file():
        if folder.suffix.lower() in ARCHIVES:
            return f"{folder}: is an archive; unpack it, and give the folder"
        return f"{folder}: is a file; expected a folder"
    beside = (
        [f.name for f in folder.parent.iterdir() if f.is_dir()] if folder.parent.is_dir() else []
    )
    close = difflib.get_close_matches(folder.name, sorted(beside), n=1)
    hint = f"; did you mean {str(folder.parent / close[0])!r}?" if close else ""
    return f"{folder}: no such folder{hint}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``"1 image"``, ``"3 images"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
