"""The learned layers of Faster R-CNN's two stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

_RATIOS = (0.5, 1.0, 2.0)


class RegionHead(nn.Module):
    """Both stages: proposals from anchors, then classes and one box for each proposal.

    The box does not depend on the class, as in Cascade R-CNN: white cells of all types have the
    same shape, and rare ones are too few to learn one of their own.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        classes: int,
        strides: Sequence[int],
        anchors: Sequence[float],
        hidden: int,
    ) -> None:
        super().__init__()
        sizes = tuple(tuple(a * stride for a in anchors) for stride in strides)
        self.strides = tuple(strides)
        self.names = [str(stride) for stride in strides]
        self.anchors = AnchorGenerator(sizes, (_RATIOS,) * len(sizes))
        self.propose = RPNHead(channels, len(anchors) * len(_RATIOS), conv_depth=depth)
        self.align = MultiScaleRoIAlign(self.names, output_size=7, sampling_ratio=2)
        self.body = TwoMLPHead(channels * 7**2, hidden)
        self.score = nn.Linear(hidden, classes + 1)  # background last
        self.shift = nn.Linear(hidden, 4)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.shift.weight, std=0.001)
        nn.init.zeros_(self.shift.bias)
        # Torchvision starts from a pretrained backbone and trains for long. From random weights its
        # start lets the signal die out and takes a short run to find that most is background.
        hidden_layers = [m for part in (self.propose.conv, self.body) for m in part.modules()]
        for layer in hidden_layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        rare = -math.log((1 - 0.01) / 0.01)  # as the one-stage head starts
        nn.init.constant_(self.propose.cls_logits.bias, rare)
        nn.init.constant_(self.score.bias, rare)
        nn.init.zeros_(self.score.bias[classes:])

    def first(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return objectness ``(B, A)`` and shifts ``(B, A, 4)`` of the anchors of all levels."""
        scores, moves = concat_box_prediction_layers(*self.propose(features))
        batch = len(features[0])
        return scores.view(batch, -1), moves.view(batch, -1, 4)

    def grid(self, features: list[Tensor]) -> tuple[Tensor, list[int]]:
        """Return the anchors ``(A, 4)`` and how many each level has."""
        sizes = [f.shape[-2:] for f in features]
        # In float32 whatever the features are: a bf16 anchor is a pixel off.
        self.anchors.set_cell_anchors(torch.float32, features[0].device)
        levels = self.anchors.grid_anchors(sizes, [(s, s) for s in self.strides])
        return torch.cat(levels), [len(anchors) for anchors in levels]

    def pooled(self, features: list[Tensor], boxes: Tensor, side: int) -> Tensor:
        """Return the second stage's features ``(B, K, hidden)`` of boxes ``(B, K, 4)``."""
        maps = {name: f.float() for name, f in zip(self.names, features, strict=True)}
        aligned = self.align(maps, list(boxes.float().unbind()), [(side, side)])
        out: Tensor = self.body(aligned).float().view(*boxes.shape[:2], -1)
        return out
