"""Pseudo-labels from an EMA teacher on the weak view, learned on the strong view of the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.pseudo import (
    ClassCounts,
    ClassThresholds,
    attribute_codes,
    disagreement,
    labelled_classes,
    pseudo_labels,
    strength,
)
from da_leukemia.adaptation.settings import MeanTeacher as Settings

_ATTRIBUTED = 50
"""At most this many of the best detections of an image teach attributes."""


class MeanTeacher(Component):
    """Hard pseudo-labels with a band of doubt that teaches nothing.

    Detections of the teacher above a threshold are taken for cells, locations that it scores below
    ``negative`` for background, everything between is left out of the loss. Only classes and
    attributes that the source labels take part.

    Args:
        settings: see there.
        classes: number of classes, for what is kept of each; 0 keeps nothing.
        attributes: number of values of each attribute.
    """

    needs_teacher = True

    def __init__(
        self, settings: Settings, classes: int = 0, attributes: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = tuple(attributes)
        self.counts = ClassCounts(classes) if classes else None
        self.thresholds = (
            ClassThresholds(classes, settings.threshold, settings.low, settings.high)
            if settings.adaptive
            else None
        )
        self.taught_attributes: Tensor
        self.register_buffer("taught_attributes", torch.zeros(len(self.sizes), dtype=torch.bool))

    def wants_target(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Detection losses against the teacher's pseudo-labels."""
        source = context.source_targets
        if self.counts is not None:
            self.counts.see_source(source)
        if self.sizes:
            known = (source.attributes >= 0) & source.mask.unsqueeze(-1)
            self.taught_attributes.logical_or_(known.any(0).any(0))
        if context.target is None or not self.wants_target(context.progress):
            return {}
        labelled = labelled_classes(source)
        taught = context.taught
        found = taught.detections
        threshold: Tensor | float = self.settings.threshold
        if self.thresholds is not None:
            self.thresholds.update(found, self.settings.negative)
            threshold = self.thresholds.of(found.labels)
        pseudo, confident = pseudo_labels(found, labelled, threshold)
        doubt = taught.peaks(labelled) > self.settings.negative
        loss = context.detector.pseudo_loss(
            context.target, pseudo, taught.outputs, found, self.settings.negative, context.draw
        )
        weight = self.settings.weight * strength(
            context.progress, self.settings.burn_in, self.settings.ramp
        )
        out = {"teacher_class": weight * loss}
        if self.settings.attribute_weight > 0 and self.sizes:
            out["teacher_attribute"] = weight * self._attributes(context, confident)
        self._report(context, found.labels, confident, doubt, labelled)
        return out

    def _attributes(self, context: StepContext, confident: Tensor) -> Tensor:
        """Cross-entropy against the attributes that the teacher is sure of."""
        head, found = context.detector.attributes, context.taught.detections
        assert head is not None
        assert context.target is not None
        part = slice(0, _ATTRIBUTED)
        usable = confident[:, part].unsqueeze(-1) & self.taught_attributes
        codes = attribute_codes(
            found.attributes[:, part], self.sizes, self.settings.attribute_threshold, usable
        )
        boxes = found.boxes[:, part]
        logits = context.detector.attributes_at(context.target, boxes)
        sure = (codes >= 0).float().sum() / usable.float().sum().clamp(min=1)
        context.log("health/pseudo_attribute_share", sure)
        factor = self.settings.attribute_weight * context.detector.attribute_weight
        loss: Tensor = factor * head.loss(logits, codes)
        return loss

    def _report(
        self,
        context: StepContext,
        labels: Tensor,
        confident: Tensor,
        doubt: Tensor,
        labelled: Tensor,
    ) -> None:
        assert context.target is not None
        context.log("health/pseudo_boxes_per_image", confident.float().sum(1).mean())
        context.log("health/doubtful_share", doubt.float().mean())
        apart = disagreement(
            context.taught.places.scores,
            context.detector.scores_beside(context.target, context.taught.outputs),
            labelled,
            self.settings.negative,
        )
        context.log("health/disagreement", apart)
        if self.counts is not None:
            self.counts.report(context, labels, confident)
        if self.thresholds is not None:
            values = self.thresholds.values
            context.log("health/threshold_min", values.min())
            context.log("health/threshold_mean", values.mean())
            context.log("health/threshold_max", values.max())
