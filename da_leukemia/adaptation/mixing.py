"""The target's most confident quadrant as training material: pasted on the source, or tiled."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, Extra, StepContext, Views
from da_leukemia.adaptation.pseudo import ClassCounts, labelled_classes, strength
from da_leukemia.adaptation.settings import ConfMix as ConfMixSettings
from da_leukemia.adaptation.settings import Daca as DacaSettings
from da_leukemia.data.batches import VISIBLE, Targets
from da_leukemia.data.views import strong_photometry
from da_leukemia.models.base import Detections, Outputs, Places
from da_leukemia.models.losses import paired_iou

_KEPT = 32
"""Pseudo-labels of one quadrant at most, the best first."""
_VOTERS = 256
"""Places of an image, the best first, whose boxes vote on a detection's certainty."""


def quadrants(size: int, device: torch.device) -> Tensor:
    """Return the four quadrants of an image as boxes ``(4, 4)``, row by row."""
    number = torch.arange(4, device=device)  # made there: a list would have to be copied
    corner = torch.stack([number % 2, number // 2], -1) * (size / 2)
    return torch.cat([corner, corner + size / 2], -1)


def most_confident(boxes: Tensor, scores: Tensor, mask: Tensor, size: int) -> Tensor:
    """Return each image's quadrant with the highest mean score of the boxes centred in it.

    Args:
        boxes: ``(B, K, 4)``.
        scores: ``(B, K)``.
        mask: ``(B, K)`` bool, the boxes that count; a quadrant without one has mean 0.
        size: image side.

    Returns:
        ``(B,)`` 0..3, row by row.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    right, low = (centre[..., 0] >= size / 2).long(), (centre[..., 1] >= size / 2).long()
    own = torch.arange(4, device=boxes.device)
    inside = ((low * 2 + right).unsqueeze(-1) == own) & mask.unsqueeze(-1)  # (B, K, 4)
    total = (scores.unsqueeze(-1) * inside).sum(1)
    return (total / inside.sum(1).clamp(min=1)).argmax(-1)


def box_certainty(found: Detections, places: Places) -> Tensor:
    """Return how well the places that see a cell agree on its box, ``(B, K)`` in 0.5..1, or 0.

    The mean overlap with the detection of the boxes that overlap it by half or more, weighted by
    their scores. It stands in for the predicted variance of ConfMix's detector.
    """
    peaks = places.scores.amax(-1)
    votes, place = peaks.topk(min(_VOTERS, peaks.shape[1]))
    boxes = places.boxes.gather(1, place.unsqueeze(-1).expand(-1, -1, 4))
    overlap, _ = paired_iou(found.boxes.unsqueeze(2), boxes.unsqueeze(1))
    weight = votes.unsqueeze(1) * (overlap >= 0.5)
    return (weight * overlap).sum(-1) / weight.sum(-1).clamp(min=1e-6)


def pseudo_in_quadrant(
    found: Detections,
    scores: Tensor,
    labelled: Tensor,
    region: Tensor,
    threshold: float,
    negative: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's cells in a quadrant of each image, cut at its border.

    Cells between ``negative`` and ``threshold``, and those of which too little is inside, are
    neither cell nor background.

    Args:
        found: the teacher's detections.
        scores: ``(B, K)``, by which they are judged.
        labelled: ``(C,)`` bool, classes that the source labels.
        region: ``(B, 4)``.
        threshold: score of a cell.
        negative: score up to which there is background.

    Returns:
        Boxes ``(B, _KEPT, 4)`` or fewer, labels with -1 = unknown, and the mask of real boxes.
    """
    x1, y1, x2, y2 = (region[:, None, i] for i in range(4))
    low = torch.stack([x1, y1], -1)
    high = torch.stack([x2, y2], -1)
    cut = torch.cat(
        [
            torch.minimum(torch.maximum(found.boxes[..., :2], low), high),
            torch.minimum(torch.maximum(found.boxes[..., 2:], low), high),
        ],
        -1,
    )
    area, whole = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (cut, found.boxes))
    mask = found.mask & labelled[found.labels] & (scores > negative) & (area > 0)
    sure = (scores >= threshold) & (area >= VISIBLE * whole)
    rank = torch.where(mask, scores, -1.0)
    best, place = rank.topk(min(_KEPT, rank.shape[1]))
    labels = torch.where(sure, found.labels, -1).gather(1, place)
    return cut.gather(1, place.unsqueeze(-1).expand(-1, -1, 4)), labels, best >= 0


def uncovered(targets: Targets, region: Tensor) -> Targets:
    """Return the labels of images on which ``region`` ``(B, 4)`` was covered.

    A box is cut where a rectangle of it is left; one that is covered whole is dropped, and one of
    which less than `VISIBLE` is left becomes "ignore".
    """
    x1, y1, x2, y2 = targets.boxes.unbind(-1)
    left, top, right, bottom = (region[:, None, i] for i in range(4))
    wide = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp(min=0)
    tall = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp(min=0)
    area = (x2 - x1) * (y2 - y1)
    share = 1 - wide * tall / area.clamp(min=1e-6)
    across = (tall > 0) & (y1 >= top) & (y2 <= bottom)  # covered over its whole height
    along = (wide > 0) & (x1 >= left) & (x2 <= right)
    # A quadrant reaches one side of the image, so a cell sticks out on the other side alone.
    new_x1 = torch.where(across & (x1 >= left) & (x1 < right), right, x1)
    new_x2 = torch.where(across & (x1 < left) & (x2 > left), left, x2)
    new_y1 = torch.where(along & (y1 >= top) & (y1 < bottom), bottom, y1)
    new_y2 = torch.where(along & (y1 < top) & (y2 > top), top, y2)
    boxes = torch.stack([new_x1, new_y1, new_x2, new_y2], -1)
    gone = share <= 1e-6
    boxes = torch.where(gone.unsqueeze(-1), targets.boxes, boxes)
    labels = torch.where(share < VISIBLE, -1, targets.labels)
    return replace(targets, boxes=boxes, labels=labels, mask=targets.mask & ~gone)


class ConfMix(Component):
    """The most confident quadrant of a target image pasted on a source image.

    The score by which a detection is judged moves from the class score to class score times box
    certainty as training goes on.
    """

    needs_teacher = True

    def __init__(self, settings: ConfMixSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.counts = ClassCounts(classes)

    def composes(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Count the source's classes, for the figures."""
        self.counts.see_source(context.source_targets)
        return {}

    def compose(self, views: Views) -> Extra:
        """Paste, and put together the source's labels outside and the teacher's inside."""
        settings, source = self.settings, views.source_targets
        found, size = views.taught.detections, views.source.shape[-1]
        labelled = labelled_classes(source)
        mixing = (views.progress - settings.burn_in) / (1 - settings.burn_in)  # 0 when it begins
        trust = 2 / (1 + math.exp(-5 * max(0.0, mixing))) - 1
        certainty = box_certainty(found, views.taught.places)
        scores = found.scores * (1 - trust + trust * certainty)

        usable = found.mask & labelled[found.labels] & (scores > settings.negative)
        chosen = most_confident(found.boxes, scores, usable, size)
        region = quadrants(size, scores.device)[chosen]
        pixel = torch.arange(size, device=scores.device) + 0.5
        x1, y1, x2, y2 = (region[:, i, None] for i in range(4))
        columns, rows = (pixel > x1) & (pixel < x2), (pixel > y1) & (pixel < y2)
        pasted = (rows[:, None, :, None] & columns[:, None, None, :]).expand_as(views.source)
        images = torch.where(pasted, views.target_strong, views.source)

        kept = uncovered(source, region)
        boxes, labels, mask = pseudo_in_quadrant(
            found, scores, labelled, region, settings.threshold, settings.negative
        )
        unknown = source.attributes.new_full((*mask.shape, source.attributes.shape[-1]), -1)
        mixed = Targets(
            torch.cat([kept.boxes, boxes], 1),
            torch.cat([kept.labels, labels], 1),
            torch.cat([kept.attributes, unknown], 1),
            torch.cat([kept.mask, mask], 1),
            source.classes,
            # The teacher searched the quadrant; around it, only the patch of the source was.
            None if source.regions is None else torch.cat([source.regions, region[:, None]], 1),
        )
        # The source's labels are certain; of the pasted ones the teacher's confident share is.
        confident = (mixed.mask & (mixed.labels >= 0)).float().sum()
        share = confident / mixed.mask.float().sum().clamp(min=1)
        pseudo = mask & (labels >= 0)
        views.log("health/pseudo_boxes_per_image", pseudo.float().sum(1).mean())
        views.log("health/mixed_confident_share", share)

        def losses(context: StepContext, outputs: Outputs) -> dict[str, Tensor]:
            self.counts.report(context, labels, pseudo)
            ramp = strength(context.progress, settings.burn_in, settings.ramp)
            learned = context.detector.loss(outputs, mixed, draw=context.draw)
            return {f"mixed_{k}": settings.weight * ramp * share * v for k, v in learned.items()}

        return Extra(images, losses)


class Daca(Component):
    """Four augmented copies of the target's most confident quadrant, tiled to an image."""

    needs_teacher = True

    def __init__(self, settings: DacaSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.counts = ClassCounts(classes)

    def composes(self, progress: float) -> bool:
        """After burn-in."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Count the source's classes, for the figures."""
        self.counts.see_source(context.source_targets)
        return {}

    def compose(self, views: Views) -> Extra:
        """Crop, flip and recolour each copy by itself, and tile images and boxes."""
        settings, weak = self.settings, views.target_weak
        found, size = views.taught.detections, weak.shape[-1]
        labelled = labelled_classes(views.source_targets)
        batch, half = len(weak), size // 2
        usable = found.mask & labelled[found.labels] & (found.scores > settings.negative)
        chosen = most_confident(found.boxes, found.scores, usable, size)
        region = quadrants(size, weak.device)[chosen]
        boxes, labels, mask = pseudo_in_quadrant(
            found, found.scores, labelled, region, settings.threshold, settings.negative
        )

        cut = weak.reshape(batch, 3, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        cut = cut[torch.arange(batch, device=weak.device), chosen]  # (B, 3, h, h)
        copies = cut.repeat_interleave(4, 0)
        flip = views.draw.uniform(2, 4 * batch) < 0.5
        across, down = (f.view(-1, 1, 1, 1) for f in flip)
        copies = torch.where(across, copies.flip(3), copies)
        copies = torch.where(down, copies.flip(2), copies)
        copies = strong_photometry(copies, views.augmentation, views.draw)
        tiles = copies.view(batch, 2, 2, 3, half, half).permute(0, 3, 1, 4, 2, 5)
        images = tiles.reshape(batch, 3, size, size)

        local = boxes - region[:, :2].repeat(1, 2).unsqueeze(1)
        x1, y1, x2, y2 = local.repeat_interleave(4, 0).unbind(-1)  # (4 B, K)
        mirrored, upturned = (f.unsqueeze(-1) for f in flip)
        x1, x2 = torch.where(mirrored, half - x2, x1), torch.where(mirrored, half - x1, x2)
        y1, y2 = torch.where(upturned, half - y2, y1), torch.where(upturned, half - y1, y2)
        corner = quadrants(size, weak.device)[:, :2].repeat(batch, 2).unsqueeze(1)
        placed = torch.stack([x1, y1, x2, y2], -1) + corner
        width = boxes.shape[1]
        tiled = Targets(
            placed.view(batch, 4 * width, 4),
            labels.repeat(1, 4),
            labels.new_full((batch, 4 * width, 0), -1),
            mask.repeat(1, 4),
            labelled.expand(batch, -1),
        )
        pseudo = mask & (labels >= 0)
        views.log("health/pseudo_boxes_per_image", pseudo.float().sum(1).mean())

        def losses(context: StepContext, outputs: Outputs) -> dict[str, Tensor]:
            self.counts.report(context, labels, pseudo)
            ramp = strength(context.progress, settings.burn_in, settings.ramp)
            learned = context.detector.loss(outputs, tiled, draw=context.draw, attributes=False)
            return {f"mixed_{k}": settings.weight * ramp * v for k, v in learned.items()}

        return Extra(images, losses)
