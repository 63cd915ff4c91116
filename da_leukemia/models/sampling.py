"""Which anchors and proposals Faster R-CNN learns from: static, over all images of a batch at once.

Torchvision's matcher and sampler go image by image and draw from the global generator; these have
a fixed shape and draw from the generator they are given, so that what a target image or a component
draws moves nothing on the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw


@dataclass
class Match:
    """For every candidate box of every image.

    Attributes:
        positive: ``(B, N)`` bool.
        box: ``(B, N)`` int64, index of the cell it answers for.
        background: ``(B, N)`` bool, known to be no cell.
    """

    positive: Tensor
    box: Tensor
    background: Tensor


def match(
    candidates: Tensor, targets: Targets, high: float, low: float, claim: bool = False
) -> Match:
    """Match boxes with cells by overlap (Ren et al., NeurIPS 2015).

    Args:
        candidates: ``(B, N, 4)``, or ``(1, N, 4)`` where all images have the same.
        targets: padded labels. A candidate that overlaps a cell of unknown type by ``low``, or has
            half of itself in it, is no background; nor is one whose centre lies outside the
            annotated regions.
        high: IoU from which a candidate answers for a cell.
        low: IoU below which it is background; between the two it is neither.
        claim: let each cell claim its best candidates, however low they overlap.
    """
    a, b = candidates.unsqueeze(2), targets.boxes.unsqueeze(1)
    wide = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    tall = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    shared = wide * tall  # (B, N, M)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    iou = shared / (area_a + area_b - shared).clamp(min=1e-6)
    labelled = targets.classes.gather(1, targets.labels.clamp(min=0)) & (targets.labels >= 0)
    known = (targets.mask & labelled).unsqueeze(1)
    unknown = (targets.mask & ~labelled).unsqueeze(1)
    doubtful = (unknown & ((iou >= low) | (shared >= area_a.clamp(min=1e-6) / 2))).any(-1)
    iou = torch.where(known, iou, -1.0)
    best, box = iou.max(-1)
    positive = best >= high
    if claim:
        top = iou.amax(1, keepdim=True)
        positive = positive | ((iou == top) & (top > 0)).any(-1)
    background = ~positive & ~doubtful & (best < low)
    searched = targets.searched((candidates[..., :2] + candidates[..., 2:]) / 2)
    return Match(positive, box, background if searched is None else background & searched)


def sample(found: Match, count: int, share: float, draw: Draw | None) -> tuple[Tensor, Tensor]:
    """Draw ``count`` candidates of each image, up to ``share`` of them positive.

    Background fills the rest, so an image with few cells teaches more background.

    Args:
        found: who is what.
        count: places of an image.
        share: largest share of positives.
        draw: random numbers; None: torch's global ones.

    Returns:
        Indices ``(B, count)`` and a mask of the places that hold a candidate; positives first.
    """
    shape = found.positive.shape
    chance = (
        torch.rand(shape, device=found.positive.device) if draw is None else draw.uniform(*shape)
    )
    count = min(count, shape[1])
    most = min(max(1, int(count * share)), shape[1])
    best, first = torch.where(found.positive, chance, -1.0).topk(most)
    chosen = torch.zeros_like(found.positive).scatter(1, first, best >= 0)
    # Positives that were not drawn stay out; those that were rank above all background.
    rank = torch.where(chosen, chance + 2, torch.where(found.background, chance, -1.0))
    best, index = rank.topk(count)
    return index, best >= 0
