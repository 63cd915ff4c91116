"""Outlines, textures and the canvas: what every simulated cell is drawn with.

Convention: images are channel-first ``(3, 448, 800)`` optical densities (``-ln`` transmittance) in
a round-cell frame; a patch is square with its centre at the middle pixel; distances are in pixels
of that frame, negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]

HEIGHT, WIDTH = 448, 800
"""The frame in which cells are round; the release squeezes it to 640x640."""


@dataclass(frozen=True)
class Patch:
    """One drawn object.

    Attributes:
        alpha: ``(n, n)`` how much of what lies beneath it hides.
        od: ``(3, n, n)`` its optical density where alpha is 1.
        nucleus: ``(n, n)`` nuclear mask in [0, 1]; zeros if it has none.
    """

    alpha: Array
    od: Array
    nucleus: Array


def grid(size: int) -> tuple[Array, Array]:
    """Return the x and y coordinates of a square patch, zero at its centre."""
    axis = np.arange(size, dtype=np.float32) - np.float32(size // 2)
    return np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))


def blob(
    x: Array,
    y: Array,
    radius: float,
    rng: np.random.Generator,
    *,
    wobble: float = 0.03,
    stretch: float = 1.0,
) -> Array:
    """Return the distance to a wavy ellipse of mean radius ``radius`` in a random orientation."""
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    root = np.float32(np.sqrt(stretch))
    u, v = (c * x + s * y) / root, (c * y - s * x) * root
    theta = np.arctan2(v, u)
    edge = np.full_like(theta, radius)
    for order in (2, 3, 4, 5):
        size = radius * wobble * rng.normal() * 1.6 / order
        edge += np.float32(size) * np.cos(order * theta + np.float32(rng.uniform(0, 6.3)))
    distance: Array = np.hypot(u, v) - edge
    return distance


def chain(
    x: Array, y: Array, points: Sequence[tuple[float, float]], radii: Sequence[float], strand: float
) -> Array:
    """Return the distance to discs joined in order by strands of half-width ``strand``."""
    distance = np.full(x.shape, np.inf, dtype=np.float32)
    for (px, py), r in zip(points, radii, strict=True):
        np.minimum(distance, np.hypot(x - np.float32(px), y - np.float32(py)) - r, out=distance)
    for (ax, ay), (bx, by) in pairwise(points):
        dx, dy = bx - ax, by - ay
        length = max(dx * dx + dy * dy, 1e-6)
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / length, 0, 1).astype(np.float32)
        gap = np.hypot(x - ax - t * np.float32(dx), y - ay - t * np.float32(dy))
        np.minimum(distance, gap - np.float32(strand), out=distance)
    return distance


def soft(distance: Array, width: float = 1.0) -> Array:
    """Turn a distance into a mask that falls from 1 to 0 over ``2 * width`` pixels."""
    mask: Array = np.clip(0.5 - distance / np.float32(2 * width), 0, 1)
    return mask


def mottle(shape: tuple[int, ...], grain: float, rng: np.random.Generator) -> Array:
    """Return smooth noise of unit variance whose spots have a size of about ``grain`` pixels."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter(noise, grain, mode="wrap", truncate=3.0)
    out: Array = noise / (noise.std() + np.float32(1e-6))
    return out


def scatter(where: Array, count: int, radius: float, rng: np.random.Generator) -> Array:
    """Return ``count`` round grains of about ``radius`` pixels, placed where ``where`` > 0.5."""
    out = np.zeros(where.shape, dtype=np.float32)
    rows, cols = np.nonzero(where > 0.5)
    if not len(rows) or count <= 0:
        return out
    pick = rng.integers(0, len(rows), count)
    out[rows[pick], cols[pick]] = rng.uniform(0.6, 1.3, count).astype(np.float32)
    sigma = max(radius * 0.62, 0.4)
    out = gaussian_filter(out, sigma, mode="constant", truncate=3.0)
    grains: Array = np.clip(out * np.float32(2 * np.pi * sigma**2 + 0.5) * 1.3, 0, 1)
    return grains


class Canvas:
    """The slide being drawn: optical density, and which object each pixel belongs to."""

    def __init__(self) -> None:
        self.od: Array = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
        self.owner: NDArray[np.int16] = np.zeros((HEIGHT, WIDTH), dtype=np.int16)

    @staticmethod
    def window(size: int, cx: float, cy: float) -> tuple[slice, slice, slice, slice] | None:
        """Return image rows and columns, then patch rows and columns; None if it misses."""
        left, top = round(cx) - size // 2, round(cy) - size // 2
        x0, x1 = max(left, 0), min(left + size, WIDTH)
        y0, y1 = max(top, 0), min(top + size, HEIGHT)
        if x0 >= x1 or y0 >= y1:
            return None
        return (
            slice(y0, y1),
            slice(x0, x1),
            slice(y0 - top, y1 - top),
            slice(x0 - left, x1 - left),
        )

    def paint(self, patch: Patch, cx: float, cy: float, owner: int = 0) -> None:
        """Lay a patch over what is there; ``owner`` > 0 marks the pixels as that object's."""
        place = self.window(len(patch.alpha), cx, cy)
        if place is None:
            return
        rows, cols, prows, pcols = place
        alpha = patch.alpha[prows, pcols]
        under = self.od[:, rows, cols]
        self.od[:, rows, cols] = under + alpha * (patch.od[:, prows, pcols] - under)
        if owner:
            self.owner[rows, cols][alpha > 0.4] = owner

    def add(self, amount: Array, od: Array, cx: float, cy: float) -> None:
        """Add stain of colour ``od`` (3,) in the given amount, without hiding what is there."""
        place = self.window(len(amount), cx, cy)
        if place is None:
            return
        rows, cols, prows, pcols = place
        self.od[:, rows, cols] += amount[prows, pcols] * od[:, None, None]
