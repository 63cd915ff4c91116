"""What the tests of whole jobs share: running one, and reading what it left."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch

from da_leukemia.config import Job, save_job
from da_leukemia.sweep import worker

H, L_ = "H_100X_C2", "L_100X_C2"


class Stop(Exception):
    """Ends a run in the middle."""


def run_in(folder: Path, job: Job) -> Path:
    """Run a job in a folder, made where needed; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    return folder


def checkpoint(folder):
    """Load it the way that executes nothing."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def weights(folder):
    return checkpoint(folder)["state_dict"]


def detector_part(folder):
    """Return the weights without those of components."""
    return {k: v for k, v in weights(folder).items() if k.startswith(("detector.", "ema."))}


def same_weights(one, other, part=weights):
    a, b = part(one), part(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder):
    result = worker.read_result(folder)
    return {d: t["metrics"] for d, t in result["tests"].items()}


def relabel(root, domain, drop=False):
    """Give a device's cells the boxes and labels of others, or none at all."""
    rng = np.random.default_rng(5)
    changed = 0
    for path in sorted((root / domain / "json_labels").rglob("*.json")):
        content = json.loads(path.read_text())
        cells = content["annotations"]
        changed += len(cells)
        if drop:
            content["annotations"] = []
        else:
            for cell in cells:
                x, y = (int(v) for v in rng.integers(0, 400, 2))
                cell["bbox"] = [x, y, 30, 40]
            images = [c["image_id"] for c in cells]
            kinds = [c["category_id"] for c in cells]
            for cell, i, k in zip(
                cells, rng.permutation(images), rng.permutation(kinds), strict=True
            ):
                cell["image_id"], cell["category_id"] = int(i), int(k)
        path.write_text(json.dumps(content))
    for path in (root / domain).rglob("*.txt"):
        path.unlink()
    assert changed
