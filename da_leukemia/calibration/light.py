"""The lamp: valid field of view, illumination field and background colour of a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, label

from da_leukemia.calibration.fields import Field, Pixels
from da_leukemia.calibration.record import Surface

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

GRID = 20
"""Tiles along each side in which the background's brightness is sought."""

_CLEAR_SHARE = 85
"""Percentile of a tile that is background wherever a sixth of the tile is."""

_BLACK = 12
"""Grey level that the background of a photograph exceeds."""

_DARK = 0.22
"""Share of the lamp's level below which a tile may belong to the rim."""


_SIDE = 160
"""Pixels across in which the rim is sought."""

_SOFT = 0.75 / _SIDE
"""Share of a side that enlarging the rim from `_SIDE` pixels adds to it, at each end."""


_BELOW = (0.10, 0.08, 0.08, 0.08, 0.05, 0.05, 0.05, 0.05)
_ABOVE = (0.40, 0.30, 0.20, 0.15, 0.10, 0.07, 0.05, 0.05)
"""Log levels below and above the fitted light within which a tile is background, step by step."""


def powers(order: int) -> tuple[tuple[int, int], ...]:
    """Return the exponents of a polynomial in two variables."""
    return tuple((i, t - i) for t in range(order + 1) for i in range(t, -1, -1))


def design(x: Values, y: Values, exponents: Sequence[tuple[int, int]]) -> Values:
    """Return the polynomial's terms, one column each."""
    return np.stack([x**i * y**j for i, j in exponents], axis=-1)


def centres(count: int) -> Values:
    """Return coordinates of ``count`` pixels or tiles in -1..1."""
    return (np.arange(count) + 0.5) / count * 2 - 1


Part = tuple[slice, slice]
"""Rows and columns of a frame."""

WHOLE: Part = (slice(None), slice(None))


def render(surface: Surface, height: int, width: int, part: Part = WHOLE) -> NDArray[np.float32]:
    """Return the light ``(H, W, 3)`` of a frame of any size, 1 at its brightest place.

    Args:
        surface: the lamp's field.
        height: of the frame, px.
        width: of the frame, px.
        part: of the frame that is returned.
    """
    x, y = centres(width)[part[1]], centres(height)[part[0]]
    top = max(i for i, _ in surface.powers)
    px = np.stack([x**i for i in range(top + 1)])
    py = np.stack([y**i for i in range(top + 1)])
    out = np.empty((len(y), len(x), 3), dtype=np.float32)
    for channel, row in enumerate(surface.coefficients):
        matrix = np.zeros((top + 1, top + 1))
        for (i, j), value in zip(surface.powers, row, strict=True):
            matrix[j, i] += value
        out[..., channel] = np.exp((py.T @ matrix).astype(np.float32) @ px.astype(np.float32))
    return out


