"""Features under boxes: a mean over all pyramid levels, or a grid on one map."""

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


def align_boxes(
    feature: Tensor, boxes: Tensor, stride: int, grid: tuple[int, int], samples: int = 2
) -> Tensor:
    """Pool each box to a grid, ``(B * K, D, rows, columns)`` float32 in channels-last order.

    RoIAlign, aligned (He et al., ICCV 2017), to the last bits. A bilinear sample is a weight by row
    times a weight by column, so that the grid of a box is the map between two matrices. On a CPU
    its gradient takes a seventh of the time of torchvision's, and on a GPU it is repeatable.

    Args:
        feature: map ``(B, D, h, w)``; it gets the gradient.
        boxes: ``(B, K, 4)`` input pixels.
        stride: of the map.
        grid: rows and columns.
        samples: per side of a grid cell.
    """
    batch, channels, height, width = feature.shape
    with torch.autocast(feature.device.type, enabled=False):
        low, high = boxes.float().view(batch, -1, 2, 2).unbind(2)
        by_row = _axis(low[..., 1], high[..., 1], stride, grid[0], height, samples)
        by_column = _axis(low[..., 0], high[..., 0], stride, grid[1], width, samples)
        lines = feature.float().permute(0, 2, 3, 1).reshape(batch, height, -1)
        rows = torch.bmm(by_row.flatten(1, 2), lines).view(batch, -1, grid[0], width, channels)
        pooled = torch.matmul(by_column.unsqueeze(2), rows)
    return pooled.flatten(0, 1).permute(0, 3, 1, 2)


def _axis(low: Tensor, high: Tensor, stride: int, cells: int, size: int, samples: int) -> Tensor:
    """Return how much each of ``size`` places counts in each grid cell, ``(B, K, cells, size)``."""
    share = (torch.arange(cells * samples, device=low.device) + 0.5) / (cells * samples)
    at = (low.unsqueeze(-1) + (high - low).unsqueeze(-1) * share) / stride - 0.5
    inside = (at >= -1) & (at <= size)  # as RoIAlign has it: further out there is nothing
    away = at.clamp(0, size - 1).unsqueeze(-1) - torch.arange(size, device=low.device)
    weight = (1 - away.abs()).clamp(min=0) * inside.unsqueeze(-1)
    return weight.view(*low.shape, cells, samples, size).mean(3)
