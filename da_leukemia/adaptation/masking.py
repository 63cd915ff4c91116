"""Blocks of the target hidden from the student: what is there must follow from what is around."""

from __future__ import annotations

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, Extra, StepContext, Views
from da_leukemia.adaptation.pseudo import (
    ClassCounts,
    disagreement,
    labelled_classes,
    pseudo_labels,
    strength,
)
from da_leukemia.adaptation.settings import MaskedConsistency as ConsistencySettings
from da_leukemia.adaptation.settings import Masking as MaskingSettings
from da_leukemia.data.views import Draw
from da_leukemia.models.base import Outputs


def hide_blocks(images: Tensor, block: int, ratio: float, draw: Draw) -> Tensor:
    """Replace each block, with probability ``ratio``, by the image's mean colour.

    Args:
        images: ``(B, 3, S, S)``.
        block: side of a block in pixels.
        ratio: share of blocks that is hidden.
        draw: random numbers.
    """
    batch, _, size, _ = images.shape
    count = -(-size // block)
    hidden = draw.uniform(batch, 1, count, count) < ratio
    hidden = hidden.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :size, :size]
    return torch.where(hidden, images.mean((2, 3), keepdim=True), images)


class Masking(Component):
    """An augmentation of the student's target view; it teaches nothing by itself."""

    def __init__(self, settings: MaskingSettings) -> None:
        super().__init__()
        self.settings = settings

    def disguise(self, target: Tensor, draw: Draw) -> Tensor:
        """See `hide_blocks`."""
        return hide_blocks(target, self.settings.block, self.settings.ratio, draw)


class MaskedConsistency(Component):
    """MIC: the masked strong view must match the teacher's pseudo-labels on the whole weak one.

    The student sees the masked view beside the others, so that a discriminator in the same method
    is not handed the mask as a mark of the target.
    """

    needs_teacher = True

    def __init__(self, settings: ConsistencySettings, classes: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.counts = ClassCounts(classes) if classes else None

    def composes(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def compose(self, views: Views) -> Extra:
        """Hide blocks of the strong view."""
        settings = self.settings
        hidden = hide_blocks(views.target_strong, settings.block, settings.ratio, views.draw)
        return Extra(hidden, self._match)

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Count the source's classes, for the figures."""
        if self.counts is not None:
            self.counts.see_source(context.source_targets)
        return {}

    def _match(self, context: StepContext, masked: Outputs) -> dict[str, Tensor]:
        settings, taught = self.settings, context.taught
        labelled = labelled_classes(context.source_targets)
        found = taught.detections
        pseudo, confident = pseudo_labels(found, labelled, settings.threshold)
        sure = taught.peaks(labelled) <= settings.negative
        detector = context.detector
        loss = detector.pseudo_loss(
            masked, pseudo, taught.outputs, found, settings.negative, context.draw
        )
        context.log("health/pseudo_boxes_per_image", confident.float().sum(1).mean())
        context.log("health/doubtful_share", 1 - sure.float().mean())
        context.log(
            "health/disagreement",
            disagreement(
                taught.places.scores,
                detector.scores_beside(masked, taught.outputs),
                labelled,
                settings.negative,
            ),
        )
        if self.counts is not None:
            self.counts.report(context, found.labels, confident)
        factor = settings.weight * strength(context.progress, settings.burn_in, settings.ramp)
        return {"masked_class": factor * loss}
