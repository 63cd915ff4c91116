"""The project's detector: one-stage, anchor-free, multi-task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da_leukemia.config import Attributes
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.assign import assign
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.base import (
    Detections,
    DetectorBase,
    Outputs,
    Pair,
    Places,
    Regions,
    taught_by_first,
)
from da_leukemia.models.losses import paired_iou, quality_focal_loss, soft_cross_entropy
from da_leukemia.models.pooling import grid_places, pool_boxes
from da_leukemia.models.pyramid import FeaturePyramid, conv_block


@dataclass
class DenseOutputs(Outputs):
    """Raw maps of a batch; ``L`` locations over all levels, fine to coarse.

    Attributes:
        scores: ``(B, L, C)`` class logits.
        boxes: ``(B, L, 4)`` boxes in input pixels.
        points: ``(L, 2)`` location centres in input pixels.
        strides: ``(L,)``.
    """

    scores: Tensor
    boxes: Tensor
    points: Tensor
    strides: Tensor

    def select(self, part: slice) -> Self:
        """Return the outputs of some images of the batch."""
        maps = super().select(part)
        return replace(maps, scores=self.scores[part], boxes=self.boxes[part])


class Head(nn.Module):
    """Decoupled classification and box towers, shared over levels."""

    def __init__(self, channels: int, depth: int, classes: int, levels: int) -> None:
        super().__init__()
        self.class_tower = nn.Sequential(*(conv_block(channels, channels) for _ in range(depth)))
        self.box_tower = nn.Sequential(*(conv_block(channels, channels) for _ in range(depth)))
        self.score = nn.Conv2d(channels, classes, 3, padding=1)
        self.distance = nn.Conv2d(channels, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(levels))
        for layer in (self.score, self.distance):
            nn.init.normal_(layer.weight, std=0.01)
        # Start from "almost everything is background" (RetinaNet's prior), and from boxes four
        # strides wide, the middle of a level's range.
        assert self.score.bias is not None
        assert self.distance.bias is not None
        nn.init.constant_(self.score.bias, -math.log((1 - 0.01) / 0.01))
        nn.init.constant_(self.distance.bias, math.log(2.0))

    def forward(self, features: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return class logits ``(B, hw, C)`` and distances in strides ``(B, hw, 4)``."""
        scores = self.score(self.class_tower(features)).flatten(2).transpose(1, 2)
        raw = self.distance(self.box_tower(features)).flatten(2).transpose(1, 2)
        return scores, (raw.float() * self.scale[level]).clamp(max=6).exp()


