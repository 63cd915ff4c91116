"""AttriDet's attribute head, after what its paper and its released code do (LeukemiaAttri).

Written from the description: RoIAlign to 24 x 30 on two maps of the *backbone* (strides 4 and 8),
three blocks of convolution, LeakyReLU and pooling, three linear layers with dropout. Six binary
attributes; Cell Size, which has three values, is not read. Its loss is the asymmetric one, a
setting of its own here (``detector.attributes.loss``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from da_leukemia.data.views import Draw
from da_leukemia.models.attributes import AttributeHead
from da_leukemia.models.pooling import align_boxes

GRID = (24, 30)
"""Rows and columns of the RoIAlign grid."""

_CHUNK = 256
"""Boxes at a time where nothing is learned: 300 detections of 8 images would take gigabytes."""


class AttriDetHead(AttributeHead):
    """AttriDet's CNN on two backbone levels.

    Args:
        channels: of the two maps.
        sizes: see `AttributeHead`; those of two values are read.
        dropout: share of the hidden units left out in training.
        settings: of `AttributeHead`.
    """

    shallow = (4, 8)
    most = 6  # each costs a hundredth of a step of a small detector, and padding as much as cells

    def __init__(
        self,
        channels: Sequence[int],
        sizes: Sequence[int],
        *,
        dropout: float = 0.5,
        **settings: Any,
    ) -> None:
        binary = [column for column, size in enumerate(sizes) if size == 2]
        super().__init__(sizes, read=binary, **settings)
        self.dropout = dropout
        widths = (sum(channels), 128, 64, 64)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2)
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        pooled = widths[-1] * (GRID[0] // 8) * (GRID[1] // 8)
        self.embedded = pooled
        self.hidden = nn.ModuleList([nn.Linear(pooled, 1024), nn.Linear(1024, 256)])
        self.classify = nn.Linear(256, sum(self.widths))

    def embed(self, maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
        """Return ``(B, M, 576)``; see `AttributeHead.embed`."""
        at_once = boxes.shape[1] if torch.is_grad_enabled() else max(1, _CHUNK // len(boxes))
        parts = torch.split(boxes, max(1, at_once), 1)
        return torch.cat([self._convolve(maps, part, strides) for part in parts], 1)

    def _convolve(self, maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
        pooled = [align_boxes(m, boxes, s, GRID) for m, s in zip(maps, strides, strict=True)]
        out: Tensor = self.body(torch.cat(pooled, 1)).flatten(1)
        return out.view(*boxes.shape[:2], -1)

    def judge(self, embedded: Tensor, draw: Draw | None) -> Tensor:
        """Classify, with dropout where numbers are given for it in training."""
        for layer in self.hidden:
            embedded = nn.functional.leaky_relu(layer(embedded))
            if self.training and draw is not None and self.dropout:
                kept = draw.uniform(*embedded.shape) >= self.dropout
                embedded = embedded * kept / (1 - self.dropout)
        out: Tensor = self.classify(embedded)
        return out
