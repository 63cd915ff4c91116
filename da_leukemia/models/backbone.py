"""Any timm network as a feature extractor at given strides."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from torch import Tensor, nn

from da_leukemia.errors import ConfigError, did_you_mean

_GROUPS = 32


def group_norms(network: nn.Module) -> int:
    """Replace every BatchNorm in place, its scale, shift and activation kept; return how many."""
    replaced = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.BatchNorm2d):
                continue
            channels = layer.num_features
            norm: nn.Module = nn.GroupNorm(math.gcd(channels, _GROUPS), channels)
            assert isinstance(norm, nn.GroupNorm)
            if layer.affine:
                norm.weight.data.copy_(layer.weight.data)
                norm.bias.data.copy_(layer.bias.data)
            # timm's BatchNormAct2d ends with dropout and activation of its own.
            rest = [m for m in (getattr(layer, "drop", None), getattr(layer, "act", None)) if m]
            setattr(parent, name, nn.Sequential(norm, *rest) if rest else norm)
            replaced += 1
    return replaced


class Backbone(nn.Module):
    """A timm network cut at the wanted strides, fed with images in 0..1.

    Attributes:
        strides: the strides that come out, ascending.
        channels: channels of each map.
        shallow: strides of further maps that come out behind them (see `also`).
    """

    def __init__(
        self, name: str, strides: tuple[int, ...], pretrained: bool = False, norm: str = "batch"
    ) -> None:
        """Build the network.

        Args:
            name: a timm model name.
            strides: wanted strides, each once.
            pretrained: download its ImageNet weights.
            norm: "group" puts GroupNorm in the place of BatchNorm, "batch" leaves all as it is.

        Raises:
            ConfigError: unknown name (with a suggestion), no feature maps, a missing stride, or no
                BatchNorm to replace.
        """
        super().__init__()
        if not timm.is_model(name):
            known = timm.list_models()
            raise ConfigError(f"detector.backbone: timm has no {name!r}{did_you_mean(name, known)}")
        try:
            probe: Any = timm.create_model(name, features_only=True, pretrained=False)
        except Exception as error:  # timm raises whatever the architecture does
            raise ConfigError(
                f"detector.backbone: {name!r} gives no feature maps ({error}); take a "
                "convolutional or hierarchical one, e.g. mobilenetv4_conv_small, resnet50"
            ) from error
        reductions = [int(r) for r in probe.feature_info.reduction()]
        # The deepest map of a stride carries the most; some networks repeat one.
        self._deepest = {r: i for i, r in enumerate(reductions)}
        self._name = name
        indices = self._places(strides, "detector.strides")
        if pretrained:
            try:
                weights = timm.create_model(name, features_only=True, pretrained=True).state_dict()
            except Exception as error:  # no network, no weights for this name, no hub
                raise ConfigError(
                    f"detector.pretrained: the weights of {name!r} could not be loaded ({error}); "
                    "set detector.pretrained=false to train from random weights"
                ) from error
            probe.load_state_dict(weights)
        if norm == "group" and not group_norms(probe):
            raise ConfigError(
                f"detector.norm: {name!r} has no BatchNorm that GroupNorm could replace; leave "
                "detector.norm=batch"
            )
        self._all_channels = [int(c) for c in probe.feature_info.channels()]
        self.body = probe
        self.strides = strides
        self.channels = tuple(self._all_channels[i] for i in indices)
        self.shallow: tuple[int, ...] = ()
        self._indices = indices
        mean = probe.pretrained_cfg.get("mean", (0.485, 0.456, 0.406))
        std = probe.pretrained_cfg.get("std", (0.229, 0.224, 0.225))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def _places(self, strides: tuple[int, ...], wanted_by: str) -> list[int]:
        missing = [s for s in strides if s not in self._deepest]
        if missing:
            raise ConfigError(
                f"{wanted_by}: {self._name!r} has no map at stride {missing}; it has "
                f"{list(self._deepest)}"
            )
        return [self._deepest[s] for s in strides]

    def also(self, strides: tuple[int, ...], wanted_by: str) -> tuple[int, ...]:
        """Let further maps come out, which the network computes anyway; return their channels.

        Args:
            strides: of the maps; they replace those asked for before.
            wanted_by: the setting that needs them, for the message.

        Raises:
            ConfigError: the network has no such map.
        """
        further = self._places(strides, wanted_by)
        self.shallow = strides
        self._indices = self._indices[: len(self.strides)] + further
        return tuple(self._all_channels[i] for i in further)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps ``(B, C_i, H / stride_i, W / stride_i)``, those of `shallow` last."""
        maps = self.body((images - self.mean) / self.std)
        out = []
        for index in self._indices:
            feature, channels = maps[index], self._all_channels[index]
            if feature.shape[1] != channels and feature.shape[-1] == channels:
                feature = feature.permute(0, 3, 1, 2)  # Swin and its kin answer in NHWC
            out.append(feature)
        return out
