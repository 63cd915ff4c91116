"""One remembered feature per class, from the source; cells of both devices are drawn to theirs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.adaptation.adversarial import reversal_schedule
from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.regions import cell_features, true_regions
from da_leukemia.adaptation.settings import Prototypes as Settings


class Prototypes(Component):
    """Contrast over class prototypes and one of the ground.

    The ground's makes a contrast where there is one class alone.
    """

    teaches_head = False

    def __init__(self, settings: Settings, channels: int, classes: int) -> None:
        super().__init__()
        self.settings = settings
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
        settings, target, detector = self.settings, context.target, context.detector
        assert target is not None
        own = true_regions(
            detector, context.source, context.source_targets, settings.regions, context.draw
        )
        found = detector.confident(target, settings.threshold, settings.regions)
        # In float32: an average that moves by a hundredth per step stands still in bf16.
        with torch.autocast(target.features[0].device.type, enabled=False):
            on_source, on_target = (
                F.normalize(
                    cell_features(detector, o, r.boxes, settings.features, settings.resolution),
                    dim=-1,
                ).flatten(0, 1)
                for o, r in ((context.source, own), (target, found))
            )
            ground = None
            if settings.features == "regions":
                ground = detector.ground_feature(context.source, context.source_targets)
            self._remember(on_source.detach(), own.labels.flatten(), own.mask.flatten(), ground)
            pull = self._contrast(on_target, found.labels.flatten(), found.mask.flatten())
            hold = self._contrast(on_source, own.labels.flatten(), own.mask.flatten())
        context.log("health/target_regions_per_image", found.mask.float().sum(1).mean())
        context.log("health/prototype_distance", pull.detach())
        weight = settings.weight * reversal_schedule(context.progress, settings.ramp)
        return {"prototypes": weight * (pull + hold * found.mask.any()) / 2}

    @torch.no_grad()
    def _remember(
        self, features: Tensor, labels: Tensor, mask: Tensor, ground: Tensor | None
    ) -> None:
        """Move the prototypes of the classes in this batch; a new one starts at its first mean."""
        classes = len(self.seen) - 1
        members = F.one_hot(labels, classes) * mask.unsqueeze(1)
        mean = members.T.float() @ features / members.sum(0).clamp(min=1).unsqueeze(1)
        last = torch.zeros_like(mean[:1]) if ground is None else ground.unsqueeze(0)
        mean = F.normalize(torch.cat([mean, last]), dim=-1)
        here = torch.cat([members.any(0), mask.new_full((1,), ground is not None)])
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
