"""Red cells: where they lie and how they are drawn, as one map of haemoglobin thickness."""

from __future__ import annotations

import numpy as np

from da_leukemia.simulate.patients import RED_SHAPES, Patient
from da_leukemia.simulate.shapes import (
    HEIGHT,
    WIDTH,
    Array,
    Canvas,
    blob,
    chain,
    grid,
    mottle,
    soft,
)

Circle = tuple[float, float, float]


def place_red_cells(
    patient: Patient, white: list[Circle], rng: np.random.Generator
) -> list[Circle]:
    """Return ``(x, y, radius)`` of the red cells: alone, in clumps and in short rouleaux.

    Args:
        patient: the slide.
        white: circles that red cells make way for.
        rng: the field's generator.
    """
    count = int(np.clip(rng.normal(patient.red_cells, 8), 45, 125))
    taken = np.array(white, dtype=np.float64).reshape(-1, 3)
    cells: list[Circle] = []
    spots = np.empty((count, 3))
    for _ in range(count * 12):
        n = len(cells)
        if n == count:
            break
        radius = patient.red_diameter / 2 * float(np.clip(rng.normal(1, 0.09), 0.7, 1.3))
        clumped = n > 0 and rng.random() < patient.clumping
        if clumped:
            px, py, pr = cells[int(rng.integers(max(0, n - 6), n))]
            angle = rng.uniform(0, 2 * np.pi)
            reach = (pr + radius) * rng.uniform(0.62, 1.02)
            x, y = px + reach * np.cos(angle), py + reach * np.sin(angle)
        else:
            x, y = rng.uniform(-12, WIDTH + 12), rng.uniform(-12, HEIGHT + 12)
        if len(taken):
            gap = np.hypot(taken[:, 0] - x, taken[:, 1] - y) - taken[:, 2] - radius
            if gap.min() < -0.12 * radius:
                continue
        if n:
            near = np.hypot(spots[:n, 0] - x, spots[:n, 1] - y) / (spots[:n, 2] + radius)
            if near.min() < (0.6 if clumped else 0.98):
                continue
        spots[n] = x, y, radius
        cells.append((float(x), float(y), radius))
    return cells


def _thickness(
    shape: str, radius: float, pallor: float, rim: float, rng: np.random.Generator
) -> Array:
    x, y = grid(2 * int(radius * 1.7) + 5)
    stretch = rng.uniform(1.25, 1.7) if shape == "oval" else rng.uniform(1, 1.2)
    if shape == "teardrop":
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 1.65)
        steps = np.linspace(0, 1, 6)
        points = [
            (float(reach * radius * t * np.cos(angle)), float(reach * radius * t * np.sin(angle)))
            for t in steps
        ]
        radii = (radius * (0.1 + 0.78 * (1 - steps) ** 1.4)).tolist()
        distance = chain(x, y, points, radii, 0.06 * radius)
    else:
        wobble = min(0.02 + float(rng.exponential(0.016)), 0.045)
        distance = blob(x, y, radius, rng, wobble=wobble, stretch=float(stretch))
    if shape == "burr":
        theta = np.arctan2(y, x)
        spikes = int(rng.integers(7, 13))
        # Two waves out of step: no two spikes of a burr cell are alike.
        wave = np.cos(spikes * theta + np.float32(rng.uniform(0, 6)))
        wave = wave + 0.7 * np.cos((spikes - 3) * theta + np.float32(rng.uniform(0, 6)))
        distance = distance - np.float32(radius * rng.uniform(0.04, 0.08)) * wave.astype(np.float32)
    # The rim is rounded: thickness rises smoothly, so its edge is wide where a nucleus' is sharp.
    rise = soft(distance, rim * rng.uniform(0.65, 1.35))
    body = rise * rise * (3 - 2 * rise)
    depth = np.clip(-distance / np.float32(radius), 0, 1)
    if shape == "ring":
        hole = np.clip((depth - 0.3) / 0.18, 0, 1)
        profile = 0.85 * (1 - 0.95 * hole)
    elif shape == "target":
        profile = 0.95 - 0.4 * np.exp(-(((depth - 0.45) / 0.16) ** 2))
    elif shape in ("flat", "burr"):
        profile = 1 - 0.1 * depth
    else:
        hollow = float(np.clip(rng.normal(pallor, 0.2), 0, 0.9))
        wall = rng.uniform(0.32, 0.58)
        # A cell that lies askew is thicker on one side.
        angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.16) / radius
        lean = np.float32(tilt * np.cos(angle)) * x + np.float32(tilt * np.sin(angle)) * y
        hole = np.clip((depth + lean - wall * 0.6) / wall, 0, 1)
        profile = 1.03 - hollow * hole * hole * (3 - 2 * hole)
    # The thickest ring lies a little inside the edge.
    edge = 0.07 * np.exp(-((distance / 2.5 + 1.8) ** 2))
    out: Array = (body * (profile + edge)).astype(np.float32)
    return out


def draw_red_cells(
    canvas: Canvas, patient: Patient, cells: list[Circle], rng: np.random.Generator
) -> None:
    """Draw the cells on the canvas. Overlaps are only a little darker than a single cell."""
    blood = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    young = np.zeros_like(blood)
    for x, y, radius in cells:
        shape = RED_SHAPES[int(rng.choice(len(RED_SHAPES), p=patient.red_shapes))]
        patch = _thickness(shape, radius, patient.pallor, patient.rim, rng)
        patch *= np.float32(np.clip(rng.normal(1.0, 0.1), 0.7, 1.35))
        place = Canvas.window(len(patch), x, y)
        if place is None:
            continue
        rows, cols, prows, pcols = place
        new, old = patch[prows, pcols], blood[rows, cols]
        blood[rows, cols] = np.maximum(old, new) + np.float32(0.22) * np.minimum(old, new)
        if rng.random() < 0.03:
            young[rows, cols] = np.maximum(young[rows, cols], new)
    blood *= 1 + np.float32(0.04) * mottle(blood.shape, 1.0, rng)
    canvas.od += blood * patient.palette.red[:, None, None]
    # Polychromasia: young red cells take up the blue-violet dye as well.
    purple = np.array([0.5, 0.68, 0.2], dtype=np.float32) - patient.palette.red
    canvas.od += young * (np.float32(0.42) * purple)[:, None, None]
