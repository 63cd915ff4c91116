"""What a training step is given. The unlabelled batch has no label fields: a leak is a type error.

Convention: boxes are half-open float pixels ``x1, y1, x2, y2`` of the network input; per-image
boxes are padded to one length ``M`` and a mask says which are real.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

VISIBLE = 0.3
"""Share of a box that must be inside a view; with less of it the cell is neither cell nor ground:
its ink is still there, so it must not be learned as background."""


@dataclass
class Targets:
    """Padded labels of a batch.

    Attributes:
        boxes: ``(B, M, 4)`` float.
        labels: ``(B, M)`` int64; -1 = a cell that is neither target nor background.
        attributes: ``(B, M, A)`` int64; -1 = missing.
        mask: ``(B, M)`` bool, True where there is a box.
        classes: ``(B, C)`` bool, the classes that the image's domain labels.
        regions: ``(B, R, 4)``, the rectangles in which somebody looked for cells: what is outside
            of all is neither cell nor background. Those without area are padding, one of infinite
            size is a whole image. None: all images are annotated whole.
    """

    boxes: Tensor
    labels: Tensor
    attributes: Tensor
    mask: Tensor
    classes: Tensor
    regions: Tensor | None = None

    def to(self, device: torch.device | str) -> Targets:
        """Move every tensor."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Targets(**{n: t.to(device) for n, t in tensors.items() if t is not None})

    def searched(self, points: Tensor) -> Tensor | None:
        """Tell at which points ``(L, 2)`` or ``(B, L, 2)`` somebody looked for cells.

        Returns:
            ``(B, L)`` bool; None where somebody did everywhere.
        """
        if self.regions is None:
            return None
        x, y = points[..., None, 0], points[..., None, 1]  # (L, 1) or (B, L, 1)
        x1, y1, x2, y2 = self.regions.unsqueeze(1).unbind(-1)  # (B, 1, R)
        return ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).any(-1)


@dataclass
class LabelledBatch:
    """Images ``(B, 3, S, S)`` uint8 with their labels.

    ``fill`` is each image's background colour ``(B, 3)``, used where a view looks past the border.
    ``index`` is the position of each field in its data set.
    """

    images: Tensor
    fill: Tensor
    index: Tensor
    targets: Targets

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LabelledBatch:
        """Move every tensor."""
        del non_blocking
        images, fill, index = (t.to(device) for t in (self.images, self.fill, self.index))
        return LabelledBatch(images, fill, index, self.targets.to(device))


@dataclass
class UnlabelledBatch:
    """Images ``(B, 3, S, S)`` uint8 of a target device. There is no place for a label."""

    images: Tensor
    fill: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> UnlabelledBatch:
        """Move every tensor."""
        del non_blocking
        return UnlabelledBatch(*(t.to(device) for t in (self.images, self.fill, self.index)))
