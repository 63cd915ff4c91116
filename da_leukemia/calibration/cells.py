"""Red cells in one photograph: round single components and the sizes of inscribed circles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import (
    find_objects,
    gaussian_filter,
    label,
)

from da_leukemia.calibration.components import Numbers, cut, depth, fill, fitting, inscribed
from da_leukemia.calibration.light import Mask, Values

Single = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Single cells of one photograph, in pixels of the original.

    Attributes:
        x: centres.
        y: centres.
        width: horizontal extents.
        height: vertical extents.
        alone: which of them touch nothing; the others were cut from their neighbours.
        nucleus: share of each that is as dark as a nucleus.
        inscribed: diameters of the largest circles that fit into the foreground, touching cells
            and clumps included; in the direction of x.
        colour: ``(n, 3)`` median light of each cell, as a share of the background's.
        foreground: share of the valid field that cells cover.
        outlines: ``(n, 5)`` centre and second moments ``xx, yy, xy`` for the picture.
    """

    x: Values
    y: Values
    width: Values
    height: Values
    alone: Mask
    nucleus: Values
    inscribed: Values
    colour: Values
    foreground: float
    outlines: Values

    @property
    def diameter(self) -> Values:
        """Geometric means of width and height."""
        return np.asarray(np.sqrt(self.width * self.height))

    def moved(self, x: float, y: float) -> Found:
        """Return the same cells in a frame whose origin lies so far to the left and above."""
        outlines = self.outlines + np.array([x, y, 0, 0, 0])
        return replace(self, x=self.x + x, y=self.y + y, outlines=outlines)


def otsu(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return Otsu's threshold (IEEE Trans. SMC 9, 1979) and the share of variance between."""
    if not len(values) or np.ptp(values) < 1e-6:
        return 0.0, 0.0
    counts, edges = np.histogram(values, bins=256)
    middle = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts) / max(1, counts.sum())
    mean = np.cumsum(counts * middle) / max(1, counts.sum())
    total = mean[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total * weight - mean) ** 2 / (weight * (1 - weight))
    between[~np.isfinite(between)] = 0
    variance = float(np.sum(counts * (middle - total) ** 2) / max(1, counts.sum()))
    best = float(between.max())
    # A wide gap between the classes gives a plateau; its middle is the threshold.
    top = np.flatnonzero(between > 0.995 * best)
    return float(middle[top].mean()), best / variance if variance > 0 else 0.0


def absorption(flat: Single, background: Values, weights: Values) -> Single:
    """Return how much light is missing, 0 in the clear background.

    Args:
        flat: ``(H, W, 3)`` in an even light.
        background: ``(3,)`` its clear background.
        weights: ``(3,)`` of the channels, summing to 1: those in which cells stand out.
    """
    scale = (weights / np.maximum(background, 1)).astype(np.float32)
    return np.asarray(1 - flat @ scale, dtype=np.float32)


