"""Background, stains, edges and noise of a device, photograph by photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter

from da_leukemia.calibration.cells import Found, Single, nuclear, shrink
from da_leukemia.calibration.fields import Field
from da_leukemia.calibration.light import Mask, Values, flatten
from da_leukemia.calibration.record import Surface
from da_leukemia.calibration.scale import Light, Sizes

_SMALL = 500
"""Long side at which colours are measured."""

_APART = 6
"""Pixels between those whose difference is noise: less and it misses what neighbours share, more
and it grows with the film's own texture (docs/calibration.md)."""


def _reduced(field: Field, mask: Mask, surface: Surface | None) -> tuple[Single, Mask]:
    flat = flatten(field, surface, min(1.0, _SMALL / max(field.pixels.shape)))
    return flat, shrink(mask, *flat.shape[:2])


def sharpen_background(
    fields: Sequence[Field], valid: Sequence[Mask], surface: Surface | None, rough: Values
) -> tuple[Values, Values]:
    """Return each photograph's clear background and the channels in which cells stand out.

    Returns:
        ``(n, 3)`` median colour of the pixels around the rough level, and ``(3,)`` weights in
        proportion to what the channels lose in the cells.
    """
    out, losses = rough.copy(), []
    for row, (field, mask) in enumerate(zip(fields, valid, strict=True)):
        flat, lit = _reduced(field, mask, surface)
        inside = flat[lit]
        if not len(inside):
            continue
        inside = inside[:: max(1, len(inside) // 60_000)]
        ratio = inside / np.maximum(rough[row], 1).astype(np.float32)
        near = np.abs(ratio.mean(axis=1) - 0.985) < 0.05
        if near.sum() > 50:
            out[row] = np.median(inside[near], axis=0)
        ratio = inside / np.maximum(out[row], 1).astype(np.float32)
        grey = ratio.mean(axis=1)
        darker = ratio[grey < min(0.93, float(np.percentile(grey, 40)))]
        if len(darker) > 50:
            losses.append(1 - np.median(darker, axis=0))
    loss = np.clip(np.median(losses, axis=0), 0, None) if losses else np.ones(3)
    # A channel that hardly changes carries noise only.
    loss = loss**2
    return out, loss / loss.sum() if loss.sum() > 1e-6 else np.full(3, 1 / 3)


def stains(light: Light, sizes: Sizes | None) -> tuple[Values, Values]:
    """Return ``(n, 3)`` colours of red cells and of nuclei, NaN where a photograph has none."""
    count = len(light.fields)
    red, nucleus = np.full((count, 3), np.nan), np.full((count, 3), np.nan)
    if sizes is None:
        return red, nucleus
    for row, (found, mine) in enumerate(zip(sizes.found, sizes.chosen, strict=True)):
        background = light.backgrounds[row]
        if found is not None and mine.sum() >= 3:
            red[row] = np.median(found.colour[mine], axis=0) * background
        field = light.fields[row]
        zoom = min(1.0, _SMALL / max(field.pixels.shape))
        flat, lit = _reduced(field, light.valid[row], light.surface)
        dark = nuclear(flat / np.maximum(background, 1).astype(np.float32), sizes.red) & lit
        across = max(3, int(0.5 * sizes.diameter / field.reduced * zoom))
        core = uniform_filter(dark.astype(np.float32), across) > 0.9
        if (core & dark).sum() > 0.1 * across**2:
            nucleus[row] = np.median(flat[core & dark], axis=0)
    return red, nucleus


def noises(light: Light) -> Values:
    """Return the noise of green in each photograph's background, NaN where it shows none.

    Second differences cancel the shading; over `_APART` pixels, because demosaicing, resampling
    and JPEG make neighbours alike. The film's own grain is in it. Photographs that were reduced to
    be read show less noise than the camera has, and are left out.
    """
    out = np.full(len(light.fields), np.nan)
    for row, field in enumerate(light.fields):
        if field.reduced > 1:
            continue
        green = field.pixels[..., 1].astype(np.float32)
        flat = flatten(field, light.surface, 1.0)[..., 1] / max(light.backgrounds[row][1], 1)
        clear = (np.abs(uniform_filter(flat, 5) - 1) < 0.06) & light.valid[row]
        side = max(5, min(15, field.pixels.shape[0] // 40))
        still = uniform_filter(clear.astype(np.float32), side) > 0.97
        left, here, right = slice(-2 * _APART), slice(_APART, -_APART), slice(2 * _APART, None)
        second = green[:, here] - 0.5 * (green[:, left] + green[:, right])
        rest = second[still[:, left] & still[:, here] & still[:, right]]
        if len(rest) > 300:
            middle = np.median(np.abs(rest))
            rest = rest[np.abs(rest) <= 5 * max(middle, 0.5)]
            out[row] = rest.std() / np.sqrt(1.5)
    return out


def edges(light: Light, sizes: Sizes | None) -> tuple[Values, Values]:
    """Return the 10-90 % width of red cells' edges in x and y, original px, NaN where unseen."""
    count = len(light.fields)
    across, down = np.full(count, np.nan), np.full(count, np.nan)
    if sizes is None:
        return across, down
    for row, (field, found, mine) in enumerate(
        zip(light.fields, sizes.found, sizes.chosen, strict=True)
    ):
        if found is None or not mine.any():
            continue
        plane = field.pixels.astype(np.float32) @ light.weights.astype(np.float32)
        pick = np.flatnonzero(mine)[:25]
        across[row] = _edge(plane, found, pick, field.reduced, horizontal=True)
        down[row] = _edge(plane, found, pick, field.reduced, horizontal=False)
    return across, down


def _edge(
    plane: Single,
    found: Found,
    pick: NDArray[np.intp],
    reduced: float,
    *,
    horizontal: bool,
) -> float:
    widths = []
    for cell in pick:
        extent = (found.width if horizontal else found.height)[cell] / reduced
        x, y = found.x[cell] / reduced - 0.5, found.y[cell] / reduced - 0.5
        for side in (-1, 1):
            # From the middle of the cell outwards, a third of a cell beyond its edge.
            steps = np.arange(0.12 * extent, 0.8 * extent, 0.25)
            zero = np.zeros_like(steps)
            rows, columns = (y + zero, x + side * steps) if horizontal else (y + side * steps, zero)
            if not horizontal:
                columns = x + zero
            profile = map_coordinates(plane, [rows, columns], order=1, mode="nearest")
            width = _rise(profile, int((0.5 - 0.12) * extent / 0.25))
            if width is not None:
                widths.append(width * 0.25 * reduced)
    return float(np.median(widths)) if len(widths) >= 4 else np.nan


def _rise(profile: NDArray[np.floating], edge: int) -> float | None:
    """Return samples from 90 % to 10 % of a cell's depth along a profile, or None."""
    if edge < 3 or edge + 3 >= len(profile):
        return None
    bottom = int(np.argmin(profile[: edge + 2]))
    top = int(np.argmax(profile[edge:])) + edge
    dark, clear = float(profile[bottom]), float(profile[top])
    if clear - dark < 6 or top <= bottom + 1:
        return None
    share = (profile[bottom : top + 1] - dark) / (clear - dark)
    start = int(np.flatnonzero(share <= 0.1)[-1])
    end = int(np.flatnonzero(share[start:] >= 0.9)[0]) + start
    first = start + (0.1 - share[start]) / max(1e-6, share[start + 1] - share[start])
    last = end - 1 + (0.9 - share[end - 1]) / max(1e-6, share[end] - share[end - 1])
    return float(last - first)
