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


def asymmetric_loss(
    logits: Tensor,
    positive: Tensor,
    negative_focus: float = 4.0,
    positive_focus: float = 1.0,
    clip: float = 0.08,
) -> Tensor:
    """Asymmetric loss, element-wise (Ridnik et al., ICCV 2021, eq. 4 to 7).

    A negative that is easy counts less than a positive that is, and one below ``clip`` nothing. The
    constants are AttriDet's.

    Args:
        logits: any shape; every element is a yes-or-no question.
        positive: whether yes, 0 or 1 of the same shape.
        negative_focus: focusing exponent of negatives.
        positive_focus: of positives.
        clip: probability by which negatives are shifted.
    """
    yes = logits.sigmoid()
    shifted = (yes - clip).clamp(min=0)
    of_positive = (1 - yes).pow(positive_focus) * F.logsigmoid(logits)
    of_negative = shifted.pow(negative_focus) * torch.log1p(-shifted)
    return -torch.where(positive.bool(), of_positive, of_negative)


def class_balanced_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Weights by the effective number of samples (Cui et al., CVPR 2019, eq. 2).

    (1 - beta) / (1 - beta^n). As there, they sum to the number of values; of those that occur,
    since the weight of a value that never does is 0. All are 1 where nobody counted (-1).

    Args:
        counts: ``(V,)`` samples of each value.
        beta: how fast a further sample stops to count; .999 is their middle choice.
    """
    number = counts.double()
    weights = torch.where(number > 0, (1 - beta) / (1 - beta ** number.clamp(min=1)), 0.0)
    weights = weights * ((number > 0).sum() / weights.sum().clamp(min=1e-12))
    return torch.where((counts < 0).any(), torch.ones_like(weights), weights).float()