def threshold(missing: Single, valid: Mask) -> tuple[float, float]:
    """Return the level between background and red cells, and how separable they are.

    Nuclei are darker than red cells, so a first threshold may lie between those two; what it
    leaves below is parted again if it is the better gap.
    """
    inside = missing[valid]
    inside = inside[:: max(1, len(inside) // 60_000)]
    low, high, top = np.percentile(inside, [0.5, 97, 99.9])
    high = max(high, 0.6 * top)  # in a sparse field all but the last hundredth is clear
    clipped = inside.clip(low, max(high, low + 1e-3))
    level, share = otsu(clipped)
    below = clipped[clipped < level]
    if len(below) > 0.8 * len(clipped):
        inner, inner_share = otsu(below)
        pale = below[below > inner]
        if inner_share > 0.78 and len(pale) > 0.04 * len(below) and inner > 0.03 and _kind(pale):
            return inner, inner_share
    return level, share


def _kind(values: NDArray[np.floating]) -> bool:
    """Return whether values gather around a depth of their own, as pale cells do.

    The blurred edges of darker cells thin out from the background upwards: cut within them, cells
    would be measured too large.
    """
    counts, _ = np.histogram(values, bins=12)
    return bool(counts[3:].max() > 1.3 * counts[:2].mean())


def find_cells(
    flat: Single,
    valid: Mask,
    background: Values,
    weights: Values,
    *,
    expected: float,
    aspect: float,
    pixel: float,
    red: Values | None = None,
    enough: float = np.inf,
    circles: bool = True,
) -> Found | None:
    """Find the single cells of one photograph.

    Args:
        flat: ``(H, W, 3)`` in an even light, at a size where red cells are some 30 px wide.
        valid: ``(H, W)`` inside the dark rim.
        background: ``(3,)`` of this photograph.
        weights: ``(3,)`` of the channels.
        expected: rough diameter of a red cell in x, pixels of ``flat``.
        aspect: width over height of a round cell.
        pixel: original pixels per pixel of ``flat``.
        red: ``(3,)`` light of a red cell, as a share of the background's; finds nuclei.
        enough: single cells of about the expected size above which touching ones stay together.
        circles: whether to look for inscribed circles.

    Returns:
        What was found, or None where nothing stands out from the background.
    """
    missing = gaussian_filter(absorption(flat, background, weights), 0.03 * expected)
    level, _ = threshold(missing, valid)
    if level < 0.015:
        return None
    dark = missing[(missing > level) & valid]
    if not len(dark):
        return None
    # An edge lies half-way between the background and the cell's rim, wherever Otsu cut.
    rim = np.median(dark[dark <= np.percentile(dark, 90)])
    level = float(np.clip(0.5 * rim, 0.6 * level, 1.25 * level))
    mask = fill((missing > level) & valid, 0.6 * expected**2 / aspect)
    numbered, count = label(mask)
    if not count:
        return None
    least = max(12.0, 0.06 * expected**2 / aspect)
    fits, moments = fitting(numbered, count, valid, aspect, least)
    size = moments[0] / (np.pi / 4 * expected**2 / aspect)
    touching = bool(((size > 0.3) & (size < 3)).sum() < enough)
    away = depth(mask, aspect) if touching or circles else np.zeros(mask.shape)
    parted, pieces = np.zeros_like(numbered), 0
    if touching:
        parted, pieces = cut(mask & ~np.isin(numbered, fits), away, expected)
    shards, more = fitting(parted, pieces, valid, aspect, least)
    relative = np.asarray(flat / np.maximum(background, 1), dtype=np.float32)
    parts = [_inside(relative, numbered, fits, red), _inside(relative, parted, shards, red)]
    units = np.array([1, pixel, pixel, pixel**2, pixel**2, pixel**2])[:, None]
    _, cx, cy, xx, yy, xy = np.concatenate([moments, more], axis=1) * units
    return Found(
        x=cx,
        y=cy,
        width=4 * np.sqrt(xx),
        height=4 * np.sqrt(yy),
        alone=np.arange(len(cx)) < len(fits),
        nucleus=np.concatenate([part[0] for part in parts]),
        inscribed=inscribed(away, valid, expected, aspect) * pixel if circles else np.zeros(0),
        colour=np.concatenate([part[1] for part in parts]),
        foreground=float(mask.sum() / max(1, valid.sum())),
        outlines=np.stack([cx, cy, xx, yy, xy], axis=1),
    )


def _inside(
    relative: Single, numbered: Numbers, wanted: Numbers, red: Values | None
) -> tuple[Values, Values]:
    """Return each component's share of nucleus and its median light."""
    places = find_objects(numbered)
    nucleus, colour = np.zeros(len(wanted)), np.zeros((len(wanted), 3))
    for row, number in enumerate(wanted):
        place = places[int(number) - 1]
        pixels = relative[place][numbered[place] == number]
        colour[row] = np.median(pixels, axis=0)
        if red is not None:
            nucleus[row] = nuclear(pixels, red).mean()
    return nucleus, colour


def nuclear(relative: Single, red: Values) -> Mask:
    """Return which pixels absorb far more than a red cell in some channel."""
    ratio = red.astype(np.float32) / np.maximum(relative, 0.02)
    return np.asarray(ratio.max(axis=-1) > 1.5)


def correlation(missing: Single, valid: Mask) -> tuple[float, float] | None:
    """Return the rough horizontal and vertical size of what lies in an image, in pixels.

    The autocorrelation of a disc falls to one half at 0.404 of its diameter, whatever their
    number, as long as they lie at random.
    """
    values = np.where(valid, missing, 0)
    level, _ = threshold(missing, valid)
    mask = ((values > level) & valid).astype(np.float32)
    share = mask[valid].mean() if valid.any() else 0
    if not 0.004 < share < 0.95:
        return None
    height, width = mask.shape
    mask = np.where(valid, mask - share, 0)
    spectrum = np.abs(np.fft.rfft2(mask, (2 * height, 2 * width))) ** 2
    whole = np.fft.irfft2(spectrum, (2 * height, 2 * width))
    sizes = []
    for line in (whole[0, : width // 2], whole[: height // 2, 0]):
        below = np.flatnonzero(line < 0.5 * line[0])
        if not len(below):
            return None
        after = int(below[0])
        before, there = line[after - 1] / line[0], line[after] / line[0]
        sizes.append((after - 1 + (before - 0.5) / (before - there)) / 0.404)
    return float(sizes[0]), float(sizes[1])


def shrink(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask at another size, by nearest neighbour."""
    if mask.all():
        return np.ones((height, width), dtype=bool)
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0