def tiles(pixels: Pixels) -> Values:
    """Return the bright level ``(GRID, GRID, 3)`` of each tile of a photograph."""
    height, width = pixels.shape[:2]
    fine = (GRID * min(24, max(2, width // GRID)), GRID * min(24, max(2, height // GRID)))
    small = np.asarray(Image.fromarray(pixels).resize(fine, Image.Resampling.BOX))
    cut = small.reshape(GRID, fine[1] // GRID, GRID, fine[0] // GRID, 3).swapaxes(1, 2)
    flat = cut.reshape(GRID, GRID, -1, 3)
    return np.asarray(np.percentile(flat, _CLEAR_SHARE, axis=2), dtype=np.float64)


def dark_rim(levels: Values) -> Mask:
    """Return the tiles ``(GRID, GRID)`` that stay dark up to the frame's border.

    Args:
        levels: ``(n, GRID, GRID, 3)`` of `tiles`.
    """
    grey = levels.mean(axis=-1)
    lamp = np.percentile(grey.reshape(len(grey), -1), 90, axis=1)
    dark = np.median(grey / np.maximum(lamp, 1)[:, None, None], axis=0) < _DARK
    numbered, count = label(dark)
    border = np.concatenate([numbered[0], numbered[-1], numbered[:, 0], numbered[:, -1]])
    touching = np.isin(numbered, np.setdiff1d(border, [0])) if count else dark
    return touching if 3 <= touching.sum() < 0.8 * dark.size else np.zeros_like(dark)


def rim_of(pixels: Pixels, likely: bool) -> Mask:
    """Return the pixels of the dark rim of one photograph, a little widened.

    Args:
        pixels: the photograph.
        likely: whether the device has such a rim; without it nothing is dark.
    """
    height, width = pixels.shape[:2]
    if not likely:
        return np.zeros((height, width), dtype=bool)
    side = _SIDE
    small = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
    grey = small.mean(axis=-1)
    numbered, _ = label(grey < 0.35 * np.percentile(grey, 80))
    sizes = np.bincount(numbered.ravel())
    edge = np.concatenate([numbered[0], numbered[-1], numbered[:, 0], numbered[:, -1]])
    keep = [n for n in np.unique(edge) if n and sizes[n] > 0.003 * side * side]
    rim = Image.fromarray(np.isin(numbered, keep).astype(np.uint8) * 255)
    wide = np.asarray(rim.resize((width, height), Image.Resampling.BILINEAR)) > 0
    if wide.mean() > 0.97:
        return np.zeros((height, width), dtype=bool)
    return np.asarray(binary_dilation(wide, iterations=_widening(width)))


def _widening(width: int) -> int:
    return max(2, width // 100)


def ellipse(lit: Mask) -> tuple[float, float, float, float] | None:
    """Return ``x, y, radius_x, radius_y`` of a lit field, shares of width and height.

    Fitted by least squares to its border, where that is not the frame's, so it may reach beyond
    the frame. None where the border is of no ellipse.

    Args:
        lit: what `rim_of` left of a photograph.
    """
    height, width = lit.shape
    y, x = (v.astype(np.float64) for v in np.nonzero(lit & ~binary_erosion(lit, border_value=1)))
    if len(x) < 8:
        return None
    u, v = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    a, b, c, d = np.linalg.lstsq(np.stack([u**2, v**2, u, v], axis=1), np.ones(len(u)))[0]
    if min(a, b) <= 0:
        return None
    size = 1 + c**2 / (4 * a) + d**2 / (4 * b)
    taken = _widening(width)  # by `rim_of`, and `_SOFT`
    return (
        float(0.5 - c / (4 * a)),
        float(0.5 - d / (4 * b)),
        float(np.sqrt(size / a) / 2 + taken / width + _SOFT),
        float(np.sqrt(size / b) / 2 + taken / height + _SOFT),
    )


def fit_light(
    levels: Values, rim: Mask, order: int = 4
) -> tuple[Surface, Values, float, float] | None:
    """Fit the light that all fields share, and each field's own level.

    The background is the upper envelope of the tiles: cells only darken. A stiff quantile fit finds
    it, a finer one refines it on the tiles that lie on it, so that a cell that fills the middle of
    every image is left out rather than taken for a shadow.

    Args:
        levels: ``(n, GRID, GRID, 3)`` of `tiles`.
        rim: ``(GRID, GRID)`` tiles outside the valid field.
        order: of the polynomial.

    Returns:
        The surface, the fields' levels ``(n, 3)``, the share of light lost at the darkest place,
        and the share of the frame where background was seen; None where too little was.
    """
    count = len(levels)
    use = ~rim.ravel()
    if use.sum() < GRID or float(levels.max()) < _BLACK:
        return None
    y, x = (v.ravel()[use] for v in np.meshgrid(centres(GRID), centres(GRID), indexing="ij"))
    data = np.log(np.maximum(levels.reshape(count, -1, 3)[:, use], 1.0))
    grey = data.mean(axis=-1)
    stiff = design(x, y, powers(2))[:, 1:]
    offset = np.percentile(grey, 85, axis=1)
    shape = np.zeros(stiff.shape[1])
    for _ in range(25):
        rest = grey - offset[:, None] - stiff @ shape
        weight = np.where(rest > 0, 0.85, 0.15) / np.maximum(np.abs(rest), 0.01)
        shape = _within(weight, grey[..., None], stiff, 1e-3)[0]
        offset = np.percentile(grey - stiff @ shape, 85, axis=1)
    rest = grey - offset[:, None] - stiff @ shape
    # Cells only darken: what is brighter than the stiff surface is background that it missed.
    keep = (rest > -_BELOW[0]) & (rest < _ABOVE[0])
    seen = keep.sum(axis=0) >= max(1, 0.1 * count)
    if keep.sum() < 12 or seen.mean() < 0.25:
        return None
    exponents = powers(order if seen.mean() > 0.6 and keep.sum() > 150 else 2)
    fine = design(x, y, exponents)[:, 1:]
    own, coefficients = np.zeros((count, 3)), np.zeros((3, fine.shape[1]))
    for below, above in zip(_BELOW, _ABOVE, strict=True):
        ridge = 1e-3 * keep.sum() / fine.shape[0] + 1e-6
        coefficients = _within(keep.astype(float), data, fine, ridge)
        each = data - np.einsum("tk,ck->tc", fine, coefficients)
        own = np.stack(
            [np.median(e[k], axis=0) if k.any() else np.median(e, axis=0)
             for e, k in zip(each, keep, strict=True)]
        )  # fmt: skip
        rest = (each - own[:, None]).mean(axis=-1)
        keep = (rest > -below) & (rest < above)
        if keep.sum() < 12:
            return None
    light = np.einsum("tk,ck->tc", fine, coefficients)
    top = np.percentile(light, 97, axis=0)
    constant = np.concatenate([-top[:, None], coefficients], axis=1)
    fall = 1 - float(np.exp(np.percentile((light - top).mean(axis=-1), 1)))
    surface = Surface(exponents, tuple(tuple(float(v) for v in row) for row in constant))
    return surface, np.exp(own + top), fall, float(seen.mean())


def _within(weight: Values, data: Values, terms: Values, ridge: float) -> Values:
    """Fit terms and a constant of each field by least squares; return the terms' ``(c, k)``.

    The constants are eliminated, not fitted in turns: turns would need hundreds of steps, for a
    constant and a square are nearly the same.

    Args:
        weight: ``(n, t)`` of each field's tiles.
        data: ``(n, t, c)``.
        terms: ``(t, k)``.
        ridge: added to the diagonal.
    """
    total = np.maximum(weight.sum(axis=1), 1e-9)
    mean = weight @ terms / total[:, None]
    level = np.einsum("ft,ftc->fc", weight, data) / total[:, None]
    normal = np.einsum("ft,ti,tj->ij", weight, terms, terms, optimize=True)
    normal -= np.einsum("f,fi,fj->ij", total, mean, mean)
    right = np.einsum("ft,ftc,ti->ic", weight, data, terms, optimize=True)
    right -= np.einsum("f,fi,fc->ic", total, mean, level)
    return np.asarray(np.linalg.solve(normal + ridge * np.eye(terms.shape[1]), right).T)


def zoomed(field: Field, zoom: float) -> tuple[int, int]:
    """Return ``height, width`` of a photograph at a zoom of its pixels."""
    height, width = field.pixels.shape[:2]
    return max(8, round(height * zoom)), max(8, round(width * zoom))


def flatten(
    field: Field, surface: Surface | None, zoom: float, part: Part = WHOLE
) -> NDArray[np.float32]:
    """Return a photograph at another size, divided by the lamp's field, in grey levels.

    Args:
        field: the photograph.
        surface: the lamp's field, None where unknown.
        zoom: new over old size.
        part: of the new frame that is returned.
    """
    height, width = zoomed(field, zoom)
    how = Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.BILINEAR
    high, wide = field.pixels.shape[:2]
    if (height, width) == (high, wide):
        small = np.asarray(field.pixels[part], dtype=np.float32)
    else:
        top, bottom, _ = part[0].indices(height)
        left, right, _ = part[1].indices(width)
        x, y = wide / width, high / height
        box = (left * x, top * y, min(right * x, wide), min(bottom * y, high))
        new = Image.fromarray(field.pixels).resize((right - left, bottom - top), how, box)
        small = np.asarray(new, dtype=np.float32)
    if surface is not None:
        small /= render(surface, height, width, part)
    return small
