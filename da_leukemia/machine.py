"""What the machine has for this process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def cpus() -> int:
    """Return the CPU cores that this process may use: affinity and the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return max(1, cores or 1)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for as long as it lives.

    Otherwise each large tensor is mapped from the kernel and given back when it is freed: a step of
    training on CPUs asks for the same pages again and again, and waits for them to be zeroed. For
    processes that do one job and end. Returns whether it could be had (glibc has it).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another libc
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
