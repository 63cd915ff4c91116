"""The project's detector: one-stage, anchor-free, multi-task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from da_leukemia.data.batches import Targets
from da_leukemia.models.assign import assign
from da_leukemia.models.attributes import AttributeHead
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.losses import paired_iou, quality_focal_loss
from da_leukemia.models.pyramid import FeaturePyramid, conv_block


@dataclass
class Outputs:
    """Raw maps of a batch; ``L`` locations over all levels, fine to coarse.

    Attributes:
        features: pyramid maps, one per level.
        scores: ``(B, L, C)`` class logits.
        boxes: ``(B, L, 4)`` boxes in input pixels.
        points: ``(L, 2)`` location centres in input pixels.
        strides: ``(L,)``.
    """

    features: list[Tensor]
    scores: Tensor
    boxes: Tensor
    points: Tensor
    strides: Tensor

    def select(self, part: slice) -> Outputs:
        """Return the outputs of some images of the batch."""
        features = [f[part] for f in self.features]
        return Outputs(features, self.scores[part], self.boxes[part], self.points, self.strides)


@dataclass
class Detections:
    """Padded detections of a batch, best first.

    Attributes:
        boxes: ``(B, K, 4)`` input pixels.
        scores: ``(B, K)`` in 0..1.
        labels: ``(B, K)`` class indices.
        mask: ``(B, K)`` bool.
        attributes: ``(B, K, S)`` concatenated probabilities; ``S = 0`` without attributes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask: Tensor
    attributes: Tensor


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


class OneStageDetector(nn.Module):
    """Feature pyramid, decoupled heads and an attribute head on any timm backbone.

    Convention: images ``(B, 3, S, S)`` float in 0..1; boxes half-open pixels of that input.

    Args:
        backbone: the feature extractor, one map per stride.
        classes: number of cell types.
        attribute_sizes: values of each attribute; empty for no attribute head.
        channels: width of pyramid and heads.
        depth: convolutions per tower.
        attribute_weight: factor of the attribute loss.
        attribute_gradient: share of its gradient that reaches the pyramid.
        score_threshold: detections below are not returned.
        nms_iou: boxes of one class that overlap more are merged into the best.
        max_detections: at most this many per image.
    """

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
        score_threshold: float = 0.01,
        nms_iou: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.channels = channels
        self.strides = backbone.strides
        self.pyramid = FeaturePyramid(backbone.channels, channels)
        self.head = Head(channels, depth, classes, len(backbone.strides))
        self.attribute_weight = attribute_weight
        self.attributes = (
            AttributeHead(channels, attribute_sizes, attribute_gradient)
            if attribute_sizes and attribute_weight > 0
            else None
        )
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections

    def forward(self, images: Tensor) -> Outputs:
        """Compute the raw maps."""
        features = self.pyramid(self.backbone(images))
        scores, boxes, points, strides = [], [], [], []
        for level, (stride, feature) in enumerate(zip(self.strides, features, strict=True)):
            score, distance = self.head(feature, level)
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
        return Outputs(
            features,
            torch.cat(scores, 1),
            torch.cat(boxes, 1),
            torch.cat(points),
            torch.cat(strides),
        )

    def loss(
        self,
        outputs: Outputs,
        targets: Targets,
        *,
        background: Tensor | None = None,
        boxes: bool = True,
        attributes: bool = True,
    ) -> dict[str, Tensor]:
        """Compute the named losses of a labelled (or pseudo-labelled) batch.

        Args:
            outputs: raw maps.
            targets: padded labels; an image without boxes teaches background.
            background: ``(B, L)`` bool, where False a negative location teaches nothing.
            boxes: whether box and attribute losses are wanted.
            attributes: whether the attribute loss is; pseudo-labels come without.
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
        if self.attributes is not None and attributes:
            known = targets.mask & (targets.labels >= 0)
            codes = targets.attributes.masked_fill(~known.unsqueeze(-1), -1)
            logits = self.attributes_at(outputs, targets.boxes)
            losses["attribute"] = self.attribute_weight * self.attributes.loss(logits, codes)
        return losses

    def attributes_at(self, outputs: Outputs, boxes: Tensor) -> Tensor:
        """Read the attributes of given boxes.

        Args:
            outputs: raw maps of the images.
            boxes: ``(B, N, 4)`` padded boxes in input pixels.

        Returns:
            Logits ``(B, N, S)``, the values of each attribute side by side; ``S = 0`` without an
            attribute head.
        """
        if self.attributes is None:
            return boxes.new_zeros((*boxes.shape[:2], 0))
        logits: Tensor = self.attributes(outputs.features[0], boxes, self.strides[0])
        return logits

    @torch.no_grad()
    def decode(self, outputs: Outputs, candidates: int = 300) -> Detections:
        """Turn raw maps into detections: top scores, then one NMS over the whole batch."""
        scores = outputs.scores.float().sigmoid()
        batch, _, classes = scores.shape
        size = max(self.strides) * max(f.shape[-1] for f in outputs.features[-1:])
        best, flat = scores.flatten(1).topk(min(candidates, scores[0].numel()))
        labels = flat % classes
        location = (flat // classes).unsqueeze(-1).expand(-1, -1, 4)
        boxes = outputs.boxes.float().gather(1, location).clamp(0, size)
        image = torch.arange(batch, device=scores.device)[:, None].expand_as(labels)
        sound = (best > self.score_threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 0.5).all(-1)
        keep = batched_nms(
            boxes[sound], best[sound], (image * classes + labels)[sound], self.nms_iou
        )
        survives = torch.zeros_like(sound).flatten()
        survives[sound.flatten().nonzero().squeeze(1)[keep]] = True
        ranked = torch.where(survives.view_as(best), best, -1.0)
        top, order = ranked.topk(min(self.max_detections, ranked.shape[1]))
        mask = top > 0
        boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        if self.attributes is None:
            attributes = boxes.new_zeros((*mask.shape, 0))
        else:
            logits = self.attributes_at(outputs, boxes)
            attributes = self.attributes.probabilities(logits)
        return Detections(boxes, top.clamp(min=0), labels.gather(1, order), mask, attributes)
