"""Pseudo-labels from an EMA teacher on the weak view, learned on the strong view of the target."""

from __future__ import annotations

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.settings import MeanTeacher as Settings
from da_leukemia.data.batches import Targets


class MeanTeacher(Component):
    """Hard pseudo-labels with a band of doubt that teaches nothing.

    Detections of the teacher above ``threshold`` are taken for cells, locations that it scores
    below ``negative`` for background, everything between is left out of the loss.
    """

    needs_teacher = True

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def wants_target(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Detection losses against the teacher's pseudo-labels."""
        if context.target is None or not self.wants_target(context.progress):
            return {}
        assert context.teacher is not None
        assert context.target_weak is not None
        with torch.no_grad():
            outputs = context.teacher(context.target_weak)
            found = context.teacher.decode(outputs)
            confident = found.mask & (found.scores >= self.settings.threshold)
            doubt = outputs.scores.float().sigmoid().amax(-1) > self.settings.negative
        classes = torch.ones(
            len(confident), context.detector.classes, dtype=torch.bool, device=confident.device
        )
        labels = torch.where(confident, found.labels, -1)
        attributes = found.labels.new_full((*confident.shape, 0), -1)
        pseudo = Targets(found.boxes, labels, attributes, confident, classes)
        losses = context.detector.loss(context.target, pseudo, background=~doubt, boxes=False)
        since = context.progress - self.settings.burn_in
        ramp = min(1.0, since / self.settings.ramp) if self.settings.ramp > 0 else 1.0
        context.log("health/pseudo_boxes_per_image", confident.float().sum(1).mean())
        context.log("health/doubtful_share", doubt.float().mean())
        return {"teacher_class": self.settings.weight * ramp * losses["class"]}
