"""What a result must carry so that it can be traced: versions and device. Its data: `facts`."""

from __future__ import annotations

import importlib.metadata
import os
import platform

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
