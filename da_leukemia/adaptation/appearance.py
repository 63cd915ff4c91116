"""Source images in the colours and light of the target: nothing is learned, nothing is labelled."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import kornia
import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.settings import Fourier as FourierSettings
from da_leukemia.adaptation.settings import Histogram as HistogramSettings
from da_leukemia.adaptation.settings import Reinhard as ReinhardSettings
from da_leukemia.adaptation.settings import StainJitter as StainSettings
from da_leukemia.data.views import Draw

Settings = TypeVar("Settings", FourierSettings, HistogramSettings, ReinhardSettings, StainSettings)


def swap_low_frequencies(source: Tensor, target: Tensor, beta: Tensor) -> Tensor:
    """Give ``source`` the low-frequency amplitudes of ``target``, keeping its phase.

    Args:
        source: ``(B, 3, S, S)`` in 0..1.
        target: same shape.
        beta: ``(B,)`` half-width of the swapped window as a share of ``S``; 0 swaps the mean only.
    """
    size = source.shape[-1]
    a, b = torch.fft.rfft2(source), torch.fft.rfft2(target)
    rows = torch.fft.fftfreq(size, device=source.device).abs()[:, None]
    columns = torch.fft.rfftfreq(size, device=source.device)[None, :]
    window = torch.maximum(rows, columns) <= beta.view(-1, 1, 1, 1)
    amplitude = torch.where(window, b.abs(), a.abs())
    mixed: Tensor = torch.fft.irfft2(torch.polar(amplitude, a.angle()), s=(size, size))
    return mixed.clamp(0, 1)


def match_histogram(source: Tensor, target: Tensor, bins: int = 128) -> Tensor:
    """Give each channel of ``source`` the distribution of ``target``'s; images in 0..1."""
    batch, channels = source.shape[:2]
    flat = source.flatten(2)
    quantiles = torch.linspace(0, 1, bins, device=source.device)
    # Sorted values at equal ranks are the quantiles; a grid of 64 x 64 is enough for 128 of them.
    step = max(1, source.shape[-1] // 64)

    def at(images: Tensor) -> Tensor:
        ordered = images[..., step // 2 :: step, step // 2 :: step].flatten(2).sort(-1).values
        return ordered[..., (quantiles * (ordered.shape[-1] - 1)).long()].contiguous()

    have, want = at(source), at(target)
    # Ties (flat background) would make the table not invertible.
    have = have + torch.arange(bins, device=source.device) * 1e-6
    place = torch.searchsorted(have, flat.contiguous()).clamp(1, bins - 1)
    x0, x1 = have.gather(-1, place - 1), have.gather(-1, place)
    y0, y1 = want.gather(-1, place - 1), want.gather(-1, place)
    share = ((flat - x0) / (x1 - x0)).clamp(0, 1)
    return (y0 + share * (y1 - y0)).view(batch, channels, *source.shape[-2:])


def match_lab(source: Tensor, target: Tensor, most: float = 4.0) -> Tensor:
    """Give each Lab channel of ``source`` the mean and spread of ``target``'s.

    Args:
        source: ``(B, 3, S, S)`` in 0..1.
        target: same shape.
        most: largest factor of a spread, for a flat source would turn into noise.
    """
    # Whites of 6500 K, gamma of sRGB. In float32 also under autocast, where kornia's product
    # with the colour matrix would be in bf16.
    with torch.autocast(source.device.type, enabled=False):
        a, b = (kornia.color.rgb_to_lab(x.float()) for x in (source, target))
        (std_a, mean_a), (std_b, mean_b) = (torch.std_mean(x, (2, 3), keepdim=True) for x in (a, b))
        factor = (std_b / std_a.clamp(min=1e-3)).clamp(max=most)
        matched: Tensor = kornia.color.lab_to_rgb((a - mean_a) * factor + mean_b)
    return matched.clamp(0, 1)


DYES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density in red, green and blue of haematoxylin, eosin and a rest (Ruifrok and Johnston,
2001). Blood is stained with azure and eosin, whose blue is near enough to vary it."""


def jitter_dyes(images: Tensor, dyes: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Change the amounts of the dyes by ``factor`` and ``shift`` (Tellez et al., MedIA 2019).

    Args:
        images: ``(B, 3, S, S)`` in 0..1.
        dyes: ``(3, 3)``, a row per dye, each of length 1.
        factor: ``(B, 3)`` per dye.
        shift: ``(B, 3)`` per dye, in optical density.
    """
    with torch.autocast(images.device.type, enabled=False):
        density = -images.float().clamp(min=1 / 255).log10()
        turn = torch.linalg.inv_ex(dyes)[0] @ (factor.unsqueeze(-1) * dyes)  # no check: it waits
        moved = torch.einsum("bchw,bcd->bdhw", density, turn)
        moved = moved + (shift @ dyes)[..., None, None]
        return torch.pow(10.0, -moved).clamp(0, 1)


class _Restyling(Component, Generic[Settings]):
    """Changes a random share of the source images; the classes below say how."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings: Settings = settings

    def restyle(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the source images, a random share of them changed."""
        changed = self.change(source, target, draw)
        chosen = draw.uniform(len(source)) < self.settings.probability
        return torch.where(chosen.view(-1, 1, 1, 1), changed, source)

    @abstractmethod
    def change(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return all source images ``(B, 3, S, S)`` in 0..1, changed."""


class Fourier(_Restyling[FourierSettings]):
    """FDA: see `swap_low_frequencies`."""

    def change(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Swap up to a random frequency."""
        low, high = self.settings.beta_min, self.settings.beta_max
        return swap_low_frequencies(source, target, draw.uniform(len(source), low=low, high=high))


class Histogram(_Restyling[HistogramSettings]):
    """Histogram matching: see `match_histogram`."""

    def change(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Blend with the matched image, by a random share."""
        blend = draw.uniform(len(source), low=self.settings.blend_min, high=1.0)
        return torch.lerp(source, match_histogram(source, target), blend.view(-1, 1, 1, 1))


class Reinhard(_Restyling[ReinhardSettings]):
    """Reinhard's colour transfer: see `match_lab`."""

    def change(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Blend with the image of the target's colours, by a random share."""
        blend = draw.uniform(len(source), low=self.settings.blend_min, high=1.0)
        return torch.lerp(source, match_lab(source, target), blend.view(-1, 1, 1, 1))


class StainJitter(_Restyling[StainSettings]):
    """Stronger and weaker dyes: see `jitter_dyes`. The target is not looked at."""

    restyles_alone = True

    def __init__(self, settings: StainSettings) -> None:
        super().__init__(settings)
        dyes = torch.tensor(DYES)
        self.dyes: Tensor
        self.register_buffer("dyes", dyes / dyes.norm(dim=1, keepdim=True), persistent=False)

    def change(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Vary each dye by a random factor and shift."""
        del target
        batch, spread, most = len(source), self.settings.spread, self.settings.shift
        factor = draw.uniform(batch, 3, low=1 - spread, high=1 + spread)
        shift = draw.uniform(batch, 3, low=-most, high=most)
        return jitter_dyes(source, self.dyes, factor, shift)
