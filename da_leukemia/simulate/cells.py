"""The 13 white-cell types: their usual attributes, and a drawing in which each attribute shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from da_leukemia.simulate.patients import Palette
from da_leukemia.simulate.shapes import Array, Patch, blob, chain, grid, mottle, scatter, soft


@dataclass(frozen=True)
class CellType:
    """How one type looks.

    Attributes:
        diameter: range in pixels of the 800x448 frame (0.19 um each).
        odds: chance that each attribute but size has code 1 (coarse, irregular, prominent
            nucleolus, abundant cytoplasm, moderate basophilia, vacuoles).
        ratio: nuclear over cell diameter with scanty and with abundant cytoplasm.
        nuclei: what an irregular nucleus can look like.
        granules: which granules the cytoplasm carries.
        blue: how blue the cytoplasm is against lilac, 0 to 1.
    """

    diameter: tuple[float, float]
    odds: tuple[float, float, float, float, float, float]
    ratio: tuple[float, float]
    nuclei: tuple[str, ...]
    granules: str
    blue: float


CELL_TYPES: dict[str, CellType] = {
    "myeloblast": CellType(
        (60, 82), (0.05, 0.8, 0.9, 0.85, 0.15, 0.04), (0.92, 0.8), ("cleft", "oval"), "few", 0.9
    ),
    "lymphoblast": CellType(
        (46, 72), (0.06, 0.85, 0.15, 0.08, 0.2, 0.05), (0.93, 0.78), ("cleft", "oval"), "", 1.0
    ),
    "neutrophil": CellType(
        (54, 63),
        (0.97, 0.99, 0.0, 0.98, 0.02, 0.05),
        (0.8, 0.68),
        ("lobes", "lobes", "lobes", "band"),
        "fine",
        0.0,
    ),
    "atypical_lymphocyte": CellType(
        (43, 57), (0.85, 0.55, 0.2, 0.7, 0.35, 0.04), (0.88, 0.68), ("cleft", "oval"), "", 0.8
    ),
    "promonocyte": CellType(
        (66, 86), (0.12, 0.98, 0.6, 0.95, 0.45, 0.35), (0.88, 0.76), ("fold",), "few", 0.6
    ),
    "monoblast": CellType(
        (68, 88), (0.04, 0.8, 0.93, 0.92, 0.9, 0.2), (0.9, 0.75), ("oval", "cleft"), "", 1.0
    ),
    "lymphocyte": CellType(
        (34, 46), (0.97, 0.1, 0.02, 0.3, 0.12, 0.02), (0.9, 0.72), ("oval",), "", 0.8
    ),
    "myelocyte": CellType(
        (58, 72), (0.92, 0.7, 0.05, 0.95, 0.85, 0.04), (0.8, 0.63), ("oval", "cleft"), "lilac", 0.3
    ),
    "abnormal_promyelocyte": CellType(
        (66, 86), (0.12, 0.85, 0.6, 0.95, 0.55, 0.08), (0.88, 0.7), ("cleft", "pair"), "coarse", 0.4
    ),
    "monocyte": CellType(
        (60, 77),
        (0.9, 0.98, 0.03, 0.98, 0.1, 0.8),
        (0.82, 0.68),
        ("horseshoe", "fold"),
        "dust",
        0.7,
    ),
    "metamyelocyte": CellType(
        (56, 66), (0.97, 1.0, 0.01, 0.98, 0.08, 0.03), (0.8, 0.66), ("kidney",), "fine", 0.1
    ),
    "eosinophil": CellType(
        (56, 65), (0.97, 0.97, 0.0, 0.98, 0.04, 0.03), (0.78, 0.64), ("pair",), "orange", 0.1
    ),
    "basophil": CellType(
        (48, 58), (0.9, 0.8, 0.0, 0.92, 0.2, 0.04), (0.82, 0.68), ("cleft", "pair"), "dark", 0.2
    ),
}
"""Odds follow the rows seen in the release: attributes are nearly a function of the type."""

_ORANGE = np.array([0.04, 0.52, 0.56], dtype=np.float32)
_SPARSE = {"few": 10, "dust": 45}


def draw_attributes(kind: str, rng: np.random.Generator) -> list[int]:
    """Draw the six attribute codes after cell size for one cell of a type."""
    return [int(rng.random() < odds) for odds in CELL_TYPES[kind].odds]


def _arc(
    radius: float, span: float, count: int, rng: np.random.Generator
) -> list[tuple[float, float]]:
    turn = rng.uniform(0, 2 * np.pi)
    angles = turn + np.linspace(-span / 2, span / 2, count)
    # The arc's mean is moved to the centre, else a bent nucleus hangs out of its cell.
    xs, ys = radius * np.cos(angles), radius * np.sin(angles)
    return list(zip((xs - xs.mean()).tolist(), (ys - ys.mean()).tolist(), strict=True))


def _nucleus(x: Array, y: Array, form: str, r: float, rng: np.random.Generator) -> Array:
    """Return the distance to a nucleus of about radius ``r`` in one of the named forms."""
    if form == "round":
        return blob(x, y, r, rng, wobble=0.015, stretch=rng.uniform(1.0, 1.08))
    if form in ("oval", "cleft"):
        shape = blob(x, y, r, rng, wobble=0.075, stretch=rng.uniform(1.08, 1.3))
        if form == "cleft":
            angle = rng.uniform(0, 2 * np.pi)
            inner, outer = rng.uniform(0.5, 0.78) * r, 1.3 * r
            c, s = float(np.cos(angle)), float(np.sin(angle))
            notch = chain(
                x, y, [(c * inner, s * inner), (c * outer, s * outer)], (0.08 * r, 0.25 * r), 1.0
            )
            np.maximum(shape, -notch, out=shape)
        return shape
    if form == "pair":
        points = _arc(0.66 * r, rng.uniform(2.1, 2.9), 2, rng)
        return chain(
            x, y, points, (r * rng.uniform(0.54, 0.68), r * rng.uniform(0.5, 0.66)), 0.16 * r
        )
    if form == "lobes":
        count = int(rng.integers(2, 6))
        points = _arc(0.72 * r, 1.0 + 0.62 * count, count, rng)
        jitter = rng.normal(0, 0.1 * r, (count, 2))
        points = [
            (px + a, py + b) for (px, py), (a, b) in zip(points, jitter.tolist(), strict=True)
        ]
        lobe = r * (0.7 - 0.06 * count)
        return chain(x, y, points, (lobe * rng.uniform(0.85, 1.15, count)).tolist(), 0.13 * r)
    span, reach, fat = {
        "band": (rng.uniform(2.8, 4.0), 0.72, 0.3),
        "kidney": (rng.uniform(1.7, 2.3), 0.62, 0.5),
        "horseshoe": (rng.uniform(2.8, 3.8), 0.64, 0.42),
        "fold": (rng.uniform(1.5, 2.2), 0.5, 0.62),
    }[form]
    radii = (fat * r * rng.uniform(0.88, 1.12, 6)).tolist()
    return chain(x, y, _arc(reach * r, span, 6, rng), radii, 0.9 * fat * r)


def _stain_nucleus(
    nucleus: Array,
    distance: Array,
    coarse: bool,
    nucleolus: bool,
    palette: Palette,
    rng: np.random.Generator,
) -> Array:
    shape = nucleus.shape
    grain = np.clip(mottle(shape, 0.9, rng), -2, 2)
    if coarse:
        clumps = np.tanh(1.5 * mottle(shape, 2.6, rng))
        density = 1.0 + 0.29 * clumps + 0.09 * grain
        colour = palette.nucleus * np.float32(rng.uniform(1.04, 1.18))
    else:
        # Open chromatin is a fine net and lets more red through than clumped chromatin.
        density = 1.0 + 0.1 * grain + 0.09 * mottle(shape, 2.8, rng)
        colour = palette.nucleus * np.array([0.79, 0.96, 0.88], dtype=np.float32)
        colour = colour * np.float32(rng.uniform(0.92, 1.08))
    # The nuclear membrane: chromatin lies against it.
    density += 0.16 * np.exp(-((distance / 1.2 + 1.0) ** 2))
    od = density * colour[:, None, None]
    if nucleolus:
        pale = np.zeros(shape, dtype=np.float32)
        rows, cols = np.nonzero(nucleus > 0.95)
        x, y = grid(shape[0])
        half = shape[0] // 2
        for _ in range(int(rng.integers(1, 4)) if len(rows) else 0):
            # Of a few places the one nearest to the middle, so that it does not sit on the edge.
            pick = rng.integers(0, len(rows), 3)
            best = pick[np.argmin(np.hypot(rows[pick] - half, cols[pick] - half))]
            cx, cy = float(cols[best] - half), float(rows[best] - half)
            radius = rng.uniform(3.2, 5.2)
            gap = np.hypot(x - cx, y - cy) - radius
            np.maximum(pale, soft(gap, 1.2), out=pale)
            od *= 1 + 0.12 * np.exp(-((gap - 1.2) ** 2) / 2)
        od *= 1 - pale * np.array([0.32, 0.5, 0.5], dtype=np.float32)[:, None, None]
    out: Array = od.astype(np.float32)
    return out


def _granulate(
    od: Array, kind: str, body: Array, nucleus: Array, palette: Palette, rng: np.random.Generator
) -> None:
    """Draw the granules of a type over the cell, in place."""
    plasma = body * (1 - nucleus)
    area = float((plasma > 0.5).sum())

    def lay(grains: Array, colour: Array, opacity: float) -> None:
        cover = grains * np.float32(opacity)
        od[...] += cover * (colour[:, None, None] - od)

    if kind in ("fine", "lilac"):
        grain = np.clip(mottle(body.shape, 0.85, rng), -1.5, 2.5) * plasma
        od[...] += (
            grain * (palette.lilac * np.float32(0.3 if kind == "fine" else 0.22))[:, None, None]
        )
        lay(scatter(plasma, int(area * 0.03), 0.9, rng), palette.platelet, 0.5)
    elif kind == "orange":
        lay(scatter(plasma, int(area * 0.075), 1.6, rng), _ORANGE, 1.0)
        lay(scatter(plasma, int(area * 0.03), 1.0, rng), _ORANGE * np.float32(1.5), 0.8)
    elif kind == "dark":
        dark = palette.nucleus * np.float32(1.12)
        lay(scatter(body * (1 - 0.3 * nucleus), int(rng.integers(45, 75)), 2.0, rng), dark, 0.9)
    elif kind == "coarse":
        purple = palette.nucleus * np.array([0.75, 0.95, 0.8], dtype=np.float32)
        lay(scatter(plasma, int(area * 0.06), 1.3, rng), purple, 0.75)
        lay(scatter(nucleus, 14, 1.2, rng), palette.nucleus * np.float32(1.15), 0.6)
    elif kind in _SPARSE:
        lay(scatter(plasma, _SPARSE[kind], 0.8, rng), palette.platelet, 0.5)


def draw_cell(
    kind: str,
    attributes: Sequence[int],
    palette: Palette,
    rng: np.random.Generator,
    diameter: float | None = None,
) -> Patch:
    """Draw one white cell.

    Args:
        kind: a key of ``CELL_TYPES``.
        attributes: codes of chromatin, nuclear shape, nucleolus, cytoplasm, basophilia, vacuoles.
        palette: the slide's stain.
        rng: the cell's own generator.
        diameter: pixels; drawn from the type's range if None.
    """
    look = CELL_TYPES[kind]
    coarse, irregular, nucleolus, abundant, basophilic, vacuoles = (bool(a) for a in attributes)
    if diameter is None:
        diameter = float(rng.uniform(*look.diameter))
    radius = diameter / 2
    x, y = grid(2 * int(radius * 1.25) + 7)
    rough = (
        0.05 if kind in ("monocyte", "promonocyte", "monoblast", "atypical_lymphocyte") else 0.045
    )
    outline = blob(x, y, radius, rng, wobble=rough, stretch=float(rng.uniform(1.0, 1.2)))
    body = soft(outline, 1.2)

    r = radius * look.ratio[int(abundant)] * float(rng.uniform(0.96, 1.03))
    form = str(rng.choice(look.nuclei)) if irregular else "round"
    if form == "cleft" and kind == "basophil":
        r *= 0.95
    slack = max(radius - r, 0.0) * 0.75
    angle, off = rng.uniform(0, 2 * np.pi), slack * float(np.sqrt(rng.random()))
    shift_x, shift_y = np.float32(off * np.cos(angle)), np.float32(off * np.sin(angle))
    distance = _nucleus(x - shift_x, y - shift_y, form, r, rng)
    if form != "round":
        distance = distance + np.float32(0.045 * r) * mottle(distance.shape, 0.22 * r, rng)
    # The nucleus stays a thin rim away from the membrane, whatever its form.
    inside = np.maximum(distance, outline + np.float32(1.2))
    nucleus = soft(inside, 1.0)

    blue = float(np.clip(look.blue + rng.normal(0, 0.08), 0, 1))
    colour = palette.lilac * np.float32(1 - blue) + palette.blue * np.float32(blue)
    colour = colour * np.float32(rng.uniform(0.85, 1.1))
    if basophilic:
        colour = colour + palette.blue * np.float32(rng.uniform(0.75, 1.05))
    # Basophilic cytoplasm is deepest at the membrane and pale by the nucleus.
    depth = np.clip(1 + outline / np.float32(radius * 0.5), 0, 1)
    density = 0.85 + 0.3 * depth + 0.09 * mottle(body.shape, 1.2, rng)
    od = density * colour[:, None, None]
    chromatin = _stain_nucleus(nucleus, inside, coarse, nucleolus, palette, rng)
    od += nucleus * (chromatin - od)
    _granulate(od, look.granules, body, nucleus, palette, rng)
    if vacuoles:
        room = soft(np.maximum(outline + 3.5, 1.5 - distance), 0.5)
        count = max(3, int((room > 0.5).sum() / 160))
        for size in (1.8, 3.0):
            bubbles = scatter(room, count, size, rng)
            od *= 1 - np.float32(0.8) * np.clip(1.6 * bubbles, 0, 1)
    return Patch(alpha=body, od=od.astype(np.float32), nucleus=nucleus * body)
