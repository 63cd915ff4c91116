"""Timings that are reported, never asserted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def use(device: str, threads: int | None) -> torch.device:
    """Set the CPU threads and return the device that was asked for.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        threads: CPU threads; None or 0 leaves torch's choice.
    """
    import torch  # not for `sweep_scale`, which measures memory without it

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
