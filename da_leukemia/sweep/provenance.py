"""What a result must carry so that it can be traced: code, versions, device. Its data: `facts`."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from da_leukemia import __version__
from da_leukemia.evaluation import EVALUATOR_VERSION

_VERSIONED = ("torch", "torchvision", "lightning", "timm", "kornia", "faster-coco-eval", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of what makes the numbers."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {
        "da_leukemia": __version__,
        "evaluator": str(EVALUATOR_VERSION),
        "python": platform.python_version(),
        **found,
    }


def device_name() -> str:
    """Return the name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


@functools.cache
def code_version(package: Path = Path(__file__).parents[1]) -> dict[str, Any]:
    """Return the git commit of the package's source and whether files of it were changed since.

    Both are None where the package does not lie in a checkout of its own: an installed one may lie
    inside the repository of somebody else's project, whose commit says nothing about this code.

    Args:
        package: its folder.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", ".")),
        }
    return {"commit": None, "dirty": None}


def peak_memory() -> dict[str, float | None]:
    """Return the most memory this process had at a time, MB, and that of its GPU (None: no GPU)."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return {"process_mb": round(peak, 1), "gpu_mb": None if gpu is None else round(gpu, 1)}
