"""A field of view before any lens: which cells, where, and how much light passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da_leukemia.labels import LEUKEMIAATTRI, LINEAGE, UNKNOWN, translate
from da_leukemia.simulate.cells import CELL_TYPES, draw_attributes, draw_cell
from da_leukemia.simulate.clutter import (
    ARTEFACT_ODDS,
    ARTEFACTS,
    draw_artefact,
    draw_background,
    draw_platelets,
    draw_refractile,
    draw_shreds,
)
from da_leukemia.simulate.patients import Patient, make_patient
from da_leukemia.simulate.red_cells import Circle, draw_red_cells, place_red_cells
from da_leukemia.simulate.shapes import HEIGHT, WIDTH, Array, Canvas, Patch

SIDE = 640
"""Pixels of the square image into which the release squeezes a field."""


@dataclass(frozen=True)
class Scene:
    """One field of view, the same for every device that photographs it.

    Attributes:
        seed: seed of the whole simulation.
        patient: patient number, from 1.
        field: field number within the patient, from 1.
        diagnosis: the patient's diagnosis.
        transmittance: ``(3, 448, 800)``, 1 where nothing absorbs.
        background: ``(3,)`` grey level of the empty slide in the reference device.
        boxes: ``(n, 4)`` half-open ``x0, y0, x1, y1`` in pixels of the squeezed 640 frame.
        labels: ``(n,)`` class in ``LEUKEMIAATTRI`` (0 is "none").
        attributes: ``(n, 7)`` codes in the order of ``MORPHOLOGY``; -1 for "none" boxes.
        owner: ``(448, 800)`` which object a pixel belongs to, 0 or ``1 + index of its box``.
    """

    seed: int
    patient: int
    field: int
    diagnosis: str
    transmittance: Array
    background: Array
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    attributes: NDArray[np.int64]
    owner: NDArray[np.int16]


def cell_size(width: float, height: float) -> int:
    """Return the size code of a box given in the 800x448 frame, by the release's own rule."""
    area = width * height
    short, long = min(width, height), max(width, height)
    if short < 55 and long < 65 and area < 3600:
        return 0
    if short > 70 and long > 90 and area > 8000:
        return 2
    return 1


def _lineage(kind: str) -> int:
    found = translate(kind, LINEAGE)
    assert found is not None  # every white cell has a lineage
    return found