class OneStageDetector(DetectorBase[DenseOutputs]):
    """Decoupled heads on every location of the pyramid.

    Args:
        backbone: the feature extractor, one map per stride.
        classes: number of cell types.
        attribute_sizes: values of each attribute; empty for no attribute head.
        channels: width of pyramid and heads.
        depth: convolutions per tower.
        attribute_weight: see `DetectorBase`, also for the rest.
        attribute_gradient: see there.
        attribute_settings: see there.
        score_threshold: see there.
        nms_iou: see there.
        max_detections: see there.
    """

    kind = "one_stage"
    head: Head

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        attribute_sizes: Sequence[int] = (),
        *,
        channels: int = 64,
        depth: int = 2,
        attribute_weight: float = 0.2,
        attribute_gradient: float = 0.1,
        attribute_settings: Attributes | None = None,
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        super().__init__(
            backbone,
            FeaturePyramid(backbone.channels, channels),
            Head(channels, depth, classes, len(backbone.strides)),
            classes,
            attribute_sizes,
            channels=channels,
            attribute_weight=attribute_weight,
            attribute_gradient=attribute_gradient,
            attribute_settings=attribute_settings,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
        )
        self.region_channels = channels

    def forward(self, images: Tensor, learned: int | None = None) -> DenseOutputs:
        """See `DetectorBase.forward`."""
        features, shallow = self.see(images)
        scores, boxes, points, strides = [], [], [], []
        for level, (stride, feature) in enumerate(zip(self.strides, features, strict=True)):
            read = partial(self._read, level=level)
            score, distance = taught_by_first(read, [feature], learned)
            height, width = feature.shape[-2:]
            rows = (torch.arange(height, device=images.device) + 0.5) * stride
            columns = (torch.arange(width, device=images.device) + 0.5) * stride
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            point = torch.stack([x.flatten(), y.flatten()], -1)
            low = point - distance[..., :2] * stride
            high = point + distance[..., 2:] * stride
            scores.append(score)
            boxes.append(torch.cat([low, high], -1))
            points.append(point)
            strides.append(point.new_full((len(point),), stride))
        return DenseOutputs(
            features,
            torch.cat(scores, 1),
            torch.cat(boxes, 1),
            torch.cat(points),
            torch.cat(strides),
            shallow=shallow,
        )

    def _read(self, maps: list[Tensor], level: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.head(maps[0], level)
        return found

    def loss(
        self,
        outputs: DenseOutputs,
        targets: Targets,
        *,
        draw: Draw | None = None,
        attributes: bool = True,
        background: Tensor | None = None,
        boxes: bool = True,
    ) -> dict[str, Tensor]:
        """See `DetectorBase.loss`. Every location takes part, so none is drawn.

        Args:
            outputs: raw maps.
            targets: padded labels; an image without boxes teaches background.
            draw: for the dropout of the attribute head.
            attributes: whether the attribute loss is wanted.
            background: ``(B, L)`` bool, where False a negative location teaches nothing.
            boxes: whether box and attribute losses are wanted.
        """
        found = assign(targets, outputs.points, outputs.strides)
        index = found.box
        truth = targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        iou, giou = paired_iou(outputs.boxes.float(), truth)
        positive = found.positive.float()
        normaliser = positive.sum().clamp(min=1)

        labels = targets.labels.gather(1, index).clamp(min=0)
        quality = F.one_hot(labels, self.classes) * (positive * iou.detach()).unsqueeze(-1)
        negative = found.background if background is None else found.background & background
        weight = (found.positive | negative).float().unsqueeze(-1) * targets.classes.unsqueeze(1)
        focal = quality_focal_loss(outputs.scores.float(), quality)
        losses = {"class": (focal * weight).sum() / normaliser}
        if not boxes:
            return losses
        losses["box"] = ((1 - giou) * positive).sum() / normaliser
        return losses | self.attribute_loss(outputs, targets, draw) if attributes else losses

    def places(self, outputs: DenseOutputs) -> Places:
        """Return class scores and boxes of every location."""
        return Places(outputs.scores.float().sigmoid(), outputs.boxes.float())

    # --- adaptation --------------------------------------------------------------------------

    def objectness(self, outputs: DenseOutputs) -> list[Tensor]:
        """Return the best class score of each location."""
        scores = outputs.scores.detach().float().sigmoid().amax(-1)
        return list(torch.split(scores, [f.shape[-2] * f.shape[-1] for f in outputs.features], 1))

    @torch.no_grad()
    def class_scores(self, outputs: DenseOutputs, boxes: Tensor) -> Tensor:
        """Return the scores of the location in the middle of each box."""
        place, weight = (t.squeeze(2) for t in grid_places(outputs.features, boxes, self.strides))
        nearest = place.gather(-1, weight.argmax(-1, keepdim=True))
        scores = outputs.scores.float().gather(1, nearest.expand(-1, -1, outputs.scores.shape[-1]))
        return scores.sigmoid()

    @torch.no_grad()
    def confident(self, outputs: DenseOutputs, threshold: float, count: int) -> Regions:
        """See `DetectorBase.confident`.

        Instead of NMS, whose result has no fixed length, a location must be the best of its 3 x 3
        neighbours on its level, as in CenterNet (Zhou et al., 2019).
        """
        scores = outputs.scores.detach().float().sigmoid()
        best, labels = scores.max(-1)
        peaks, first = [], 0
        for feature in outputs.features:
            height, width = feature.shape[-2:]
            level = best[:, first : first + height * width].view(-1, 1, height, width)
            peaks.append((level == F.max_pool2d(level, 3, 1, 1)).flatten(1))
            first += height * width
        top, index = torch.where(torch.cat(peaks, 1), best, -1.0).topk(min(count, best.shape[1]))
        edge = (outputs.points + outputs.strides.unsqueeze(-1) / 2).amax(0)  # width and height
        boxes = outputs.boxes.detach().float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        boxes = torch.minimum(boxes.clamp(min=0), edge.repeat(2))
        mask = (top >= threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 0.5).all(-1)
        labels = torch.where(mask, labels.gather(1, index), 0)
        at = index.unsqueeze(-1).expand(-1, -1, scores.shape[-1])
        return Regions(boxes, labels, mask, scores.gather(1, at))

    def region_features(self, outputs: DenseOutputs, boxes: Tensor, resolution: int = 3) -> Tensor:
        """Average the pyramid under each box: see `pool_boxes`."""
        return pool_boxes(outputs.features, boxes, self.strides, resolution)

    @torch.no_grad()
    def ground_feature(self, outputs: DenseOutputs, targets: Targets) -> Tensor:
        """Average the features of the locations outside all cells."""
        x, y = outputs.points[None, :, None, 0], outputs.points[None, :, None, 1]
        x1, y1, x2, y2 = (targets.boxes[:, None, :, i] for i in range(4))  # (B, 1, M)
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2) & targets.mask.unsqueeze(1)
        ground = ~inside.any(-1)
        searched = targets.searched(outputs.points)
        ground = (ground if searched is None else ground & searched).float()
        features = torch.cat([f.flatten(2) for f in outputs.features], 2).float()
        return (features * ground.unsqueeze(1)).sum((0, 2)) / ground.sum().clamp(min=1)

    def pseudo_loss(
        self,
        outputs: DenseOutputs,
        pseudo: Targets,
        taught: DenseOutputs,
        found: Detections,
        negative: float,
        draw: Draw | None = None,
    ) -> Tensor:
        """See `DetectorBase.pseudo_loss`: every location that the teacher doubts is left out."""
        del found, draw
        peaks = (taught.scores.float().sigmoid() * pseudo.classes.unsqueeze(1)).amax(-1)
        return self.loss(outputs, pseudo, background=peaks <= negative, boxes=False)["class"]

    def scores_beside(self, outputs: DenseOutputs, taught: DenseOutputs) -> Tensor:
        """Return the student's own scores: both have the same locations."""
        del taught
        return outputs.scores.float().sigmoid()

    def pairs(
        self, outputs: DenseOutputs, teacher: Self, taught: DenseOutputs, labelled: Tensor
    ) -> list[Pair]:
        """Set student and teacher side by side at every location."""
        del teacher
        truth = taught.scores.float().sigmoid() * labelled
        logits = outputs.scores.float()
        apart = (soft_cross_entropy(logits, truth) * labelled).sum(-1)
        boxes = outputs.boxes.float(), taught.boxes.float()
        return [Pair(apart, logits.sigmoid(), truth, *boxes)]
