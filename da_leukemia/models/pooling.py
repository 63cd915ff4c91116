"""Features under boxes, by a plain gather over all pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REACH = 8.0
"""Largest box side per stride of a level, as `models.assign` has it."""


def grid_places(
    features: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], resolution: int = 1
) -> tuple[Tensor, Tensor]:
    """Return places ``(B, K, R * R, 4)`` in the list of locations and their bilinear weights."""
    boxes = boxes.float()
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
    width = height = start = stride = torch.zeros_like(side)
    first, finer = 0, 0.0
    for number, (feature, own) in enumerate(zip(features, strides, strict=True)):
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


def pool_boxes(
    features: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], resolution: int = 3
) -> Tensor:
    """Average the features of each box, ``(B, K, D)`` float32, on the level that answers for it.

    As RoIAlign with ``resolution`` squared bilinear samples and a mean over them. Written with
    `gather`, whose gradient is repeatable on a GPU, where RoIAlign's is not.

    Args:
        features: pyramid maps ``(B, D, h, w)``, fine to coarse; they get the gradient.
        boxes: ``(B, K, 4)`` input pixels.
        strides: of the levels, fine to coarse.
        resolution: samples per side.
    """
    place, weight = grid_places(features, boxes, strides, resolution)
    batch, count = place.shape[:2]
    flat = torch.cat([f.flatten(2) for f in features], 2).transpose(1, 2)
    index = place.flatten(1).unsqueeze(-1).expand(-1, -1, flat.shape[-1])
    samples = flat.gather(1, index).float().view(batch, count, -1, flat.shape[-1])
    return (samples * weight.flatten(2).unsqueeze(-1)).sum(2) / resolution**2
