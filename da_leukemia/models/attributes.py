"""Attribute head: RoIAlign on fine features, one classifier per attribute, missing ones masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from da_leukemia.models.pyramid import conv_block


class AttributeHead(nn.Module):
    """Classifies each attribute of each box.

    Args:
        channels: channels of the feature map.
        sizes: number of values of each attribute.
        gradient: share of the gradient that flows back into the feature map.
        resolution: side of the RoIAlign grid.
    """

    def __init__(
        self, channels: int, sizes: Sequence[int], gradient: float = 1.0, resolution: int = 7
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.gradient = gradient
        self.resolution = resolution
        self.body = nn.Sequential(
            conv_block(channels, channels), conv_block(channels, channels), nn.AdaptiveAvgPool2d(1)
        )
        # The box's size carries Cell Size, which RoIAlign throws away.
        self.classify = nn.Linear(channels + 2, sum(self.sizes))

    def forward(self, features: Tensor, boxes: Tensor, stride: int) -> Tensor:
        """Return logits ``(B, M, sum(sizes))`` for boxes ``(B, M, 4)`` in input pixels."""
        features = features * self.gradient + features.detach() * (1 - self.gradient)
        out: Tensor = self.classify(self.embed(features, boxes, stride))
        return out

    def embed(self, features: Tensor, boxes: Tensor, stride: int) -> Tensor:
        """Return what attributes are read from, ``(B, M, C + 2)``, with its whole gradient."""
        batch, count = boxes.shape[:2]
        image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)
        image = image[:, None, None].expand(batch, count, 1)
        rois = torch.cat([image, boxes], -1).flatten(0, 1)
        pooled = roi_align(
            features.float(), rois.float(), self.resolution, 1 / stride, 2, aligned=True
        )
        size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).log().flatten(0, 1) / 5
        return torch.cat([self.body(pooled).flatten(1), size], 1).view(batch, count, -1)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return torch.split(logits, list(self.sizes), -1)

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean cross-entropy over attributes and boxes that are known.

        Args:
            logits: ``(B, M, sum(sizes))``.
            truth: ``(B, M, A)`` codes, -1 = missing (masked one by one).
        """
        total = logits.new_zeros(())
        for part, codes in zip(self._split(logits), truth.unbind(-1), strict=True):
            losses = F.cross_entropy(
                part.flatten(0, 1).float(), codes.flatten(), ignore_index=-1, reduction="sum"
            )
            # A batch without one known value must give 0, not 0 / 0.
            total = total + losses / (codes >= 0).sum().clamp(min=1)
        return total / len(self.sizes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax within each attribute, concatenated: ``(B, M, sum(sizes))``."""
        return torch.cat([p.float().softmax(-1) for p in self._split(logits)], -1)
