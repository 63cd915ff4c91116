"""Feature pyramid (Lin et al., CVPR 2017) and the small convolution block of neck and heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Convolution, GroupNorm, SiLU.

    GroupNorm because neck and heads are shared over levels and devices, whose statistics differ;
    on white cells under device shift BatchNorm is what breaks (Tsutsui et al., arXiv 2303.01777).
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(inplace=True),
    )


class FeaturePyramid(nn.Module):
    """Top-down pathway: every level ends with ``channels`` channels."""

    def __init__(self, channels_in: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in channels_in)
        self.smooth = nn.ModuleList(conv_block(channels, channels) for _ in channels_in)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map backbone features, fine to coarse, to pyramid features, fine to coarse."""
        laterals = [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]
        for fine in range(len(laterals) - 2, -1, -1):
            size = laterals[fine].shape[-2:]
            laterals[fine] = laterals[fine] + F.interpolate(laterals[fine + 1], size=size)
        return [layer(m) for layer, m in zip(self.smooth, laterals, strict=True)]
