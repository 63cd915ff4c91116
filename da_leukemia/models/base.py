"""What every detector is to training, testing and adaptation.

A detector has *places* where it has an opinion: the locations of a one-stage detector, the
proposals of Faster R-CNN. Components of an adaptation method ask for what they need through
`DetectorBase` and never look into a detector, so that one implementation serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from da_leukemia.config import Attributes
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.attributes import AttributeHead, PyramidHead
from da_leukemia.models.attridet import AttriDetHead
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.pyramid import FeaturePyramid


@dataclass
class Outputs:
    """Raw answer of a detector on a batch.

    Attributes:
        features: pyramid maps ``(B, D, h, w)``, fine to coarse.
        shallow: backbone maps ``(B, C_i, h, w)`` for an attribute head that reads them.
    """

    features: list[Tensor]
    shallow: list[Tensor] = field(default_factory=list, kw_only=True)

    def select(self, part: slice) -> Self:
        """Return the outputs of some images of the batch."""
        features, shallow = ([m[part] for m in maps] for maps in (self.features, self.shallow))
        return replace(self, features=features, shallow=shallow)


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


@dataclass
class Places:
    """What a detector thinks at each of its places, differentiable.

    Attributes:
        scores: ``(B, L, C)`` float32 in 0..1; 0 at a place that is only padding.
        boxes: ``(B, L, 4)`` float32 input pixels, not clipped to the image.
    """

    scores: Tensor
    boxes: Tensor


@dataclass
class Regions:
    """Cells of a batch, ``K`` places per image. Nothing of it carries a gradient.

    Attributes:
        boxes: ``(B, K, 4)`` input pixels.
        labels: ``(B, K)`` class indices, 0 where the place is empty.
        mask: ``(B, K)`` bool, whether there is a cell.
        scores: ``(B, K, C)`` the student's class scores in 0..1 at the cell.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor
    scores: Tensor


@dataclass
class Pair:
    """A student beside its teacher, place by place; only the student's side has a gradient.

    Attributes:
        apart: ``(B, L)`` distance of the class probabilities, 0 where both agree.
        scores: ``(B, L, C)`` the student's class scores in 0..1.
        taught: ``(B, L, C)`` the teacher's, 0 for classes that are not labelled.
        boxes: ``(B, L, 4)`` the student's.
        taught_boxes: ``(B, L, 4)`` the teacher's.
    """

    apart: Tensor
    scores: Tensor
    taught: Tensor
    boxes: Tensor
    taught_boxes: Tensor


Seen = TypeVar("Seen", bound=Outputs)
"""A detector's own kind of outputs."""


