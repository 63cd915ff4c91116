"""Cells of rare types pasted into other fields of the batch, with their labels."""

from __future__ import annotations

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.settings import CutPaste as Settings
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw

MEMORY = 0.99
"""How slowly the count of types forgets, per step."""

COVERED = 0.1
"""Share of either box from which a pasted cell would stand on another one."""

EDGE = 0.15
"""Width of the seam, in radii of the cell."""


class CutPaste(Component):
    """See `settings.CutPaste`. Looks at labelled images only.

    A pasted cell keeps its size and moves by whole pixels, so its box stays exact. It is cut along
    the ellipse in its box, with a soft seam: corners of the box are ground, and would bring the
    other device's ground with them.

    Args:
        settings: see there.
        classes: number of cell types.
    """

    def __init__(self, settings: Settings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(classes))

    def rework(self, images: Tensor, targets: Targets, draw: Draw) -> tuple[Tensor, Targets]:
        """Return images ``(B, 3, S, S)`` and labels, longer by ``cells`` places, many empty."""
        whole = self._whole(targets, images.shape[-1])
        self._count(targets, whole)
        batch, width = targets.labels.shape
        rarity = (self.counts + 1).pow(-self.settings.balance)
        for _ in range(self.settings.cells):
            wanted = draw.uniform(batch) < self.settings.probability
            # A fixed number of random numbers, whatever the batch holds (Gumbel's trick).
            weight = (rarity[targets.labels.clamp(min=0)] * whole).flatten()
            noise = -(-draw.uniform(batch, batch * width).clamp(1e-9, 1 - 1e-9).log()).log()
            donor = (weight.clamp(min=1e-30).log() + noise).argmax(1)
            wanted = wanted & (weight[donor] > 0)
            images, targets = self._paste(images, targets, donor, wanted, draw)
            whole = torch.cat([whole, torch.zeros_like(whole[:, :1])], 1)
            width += 1
        return images, targets

    def _whole(self, targets: Targets, size: int) -> Tensor:
        """Return ``(B, M)``: cells of a known type that the border does not cut."""
        inside = (targets.boxes > 0.5).all(-1) & (targets.boxes < size - 0.5).all(-1)
        return targets.mask & (targets.labels >= 0) & inside

    def _count(self, targets: Targets, whole: Tensor) -> None:
        seen = torch.zeros_like(self.counts)
        seen.scatter_add_(0, targets.labels.clamp(min=0).flatten(), whole.flatten().to(seen.dtype))
        self.counts.mul_(MEMORY).add_(seen)

    def _paste(
        self, images: Tensor, targets: Targets, donor: Tensor, wanted: Tensor, draw: Draw
    ) -> tuple[Tensor, Targets]:
        batch, size, width = len(images), images.shape[-1], targets.labels.shape[1]
        rows = torch.arange(batch, device=images.device)
        giver, place = donor // width, donor % width
        box = targets.boxes[giver, place]
        label = targets.labels[giver, place]
        room = size - (box[:, 2:] - box[:, :2])
        shift = (draw.uniform(batch, 2) * room.clamp(min=0) - box[:, :2]).round()
        moved = box + shift.repeat(1, 2)
        inside = (moved >= 0).all(1) & (moved <= size).all(1)
        known = targets.classes[rows, label.clamp(min=0)]
        wanted = wanted & inside & known & ~self._covers(moved, targets)

        axis = torch.arange(size, device=images.device)
        across = (axis - shift[:, :1].long()).clamp(0, size - 1)
        down = (axis - shift[:, 1:].long()).clamp(0, size - 1)
        cell = images[giver[:, None, None], :, down[:, :, None], across[:, None, :]]
        cell = cell.permute(0, 3, 1, 2)
        centre, radius = (moved[:, :2] + moved[:, 2:]) / 2, (moved[:, 2:] - moved[:, :2]) / 2
        far = (axis + 0.5 - centre[:, :, None]) / radius.clamp(min=0.5)[:, :, None]
        distance = (far[:, 0, None, :].square() + far[:, 1, :, None].square()).sqrt()
        # Half a seam beyond the box's edge: the whole of the cell is inside.
        ink = ((1 + EDGE - distance) / EDGE).clamp(0, 1) * wanted[:, None, None]
        images = torch.lerp(images, cell, ink[:, None].to(images.dtype))
        return images.contiguous(memory_format=torch.channels_last), Targets(
            torch.cat([targets.boxes, moved[:, None]], 1),
            torch.cat([targets.labels, label.where(wanted, -1)[:, None]], 1),
            torch.cat([targets.attributes, targets.attributes[giver, place][:, None]], 1),
            torch.cat([targets.mask, wanted[:, None]], 1),
            targets.classes,
            targets.regions,
        )

    @staticmethod
    def _covers(moved: Tensor, targets: Targets) -> Tensor:
        """Return ``(B,)``: whether a box would stand on a cell of its image."""
        low = torch.maximum(moved[:, None, :2], targets.boxes[..., :2])
        high = torch.minimum(moved[:, None, 2:], targets.boxes[..., 2:])
        common = (high - low).clamp(min=0).prod(-1)
        own = (moved[:, 2:] - moved[:, :2]).prod(-1)[:, None]
        other = (targets.boxes[..., 2:] - targets.boxes[..., :2]).prod(-1)
        return ((common > COVERED * torch.minimum(own, other)) & targets.mask).any(1)
