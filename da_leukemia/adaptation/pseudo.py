"""What all self-training shares: pseudo-labels, thresholds, ramps and the figures of its health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da_leukemia.adaptation.base import StepContext
from da_leukemia.data.batches import Targets
from da_leukemia.models.base import Detections


def labelled_classes(targets: Targets) -> Tensor:
    """Return the classes that any image of the source's batch labels, ``(C,)`` bool.

    The teacher was never told what the others look like: on the target they are neither found nor
    called background.
    """
    return targets.classes.any(0)


def strength(progress: float, burn_in: float, ramp: float) -> float:
    """Return 0 before ``burn_in``, then rise to 1 over the share ``ramp`` of training."""
    since = progress - burn_in
    if since < 0:
        return 0.0
    return min(1.0, since / ramp) if ramp > 0 else 1.0


def pseudo_labels(
    found: Detections, labelled: Tensor, threshold: Tensor | float, scores: Tensor | None = None
) -> tuple[Targets, Tensor]:
    """Take confident detections of the labelled classes for cells.

    Args:
        found: the teacher's detections, ``K`` per image.
        labelled: ``(C,)`` bool.
        threshold: score from which a detection is a cell, one or ``(B, K)``.
        scores: ``(B, K)``, judged in place of the class scores.

    Returns:
        The labels, without attributes, and which places hold a cell, ``(B, K)`` bool.
    """
    scores = found.scores if scores is None else scores
    confident = found.mask & labelled[found.labels] & (scores >= threshold)
    labels = torch.where(confident, found.labels, -1)
    attributes = found.labels.new_full((*confident.shape, 0), -1)
    classes = labelled.expand(len(confident), -1)
    return Targets(found.boxes, labels, attributes, confident, classes), confident


def attribute_codes(
    probabilities: Tensor, sizes: Sequence[int], threshold: float, usable: Tensor
) -> Tensor:
    """Return the teacher's confident attributes ``(B, K, A)``, -1 where it is in doubt.

    Args:
        probabilities: ``(B, K, sum(sizes))``.
        sizes: values of each attribute.
        threshold: probability from which a value is taken for true.
        usable: ``(B, K, A)`` bool, or what broadcasts to it.
    """
    best = [part.max(-1) for part in torch.split(probabilities, list(sizes), -1)]
    share = torch.stack([b.values for b in best], -1)
    sure = (share >= threshold) & (share > 0)  # 0: it has no answer
    codes = torch.stack([b.indices for b in best], -1)
    return torch.where(sure & usable, codes, -1)


def disagreement(teacher: Tensor, student: Tensor, labelled: Tensor, floor: float) -> Tensor:
    """Return the mean distance of class scores where the teacher sees a cell.

    Args:
        teacher: ``(B, L, C)`` scores in 0..1.
        student: same shape, at the same places.
        labelled: ``(C,)`` bool.
        floor: teacher score from which a location counts.
    """
    taught = teacher.detach() * labelled
    apart = (taught - student.detach() * labelled).abs().amax(-1)
    seen = (taught.amax(-1) >= floor).float()
    return (apart * seen).sum() / seen.sum().clamp(min=1)


class ClassThresholds(nn.Module):
    """One threshold per class that follows the teacher's confidence in it.

    ``t <- .9 t + .1 * .5 * sqrt(mean p)``, held in a range (MRT; Zhao et al., ICCV 2023), where
    ``p`` are the scores of the detections of that class that are no background.
    """

    def __init__(self, classes: int, start: float, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.values: Tensor
        self.register_buffer("values", torch.full((classes,), start).clamp(low, high))

    @torch.no_grad()
    def update(self, found: Detections, floor: float) -> None:
        """Follow the detections whose score is at least ``floor``; other classes keep theirs."""
        seen = (found.mask & (found.scores >= floor)).float()
        where = F.one_hot(found.labels, len(self.values)) * seen.unsqueeze(-1)
        count = where.sum((0, 1))
        mean = (where * found.scores.unsqueeze(-1)).sum((0, 1)) / count.clamp(min=1)
        moved = (0.9 * self.values + 0.1 * 0.5 * mean.sqrt()).clamp(self.low, self.high)
        self.values.copy_(torch.where(count > 0, moved, self.values))

    def of(self, labels: Tensor) -> Tensor:
        """Return the threshold of each label."""
        return self.values[labels]


class ClassCounts(nn.Module):
    """How often each class is labelled on the source and pseudo-labelled on the target.

    Running sums over about the last thousand steps; they go with the checkpoint.
    """

    decay = 0.999

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.source: Tensor
        self.pseudo: Tensor
        self.register_buffer("source", torch.zeros(classes))
        self.register_buffer("pseudo", torch.zeros(classes))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("source", "pseudo"):  # some components did not count from the beginning
            state.setdefault(prefix + name, getattr(self, name).clone())
        super()._load_from_state_dict(state, prefix, *rest)

    def _add(self, counts: Tensor, labels: Tensor, mask: Tensor) -> None:
        found = F.one_hot(labels.clamp(min=0), len(counts)) * mask.unsqueeze(-1)
        counts.mul_(self.decay).add_(found.sum((0, 1)))

    @torch.no_grad()
    def see_source(self, targets: Targets) -> None:
        """Count the source's labels."""
        self._add(self.source, targets.labels, targets.mask & (targets.labels >= 0))

    @torch.no_grad()
    def see_pseudo(self, labels: Tensor, mask: Tensor) -> None:
        """Count pseudo-labels ``(B, K)``."""
        self._add(self.pseudo, labels, mask)

    def report(self, context: StepContext, labels: Tensor, mask: Tensor) -> None:
        """Count pseudo-labels, and log how far they are from the source's, where it is seen."""
        self.see_pseudo(labels, mask)
        if not context.source_free:
            context.log("health/class_shift", self.shift())

    def shift(self) -> Tensor:
        """Return the share of pseudo-labels to be moved for the source's class histogram, 0..1.

        0 where there is no pseudo-label yet.
        """
        prior = self.source / self.source.sum().clamp(min=1e-6)
        share = self.pseudo / self.pseudo.sum().clamp(min=1e-6)
        apart = (prior - share).abs().sum() / 2
        return torch.where(self.pseudo.sum() > 0, apart, torch.zeros_like(apart))
