"""Timings that are reported, never asserted."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from da_leukemia.machine import keep_freed_memory

if TYPE_CHECKING:
    import torch


def use(device: str, threads: int | None) -> torch.device:
    """Set the CPU threads and the memory as a job does; return the device that was asked for.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        threads: CPU threads; None or 0 leaves torch's choice.
    """
    import torch  # not for `sweep_scale`, which measures memory without it

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def chip(device: torch.device) -> str:
    """Return the name of what computes, with the threads of a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def timed(
    step: Callable[[], None],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """Return a function that makes a step and returns its seconds, the device's work included."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run() -> float:
        wait()
        begun = clock()
        step()
        wait()
        return clock() - begun

    return run
