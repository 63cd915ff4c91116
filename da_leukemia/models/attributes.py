"""Attribute heads: what each cell looks like, read from the features under its box.

`AttributeHead` knows what every head has in common: one classifier per attribute, missing values
masked one by one, the choice of loss, the cell type as a second opinion, and which attributes it
has no answer to. `PyramidHead` is ours, `models.attridet` has AttriDet's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da_leukemia.data.views import Draw
from da_leukemia.models.gradients import scale_gradient
from da_leukemia.models.losses import asymmetric_loss, class_balanced_weights
from da_leukemia.models.pooling import align_boxes
from da_leukemia.models.pyramid import conv_block


class AttributeHead(nn.Module, ABC):
    """Classifies attributes of boxes.

    Attributes:
        shallow: strides of the backbone's own maps that it reads; empty for the finest map of the
            pyramid.
        sizes: number of values of each attribute of the label space.
        read: columns of the attributes that it reads; it has no answer to the others.
        most: cells of an image that a step learns from, drawn anew each time; None for all.
        embedded: length of what `embed` returns.
        needs_types: whether `forward` wants the type of each cell.
        counts: ``(A, V)`` cells in training by attribute and value, -1 where nobody said.
        answers: ``(A,)`` bool, the attributes it has an answer to.

    Args:
        sizes: number of values of each attribute.
        read: columns it reads; by default all.
        gradient: share of the gradient that flows back into the feature maps; 0 leaves detector and
            backbone as if there were no attributes.
        loss: "cross_entropy", "class_balanced" or "asymmetric".
        types: number of cell types if the type is to be a second opinion, else 0.
    """

    shallow: tuple[int, ...] = ()
    most: int | None = None
    embedded: int
    counts: Tensor
    answers: Tensor
    told: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        read: Sequence[int] | None = None,
        gradient: float = 1.0,
        loss: str = "cross_entropy",
        types: int = 0,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.read = tuple(range(len(self.sizes))) if read is None else tuple(read)
        self.widths = tuple(self.sizes[a] for a in self.read)
        self.gradient = gradient
        self.loss_kind = loss
        shape = len(self.sizes), max(self.sizes)
        self.register_buffer("counts", torch.full(shape, -1))
        self.register_buffer("answers", torch.ones(len(self.sizes), dtype=torch.bool))
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))
        self.on_type: nn.Linear | None = None
        if types:
            self.on_type = nn.Linear(types, sum(self.widths), bias=False)
            nn.init.zeros_(self.on_type.weight)

    @property
    def needs_types(self) -> bool:
        """Whether `forward` wants the type of each cell."""
        return self.on_type is not None

    # --- what training holds -----------------------------------------------------------------

    @torch.no_grad()
    def know(self, counts: Tensor) -> None:
        """Tell it how often each value occurs in training.

        What has fewer than two values there is not learned: a constant teaches only itself, and
        the answer would look like knowledge. It has no answer then, unless it had one before.

        Args:
            counts: ``(A, V)`` cells of known value.
        """
        learned = (counts > 0).sum(1) >= 2
        self.answers.copy_(learned.to(self.answers.device) | (self.answers & self.told))
        self.counts.copy_(counts)
        self.told.fill_(True)

    @property
    def learned(self) -> Tensor:
        """``(A,)`` bool, the attributes that the loss is over."""
        return (self.counts < 0).any(1) | ((self.counts > 0).sum(1) >= 2)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Checkpoints from before it knew what training held: it answers as it did then.
        for name in ("counts", "answers", "told"):
            state.setdefault(prefix + name, getattr(self, name).clone())
        super()._load_from_state_dict(state, prefix, *rest)

    # --- reading -----------------------------------------------------------------------------

    @abstractmethod
    def embed(self, maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
        """Return what attributes are read from, ``(B, M, D)``, with its whole gradient.

        Args:
            maps: feature maps ``(B, C, h, w)``.
            boxes: ``(B, M, 4)`` input pixels.
            strides: of the maps.
        """

    @abstractmethod
    def judge(self, embedded: Tensor, draw: Draw | None) -> Tensor:
        """Return logits ``(B, M, sum(widths))`` of what `embed` returned.

        Args:
            embedded: ``(B, M, D)``.
            draw: where it has dropout: the numbers for it; None for none.
        """

    def forward(
        self,
        maps: Sequence[Tensor],
        boxes: Tensor,
        strides: Sequence[int],
        types: Tensor | None = None,
        draw: Draw | None = None,
    ) -> Tensor:
        """Return logits ``(B, M, sum(widths))``, the values of each attribute read side by side.

        Args:
            maps: see `embed`, also for the rest.
            boxes: see there.
            strides: see there.
            types: ``(B, M, C)`` class scores in 0..1, where it `needs_types`.
            draw: see `judge`.
        """
        share = self.gradient
        if share == 0:
            maps = [m.detach() for m in maps]
        elif share != 1:
            maps = [scale_gradient(m, share) for m in maps]
        logits = self.judge(self.embed(maps, boxes, strides), draw)
        if self.on_type is None:
            return logits
        assert types is not None
        # Were picture and type independent given the attribute, their log-odds would add up.
        known = types.float() / types.float().sum(-1, keepdim=True).clamp(min=1e-6)
        out: Tensor = logits.float() + self.on_type(known)
        return out

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean over attributes of the mean loss over the boxes whose value is known.

        Args:
            logits: ``(B, M, sum(widths))``.
            truth: ``(B, M, A)`` codes, -1 = missing (masked one by one).
        """
        total = logits.new_zeros(())
        codes = truth.masked_fill(~self.learned, -1)
        for part, column in zip(self._split(logits), self.read, strict=True):
            known = codes[..., column].flatten()
            losses = self._sum(part.flatten(0, 1).float(), known, column)
            # A batch without one known value must give 0, not 0 / 0.
            total = total + losses / (known >= 0).sum().clamp(min=1)
        return total / max(len(self.read), 1)

    def _sum(self, logits: Tensor, codes: Tensor, column: int) -> Tensor:
        """Return the summed loss of one attribute: logits ``(N, V)``, codes ``(N,)``."""
        if self.loss_kind == "asymmetric":
            whether = F.one_hot(codes.clamp(min=0), logits.shape[1])
            return (asymmetric_loss(logits, whether).sum(1) * (codes >= 0)).sum()
        weights = None
        if self.loss_kind == "class_balanced":
            weights = class_balanced_weights(self.counts[column, : logits.shape[1]])
        return F.cross_entropy(logits, codes, weights, ignore_index=-1, reduction="sum")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of every value of every attribute, ``(B, M, sum(sizes))``.

        They sum to 1 over the values of an attribute, and are all 0 where there is no answer.
        """
        found = dict(zip(self.read, self._split(logits), strict=True))
        parts = []
        for column, size in enumerate(self.sizes):
            part = found.get(column)
            if part is None:
                parts.append(logits.new_zeros((*logits.shape[:-1], size), dtype=torch.float32))
                continue
            if self.loss_kind == "asymmetric":  # each value was asked for on its own
                each = part.float().sigmoid()
                answer = each / each.sum(-1, keepdim=True).clamp(min=1e-6)
            else:
                answer = part.float().softmax(-1)
            parts.append(answer * self.answers[column])
        return torch.cat(parts, -1)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return torch.split(logits, list(self.widths), -1)


class PyramidHead(AttributeHead):
    """Ours: RoIAlign on the finest map of the pyramid, and the size of the box.

    Args:
        channels: of the map.
        sizes: see `AttributeHead`.
        resolution: side of the RoIAlign grid.
        settings: of `AttributeHead`.
    """

    most = 32  # views made of many patches have places for hundreds, and an empty one costs as much

    def __init__(
        self, channels: int, sizes: Sequence[int], *, resolution: int = 7, **settings: Any
    ) -> None:
        super().__init__(sizes, **settings)
        self.resolution = resolution
        self.embedded = channels + 2
        self.body = nn.Sequential(
            conv_block(channels, channels), conv_block(channels, channels), nn.AdaptiveAvgPool2d(1)
        )
        # The box's size carries Cell Size, which RoIAlign throws away.
        self.classify = nn.Linear(channels + 2, sum(self.widths))

    def embed(self, maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
        """Return ``(B, M, C + 2)``; see `AttributeHead.embed`. Reads the first map alone."""
        pooled = align_boxes(maps[0], boxes, strides[0], (self.resolution, self.resolution))
        size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).log().flatten(0, 1) / 5
        return torch.cat([self.body(pooled).flatten(1), size], 1).view(*boxes.shape[:2], -1)

    def judge(self, embedded: Tensor, draw: Draw | None) -> Tensor:
        """Classify; without dropout."""
        del draw
        out: Tensor = self.classify(embedded)
        return out
