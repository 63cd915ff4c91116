"""Domain discriminator behind gradient reversal, on each pyramid level."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.settings import Adversarial as Settings


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(features: Tensor, scale: float) -> Tensor:
    """Identity forwards; multiplies the gradient by ``-scale`` backwards (Ganin et al., 2016)."""
    reversed_: Tensor = _Reverse.apply(features, scale)
    return reversed_


def reversal_schedule(progress: float, ramp: float) -> float:
    """Rise from 0 to 1 over the share ``ramp`` of training, by DANN's sigmoid."""
    if ramp <= 0:
        return 1.0
    return 2 / (1 + math.exp(-10 * min(1.0, progress / ramp))) - 1


class Adversarial(Component):
    """The discriminator learns to tell the devices apart, the detector to make that hard."""

    def __init__(self, settings: Settings, channels: int, levels: int) -> None:
        super().__init__()
        self.settings = settings

        def discriminator() -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(channels, settings.hidden, 1),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(settings.hidden, 1, 1),
            )

        self.discriminators = nn.ModuleList(discriminator() for _ in range(levels))

    def wants_target(self, progress: float) -> bool:
        """Always: it compares both devices in every step."""
        del progress
        return True

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Binary cross-entropy per location, both devices with equal weight, mean over levels."""
        assert context.target is not None
        scale = self.settings.reversal * reversal_schedule(context.progress, self.settings.ramp)
        total = context.source.scores.new_zeros((), dtype=torch.float32)
        right = total.clone()
        levels = zip(
            self.discriminators, context.source.features, context.target.features, strict=True
        )
        for discriminator, source, target in levels:
            # In float32: the discriminator saturates early and bf16 then loses its gradient.
            with torch.autocast(source.device.type, enabled=False):
                on_source = discriminator(reverse_gradient(source.float(), scale))
                on_target = discriminator(reverse_gradient(target.float(), scale))
                total = total + F.softplus(-on_source).mean() + F.softplus(on_target).mean()
            right = right + (on_source > 0).float().mean() + (on_target <= 0).float().mean()
        count = 2 * len(self.discriminators)
        context.log("health/discriminator_accuracy", right / count)
        return {"adversarial": self.settings.weight * total / count}
