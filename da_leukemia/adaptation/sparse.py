"""Learning from fields of which only patches are annotated (SLA-Det; see docs/sparse.md).

That what lies outside the patches is no background is the detectors' own business
(`Targets.regions`). Here is what can be learned there all the same, and the stage before: the
patches alone. On fields that are annotated whole these components do nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.pseudo import strength
from da_leukemia.adaptation.regions import true_regions
from da_leukemia.adaptation.settings import PatchCrops as CropSettings
from da_leukemia.adaptation.settings import SparseSimilarity as SimilaritySettings
from da_leukemia.adaptation.settings import SparseTeacher as TeacherSettings
from da_leukemia.config import Augmentation
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw, warp_images, warp_targets
from da_leukemia.models.base import Detections, Regions
from da_leukemia.models.losses import paired_iou


def outside(found: Detections, targets: Targets, overlap: float) -> Tensor:
    """Tell which detections ``(B, K)`` are cells that nobody was asked to annotate.

    Their centre lies outside the annotated regions, their type is one that the device labels, and
    they do not overlap an annotated box by more than ``overlap`` (IoU).
    """
    searched = targets.searched((found.boxes[..., :2] + found.boxes[..., 2:]) / 2)
    assert searched is not None
    iou, _ = paired_iou(found.boxes.unsqueeze(2), targets.boxes.float().unsqueeze(1))
    apart = ((iou <= overlap) | ~targets.mask.unsqueeze(1)).all(-1)
    return found.mask & ~searched & apart & targets.classes.gather(1, found.labels)


def reaches_in(boxes: Tensor, regions: Tensor) -> Tensor:
    """Tell which boxes ``(B, K, 4)`` share ground with a region ``(B, R, 4)`` of their image."""
    low = torch.maximum(boxes[..., :2].unsqueeze(2), regions[..., :2].unsqueeze(1))
    high = torch.minimum(boxes[..., 2:].unsqueeze(2), regions[..., 2:].unsqueeze(1))
    return (high > low).all(-1).any(-1)


class SparseTeacher(Component):
    """Confident detections of the EMA teacher outside the annotated patches, learned as cells.

    The teacher sees the weak view of the source, the student the strong one. Nothing is learned as
    background there, and nothing at all inside the patches: a cell that reaches into one is left
    out, since the supervised loss calls the ground there background.
    """

    needs_teacher = True

    def __init__(self, settings: TeacherSettings) -> None:
        super().__init__()
        self.settings = settings

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Class and box losses of the pseudo-labelled cells."""
        settings, targets = self.settings, context.source_targets
        if targets.regions is None or context.progress < settings.burn_in:
            return {}
        found = context.taught_source.detections
        sure = outside(found, targets, settings.overlap) & (found.scores >= settings.threshold)
        sure &= ~reaches_in(found.boxes, targets.regions)
        pseudo = Targets(
            found.boxes,
            torch.where(sure, found.labels, -1),
            found.labels.new_full((*sure.shape, 0), -1),
            sure,
            targets.classes,
            torch.zeros_like(targets.regions),  # no background anywhere
        )
        context.log("health/outside_cells_per_image", sure.float().sum(1).mean())
        learned = context.detector.loss(context.source, pseudo, draw=context.draw, attributes=False)
        factor = settings.weight * strength(context.progress, settings.burn_in, settings.ramp)
        return {
            f"outside_{name}": factor * value
            for name, value in learned.items()
            if settings.boxes or not name.endswith("box")
        }


class SparseSimilarity(Component):
    """Features of uncertain detections outside the patches drawn to annotated cells of their type.

    And pushed off those of other types. The annotated cells' own features are not moved by it.
    """

    needs_teacher = True

    def __init__(self, settings: SimilaritySettings) -> None:
        super().__init__()
        self.settings = settings

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """One minus the cosine within a type, the cosine above the margin between types."""
        settings, targets = self.settings, context.source_targets
        running = settings.burn_in <= context.progress < settings.until
        if targets.regions is None or not running:
            return {}
        found, detector = context.taught_source.detections, context.detector
        uncertain = outside(found, targets, settings.overlap)
        uncertain &= (found.scores >= settings.low) & (found.scores < settings.high)
        asked = _first(found, uncertain, settings.regions)
        known = true_regions(detector, context.source, targets, settings.regions, context.draw)
        with torch.autocast(asked.boxes.device.type, enabled=False):
            features, anchors = (
                F.normalize(
                    detector.region_features(context.source, r.boxes, settings.resolution), dim=-1
                ).flatten(0, 1)
                for r in (asked, known)
            )
            cosine = features @ anchors.detach().T
        both = asked.mask.flatten()[:, None] & known.mask.flatten()
        alike = asked.labels.flatten()[:, None] == known.labels.flatten()
        pull = _mean(1 - cosine, both & alike)
        push = _mean((cosine - settings.margin).clamp(min=0), both & ~alike)
        context.log("health/uncertain_cells_per_image", asked.mask.float().sum(1).mean())
        factor = settings.weight * strength(context.progress, settings.burn_in, settings.ramp)
        return {"outside_similarity": factor * (pull + push)}


