"""Losses that detectors share, and those of the one-stage detector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss, element-wise (Li et al., GFL, NeurIPS 2020, eq. 6).

    Args:
        logits: any shape.
        quality: target in 0..1, same shape: IoU of the predicted box at positives, 0 elsewhere.
        beta: focusing exponent.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return cross_entropy * (quality - logits.sigmoid()).abs().pow(beta)


def paired_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes ``(..., 4)`` taken pair by pair.

    Returns:
        ``(iou, giou)``, each ``(...)`` (Rezatofighi et al., CVPR 2019).
    """
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    union = area_a + area_b - overlap
    iou = overlap / union.clamp(min=eps)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=eps)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Binary cross-entropy less the entropy of its target, element-wise.

    Same gradient, but 0 where student and teacher agree, so that its size means something.
    """
    entropy = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    apart = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
    out: Tensor = apart - entropy
    return out
