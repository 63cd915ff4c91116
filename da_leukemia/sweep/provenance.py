"""What a result must carry so that it can be traced: versions, device, fingerprint of the data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from typing import Any

import torch

from da_leukemia import __version__
from da_leukemia.config import Job
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.splits import Split
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


def data_facts(job: Job, indexes: dict[str, FieldIndex], split: Split) -> dict[str, Any]:
    """Say which fields were trained on, and fingerprint them and their labels."""
    train = split.select(indexes[job.source], "train")
    facts: dict[str, Any] = {
        "fingerprint": fingerprint(train),
        "train_fields": len(train),
        "train_boxes": sum(len(f.labels) for f in train.fields),
    }
    if job.target is not None:
        facts["target_images"] = len(split.select(indexes[job.target], "train"))
    return facts


def fingerprint(index: FieldIndex) -> str:
    """Hash the names and labels of fields, in an order of their own."""
    digest = hashlib.sha256()
    for field in sorted(index.fields, key=lambda f: f.key):
        digest.update(field.key.encode())
        digest.update(field.boxes.tobytes() + field.labels.tobytes() + field.attributes.tobytes())
    return digest.hexdigest()[:16]


def device_name() -> str:
    """Return the name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