def _choose_cells(slide: Patient, patient: int, field: int, rng: np.random.Generator) -> list[str]:
    """Draw the white-cell types of a field; a patient's first four fields show all lineages."""
    kinds, odds = list(slide.mix), np.array(list(slide.mix.values()))
    count = int(np.clip(rng.poisson(slide.white_cells), 1, 13))
    chosen = [kinds[int(i)] for i in rng.choice(len(kinds), count, p=odds)]
    if field <= len(LINEAGE.classes):
        # Every other group of three patients (two train, one test) starts halfway through, so that
        # two fields of each of six patients are enough to show all four in train and in test.
        lineage = (field - 1 + 2 * (patient // 3)) % len(LINEAGE.classes)
        wanted = [i for i, kind in enumerate(kinds) if _lineage(kind) == lineage]
        if wanted:
            part = odds[wanted] / odds[wanted].sum()
            chosen[0] = kinds[wanted[int(rng.choice(len(wanted), p=part))]]
    return chosen


def _place(radius: float, taken: list[Circle], rng: np.random.Generator, inside: bool) -> Circle:
    """Find room for a disc, beside its neighbours where the field is crowded."""
    margin = radius * 0.9 if inside else -radius * 0.45
    best, best_gap = (0.0, 0.0, radius), -np.inf
    for _ in range(25):
        x = float(rng.uniform(margin, WIDTH - margin))
        y = float(rng.uniform(margin, HEIGHT - margin))
        if taken and rng.random() < 0.25:
            px, py, pr = taken[int(rng.integers(len(taken)))]
            angle = rng.uniform(0, 2 * np.pi)
            reach = (pr + radius) * rng.uniform(0.95, 1.1)
            near = float(px + reach * np.cos(angle)), float(py + reach * np.sin(angle))
            if margin <= near[0] <= WIDTH - margin and margin <= near[1] <= HEIGHT - margin:
                x, y = near
        gap = min((np.hypot(x - a, y - b) - r - radius for a, b, r in taken), default=1.0)
        if gap > best_gap:
            best, best_gap = (x, y, radius), gap
        if gap > -0.08 * radius:
            break
    return best


def _box(owner: NDArray[np.int16], index: int, rng: np.random.Generator) -> list[float] | None:
    """Return the annotated box, in the 800x448 frame: drawn by hand, so a little loose."""
    mine = owner == index
    columns, rows = np.flatnonzero(mine.any(axis=0)), np.flatnonzero(mine.any(axis=1))
    if not len(rows) or len(rows) < 12 or len(columns) < 12:
        return None
    left, top, right, bottom = rng.uniform(1.0, 4.5, 4)
    return [
        max(0.0, float(columns[0] - left)),
        max(0.0, float(rows[0] - top)),
        min(float(WIDTH), float(columns[-1] + 1 + right)),
        min(float(HEIGHT), float(rows[-1] + 1 + bottom)),
    ]


def render_field(seed: int, patient: int, field: int) -> Scene:
    """Render one field of view.

    Args:
        seed: seed of the simulation.
        patient: patient number, from 1.
        field: field number within the patient, from 1.

    Returns:
        The scene; the same arguments give the same scene, bit for bit.
    """
    slide = make_patient(seed, patient)
    rng = np.random.default_rng([seed, patient, field, 11])
    objects: list[tuple[str, list[int], Patch, Circle]] = []
    taken: list[Circle] = []
    for kind in _choose_cells(slide, patient, field, rng):
        codes = draw_attributes(kind, rng)
        patch = draw_cell(kind, codes, slide.palette, rng)
        radius = float(np.sqrt((patch.alpha > 0.5).sum() / np.pi))
        # The first cell is the one that has to be seen, so it is not cut by the border.
        taken.append(_place(radius, taken, rng, inside=not taken))
        objects.append((kind, codes, patch, taken[-1]))
    for _ in range(rng.poisson(slide.artefacts)):
        name = ARTEFACTS[int(rng.choice(len(ARTEFACTS), p=ARTEFACT_ODDS))]
        patch = draw_artefact(name, slide.palette, rng)
        radius = float(np.sqrt((patch.alpha > 0.3).sum() / np.pi))
        taken.append(_place(radius, taken, rng, inside=False))
        objects.append(("none", [UNKNOWN] * 6, patch, taken[-1]))

    canvas = Canvas()
    draw_background(canvas, slide.palette, slide.dirt, rng)
    draw_red_cells(canvas, slide, place_red_cells(slide, taken, rng), rng)
    draw_platelets(canvas, slide.palette, int(rng.poisson(5 + 3 * slide.dirt)), rng)
    draw_shreds(canvas, slide.palette, slide.dirt, rng)
    for index, (_, _, patch, (x, y, _)) in enumerate(objects, start=1):
        canvas.paint(patch, x, y, owner=index)
    draw_refractile(canvas, slide.dirt, rng)

    boxes, labels, attributes = [], [], []
    owner = np.zeros_like(canvas.owner)
    for index, (kind, codes, _, _) in enumerate(objects, start=1):
        box = _box(canvas.owner, index, rng)
        if box is None:
            continue
        boxes.append(box)
        labels.append(LEUKEMIAATTRI.classes.index(kind))
        known = kind in CELL_TYPES
        size = cell_size(box[2] - box[0], box[3] - box[1]) if known else UNKNOWN
        attributes.append([size, *codes])
        owner[canvas.owner == index] = len(boxes)
    squeeze = np.array([SIDE / WIDTH, SIDE / HEIGHT] * 2)
    jitter = rng.normal(0, 0.8) + rng.normal(0, 0.5, 3)
    return Scene(
        seed=seed,
        patient=patient,
        field=field,
        diagnosis=slide.diagnosis,
        transmittance=np.exp(-canvas.od),
        background=(slide.palette.background + jitter).astype(np.float32),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4) * squeeze,
        labels=np.array(labels, dtype=np.int64),
        attributes=np.array(attributes, dtype=np.int64).reshape(-1, 7),
        owner=owner,
    )
