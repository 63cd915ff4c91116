"""Domain discriminators behind gradient reversal: on each pyramid level and on single cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.regions import true_regions
from da_leukemia.adaptation.settings import Adversarial as Settings
from da_leukemia.adaptation.settings import InstanceAdversarial as InstanceSettings
from da_leukemia.data.views import Draw
from da_leukemia.errors import ConfigError
from da_leukemia.models.base import AnyDetector, Outputs, Regions
from da_leukemia.models.gradients import scale_gradient


def reversal_schedule(progress: float, ramp: float, burn_in: float = 0.0) -> float:
    """Rise from 0 to 1 by DANN's sigmoid, over the share ``ramp`` of training after burn-in."""
    if ramp <= 0:
        return 1.0
    risen = (progress - burn_in) / (1 - burn_in) / ramp
    return 2 / (1 + math.exp(-10 * min(1.0, risen))) - 1


def domain_loss(on_source: Tensor, on_target: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Weighted binary cross-entropy, both devices with equal weight; the source is 1.

    Without any weight on one of the devices the loss is 0: a discriminator that sees one device
    learns to name it always.

    Args:
        on_source: logits on the source, any shape.
        on_target: logits on the target.
        source: weights of the source's logits, not negative.
        target: weights of the target's.
    """
    one, other = source.sum(), target.sum()
    loss = (F.softplus(-on_source) * source).sum() / one.clamp(min=1e-6)
    loss = loss + (F.softplus(on_target) * target).sum() / other.clamp(min=1e-6)
    return loss * ((one > 0) & (other > 0)) / 2


def accuracy(on_source: Tensor, on_target: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return the balanced accuracy that goes with `domain_loss`."""
    right = ((on_source > 0) * source).sum() / source.sum().clamp(min=1e-6)
    return (right + ((on_target <= 0) * target).sum() / target.sum().clamp(min=1e-6)) / 2


class Adversarial(Component):
    """The discriminator learns to tell the devices apart, the detector to make that hard."""

    teaches_head = False

    def __init__(self, settings: Settings, channels: int, levels: int) -> None:
        super().__init__()
        self.settings = settings
        self.name = "centre_adversarial" if settings.centre_aware else "adversarial"

        def discriminator() -> nn.Module:
            layers: list[nn.Module] = []
            width = channels
            for _ in range(settings.depth):
                layers += [
                    nn.Conv2d(
                        width, settings.hidden, settings.kernel, padding=settings.kernel // 2
                    ),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
                width = settings.hidden
            return nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

        self.discriminators = nn.ModuleList(discriminator() for _ in range(levels))

    def wants_target(self, progress: float) -> bool:
        """After burn-in: it compares both devices in every step."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Binary cross-entropy per location, both devices with equal weight, mean over levels."""
        settings = self.settings
        if context.progress < settings.burn_in:
            return {}
        assert context.target is not None
        scale = settings.reversal * reversal_schedule(
            context.progress, settings.ramp, settings.burn_in
        )
        pairs = zip(
            self._logits(context.source, scale), self._logits(context.target, scale), strict=True
        )
        seen = context.source, context.target
        weights = zip(*(self._weights(context.detector, o) for o in seen), strict=True)
        losses, right = [], []
        for logits, weight in zip(pairs, weights, strict=True):
            losses.append(domain_loss(*logits, *weight))
            right.append(accuracy(*logits, *weight))
        kind = "centre_discriminator" if self.settings.centre_aware else "discriminator"
        context.log(f"health/{kind}_accuracy", torch.stack(right).mean().detach())
        return {self.name: self.settings.weight * torch.stack(losses).mean()}

    def probabilities(self, outputs: Outputs, scale: float) -> Tensor:
        """Return for each image how much it looks like the source, ``(B,)``; see `_logits`."""
        levels = [x.sigmoid().mean(1) for x in self._logits(outputs, scale)]
        return torch.stack(levels).mean(0)

    def _logits(self, outputs: Outputs, scale: float) -> list[Tensor]:
        """Return logits ``(B, hw)`` of each level, their gradient reversed and scaled."""
        # In float32: the discriminator saturates early and bf16 then loses its gradient.
        with torch.autocast(outputs.features[0].device.type, enabled=False):
            return [
                discriminator(scale_gradient(feature.float(), -scale)).flatten(1)
                for discriminator, feature in zip(
                    self.discriminators, outputs.features, strict=True
                )
            ]

    def _weights(self, detector: AnyDetector, outputs: Outputs) -> list[Tensor]:
        """Return the weight of each location, ``(B, hw)`` of each level."""
        if self.settings.centre_aware:
            return detector.objectness(outputs)
        return [torch.ones_like(f[:, 0], dtype=torch.float32).flatten(1) for f in outputs.features]


class InstanceAdversarial(Component):
    """A discriminator on single cells, alone or conditioned on the class that they seem to be."""

    teaches_head = False

    def __init__(self, settings: InstanceSettings, channels: int, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self._image: list[Adversarial] = []  # in a list, so that it is not registered twice
        posterior = classes + 1  # and the background
        inputs = {
            "none": channels,
            "outer": channels * posterior,
            "random": settings.random_size,
        }[settings.condition]
        self.first = nn.Linear(inputs, settings.hidden)
        self.second = nn.Linear(settings.hidden, settings.hidden)
        self.last = nn.Linear(settings.hidden, 1)
        self.of_feature: Tensor
        self.of_posterior: Tensor
        random = settings.random_size if settings.condition == "random" else 0
        self.register_buffer("of_feature", torch.randn(channels, random))
        self.register_buffer("of_posterior", torch.randn(posterior, random))

    def meet(self, others: Sequence[Component]) -> None:
        """Find the image-level discriminator among the components of the method.

        Raises:
            ConfigError: consistency is wanted and there is none.
        """
        if self.settings.consistency == 0:
            return
        found = [c for c in others if isinstance(c, Adversarial) and not c.settings.centre_aware]
        if not found:
            raise ConfigError(
                "instance_adversarial.consistency: compares with the image's discriminator; add "
                "an `adversarial` component of some weight or set consistency to 0"
            )
        self._image = found[:1]

    def wants_target(self, progress: float) -> bool:
        """After burn-in: it compares both devices in every step."""
        return progress >= self.settings.burn_in

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Binary cross-entropy per cell, 0 as long as one of the devices shows none."""
        settings, detector = self.settings, context.detector
        if context.progress < settings.burn_in:
            return {}
        assert context.target is not None
        scale = settings.reversal * reversal_schedule(
            context.progress, settings.ramp, settings.burn_in
        )
        own = true_regions(
            detector, context.source, context.source_targets, settings.regions, context.draw
        )
        found = detector.confident(context.target, settings.threshold, settings.regions)
        seen = [(context.source, own), (context.target, found)]
        with torch.autocast(own.boxes.device.type, enabled=False):
            pooled = [
                detector.region_features(outputs, cells.boxes, settings.resolution)
                for outputs, cells in seen
            ]
        on_source, on_target = (
            self._logits(features, cells, context.draw, scale)
            for features, (_, cells) in zip(pooled, seen, strict=True)
        )
        weights = own.mask.float(), found.mask.float()
        context.log("health/target_regions_per_image", weights[1].sum(1).mean())
        context.log("health/instance_accuracy", accuracy(on_source, on_target, *weights).detach())
        weight = settings.weight
        losses = {"instance": weight * domain_loss(on_source, on_target, *weights)}
        for image in self._image:
            # Not reversed: the features, too, are to make the two agree (as the authors have it).
            apart = [
                self._apart(
                    image.probabilities(outputs, -scale), features, cells, context.draw, scale
                )
                for (outputs, cells), features in zip(seen, pooled, strict=True)
            ]
            losses["consistency"] = weight * settings.consistency * torch.stack(apart).mean()
        return losses

    def _apart(
        self, image: Tensor, features: Tensor, regions: Regions, draw: Draw, scale: float
    ) -> Tensor:
        """Mean distance of the cells' probabilities from those of their images, ``(B,)``."""
        cells = self._logits(features, regions, draw, -scale).sigmoid()
        apart = (cells - image.unsqueeze(1)).abs() * regions.mask
        return apart.sum() / regions.mask.sum().clamp(min=1)

    def _logits(self, features: Tensor, regions: Regions, draw: Draw, scale: float) -> Tensor:
        """Return logits ``(B, K)`` of features ``(B, K, D)``, gradient reversed and scaled."""
        with torch.autocast(features.device.type, enabled=False):
            seen = self._conditioned(scale_gradient(features, -scale), regions.scores)
            for layer in (self.first, self.second):
                seen = self._dropped(F.relu(layer(seen)), draw)
            logits: Tensor = self.last(seen).squeeze(-1)
        return logits

    def _dropped(self, hidden: Tensor, draw: Draw) -> Tensor:
        """Dropout by the step's own numbers, so that a resumed run drops the same units."""
        share = self.settings.dropout
        if share <= 0:
            return hidden
        return hidden * (draw.uniform(*hidden.shape) >= share) / (1 - share)

    def _conditioned(self, features: Tensor, scores: Tensor) -> Tensor:
        if self.settings.condition == "none":
            return features
        posterior = torch.cat([scores, 1 - scores.amax(-1, keepdim=True)], -1)
        posterior = posterior / posterior.sum(-1, keepdim=True)
        if self.settings.condition == "outer":
            return (features.unsqueeze(-1) * posterior.unsqueeze(-2)).flatten(-2)
        product = (features @ self.of_feature) * (posterior @ self.of_posterior)
        return product / math.sqrt(self.settings.random_size)
