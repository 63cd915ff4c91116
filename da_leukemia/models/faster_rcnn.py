"""Faster R-CNN (Ren et al., NeurIPS 2015) with a pyramid, put together from torchvision's parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder

from da_leukemia.config import Attributes
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.base import (
    Detections,
    DetectorBase,
    Outputs,
    Pair,
    Places,
    Regions,
    suppress,
    taught_by_first,
)
from da_leukemia.models.losses import soft_cross_entropy
from da_leukemia.models.pyramid import FeaturePyramid
from da_leukemia.models.region_head import RegionHead
from da_leukemia.models.sampling import match, sample

_CANDIDATES = 256
"""Anchors of a level, the best first, of which proposals are made."""
_PROPOSAL_IOU = 0.7
_ANCHORS_SAMPLED, _ANCHORS_POSITIVE = 256, 0.5
_REGIONS_POSITIVE = 0.25
_BETA = 1 / 9  # of the smooth L1 loss
_NEVER = -1e4
"""Logit of a class that takes no part."""


@dataclass
class RegionOutputs(Outputs):
    """What the first stage says; ``A`` anchors over all levels, fine to coarse.

    Attributes:
        objectness: ``(B, A)`` logits.
        shifts: ``(B, A, 4)`` from anchor to proposal, in the box coder's numbers.
        anchors: ``(A, 4)`` input pixels.
        counts: anchors of each level.
        kept: what was asked of the second stage without gradient, so that it is asked once.
    """

    objectness: Tensor
    shifts: Tensor
    anchors: Tensor
    counts: list[int]
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def select(self, part: slice) -> Self:
        """Return the outputs of some images of the batch."""
        maps = super().select(part)
        objectness, shifts = self.objectness[part], self.shifts[part]
        kept = {name: (a[part], b[part]) for name, (a, b) in self.kept.items()}
        return replace(maps, objectness=objectness, shifts=shifts, kept=kept)


class FasterRCNN(DetectorBase[RegionOutputs]):
    """Two stages on the same backbone, pyramid and attribute head as `OneStageDetector`.

    Torchvision's are the anchors, the head of the first stage, the box coder, RoIAlign over levels
    and the two hidden layers of the second stage, with its constants: 256 anchors of an image, half
    of them positive at most, IoU .7 / .3; a quarter of the sampled proposals positive, IoU .5;
    smooth L1 with beta 1/9. Ours: no resizing (views have the network's size), matching, sampling
    and NMS over the whole batch (torchvision goes image by image), one box for all classes.
    Torchvision's RoIAlign loops over the levels.

    Args:
        backbone: the feature extractor; each stride twice the one before.
        classes: number of cell types.
        attribute_sizes: values of each attribute; empty for no attribute head.
        channels: width of the pyramid.
        depth: convolutions in the head of the first stage.
        anchors: sides of the anchors in strides of their level, at ratios 1/2, 1 and 2.
        proposals: of an image, that the second stage looks at.
        sampled: of them, and of the labelled cells, that it learns from.
        hidden: width of its two layers, and `region_channels`.
        attribute_weight: see `DetectorBase`, also for the rest.
        attribute_gradient: see there.
        attribute_settings: see there.
        score_threshold: see there.
        nms_iou: see there.
        max_detections: see there.
    """

    kind = "faster_rcnn"
    head: RegionHead

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        attribute_sizes: Sequence[int] = (),
        *,
        channels: int = 64,
        depth: int = 1,
        anchors: Sequence[float] = (3.0, 4.5),
        proposals: int = 128,
        sampled: int = 64,
        hidden: int = 256,
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
            RegionHead(channels, depth, classes, backbone.strides, anchors, hidden),
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
        self.region_channels = hidden
        self.proposals = proposals
        self.sampled = sampled
        self._first_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._second_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def forward(self, images: Tensor, learned: int | None = None) -> RegionOutputs:
        """Compute features and the first stage; the second is asked where it is needed."""
        features, shallow = self.see(images)
        objectness, shifts = taught_by_first(self.head.first, features, learned)
        anchors, counts = self.head.grid(features)
        return RegionOutputs(features, objectness, shifts, anchors, counts, shallow=shallow)

    # --- the two stages ----------------------------------------------------------------------

    @torch.no_grad()
    def propose(self, outputs: RegionOutputs) -> tuple[Tensor, Tensor]:
        """Return proposals ``(B, P, 4)``, best first, and which of them are real, ``(B, P)``."""
        if "proposals" not in outputs.kept:
            scores, boxes, levels, first = [], [], [], 0
            moved = self._anchor_boxes(outputs.shifts, outputs.anchors)
            for level, count in enumerate(outputs.counts):
                part = slice(first, first + count)
                best, index = outputs.objectness[:, part].float().topk(min(_CANDIDATES, count))
                scores.append(best.sigmoid())
                boxes.append(moved[:, part].gather(1, index.unsqueeze(-1).expand(-1, -1, 4)))
                levels.append(torch.full_like(index, level))
                first += count
            score, box = torch.cat(scores, 1), torch.cat(boxes, 1).clamp(0, self.side(outputs))
            image = torch.arange(len(score), device=score.device)[:, None]
            groups = image * len(levels) + torch.cat(levels, 1)
            sound = (box[..., 2:] - box[..., :2] > 1).all(-1)
            best, order = suppress(box, score, groups, sound, _PROPOSAL_IOU, self.proposals)
            box = box.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
            outputs.kept["proposals"] = box, best > 0
        return outputs.kept["proposals"]

    def _anchor_boxes(self, shifts: Tensor, anchors: Tensor) -> Tensor:
        where = anchors.expand(len(shifts), -1, -1)
        out: Tensor = self._first_coder.decode_single(
            shifts.float().flatten(0, 1), where.flatten(0, 1)
        )
        return out.view_as(shifts)

    def _judge(self, outputs: RegionOutputs, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the second stage's logits ``(B, K, C + 1)`` and moved boxes ``(B, K, 4)``."""
        hidden = self.head.pooled(outputs.features, boxes, self.side(outputs))
        moved: Tensor = self._second_coder.decode_single(
            self.head.shift(hidden).float().flatten(0, 1), boxes.flatten(0, 1)
        )
        return self.head.score(hidden).float(), moved.view_as(boxes)

    def loss(
        self,
        outputs: RegionOutputs,
        targets: Targets,
        *,
        draw: Draw | None = None,
        attributes: bool = True,
        boxes: bool = True,
    ) -> dict[str, Tensor]:
        """See `DetectorBase.loss`: proposal_class, proposal_box, class, box and attribute.

        A class that the image's device does not label is left out of the softmax, for cells and for
        background. The first stage knows no classes: there such a cell is ground.

        Args:
            outputs: raw answer.
            targets: padded labels.
            draw: for the samples of both stages and the dropout of the attribute head.
            attributes: whether the attribute loss is wanted.
            boxes: whether box losses are.
        """
        losses = self._first_loss(outputs, targets, draw) | self._second_loss(
            outputs, targets, draw
        )
        if not boxes:
            return {name: losses[name] for name in ("proposal_class", "class")}
        return losses | self.attribute_loss(outputs, targets, draw) if attributes else losses

    def _first_loss(
        self, outputs: RegionOutputs, targets: Targets, draw: Draw | None
    ) -> dict[str, Tensor]:
        found = match(outputs.anchors.unsqueeze(0), targets, 0.7, 0.3, claim=True)
        index, chosen = sample(found, _ANCHORS_SAMPLED, _ANCHORS_POSITIVE, draw)
        positive = found.positive.gather(1, index) & chosen
        truth = _gather(targets.boxes, found.box.gather(1, index))
        shifts = _gather(outputs.shifts, index).float()
        off = self._box_distance(self._first_coder, shifts, truth, outputs.anchors[index], positive)
        logits = outputs.objectness.gather(1, index).float()
        apart = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        count = chosen.sum().clamp(min=1)
        return {"proposal_class": (apart * chosen).sum() / count, "proposal_box": off / count}

    def _second_loss(
        self, outputs: RegionOutputs, targets: Targets, draw: Draw | None
    ) -> dict[str, Tensor]:
        proposals, real = self.propose(outputs)
        # The cells themselves are added, so that there is something to learn from at the start.
        regions = torch.cat([proposals, targets.boxes], 1)
        real = torch.cat([real, targets.mask & (targets.labels >= 0)], 1)
        found = match(regions, targets, 0.5, 0.5)
        found.positive, found.background = found.positive & real, found.background & real
        index, chosen = sample(found, self.sampled, _REGIONS_POSITIVE, draw)
        positive, box = found.positive.gather(1, index) & chosen, found.box.gather(1, index)
        regions = _gather(regions, index)

        hidden = self.head.pooled(outputs.features, regions, self.side(outputs))
        logits = _limited(self.head.score(hidden).float(), targets.classes)
        labels = torch.where(positive, targets.labels.gather(1, box), self.classes)
        apart = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        shifts = self.head.shift(hidden).float()
        off = self._box_distance(
            self._second_coder, shifts, _gather(targets.boxes, box), regions, positive
        )
        count = chosen.sum().clamp(min=1)
        return {"class": (apart * chosen.flatten()).sum() / count, "box": off / count}

    def _box_distance(
        self, coder: BoxCoder, shifts: Tensor, truth: Tensor, start: Tensor, positive: Tensor
    ) -> Tensor:
        """Return the summed smooth L1 distance of positives from where they ought to move."""
        # Padding has no size, whose logarithm would poison the sum even where it is masked.
        whole = positive.unsqueeze(-1)
        square = start.new_tensor([0.0, 0.0, 1.0, 1.0])
        truth, start = torch.where(whole, truth, square), torch.where(whole, start, square)
        goal = coder.encode_single(truth.flatten(0, 1), start.flatten(0, 1)).view_as(shifts)
        off = F.smooth_l1_loss(shifts, goal, beta=_BETA, reduction="none")
        return (off * whole).sum()

    def places(self, outputs: RegionOutputs) -> Places:
        """Return class scores and boxes of the proposals."""
        wanted = torch.is_grad_enabled()
        if not wanted and "places" in outputs.kept:
            return Places(*outputs.kept["places"])
        proposals, real = self.propose(outputs)
        logits, boxes = self._judge(outputs, proposals)
        # Kept off 0, where the gradient of an entropy is infinite.
        scores = logits.softmax(-1)[..., :-1].clamp(min=1e-9) * real.unsqueeze(-1)
        if not wanted:
            outputs.kept["places"] = scores, boxes
        return Places(scores, boxes)

    # --- adaptation --------------------------------------------------------------------------

    def objectness(self, outputs: RegionOutputs) -> list[Tensor]:
        """Return the first stage's best score at each location."""
        each = len(self.head.anchors.cell_anchors[0])
        scores = outputs.objectness.detach().float().sigmoid()
        return [
            s.reshape(len(s), -1, each).amax(-1) for s in torch.split(scores, outputs.counts, 1)
        ]

    @torch.no_grad()
    def class_scores(self, outputs: RegionOutputs, boxes: Tensor) -> Tensor:
        """Return the second stage's scores of the boxes."""
        return self._judge(outputs, boxes)[0].softmax(-1)[..., :-1]

    @torch.no_grad()
    def confident(self, outputs: RegionOutputs, threshold: float, count: int) -> Regions:
        """Return the best detections after NMS."""
        found = self.ranked(outputs)
        boxes, mask = found.boxes[:, :count], found.mask[:, :count]
        mask = mask & (found.scores[:, :count] >= threshold)
        labels = torch.where(mask, found.labels[:, :count], 0)
        return Regions(boxes, labels, mask, self.class_scores(outputs, boxes))

    def region_features(self, outputs: RegionOutputs, boxes: Tensor, resolution: int = 3) -> Tensor:
        """Return the second stage's features; it pools 7 x 7, whatever ``resolution`` says."""
        del resolution
        return self.head.pooled(outputs.features, boxes, self.side(outputs))

    @torch.no_grad()
    def ground_feature(self, outputs: RegionOutputs, targets: Targets) -> Tensor:
        """Average the features of the proposals that touch no cell."""
        proposals, real = self.propose(outputs)
        a, b = proposals.unsqueeze(2), targets.boxes.unsqueeze(1)
        apart = (a[..., :2] >= b[..., 2:]).any(-1) | (b[..., :2] >= a[..., 2:]).any(-1)
        ground = real & (apart | ~targets.mask.unsqueeze(1)).all(-1)
        searched = targets.searched((proposals[..., :2] + proposals[..., 2:]) / 2)
        ground = (ground if searched is None else ground & searched).float()
        features = self.region_features(outputs, proposals)
        return (features * ground.unsqueeze(-1)).sum((0, 1)) / ground.sum().clamp(min=1)

    def pseudo_loss(
        self,
        outputs: RegionOutputs,
        pseudo: Targets,
        taught: RegionOutputs,
        found: Detections,
        negative: float,
        draw: Draw | None = None,
    ) -> Tensor:
        """See `DetectorBase.pseudo_loss`: detections in doubt are cells of unknown type."""
        del taught
        labelled = pseudo.classes.gather(1, found.labels)
        doubtful = found.mask & labelled & (found.scores > negative)
        both = replace(pseudo, mask=pseudo.mask | doubtful)
        losses = self.loss(outputs, both, draw=draw, boxes=False)
        return torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def scores_beside(self, outputs: RegionOutputs, taught: RegionOutputs) -> Tensor:
        """Return what the student's second stage says of the teacher's proposals."""
        proposals, real = self.propose(taught)
        return self.class_scores(outputs, proposals) * real.unsqueeze(-1)

    def pairs(
        self, outputs: RegionOutputs, teacher: Self, taught: RegionOutputs, labelled: Tensor
    ) -> list[Pair]:
        """Set both stages side by side: the second on the teacher's proposals, the first's anchors.

        The distance of the second stage is the divergence of the student's softmax from the
        teacher's over the labelled classes and background.
        """
        proposals, real = self.propose(taught)
        with torch.no_grad():
            logits, taught_boxes = teacher._judge(taught, proposals)
            truth = _limited(logits, labelled).log_softmax(-1)
        logits, boxes = self._judge(outputs, proposals)
        own = _limited(logits, labelled).log_softmax(-1)
        apart = (truth.exp() * (truth - own)).sum(-1) * real
        kept = real.unsqueeze(-1)
        scores = own.exp()[..., :-1] * kept
        second = Pair(apart, scores, truth.exp()[..., :-1] * kept, boxes, taught_boxes)
        seen = taught.objectness.detach().float().sigmoid()
        first = Pair(
            soft_cross_entropy(outputs.objectness.float(), seen),
            outputs.objectness.detach().float().sigmoid().unsqueeze(-1),
            seen.unsqueeze(-1),
            self._anchor_boxes(outputs.shifts, outputs.anchors),
            self._anchor_boxes(taught.shifts, taught.anchors).detach(),
        )
        return [second, first]


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows ``(B, K, D)`` of ``(B, N, D)``."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _limited(logits: Tensor, classes: Tensor) -> Tensor:
    """Leave unlabelled classes out of a softmax with background; ``(B, C)`` or ``(C,)``."""
    out = ~F.pad(classes, (0, 1), value=True)
    return logits.masked_fill(out.unsqueeze(-2) if out.ndim > 1 else out, _NEVER)
