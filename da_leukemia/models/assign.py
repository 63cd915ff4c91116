"""Which location answers for which cell: static, vectorised over images, points and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from da_leukemia.data.batches import Targets


@dataclass
class Assignment:
    """For every location of every image.

    Attributes:
        positive: ``(B, L)`` bool.
        box: ``(B, L)`` int64, index of the box it answers for (0 where negative).
        background: ``(B, L)`` bool, locations that are known to be no cell, none of them outside
            the annotated regions.
    """

    positive: Tensor
    box: Tensor
    background: Tensor


def assign(
    targets: Targets, points: Tensor, strides: Tensor, radius: float = 1.5, reach: float = 8.0
) -> Assignment:
    """Assign by centre sampling and scale, as in FCOS (Tian et al., ICCV 2019).

    A location is positive for a box if it lies inside it, within ``radius`` strides of its centre
    (or is the nearest to the centre), and its level is the box's: the finest level whose
    ``reach * stride`` is at least the square root of the box's area (the coarsest takes the rest).
    Of several boxes the smallest wins.

    Args:
        targets: padded labels.
        points: ``(L, 2)`` pixel coordinates of the locations.
        strides: ``(L,)`` stride of each location.
        radius: half-width of the centre region in strides.
        reach: largest box side per stride.
    """
    boxes = targets.boxes
    x, y = points[:, 0, None, None], points[:, 1, None, None]  # (L, 1, 1)
    x1, y1, x2, y2 = (boxes[..., i].unsqueeze(0) for i in range(4))  # (1, B, M)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2) & targets.mask
    own = strides[:, None, None]
    off = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    # A cell smaller than a stride may lie between all locations: the one whose square holds its
    # centre answers for it, or it would never be learned.
    near = (inside & (off < radius * own)) | ((off <= own / 2) & targets.mask)

    area = ((x2 - x1) * (y2 - y1)).clamp(min=1e-6)
    side = area.sqrt()
    # The next finer stride of each location, 0 on the finest level. Levels come fine to coarse.
    before = torch.cat([strides.new_zeros(1), strides[:-1]])
    finer = torch.where(before < strides, before, 0).cummax(0).values[:, None, None]
    level = (side > reach * finer) & ((side <= reach * own) | (own == strides[-1]))

    known = targets.labels >= 0
    candidate = near & level & known
    cost = torch.where(candidate, area, torch.inf)  # (L, B, M)
    smallest, box = cost.min(dim=-1)
    positive = smallest < torch.inf
    # Inside any cell, known or not, a location that answers for none is not called background
    # when the cell's type is unknown; for known cells it is (that is how centres sharpen).
    unknown = (inside & ~known).any(-1)
    background = (~positive & ~unknown).T
    searched = targets.searched(points)
    if searched is not None:
        background = background & searched
    return Assignment(positive.T, box.T, background)
