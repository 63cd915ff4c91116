"""Cells as the components compare them over devices: labelled ones, and whole views.

Everything has a fixed shape and a mask, so nothing here waits for the device: an image with fewer
cells than there is room for has empty places. The student's own confident cells, and the features
of all, come from the detector (`models.base`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.base import AnyDetector, Outputs, Regions


@torch.no_grad()
def true_regions(
    detector: AnyDetector, outputs: Outputs, targets: Targets, count: int, draw: Draw
) -> Regions:
    """Return ``count`` labelled cells of each image, drawn at random where there are more.

    Cells of unknown type (label -1), mostly cut by the border, are left out.
    """
    known = targets.mask & (targets.labels >= 0)
    count = min(count, detector.most_cells)
    rank = torch.where(known, draw.uniform(*known.shape), -1.0)
    if rank.shape[1] < count:
        rank = F.pad(rank, (0, count - rank.shape[1]), value=-1.0)
    best, index = rank.topk(count)
    mask = best >= 0
    index = torch.where(mask, index, 0)
    boxes = targets.boxes.float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    labels = torch.where(mask, targets.labels.gather(1, index), 0)
    return Regions(boxes, labels, mask, detector.class_scores(outputs, boxes))


def cell_features(
    detector: AnyDetector, outputs: Outputs, boxes: Tensor, features: str, resolution: int
) -> Tensor:
    """Return what cells are compared by, ``(B, K, D)`` of boxes ``(B, K, 4)``.

    Args:
        detector: which reads them.
        outputs: its raw answer.
        boxes: input pixels.
        features: "regions", or "attributes" for what the attribute head reads.
        resolution: samples per side of a region.
    """
    if features == "attributes":
        return detector.attribute_features(outputs, boxes)
    return detector.region_features(outputs, boxes, resolution)


def pool_maps(outputs: Outputs) -> Tensor:
    """Average each level over the whole view, levels side by side: ``(B, levels x D)`` float32."""
    return torch.cat([f.float().mean((2, 3)) for f in outputs.features], 1)
