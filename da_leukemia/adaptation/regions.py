"""Cells as the components compare them over devices: true ones, found ones, and their features.

Everything has a fixed shape and a mask, so nothing here waits for the device: an image with fewer
cells than there is room for has empty places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.one_stage import Outputs

REACH = 8.0
"""Largest box side per stride of a level, as `models.assign` has it."""


@dataclass
class Regions:
    """Cells of a batch, ``K`` places per image. Nothing of it carries a gradient.

    Attributes:
        boxes: ``(B, K, 4)`` input pixels.
        labels: ``(B, K)`` class indices, 0 where the place is empty.
        mask: ``(B, K)`` bool, whether there is a cell.
        scores: ``(B, K, C)`` the student's class scores in 0..1 at the cell.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor
    scores: Tensor


@torch.no_grad()
def true_regions(
    outputs: Outputs, targets: Targets, strides: Sequence[int], count: int, draw: Draw
) -> Regions:
    """Return ``count`` labelled cells of each image, drawn at random where there are more.

    Cells of unknown type (label -1), mostly cut by the border, are left out.
    """
    known = targets.mask & (targets.labels >= 0)
    rank = torch.where(known, draw.uniform(*known.shape), -1.0)
    if rank.shape[1] < count:
        rank = F.pad(rank, (0, count - rank.shape[1]), value=-1.0)
    best, index = rank.topk(count)
    mask = best >= 0
    index = torch.where(mask, index, 0)
    boxes = targets.boxes.float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    labels = torch.where(mask, targets.labels.gather(1, index), 0)
    place, weight = (t.squeeze(2) for t in _grid(outputs, boxes, strides, 1))
    nearest = place.gather(-1, weight.argmax(-1, keepdim=True))
    scores = outputs.scores.float().gather(1, nearest.expand(-1, -1, outputs.scores.shape[-1]))
    return Regions(boxes, labels, mask, scores.sigmoid())


@torch.no_grad()
def confident_regions(outputs: Outputs, threshold: float, count: int) -> Regions:
    """Return up to ``count`` detections of each image that score at least ``threshold``.

    Instead of NMS, whose result has no fixed length, a location must be the best of its 3 x 3
    neighbours on its level, as in CenterNet (Zhou et al., 2019).
    """
    scores = outputs.scores.detach().float().sigmoid()
    best, labels = scores.max(-1)
    peaks, first = [], 0
    for feature in outputs.features:
        height, width = feature.shape[-2:]
        level = best[:, first : first + height * width].view(-1, 1, height, width)
        peaks.append((level == F.max_pool2d(level, 3, 1, 1)).flatten(1))
        first += height * width
    top, index = torch.where(torch.cat(peaks, 1), best, -1.0).topk(min(count, best.shape[1]))
    edge = (outputs.points + outputs.strides.unsqueeze(-1) / 2).amax(0)  # width and height
    boxes = outputs.boxes.detach().float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    boxes = torch.minimum(boxes.clamp(min=0), edge.repeat(2))
    mask = (top >= threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 0.5).all(-1)
    labels = torch.where(mask, labels.gather(1, index), 0)
    at = index.unsqueeze(-1).expand(-1, -1, scores.shape[-1])
    return Regions(boxes, labels, mask, scores.gather(1, at))


def _grid(
    outputs: Outputs, boxes: Tensor, strides: Sequence[int], resolution: int
) -> tuple[Tensor, Tensor]:
    """Return places ``(B, K, R * R, 4)`` in the list of locations and their bilinear weights."""
    boxes = boxes.float()
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    width = height = start = stride = torch.zeros_like(side)
    first, finer = 0, 0.0
    for number, (feature, own) in enumerate(zip(outputs.features, strides, strict=True)):
        here = side > finer if number else torch.ones_like(side, dtype=torch.bool)
        rows, columns = feature.shape[-2:]
        width, height = torch.where(here, columns, width), torch.where(here, rows, height)
        start, stride = torch.where(here, first, start), torch.where(here, own, stride)
        first, finer = first + rows * columns, REACH * own
    share = (torch.arange(resolution, device=boxes.device) + 0.5) / resolution
    low, size = boxes[..., :2, None], (boxes[..., 2:] - boxes[..., :2]).unsqueeze(-1)
    # Centre of the first location is half a stride from the border: pixel p is at p / stride - 0.5.
    at = (low + size * share) / stride[..., None, None] - 0.5  # (B, K, 2, R)
    last = torch.stack([width, height], -1).unsqueeze(-1) - 1
    at = torch.minimum(at.clamp(min=0), last)
    before = at.floor()
    after = torch.minimum(before + 1, last)
    right = at - before
    x, y = (torch.stack([before[..., i, :], after[..., i, :]], -1) for i in (0, 1))
    u, v = (torch.stack([1 - right[..., i, :], right[..., i, :]], -1) for i in (0, 1))
    # (B, K, Ry, Rx, 2, 2): rows outside, columns inside, as the maps are flattened.
    row = y[..., :, None, :, None] * width[..., None, None, None, None]
    place = start[..., None, None, None, None] + row + x[..., None, :, None, :]
    weight = v[..., :, None, :, None] * u[..., None, :, None, :]
    return place.long().flatten(2, 3).flatten(3), weight.flatten(2, 3).flatten(3)


def pool_regions(
    outputs: Outputs, boxes: Tensor, strides: Sequence[int], resolution: int = 3
) -> Tensor:
    """Average the features of each box, ``(B, K, D)`` float32, on the level that answers for it.

    As RoIAlign with ``resolution`` squared bilinear samples and a mean over them. Written with
    `gather`, whose gradient is repeatable on a GPU, where RoIAlign's is not.

    Args:
        outputs: of the batch; its features get the gradient.
        boxes: ``(B, K, 4)`` input pixels.
        strides: of the levels, fine to coarse.
        resolution: samples per side.
    """
    place, weight = _grid(outputs, boxes, strides, resolution)
    batch, count = place.shape[:2]
    features = torch.cat([f.flatten(2) for f in outputs.features], 2).transpose(1, 2)
    index = place.flatten(1).unsqueeze(-1).expand(-1, -1, features.shape[-1])
    samples = features.gather(1, index).float().view(batch, count, -1, features.shape[-1])
    return (samples * weight.flatten(2).unsqueeze(-1)).sum(2) / resolution**2


def pool_maps(outputs: Outputs) -> Tensor:
    """Average each level over the whole view, levels side by side: ``(B, levels x D)`` float32."""
    return torch.cat([f.float().mean((2, 3)) for f in outputs.features], 1)
