"""Source images in the colours and light of the target: nothing is learned, nothing is labelled."""

from __future__ import annotations

import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.settings import Fourier as FourierSettings
from da_leukemia.adaptation.settings import Histogram as HistogramSettings
from da_leukemia.data.views import Draw


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
    flat, other = source.flatten(2), target.flatten(2)
    quantiles = torch.linspace(0, 1, bins, device=source.device)
    # Sorted values at equal ranks are the quantiles; every 7th pixel is enough for 128 of them.
    step = max(1, flat.shape[-1] // 4096)

    def at(values: Tensor) -> Tensor:
        ordered = values[..., ::step].sort(-1).values
        return ordered[..., (quantiles * (ordered.shape[-1] - 1)).long()].contiguous()

    have, want = at(flat), at(other)
    # Ties (flat background) would make the table not invertible.
    have = have + torch.arange(bins, device=source.device) * 1e-6
    place = torch.searchsorted(have, flat.contiguous()).clamp(1, bins - 1)
    x0, x1 = have.gather(-1, place - 1), have.gather(-1, place)
    y0, y1 = want.gather(-1, place - 1), want.gather(-1, place)
    share = ((flat - x0) / (x1 - x0)).clamp(0, 1)
    return (y0 + share * (y1 - y0)).view(batch, channels, *source.shape[-2:])


class Fourier(Component):
    """FDA: see `swap_low_frequencies`."""

    def __init__(self, settings: FourierSettings) -> None:
        super().__init__()
        self.settings = settings

    def restyle(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Restyle a random share of the source images."""
        batch = len(source)
        beta = draw.uniform(batch, low=self.settings.beta_min, high=self.settings.beta_max)
        chosen = draw.uniform(batch) < self.settings.probability
        restyled = swap_low_frequencies(source, target, beta)
        return torch.where(chosen.view(-1, 1, 1, 1), restyled, source)


class Histogram(Component):
    """Histogram matching: see `match_histogram`."""

    def __init__(self, settings: HistogramSettings) -> None:
        super().__init__()
        self.settings = settings

    def restyle(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Restyle a random share of the source images, blended with the original."""
        batch = len(source)
        blend = draw.uniform(batch, low=self.settings.blend_min, high=1.0).view(-1, 1, 1, 1)
        chosen = draw.uniform(batch) < self.settings.probability
        restyled = torch.lerp(source, match_histogram(source, target), blend)
        return torch.where(chosen.view(-1, 1, 1, 1), restyled, source)
