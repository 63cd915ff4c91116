"""Soft distillation: at every location the student learns what the teacher thinks, unsharpened."""

from __future__ import annotations

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.pseudo import ClassCounts, disagreement, labelled_classes, strength
from da_leukemia.adaptation.settings import Distillation as Settings
from da_leukemia.models.base import Pair
from da_leukemia.models.losses import paired_iou


class Distillation(Component):
    """Class scores against the teacher's probabilities, boxes against its boxes where it sees one.

    With ``harmony``, each location weighs ``sqrt(teacher's score * overlap)`` and no threshold is
    left. Harmonious Teacher takes the overlap from an IoU branch; ours has none, and takes that of
    the teacher's box with the student's at the same location.

    Args:
        settings: see there.
        classes: number of classes, for the count of each; 0 counts nothing.
    """

    needs_teacher = True

    def __init__(self, settings: Settings, classes: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.counts = ClassCounts(classes) if classes else None

    def wants_target(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Class and box loss, each a mean over locations weighted by what the teacher sees."""
        if self.counts is not None:
            self.counts.see_source(context.source_targets)
        if context.target is None or not self.wants_target(context.progress):
            return {}
        settings = self.settings
        labelled = labelled_classes(context.source_targets)
        pairs = context.detector.pairs(
            context.target, context.taught.teacher, context.taught.outputs, labelled
        )
        first, *others = [self._distances(pair) for pair in pairs]
        classes, boxes = first
        for more_classes, more_boxes in others:
            classes, boxes = classes + more_classes, boxes + more_boxes
        peak, best = pairs[0].taught.max(-1)
        positive = peak >= settings.positive
        context.log("health/teacher_positives_per_image", positive.float().sum(1).mean())
        context.log(
            "health/disagreement",
            disagreement(pairs[0].taught, pairs[0].scores, labelled, settings.positive),
        )
        if self.counts is not None:
            self.counts.report(context, best, positive)
        factor = settings.weight * strength(context.progress, settings.burn_in, settings.ramp)
        out = {}
        if settings.class_weight > 0:
            out["teacher_class"] = factor * settings.class_weight * classes
        if settings.box_weight > 0:
            out["teacher_box"] = factor * settings.box_weight * boxes
        return out

    def _distances(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the distance of classes and of boxes over one kind of places."""
        peak = pair.taught.amax(-1)
        overlap, giou = paired_iou(pair.boxes, pair.taught_boxes)
        if self.settings.harmony:
            weight = (peak * overlap.detach()).sqrt()
            # The weight alone would let thousands of weak locations outvote the cells.
            box_weight = weight * peak
        else:
            weight = torch.ones_like(peak)
            box_weight = (peak >= self.settings.positive).float()
        # Divided by the cells that the teacher sees, softly counted, as the supervised loss is by
        # the positive locations: without one this is a sum of next to nothing.
        classes = (pair.apart * weight).sum() / (weight * peak).sum().clamp(min=1)
        return classes, ((1 - giou) * box_weight).sum() / box_weight.sum().clamp(min=1)