def _first(found: Detections, wanted: Tensor, count: int) -> Regions:
    """Return up to ``count`` of the wanted detections of each image, the best ones."""
    rank, index = torch.where(wanted, found.scores, -1.0).topk(min(count, wanted.shape[1]))
    mask = rank >= 0
    boxes = found.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    labels = torch.where(mask, found.labels.gather(1, index), 0)
    return Regions(boxes, labels, mask, boxes.new_zeros((*mask.shape, 0)))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


class PatchCrops(Component):
    """For a share of training the source is seen as crops of its annotated patches, enlarged.

    Everything in such a view is annotated, so it teaches background as usual. A field with several
    patches shows one of them each time; one whose patch left the view teaches nothing.
    """

    def __init__(self, settings: CropSettings) -> None:
        super().__init__()
        self.settings = settings
        self._progress = 0.0

    def begin(self, draw: Draw, progress: float) -> None:
        """Note whether this is the first stage."""
        del draw
        self._progress = progress

    def vary(self, augmentation: Augmentation) -> Augmentation:
        """Leave whole fields as they are, where the settings say so."""
        if not self.settings.plain_after or self._progress < self.settings.until:
            return augmentation
        return Augmentation(
            flip=0.0,
            scale=[1.0, 1.0],
            translate=0.0,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
            hue=0.0,
            blur=0.0,
            noise=0.0,
        )

    def rework(self, images: Tensor, targets: Targets, draw: Draw) -> tuple[Tensor, Targets]:
        """Fit a patch of each image into the view."""
        if targets.regions is None or self._progress >= self.settings.until:
            return images, targets
        return crop_patches(images, targets, draw)


def crop_patches(images: Tensor, targets: Targets, draw: Draw) -> tuple[Tensor, Targets]:
    """Enlarge one annotated region of each image to the view, its aspect kept.

    Args:
        images: ``(B, 3, S, S)`` in 0..1.
        targets: with regions.
        draw: of the region, where there are several.

    Returns:
        Images, around the patch filled with its mean colour, and their labels.
    """
    assert targets.regions is not None
    size = images.shape[-1]
    seen = targets.regions.clamp(0, size)
    there = (seen[..., 2:] - seen[..., :2] >= 1).all(-1)  # (B, R): at least a pixel is in view
    choice = (draw.uniform(*there.shape) * there).argmax(1)
    patch = seen[torch.arange(len(seen), device=seen.device), choice]
    usable = there.any(1)
    view = torch.zeros_like(patch)
    view[:, 2:] = size
    patch = torch.where(usable[:, None], patch, view)
    sides = patch[:, 2:] - patch[:, :2]
    factor = (size / sides.amax(1, keepdim=True)).expand(-1, 2)
    offset = size / 2 - factor * (patch[:, :2] + patch[:, 2:]) / 2
    geometry = torch.stack([factor, offset], -1)

    pixel = torch.arange(size, device=images.device) + 0.5
    across = (pixel >= patch[:, 0, None]) & (pixel < patch[:, 2, None])
    down = (pixel >= patch[:, 1, None]) & (pixel < patch[:, 3, None])
    inside = (down[:, :, None] & across[:, None, :]).unsqueeze(1)
    total = (images * inside).sum((2, 3))
    colour = total / inside.sum((2, 3)).clamp(min=1)
    covered = torch.where(inside, images, colour[:, :, None, None])

    frame = patch * factor.repeat(1, 2) + offset.repeat(1, 2)
    moved = warp_targets(targets, geometry, size, frame=frame)
    assert moved.regions is not None
    everywhere = torch.zeros_like(moved.regions)
    everywhere[:, 0, :2], everywhere[:, 0, 2:] = -math.inf, math.inf
    regions = torch.where(usable[:, None, None], everywhere, moved.regions)
    return warp_images(covered, colour, geometry), replace(moved, regions=regions)