_CANDIDATES = 10
"""Places looked at per detection that is wanted: a cell in sight is seen from nine or so."""


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, sound: Tensor, iou: float, count: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression over a whole batch at once, with a result of fixed shape.

    Args:
        boxes: ``(B, N, 4)``.
        scores: ``(B, N)``, above 0 where sound.
        groups: ``(B, N)`` int64; only boxes of one group suppress each other.
        sound: ``(B, N)`` bool, the boxes that take part.
        iou: largest overlap of two boxes that both survive.
        count: at most this many of an image survive.

    Returns:
        Scores ``(B, K)``, best first, -1 where there is no box any more, and indices ``(B, K)``.
    """
    keep = batched_nms(boxes[sound], scores[sound], groups[sound], iou)
    survives = torch.zeros_like(sound).flatten()
    survives[sound.flatten().nonzero().squeeze(1)[keep]] = True
    ranked = torch.where(survives.view_as(scores), scores, -1.0)
    best, order = ranked.topk(min(count, ranked.shape[1]))
    return best, order


def taught_by_first(
    head: Callable[[list[Tensor]], Sequence[Tensor]], maps: Sequence[Tensor], learned: int | None
) -> list[Tensor]:
    """Apply a head to the maps of a batch; from images after the first ``learned`` nothing learns.

    Args:
        head: from maps ``(B, ...)`` to tensors ``(B, ...)``; images do not meet in it.
        maps: its input.
        learned: see `DetectorBase.forward`.
    """
    if learned is None or learned >= len(maps[0]):
        return list(head(list(maps)))
    # First with gradient: autocast may keep the weights as the first call has cast them.
    own = head([m[:learned] for m in maps])
    with torch.no_grad():
        others = head([m[learned:] for m in maps])
    return [torch.cat(pair) for pair in zip(own, others, strict=True)]


class DetectorBase(nn.Module, ABC, Generic[Seen]):
    """Backbone, pyramid, a detector's own head, and an attribute head.

    Convention: images ``(B, 3, S, S)`` float in 0..1; boxes half-open pixels of that input.

    Attributes:
        kind: its name in the settings.
        region_channels: length of `region_features`.
        exclusive: whether a cell is of one class alone (softmax), or each is asked for on its own.
        most_cells: how many there can be in one image.

    Args:
        backbone: the feature extractor, one map per stride.
        pyramid: from its maps to maps of ``channels`` channels.
        head: what finds cells on them.
        classes: number of cell types.
        attribute_sizes: values of each attribute; empty for no attribute head.
        channels: width of the pyramid.
        attribute_weight: factor of the attribute loss.
        attribute_gradient: share of its gradient that reaches the features it reads.
        attribute_settings: which head, its loss, and whether it is told the type.
        score_threshold: detections below are not returned.
        nms_iou: boxes of one class that overlap more are merged into the best.
        max_detections: at most this many per image.
    """

    kind: str
    region_channels: int
    exclusive = False
    most_cells = 10_000

    def __init__(
        self,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        head: nn.Module,
        classes: int,
        attribute_sizes: Sequence[int],
        *,
        channels: int,
        attribute_weight: float,
        attribute_gradient: float,
        attribute_settings: Attributes | None,
        score_threshold: float,
        nms_iou: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.channels = channels
        self.strides = backbone.strides
        self.pyramid = pyramid
        self.head = head
        self.attribute_weight = attribute_weight
        self.attributes: AttributeHead | None = None
        if attribute_sizes and attribute_weight > 0:
            given = attribute_settings or Attributes()
            common: dict[str, Any] = {
                "gradient": attribute_gradient,
                "loss": given.loss,
                "types": classes if given.on_type else 0,
            }
            if given.head == "attridet":
                shallow = backbone.also(AttriDetHead.shallow, "detector.attributes.head=attridet")
                self.attributes = AttriDetHead(shallow, attribute_sizes, **common)
            else:
                self.attributes = PyramidHead(channels, attribute_sizes, **common)
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections

    # --- training and testing ----------------------------------------------------------------

    @abstractmethod
    def forward(self, images: Tensor, learned: int | None = None) -> Seen:
        """Compute the raw answer.

        Args:
            images: the batch.
            learned: the head learns from so many images, the first ones; what it says of the others
                carries no gradient, which saves half of its work on them. The features of all do.
                None for all.
        """

    @abstractmethod
    def loss(
        self, outputs: Seen, targets: Targets, *, draw: Draw | None = None, attributes: bool = True
    ) -> dict[str, Tensor]:
        """Compute the named losses of a labelled (or pseudo-labelled) batch.

        Args:
            outputs: raw answer.
            targets: padded labels; an image without boxes teaches background, a class that its
                device does not label learns nothing from it, nor does anything from what lies
                outside the annotated regions and is no labelled cell.
            draw: random numbers, for a detector that samples; default: torch's own.
            attributes: whether the attribute loss is wanted; pseudo-labels come without.
        """

    def see(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the pyramid, and the backbone's maps that the attribute head reads."""
        maps = self.backbone(images)
        levels = len(self.strides)
        return self.pyramid(maps[:levels]), maps[levels:]

    def _read_by_attributes(self, outputs: Seen) -> tuple[list[Tensor], tuple[int, ...]]:
        if outputs.shallow:
            return outputs.shallow, self.backbone.shallow
        return outputs.features[:1], self.strides[:1]

    def attributes_at(self, outputs: Seen, boxes: Tensor, draw: Draw | None = None) -> Tensor:
        """Read the attributes of given boxes.

        A head that is told the type is told what the detector itself says of it, in training as at
        test and without gradient: the true type, which a test has not, would be trusted more than
        the predicted one deserves, the more so on another device.

        Args:
            outputs: raw answer on the images.
            boxes: ``(B, N, 4)`` padded boxes in input pixels.
            draw: for the head's dropout; None for none.

        Returns:
            Logits ``(B, N, S)``, the values of each attribute that the head reads side by side;
            ``S = 0`` without an attribute head.
        """
        if self.attributes is None:
            return boxes.new_zeros((*boxes.shape[:2], 0))
        types = self.class_scores(outputs, boxes) if self.attributes.needs_types else None
        maps, strides = self._read_by_attributes(outputs)
        out: Tensor = self.attributes(maps, boxes, strides, types, draw)
        return out

    def attribute_features(self, outputs: Seen, boxes: Tensor) -> Tensor:
        """Return what the attribute head reads attributes from at boxes ``(B, K, 4)``."""
        assert self.attributes is not None
        maps, strides = self._read_by_attributes(outputs)
        return self.attributes.embed(maps, boxes, strides)

    def attribute_loss(
        self, outputs: Seen, targets: Targets, draw: Draw | None = None
    ) -> dict[str, Tensor]:
        """Return the attribute loss of cells of known type; nothing without an attribute head."""
        if self.attributes is None:
            return {}
        known = targets.mask & (targets.labels >= 0)
        codes, boxes = targets.attributes.masked_fill(~known.unsqueeze(-1), -1), targets.boxes
        most = self.attributes.most
        if most is not None and known.shape[1] > most:
            usable = (codes >= 0).any(-1).float()
            luck = draw.uniform(*known.shape) if draw else torch.rand_like(usable)
            index = (usable + 0.5 * luck).topk(most, 1).indices.unsqueeze(-1)
            codes = codes.gather(1, index.expand(-1, -1, codes.shape[-1]))
            boxes = boxes.gather(1, index.expand(-1, -1, 4))
        logits = self.attributes_at(outputs, boxes, draw)
        return {"attribute": self.attribute_weight * self.attributes.loss(logits, codes)}

    @abstractmethod
    def places(self, outputs: Seen) -> Places:
        """Return class scores and boxes at every place."""

    @torch.no_grad()
    def decode(self, outputs: Seen) -> Detections:
        """Turn a raw answer into detections: top scores, then one NMS over the whole batch."""
        found = self.ranked(outputs)
        if self.attributes is None:
            found.attributes = found.boxes.new_zeros((*found.mask.shape, 0))
        else:
            logits = self.attributes_at(outputs, found.boxes)
            found.attributes = self.attributes.probabilities(logits)
        return found

    @torch.no_grad()
    def ranked(self, outputs: Seen) -> Detections:
        """Return the detections without their attributes."""
        places = self.places(outputs)
        scores = places.scores
        batch, _, classes = scores.shape
        best, flat = scores.flatten(1).topk(
            min(_CANDIDATES * self.max_detections, scores[0].numel())
        )
        labels = flat % classes
        location = (flat // classes).unsqueeze(-1).expand(-1, -1, 4)
        boxes = places.boxes.gather(1, location).clamp(0, self.side(outputs))
        image = torch.arange(batch, device=scores.device)[:, None].expand_as(labels)
        sound = (best > self.score_threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 0.5).all(-1)
        groups = image * classes + labels
        top, order = suppress(boxes, best, groups, sound, self.nms_iou, self.max_detections)
        boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        none = boxes.new_zeros((*top.shape, 0))
        return Detections(boxes, top.clamp(min=0), labels.gather(1, order), top > 0, none)

    def side(self, outputs: Seen) -> int:
        """Return the side of the images in pixels."""
        return int(self.strides[-1] * outputs.features[-1].shape[-1])

    # --- adaptation --------------------------------------------------------------------------

    @abstractmethod
    def objectness(self, outputs: Seen) -> list[Tensor]:
        """Return how much each location looks like a cell, ``(B, hw)`` of each level.

        Without gradient.
        """

    @abstractmethod
    def class_scores(self, outputs: Seen, boxes: Tensor) -> Tensor:
        """Return class scores ``(B, K, C)`` in 0..1 at boxes ``(B, K, 4)``, without gradient."""

    @abstractmethod
    def confident(self, outputs: Seen, threshold: float, count: int) -> Regions:
        """Return up to ``count`` detections of each image that score at least ``threshold``."""

    @abstractmethod
    def region_features(self, outputs: Seen, boxes: Tensor, resolution: int = 3) -> Tensor:
        """Return features ``(B, K, region_channels)`` of boxes ``(B, K, 4)``, in float32.

        Args:
            outputs: raw answer; its features get the gradient.
            boxes: input pixels.
            resolution: samples per side, where the detector has no pooling of its own.
        """

    @abstractmethod
    def ground_feature(self, outputs: Seen, targets: Targets) -> Tensor:
        """Return the mean of `region_features` outside all cells, ``(region_channels,)``.

        Cells of unknown type count as cells, since they are no ground, and so does what nobody
        searched. Without gradient.
        """

    @abstractmethod
    def pseudo_loss(
        self,
        outputs: Seen,
        pseudo: Targets,
        taught: Seen,
        found: Detections,
        negative: float,
        draw: Draw | None = None,
    ) -> Tensor:
        """Return the loss of finding and naming pseudo-labelled cells; boxes are not learned.

        Args:
            outputs: the student's.
            pseudo: `adaptation.pseudo.pseudo_labels` of ``found``, place by place.
            taught: the teacher's outputs on the weak view.
            found: its detections.
            negative: teacher score up to which there is background; what it scores higher and is
                no pseudo-label teaches nothing.
            draw: as in `loss`.
        """

    @abstractmethod
    def scores_beside(self, outputs: Seen, taught: Seen) -> Tensor:
        """Return the student's class scores ``(B, L, C)`` at the teacher's places."""

    @abstractmethod
    def pairs(self, outputs: Seen, teacher: Self, taught: Seen, labelled: Tensor) -> list[Pair]:
        """Set student and teacher side by side, at the teacher's places first.

        Args:
            outputs: the student's.
            teacher: the teacher.
            taught: its outputs on the weak view.
            labelled: ``(C,)`` bool, the classes that take part.
        """


AnyDetector: TypeAlias = DetectorBase[Any]
"""A detector, whichever kind."""
