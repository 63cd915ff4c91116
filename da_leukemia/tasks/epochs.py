"""What is kept of the epochs of a training, and how a network is judged without labels."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.evaluation.label_free import Found, agreement, confidence, separation
from da_leukemia.files import replacing
from da_leukemia.tasks.detection import DetectionTask

NOISE = 0.1
"""Standard deviation of the disturbance of a weight, in root mean squares of its filter."""

DISTURBED = 2
"""Disturbed copies of a network."""

CELLS, GROUND = 20, 6
"""Best detections of a view that have a feature; places of the ground along its side."""


class KeepEpochs(L.Callback):
    """Keeps the tested weights of some epochs, without the optimiser.

    A resumed run writes those of the epochs that it trains again over the old ones. They are there
    before the checkpoint of the same epoch: Lightning saves checkpoints after all other callbacks.

    Args:
        folder: where ``EPOCH.pt`` are written.
        epochs: which, counted from 1.
    """

    def __init__(self, folder: Path, epochs: Collection[int]) -> None:
        self.folder = folder
        self.epochs = frozenset(epochs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the weights."""
        assert isinstance(pl_module, DetectionTask)
        epoch = trainer.current_epoch + 1
        if epoch not in self.epochs:
            return
        network = {k: v.cpu() for k, v in pl_module.tested.state_dict().items()}
        content: dict[str, Any] = {"step": trainer.global_step, "network": network}
        if (thresholds := teacher_thresholds(pl_module)) is not None:
            content["thresholds"] = thresholds
        with replacing(epoch_path(self.folder, epoch)) as temporary:
            torch.save(content, temporary)


def epoch_path(folder: Path, epoch: int) -> Path:
    """Return where the weights of an epoch are kept."""
    return folder / f"{epoch:05d}.pt"


def teacher_thresholds(task: DetectionTask) -> Tensor | None:
    """Return the scores ``(C,)`` from which the tested network's detections are pseudo-labels.

    Those of the first component that has a threshold, as they are now where they are adaptive; else
    the score from which a teacher's boxes are learned, else 0.5. None without a teacher, or where
    another network is tested.
    """
    teachers: list[Any] = [c for c in task.components if c.needs_teacher]
    if not teachers or not task.tests_average:
        return None
    for teacher in teachers:
        if getattr(teacher, "thresholds", None) is not None:
            return torch.as_tensor(teacher.thresholds.values).detach().cpu().clone()
    given = [getattr(t.settings, n, None) for n in ("threshold", "positive") for t in teachers]
    value = next((v for v in given if v is not None), 0.5)
    return torch.full((task.detector.classes,), float(value))


# --- label-free scores -------------------------------------------------------------------------


@torch.no_grad()
def label_free_scores(network: Any, batches: Iterable[UnlabelledBatch]) -> dict[str, float]:
    """Judge a network on images alone (see `evaluation.label_free`). Nothing of it is random.

    Args:
        network: a detector in evaluation mode, on the device where it is to run.
        batches: views of the device that it is judged for.
    """
    where = next(network.parameters()).device
    disturbed = [_disturbed(network, seed) for seed in range(DISTURBED)]
    plain: list[Found] = []
    flipped: list[Found] = []
    shaken: list[list[Found]] = [[] for _ in disturbed]
    features: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        images = batch.to(where).images.float().div(255)
        images = images.contiguous(memory_format=torch.channels_last)
        outputs = network(images)
        found = network.decode(outputs)
        plain.append(_found(found))
        features.append(_features(outputs.features, network, found, images.shape[-1]))
        # One weak change of view: mirrored, and a lamp that is a little stronger.
        changed = ((images.flip(-1) - 0.5) * 1.1 + 0.53).clamp(0, 1)
        flipped.append(_found(network.decode(network(changed)), mirror=images.shape[-1]))
        for copied, seen in zip(disturbed, shaken, strict=True):
            seen.append(_found(copied.decode(copied(images))))
    one = _joined(plain)
    vectors, groups, weights = (torch.cat(v).cpu().numpy() for v in zip(*features, strict=True))
    return {
        "agreement": agreement(one, _joined(flipped)),
        "flatness": float(np.mean([agreement(one, _joined(seen)) for seen in shaken])),
        "confidence": confidence(one),
        "separation": separation(vectors, groups, weights),
    }


def _disturbed(network: nn.Module, seed: int) -> Any:
    """Return a copy whose filters have noise that is relative to their own size.

    The same noise for every epoch; biases and norms stay (Li et al., Visualizing the Loss Landscape
    of Neural Nets, NeurIPS 2018, normalise directions filter by filter, too).
    """
    copied = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    for weight in copied.parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            size = weight.flatten(1).square().mean(1).sqrt()
            weight.add_(NOISE * noise * size.view(-1, *[1] * (weight.ndim - 1)))
    return copied


def _found(detections: Any, mirror: int | None = None) -> Found:
    boxes, scores = detections.boxes.float(), detections.scores.float() * detections.mask
    if mirror is not None:
        x1, y1, x2, y2 = boxes.unbind(-1)
        boxes = torch.stack([mirror - x2, y1, mirror - x1, y2], -1)
    return Found(boxes.cpu().numpy(), scores.cpu().numpy(), detections.labels.cpu().numpy())


def _joined(parts: list[Found]) -> Found:
    return Found(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.labels for p in parts]),
    )


def _features(
    maps: list[Tensor], network: Any, found: Any, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, groups and weights of the best detections and of the ground beside them.

    The ground is looked at through boxes of the detections' mean size in a regular grid; each
    weighs what remains of 1 after the best score of the detections that it touches.
    """
    boxes, labels = found.boxes[:, :CELLS].float(), found.labels[:, :CELLS]
    scores = found.scores[:, :CELLS].float() * found.mask[:, :CELLS]
    if network.exclusive:  # one cell and no ground
        return maps[0].flatten(1).float(), labels[:, 0], scores[:, 0]
    size = ((boxes[..., 2:] - boxes[..., :2]) * scores.unsqueeze(-1)).sum((0, 1))
    half = (size / scores.sum().clamp(min=1e-6)).clamp(side / 32, side / 2) / 2
    centre = (torch.arange(GROUND, device=boxes.device) + 0.5) * (side / GROUND)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()], -1)
    grid = torch.cat([place - half, place + half], -1).clamp(0, side)
    low = torch.maximum(grid[None, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(grid[None, :, None, 2:], boxes[:, None, :, 2:])
    touched = ((high > low).all(-1) * scores.unsqueeze(1)).amax(-1)
    every = torch.cat([boxes, grid.expand(len(boxes), -1, -1)], 1)
    ground = torch.full_like(touched, network.classes, dtype=labels.dtype)
    pooled = [
        roi_align(feature.float(), list(every), 2, 1 / stride, 2, aligned=True).mean((2, 3))
        for feature, stride in zip(maps, network.strides, strict=True)
    ]
    groups, weights = torch.cat([labels, ground], 1), torch.cat([scores, 1 - touched], 1)
    return torch.cat(pooled, 1), groups.flatten(), weights.flatten()
