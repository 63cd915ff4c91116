"""Losses that detectors share, and those of the one-stage detector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.data.batches import Targets


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


class CellLoss:
    """How the label of a single cell is learned.

    Args:
        kind: "cross_entropy"; "class_balanced", weighted by the effective number of cells of a
            class (Cui et al., CVPR 2019); "logit_adjusted", with the log of the class's share
            added to its logit (Menon et al., ICLR 2021); "focal" (Lin et al., ICCV 2017).
        beta: of the effective number, ``(1 - beta^n) / (1 - beta)``.
        tau: factor of the log share.
        gamma: exponent of the focal loss.
        smoothing: share of a label that is spread over all classes of its device.
        conflicts: what a cell with several labels teaches: "soft" all of them alike, "own" the
            first, "skip" nothing.
    """

    def __init__(
        self,
        kind: str = "cross_entropy",
        *,
        beta: float = 0.999,
        tau: float = 1.0,
        gamma: float = 2.0,
        smoothing: float = 0.0,
        conflicts: str = "soft",
    ) -> None:
        self.kind = kind
        self.beta = beta
        self.tau = tau
        self.gamma = gamma
        self.smoothing = smoothing
        self.conflicts = conflicts

    def __call__(self, logits: Tensor, targets: Targets, allowed: Tensor, counts: Tensor) -> Tensor:
        """Return the mean over cells of known type, 0 without any.

        Args:
            logits: ``(B, C)`` float32, far below all others for classes that are not allowed.
            targets: a cell's own label first, then those of its copies.
            allowed: ``(B, C)`` bool, the classes that a cell's label was chosen from.
            counts: ``(C,)`` cells of each class in training.
        """
        truth, known = self.truth(targets, allowed)
        share = counts / counts.sum().clamp(min=1)
        if self.kind == "logit_adjusted":
            logits = logits + self.tau * share.clamp(min=1e-12).log()
        log = logits.log_softmax(-1)
        each = -truth * log
        if self.kind == "focal":
            each = each * (1 - log.exp()).pow(self.gamma)
        if self.kind == "class_balanced":
            weight = class_balanced_weights(counts, self.beta)
            each = each * weight / (weight * share).sum().clamp(min=1e-12)  # the mean cell weighs 1
        return (each.sum(-1) * known).sum() / known.sum().clamp(min=1)

    def truth(self, targets: Targets, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the label of each cell as a distribution ``(B, C)``, and which are known."""
        real = targets.mask & (targets.labels >= 0)
        known = real[:, 0]
        if self.conflicts == "skip":
            known = known & (real.sum(1) == 1)
        if self.conflicts == "own":
            real = real & (torch.arange(real.shape[1], device=real.device) == 0)
        one_hot = F.one_hot(targets.labels.clamp(min=0), allowed.shape[1]) * real.unsqueeze(-1)
        truth = one_hot.sum(1) * allowed
        truth = truth / truth.sum(-1, keepdim=True).clamp(min=1)
        # What is allowed nowhere, as a class of few shots that training was not told of, is out.
        known = known & truth.any(-1)
        flat = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)
        return (1 - self.smoothing) * truth + self.smoothing * flat, known.float()
