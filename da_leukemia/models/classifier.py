"""A classifier of single cells, and what a detector's components may ask of it.

A picture of one cell is a field whose only place is the whole of it. So the classifier answers
everything that adaptation, training and testing ask of a detector (`models.base`): one place, one
region, one pair, and a feature map of one pixel, which is what its classes are read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from da_leukemia.config import Attributes
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.errors import ConfigError, did_you_mean
from da_leukemia.models.attributes import AttributeHead
from da_leukemia.models.backbone import group_norms
from da_leukemia.models.base import (
    Detections,
    DetectorBase,
    Outputs,
    Pair,
    Places,
    Regions,
    taught_by_first,
)
from da_leukemia.models.losses import CellLoss

_NEVER = -1e4
"""Logit of a class that cannot be meant; an infinite one would make 0 * inf of a soft label."""


class CellBackbone(nn.Module):
    """Any timm classifier up to the vector that its own classes are read from.

    Args:
        name: a timm model name.
        size: side of the network's input in pixels, for networks whose input is fixed.
        pretrained: download its ImageNet weights.
        norm: "batch" leaves all as it is, "group" puts GroupNorm in the place of BatchNorm,
            "frozen" keeps the statistics and weights of BatchNorm as they were loaded.

    Attributes:
        width: length of the vector.

    Raises:
        ConfigError: an unknown name (with a suggestion), no weights, or no BatchNorm to replace.
    """

    def __init__(self, name: str, size: int, pretrained: bool = False, norm: str = "batch") -> None:
        super().__init__()
        if not timm.is_model(name):
            known = timm.list_models()
            raise ConfigError(f"detector.backbone: timm has no {name!r}{did_you_mean(name, known)}")
        settings: dict[str, Any] = {"num_classes": 0}
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            settings["img_size"] = size
        try:
            body: Any = timm.create_model(name, pretrained=pretrained, **settings)
            body.eval()
            with torch.no_grad():
                vector = body(torch.zeros(1, 3, size, size))
        except Exception as error:  # timm, the hub and the architecture raise whatever they like
            raise ConfigError(
                f"detector.backbone: {name!r} cannot be built for images of {size} px"
                f"{' with its weights' if pretrained else ''} ({error}); take another "
                "data.image_size or detector.backbone, or set detector.pretrained=false"
            ) from error
        self.body = body.train()
        self.width = int(vector.shape[-1])
        self.frozen = norm == "frozen"
        norms = [m for m in body.modules() if isinstance(m, _BatchNorm)]
        if norm != "batch" and not norms:
            raise ConfigError(
                f"detector.norm: {name!r} has no BatchNorm to replace or freeze; leave "
                "detector.norm=batch"
            )
        if norm == "group":
            group_norms(body)
        for layer in norms if self.frozen else ():
            layer.requires_grad_(False)
        mean = body.pretrained_cfg.get("mean", (0.485, 0.456, 0.406))
        std = body.pretrained_cfg.get("std", (0.229, 0.224, 0.225))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen norm layers stay in evaluation."""
        super().train(mode)
        if self.frozen:
            for layer in self.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors ``(B, width)`` of images ``(B, 3, S, S)`` in 0..1."""
        vector: Tensor = self.body((images - self.mean) / self.std)
        return vector


class CellAttributes(AttributeHead):
    """Reads attributes from the vector that the type is read from; any box is the whole cell.

    Args:
        width: length of the vector.
        sizes: see `AttributeHead`.
        settings: of `AttributeHead`.
    """

    def __init__(self, width: int, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__(sizes, **settings)
        self.classify = nn.Linear(width, sum(self.widths))

    def embed(self, maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
        """Return ``(B, M, width)``, the same for every box; see `AttributeHead.embed`."""
        del strides
        return maps[0].flatten(1).unsqueeze(1).expand(-1, boxes.shape[1], -1)

    def judge(self, embedded: Tensor, draw: Draw | None) -> Tensor:
        """Classify; without dropout."""
        del draw
        out: Tensor = self.classify(embedded)
        return out


@dataclass
class CellOutputs(Outputs):
    """Raw answer of the classifier.

    Attributes:
        features: one map ``(B, width, 1, 1)``: what classes and attributes are read from.
        logits: ``(B, C)``.
        side: of the images, pixels.
    """

    logits: Tensor
    side: int

    def select(self, part: slice) -> CellOutputs:
        """Return the outputs of some images of the batch."""
        return CellOutputs([f[part] for f in self.features], self.logits[part], self.side)


class CellClassifier(DetectorBase[CellOutputs]):
    """Names the cell that a picture shows.

    Classes that training never showed (see `know`) are never named: their logits were pushed
    neither up nor down.

    Args:
        backbone: from images to vectors.
        classes: number of cell types.
        attribute_sizes: values of each attribute; empty for no attributes.
        size: side of the network's input in pixels.
        attribute_weight: factor of the attribute loss.
        attribute_settings: its loss, and whether the attributes are told the type.
        loss: how labels are learned.
        balanced: whether training draws every class equally often.
    """

    kind = "classifier"
    exclusive = True
    most_cells = 1

    def __init__(
        self,
        backbone: CellBackbone,
        classes: int,
        attribute_sizes: Sequence[int],
        *,
        size: int,
        attribute_weight: float,
        attribute_settings: Attributes | None = None,
        loss: CellLoss,
        balanced: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # none of a detector's parts: no pyramid, no boxes to suppress
        self.backbone: Any = backbone
        self.classes = classes
        self.channels = self.region_channels = backbone.width
        self.strides = (size,)
        self.max_detections = 1
        self.head = nn.Linear(backbone.width, classes)
        self.attribute_weight = attribute_weight
        given = attribute_settings or Attributes()
        types = classes if given.on_type else 0
        self.attributes = (
            CellAttributes(backbone.width, attribute_sizes, loss=given.loss, types=types)
            if attribute_sizes and attribute_weight > 0
            else None
        )
        self.cell_loss = loss
        self.balanced = balanced
        self.counts: Tensor
        self.register_buffer("counts", torch.ones(classes, dtype=torch.int64))

    def know(self, counts: Tensor) -> None:
        """Tell it how many cells of each class training holds, ``(C,)``."""
        self.counts.copy_(counts)

    @property
    def shown(self) -> Tensor:
        """Share of each class in the pictures that training showed, ``(C,)``."""
        seen = (self.counts > 0 if self.balanced else self.counts).float()
        return seen / seen.sum().clamp(min=1)

    # --- training and testing ----------------------------------------------------------------

    def forward(self, images: Tensor, learned: int | None = None) -> CellOutputs:
        """See `DetectorBase.forward`."""
        vector = self.backbone(images)
        (logits,) = taught_by_first(lambda maps: [self.head(maps[0])], [vector], learned)
        return CellOutputs([vector[:, :, None, None]], logits, images.shape[-1])

    def loss(
        self,
        outputs: CellOutputs,
        targets: Targets,
        *,
        draw: Draw | None = None,
        attributes: bool = True,
    ) -> dict[str, Tensor]:
        """Compute the class loss, and that of the attributes where there are any.

        A cell of unknown type, or of which too little is left in the view, teaches nothing; a
        class that its device does not label is neither learned nor unlearned.
        """
        allowed = targets.classes & (self.counts > 0)
        logits = self._masked(outputs, allowed)
        losses = {"class": self.cell_loss(logits, targets, allowed, self.counts)}
        return losses | self.attribute_loss(outputs, targets, draw) if attributes else losses

    def _masked(self, outputs: CellOutputs, allowed: Tensor) -> Tensor:
        return outputs.logits.float().masked_fill(~allowed, _NEVER)

    def probabilities(self, outputs: CellOutputs) -> Tensor:
        """Return class probabilities ``(B, C)`` float32, 0 for classes that it never saw."""
        return self._masked(outputs, self.counts > 0).softmax(-1)

    def places(self, outputs: CellOutputs) -> Places:
        """Return class scores ``(B, 1, C)`` and the whole image as the only box."""
        return Places(self.probabilities(outputs).unsqueeze(1), self._whole(outputs))

    def _whole(self, outputs: CellOutputs) -> Tensor:
        box = outputs.logits.new_tensor([0, 0, outputs.side, outputs.side], dtype=torch.float32)
        return box.expand(len(outputs.logits), 1, 4)

    @torch.no_grad()
    def decode(self, outputs: CellOutputs) -> Detections:
        """Return the likeliest class as the one detection of each image."""
        boxes = self._whole(outputs)
        scores, labels = self.probabilities(outputs).max(-1, keepdim=True)
        logits = self.attributes_at(outputs, boxes)
        attributes = logits if self.attributes is None else self.attributes.probabilities(logits)
        return Detections(
            boxes, scores, labels, torch.ones_like(labels, dtype=torch.bool), attributes
        )

    # --- adaptation --------------------------------------------------------------------------

    def objectness(self, outputs: CellOutputs) -> list[Tensor]:
        """Return 1 for the only location: there is a cell."""
        return [torch.ones_like(outputs.logits[:, :1], dtype=torch.float32)]

    @torch.no_grad()
    def class_scores(self, outputs: CellOutputs, boxes: Tensor) -> Tensor:
        """Return class probabilities ``(B, K, C)``, the same at every box."""
        return self.probabilities(outputs).unsqueeze(1).expand(-1, boxes.shape[1], -1)

    @torch.no_grad()
    def confident(self, outputs: CellOutputs, threshold: float, count: int) -> Regions:
        """Return the cell of each image where its likeliest class reaches ``threshold``."""
        del count
        probabilities = self.probabilities(outputs)
        best, label = probabilities.max(-1, keepdim=True)
        mask = best >= threshold
        labels = torch.where(mask, label, 0)
        return Regions(self._whole(outputs), labels, mask, probabilities.unsqueeze(1))

    def region_features(self, outputs: CellOutputs, boxes: Tensor, resolution: int = 3) -> Tensor:
        """Return the vector of each image for each of its boxes, ``(B, K, width)`` float32."""
        del resolution
        vector = outputs.features[0].flatten(1).float()
        return vector.unsqueeze(1).expand(-1, boxes.shape[1], -1)

    def ground_feature(self, outputs: CellOutputs, targets: Targets) -> Tensor:
        """Return zeros: a picture of one cell has no ground, and zero is equally far from all."""
        del targets
        return outputs.logits.new_zeros(self.region_channels, dtype=torch.float32)

    def pseudo_loss(
        self,
        outputs: CellOutputs,
        pseudo: Targets,
        taught: CellOutputs,
        found: Detections,
        negative: float,
        draw: Draw | None = None,
    ) -> Tensor:
        """Cross-entropy of confident cells, mean over all images (FixMatch; Sohn et al., 2020)."""
        del taught, found, negative, draw
        allowed = pseudo.classes & (self.counts > 0)
        label = pseudo.labels[:, 0].clamp(min=0)
        losses = F.cross_entropy(self._masked(outputs, allowed), label, reduction="none")
        return (losses * pseudo.mask[:, 0]).mean()

    def scores_beside(self, outputs: CellOutputs, taught: CellOutputs) -> Tensor:
        """Return the student's class probabilities ``(B, 1, C)``."""
        del taught
        return self.probabilities(outputs).unsqueeze(1)

    def pairs(
        self, outputs: CellOutputs, teacher: Self, taught: CellOutputs, labelled: Tensor
    ) -> list[Pair]:
        """Set the two side by side; they are as far apart as the divergence of their classes."""
        allowed = labelled & (self.counts > 0)
        student = self._masked(outputs, allowed).log_softmax(-1)
        with torch.no_grad():
            target = teacher._masked(taught, allowed).softmax(-1)
        apart = F.kl_div(student, target, reduction="none").sum(-1, keepdim=True)
        boxes = self._whole(outputs)
        return [Pair(apart, student.exp().unsqueeze(1), target.unsqueeze(1), boxes, boxes)]
