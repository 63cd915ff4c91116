"""One remembered feature per class, from the source; cells of both devices are drawn to theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.adaptation.adversarial import reversal_schedule
from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.regions import confident_regions, pool_regions, true_regions
from da_leukemia.adaptation.settings import Prototypes as Settings
from da_leukemia.data.batches import Targets
from da_leukemia.models.one_stage import Outputs


@torch.no_grad()
def mean_ground(outputs: Outputs, targets: Targets) -> Tensor:
    """Return the mean feature of the locations outside all cells, ``(D,)`` float32.

    Cells of unknown type count as cells, since they are no ground.
    """
    x, y = outputs.points[None, :, None, 0], outputs.points[None, :, None, 1]
    x1, y1, x2, y2 = (targets.boxes[:, None, :, i] for i in range(4))  # (B, 1, M)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2) & targets.mask.unsqueeze(1)
    ground = (~inside.any(-1)).float()
    features = torch.cat([f.flatten(2) for f in outputs.features], 2).float()
    return (features * ground.unsqueeze(1)).sum((0, 2)) / ground.sum().clamp(min=1)


class Prototypes(Component):
    """Contrast over class prototypes and one of the ground.

    The ground's makes a contrast where there is one class alone.
    """

    def __init__(
        self, settings: Settings, channels: int, classes: int, strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.strides = strides
        self.prototypes: Tensor
        self.seen: Tensor
        self.register_buffer("prototypes", torch.zeros(classes + 1, channels))
        self.register_buffer("seen", torch.zeros(classes + 1, dtype=torch.bool))

    def wants_target(self, progress: float) -> bool:
        """Always: the target's cells are what is drawn."""
        del progress
        return True

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Cross-entropy over prototypes, 0 as long as the target shows no cell."""
        settings, target = self.settings, context.target
        assert target is not None
        own = true_regions(
            context.source, context.source_targets, self.strides, settings.regions, context.draw
        )
        found = confident_regions(target, settings.threshold, settings.regions)
        # In float32: an average that moves by a hundredth per step stands still in bf16.
        with torch.autocast(target.scores.device.type, enabled=False):
            on_source, on_target = (
                F.normalize(
                    pool_regions(o, r.boxes, self.strides, settings.resolution), dim=-1
                ).flatten(0, 1)
                for o, r in ((context.source, own), (target, found))
            )
            ground = mean_ground(context.source, context.source_targets)
            self._remember(on_source.detach(), own.labels.flatten(), own.mask.flatten(), ground)
            pull = self._contrast(on_target, found.labels.flatten(), found.mask.flatten())
            hold = self._contrast(on_source, own.labels.flatten(), own.mask.flatten())
        context.log("health/target_regions_per_image", found.mask.float().sum(1).mean())
        context.log("health/prototype_distance", pull.detach())
        weight = settings.weight * reversal_schedule(context.progress, settings.ramp)
        return {"prototypes": weight * (pull + hold * found.mask.any()) / 2}

    @torch.no_grad()
    def _remember(self, features: Tensor, labels: Tensor, mask: Tensor, ground: Tensor) -> None:
        """Move the prototypes of the classes in this batch; a new one starts at its first mean."""
        classes = len(self.seen) - 1
        members = F.one_hot(labels, classes) * mask.unsqueeze(1)
        mean = members.T.float() @ features / members.sum(0).clamp(min=1).unsqueeze(1)
        mean = F.normalize(torch.cat([mean, ground.unsqueeze(0)]), dim=-1)
        here = torch.cat([members.any(0), mask.new_ones(1)])
        moved = torch.lerp(mean, self.prototypes, self.settings.momentum)
        moved = torch.where(self.seen.unsqueeze(1), F.normalize(moved, dim=-1), mean)
        self.prototypes.copy_(torch.where(here.unsqueeze(1), moved, self.prototypes))
        self.seen |= here

    def _contrast(self, features: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Mean over cells of the cross-entropy of their class among the known prototypes."""
        # A copy, for the buffer moves again before a second backward pass could want it.
        logits = features @ self.prototypes.clone().T / self.settings.temperature
        logits = logits.masked_fill(~self.seen, -1e4)
        valid = (mask & self.seen[labels]).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (losses * valid).sum() / valid.sum().clamp(min=1)
