"""What is on a slide besides blood cells: platelets, and artefacts that look like a cell or not."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from da_leukemia.simulate.patients import Palette
from da_leukemia.simulate.shapes import (
    HEIGHT,
    WIDTH,
    Array,
    Canvas,
    Patch,
    blob,
    chain,
    grid,
    mottle,
    scatter,
    soft,
)

ARTEFACTS = ("smudge", "basket", "bare", "precipitate", "clump")
"""Artefacts that annotators box as "none": ruined cells, naked nuclei, dye, platelet clumps."""
ARTEFACT_ODDS = (0.34, 0.14, 0.2, 0.16, 0.16)


def draw_artefact(kind: str, palette: Palette, rng: np.random.Generator) -> Patch:
    """Draw one of ``ARTEFACTS``."""
    radius = float({"precipitate": rng.uniform(12, 26), "clump": rng.uniform(12, 22)}.get(kind, 0))
    radius = radius or float(
        rng.uniform(24, 42) if kind in ("smudge", "basket") else rng.uniform(20, 34)
    )
    x, y = grid(2 * int(radius * 1.5) + 9)
    size = x.shape
    stretch = float(rng.uniform(1.0, 1.45))
    outline = blob(x, y, radius, rng, wobble=0.08 if kind == "bare" else 0.14, stretch=stretch)
    ragged = outline + np.float32(radius * 0.12) * mottle(size, 4.0, rng)
    red = palette.nucleus * np.array([0.62, 0.72, 0.68], dtype=np.float32)
    if kind == "smudge":
        core = soft(outline + np.float32(radius * rng.uniform(0.15, 0.4)), radius * 0.1)
        fringe = np.clip(soft(ragged, radius * 0.3) * (0.55 + 0.3 * mottle(size, 1.6, rng)), 0, 1)
        alpha = np.maximum(core * np.float32(0.92), fringe * np.float32(0.6))
        density = 0.75 + 0.1 * mottle(size, 1.4, rng)
    elif kind == "basket":
        mesh = np.abs(mottle(size, 2.4, rng))
        alpha = soft(ragged, radius * 0.25) * np.clip(1.1 - 0.6 * mesh, 0, 1)
        density = np.full(size, 0.7, dtype=np.float32)
    elif kind == "bare":
        alpha = soft(outline + np.float32(0.08 * radius), 1.4)
        density = 0.95 + 0.12 * mottle(size, 1.8, rng)
    elif kind == "precipitate":
        dust = mottle(size, 1.7, rng) + 1.2 - 2.2 * np.clip(1 + outline / radius, 0, 1.3)
        alpha = np.clip(dust * 1.6, 0, 1) * soft(outline, 2.0)
        density = np.full(size, 1.1, dtype=np.float32)
    else:
        alpha = scatter(soft(outline, 1.0), int(radius * 1.3), 3.2, rng)
        density = 0.85 + 0.15 * mottle(size, 1.2, rng)
        red = palette.platelet * np.float32(1.15)
    od = density * red[:, None, None]
    return Patch(alpha.astype(np.float32), od.astype(np.float32), np.zeros(size, np.float32))


def draw_platelets(canvas: Canvas, palette: Palette, count: int, rng: np.random.Generator) -> None:
    """Strew single platelets, 4 to 9 pixels across."""
    for _ in range(count):
        radius = float(np.clip(rng.lognormal(np.log(3.0), 0.3), 2, 7))
        x, y = grid(2 * int(radius * 1.6) + 7)
        alpha = soft(blob(x, y, radius, rng, wobble=0.15, stretch=rng.uniform(1, 1.5)), 1.3)
        core = np.exp(-(x**2 + y**2) / np.float32(radius**2))
        od = (0.6 + 0.7 * core) * palette.platelet[:, None, None]
        patch = Patch(alpha * np.float32(0.9), od.astype(np.float32), np.zeros_like(alpha))
        canvas.paint(patch, rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT))


def draw_shreds(canvas: Canvas, palette: Palette, dirt: float, rng: np.random.Generator) -> None:
    """Lay thin nets of dye about, which nobody boxes."""
    for _ in range(rng.poisson(1.5 + 1.5 * dirt)):
        radius = float(rng.uniform(4, 13))
        x, y = grid(2 * int(radius * 1.8) + 7)
        outline = blob(x, y, radius, rng, wobble=0.3, stretch=float(rng.uniform(1, 2)))
        net = np.clip(1.1 - 2.4 * np.abs(mottle(x.shape, 1.5, rng)), 0, 1)
        amount = net * soft(outline, radius * 0.5) * np.float32(rng.uniform(0.25, 0.85))
        canvas.add(
            amount.astype(np.float32),
            palette.platelet,
            rng.uniform(0, WIDTH),
            rng.uniform(0, HEIGHT),
        )


def draw_background(
    canvas: Canvas, palette: Palette, dirt: float, rng: np.random.Generator
) -> None:
    """Draw plasma haze, fine dye dust and now and then a scratch, beneath the cells."""
    coarse = rng.standard_normal((HEIGHT // 16, WIDTH // 16), dtype=np.float32)
    coarse = gaussian_filter(coarse, 1.5)
    cloud = np.clip(np.kron(coarse, np.ones((16, 16), np.float32)) * 2.5 + 0.6, 0, 2)
    cloud = gaussian_filter(cloud, 7, truncate=2.0)
    pink = np.array([0.0, 0.05, 0.012], dtype=np.float32) * np.float32(palette.haze)
    canvas.od += cloud * pink[:, None, None]
    dust = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    count = rng.poisson(70 * dirt)
    dust[rng.integers(0, HEIGHT, count), rng.integers(0, WIDTH, count)] = rng.uniform(1, 5, count)
    # Specks too fine to count, on every slide: the film is never clean.
    count = rng.poisson(600 + 1100 * dirt)
    dust[rng.integers(0, HEIGHT, count), rng.integers(0, WIDTH, count)] += rng.gamma(1, 0.3, count)
    dust = gaussian_filter(dust, 0.8, truncate=3.0)
    canvas.od += dust * palette.platelet[:, None, None]
    if rng.random() < 0.15:
        x0, y0 = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        angle, size = rng.uniform(0, np.pi), int(rng.uniform(60, 140))
        x, y = grid(size)
        c, s = float(np.cos(angle)) * size / 2.4, float(np.sin(angle)) * size / 2.4
        line = soft(chain(x, y, [(-c, -s), (c, s)], (0.3, 0.3), 0.5), 1.2)
        canvas.add(line, np.full(3, -0.07, dtype=np.float32), x0, y0)


def draw_refractile(canvas: Canvas, dirt: float, rng: np.random.Generator) -> None:
    """Lay bubbles (white core, dark ring) and crystals on top: they bend light, not stain."""
    for _ in range(rng.poisson(0.8 + 0.5 * dirt)):
        radius = float(rng.uniform(2.5, 7))
        x, y = grid(2 * int(radius * 2.5) + 5)
        gap = blob(x, y, radius, rng, wobble=0.08, stretch=rng.uniform(1, 1.6))
        light = -0.45 * soft(gap, 1.5) + 0.4 * np.exp(-(((gap - 1.6) / 1.2) ** 2))
        if rng.random() < 0.3:
            # A crystal: straight bright and dark edges rather than rings.
            light = light * np.sign(np.sin(x * 0.9 + y * 0.6)) * np.float32(0.7)
        colour = np.array([1.0, 1.0, 1.1], dtype=np.float32) * np.float32(rng.uniform(0.5, 1.1))
        amount: Array = light.astype(np.float32)
        canvas.add(amount, colour, rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT))
    for _ in range(rng.poisson(0.4)):
        # Something out of the focal plane: a wide soft shadow.
        x, y = grid(41)
        shadow = np.exp(-(x**2 + y**2) / np.float32(2 * rng.uniform(5, 9) ** 2))
        colour = np.full(3, rng.uniform(0.08, 0.25), dtype=np.float32)
        canvas.add(shadow, colour, rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT))
