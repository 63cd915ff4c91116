"""Feature statistics of images mixed inside the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.settings import MixStyle as Settings
from da_leukemia.data.views import Draw
from da_leukemia.errors import ConfigError

_TRIES = 8


def beta(alpha: float, draw: Draw, count: int) -> Tensor:
    """Draw ``count`` numbers from Beta(alpha, alpha) with the step's own generator.

    Johnk's method with a fixed number of tries, in logarithms (for 0.1 the numbers underflow
    otherwise); at alpha <= 1 one try in two is good, so eight are enough.
    """
    u, v = draw.uniform(2, _TRIES, count).clamp(min=1e-12).log() / alpha
    good = torch.logaddexp(u, v) <= 0
    first = good.int().argmax(0, keepdim=True)
    return torch.sigmoid((u - v).gather(0, first)[0])


def mix_statistics(feature: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Give each map the mixed mean and spread of two images, channel by channel.

    Args:
        feature: ``(B, C, H, W)``.
        other: ``(B,)`` the image whose statistics are mixed in.
        share: ``(B,)`` what each keeps of its own; 1 changes nothing.
    """
    wide = feature.float()
    mean = wide.mean((2, 3), keepdim=True).detach()
    spread = (wide.var((2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt().detach()
    own = share[:, None, None, None]
    new_mean = own * mean + (1 - own) * mean[other]
    new_spread = own * spread + (1 - own) * spread[other]
    return ((wide - mean) / spread * new_spread + new_mean).to(feature.dtype)


class MixStyle(Component):
    """See `settings.MixStyle`. Mixes among all images that the student sees in a step."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self._draw: Draw | None = None

    def attach(self, network: nn.Module) -> None:
        """Mix behind the last map of each stride up to ``stride``.

        Raises:
            ConfigError: the backbone has no such map.
        """
        body: Any = network.backbone.body  # type: ignore[union-attr]
        behind = {}
        for name, stride in zip(
            body.feature_info.module_name(), body.feature_info.reduction(), strict=True
        ):
            if int(stride) <= self.settings.stride:
                behind[int(stride)] = _module(body, str(name))
        if not behind:
            raise ConfigError(
                f"mixstyle.stride: the backbone has no map at stride {self.settings.stride} or "
                f"below; it has {[int(s) for s in body.feature_info.reduction()]}"
            )
        for module in behind.values():
            module.register_forward_hook(self._hook)

    def begin(self, draw: Draw, progress: float) -> None:
        """Take the random numbers of a step."""
        self._draw = draw

    def _hook(self, module: nn.Module, given: Sequence[Tensor], found: Tensor) -> Tensor | None:
        del given
        if self._draw is None or not module.training:
            return None
        count = len(found)
        other = self._draw.uniform(count).argsort()
        share = beta(self.settings.alpha, self._draw, count)
        mixed = self._draw.uniform(count) < self.settings.probability
        return mix_statistics(found, other, share.where(mixed, torch.ones_like(share)))


def _module(body: nn.Module, name: str) -> nn.Module:
    """Return a stage of a timm feature network, which flattens names with dots."""
    children: dict[str, nn.Module] = dict(body.named_modules())
    for known in (name, name.replace(".", "_")):
        if known in children:
            return children[known]
    raise ConfigError(f"mixstyle: this backbone does not show its stage {name!r}; take another one")
