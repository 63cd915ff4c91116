"""Measure fields of view, real or simulated, as docs/simulator.md reports them.

Every number is of the estimator as much as of the field: compare it between fields only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_fill_holes,
    find_objects,
    gaussian_filter,
    label,
    laplace,
    uniform_filter,
)

Photo = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]
Place = tuple[slice, slice]

COLOURS = ("background", "red cell", "nucleus")
SHAPES = (
    "width",
    "height",
    "red share",
    "red cells",
    "Laplacian",
    "edge x",
    "edge y",
    "noise",
)
MEASURES = (*COLOURS, *SHAPES)

_NUCLEUS, _CELL = 0.42, 0.86
"""Green, as a share of the background's, below which a pixel is a nucleus, or any cell."""

_AROUND = 9
"""Pixels beside a cell in which its edge begins."""


def measure(photo: Photo) -> dict[str, Values]:
    """Measure one field of view.

    Args:
        photo: ``(640, 640, 3)`` RGB.

    Returns:
        For each of `MEASURES` an array, NaN where the field does not show it.
        `COLOURS`: median RGB of background, red cells and nuclei.
        width, height: median of single red cells, pixels of the squeezed frame.
        red share: share of the field in the colours of red cells.
        red cells: their area, pallor included, over that of a single one.
        Laplacian: variance of the 4-neighbour Laplacian of the grey image.
        edge x, edge y: 10-90 % width of the edge of single red cells, pixels.
        noise: sigma in the empty background, grey levels.
    """
    image = photo.astype(np.float64)
    grey = image @ [0.299, 0.587, 0.114]
    counts = np.bincount(np.round(grey).astype(int).ravel(), minlength=256)
    # The lamp is the brightest common level; a smear is never all cells.
    mode = int(np.argmax(np.convolve(counts, np.ones(5), "same") * (np.arange(256) > 90)))
    clear = np.abs(grey - mode) < 8
    background = np.median(image[clear], axis=0)
    green = image[..., 1] / background[1]
    blood = (green > 0.46) & (green < _CELL)
    nuclei = green < _NUCLEUS

    def colour(mask: Mask) -> Values:
        found = image[mask]
        return np.median(found, axis=0) if len(found) > 200 else np.full(3, np.nan)

    filled = binary_fill_holes(gaussian_filter(green, 1.0) < _CELL)
    assert filled is not None  # it is None only with `output`
    places, area = _single_cells(filled, nuclei)
    sizes = [(x.stop - x.start, y.stop - y.start) for y, x in places]
    width, height = np.median(sizes, axis=0) if len(sizes) >= 3 else (np.nan, np.nan)
    values = (
        background,
        colour(blood),
        colour(nuclei),
        width,
        height,
        blood.mean(),
        (filled & ~nuclei).sum() / area,
        laplace(grey).var(),
        _edge(green, places),
        _edge(green.T, [(x, y) for y, x in places]),
        _noise(image, clear),
    )
    return dict(zip(MEASURES, (np.atleast_1d(v) for v in values), strict=True))


def _single_cells(filled: Mask, nuclei: Mask) -> tuple[list[Place], float]:
    """Return where red cells lie alone (ellipses without a nucleus), and their median area."""
    numbered, _ = label(filled)
    places, areas = [], []
    for number, found in enumerate(find_objects(numbered), start=1):
        y, x = found
        height, width = y.stop - y.start, x.stop - x.start
        at_border = min(y.start, x.start) < _AROUND or (
            y.stop > filled.shape[0] - _AROUND or x.stop > filled.shape[1] - _AROUND
        )
        if at_border or not (20 <= width <= 50 and 30 <= height <= 85):
            continue
        mask = numbered[found] == number
        area = int(mask.sum())
        if 0.92 < area / (np.pi / 4 * width * height) < 1.1 and not nuclei[found][mask].any():
            places.append((y, x))
            areas.append(area)
    return places, float(np.median(areas)) if len(areas) >= 3 else np.nan


def _edge(green: Values, places: Sequence[Place]) -> float:
    """Return the median 10-90 % width of the left and right edges of cells."""
    widths = []
    for y, x in places:
        middle = (y.start + y.stop) // 2
        profile = green[middle - 1 : middle + 2].mean(axis=0)
        reach = _AROUND + (x.stop - x.start) // 3
        start = x.start - _AROUND
        stop = x.stop + _AROUND - 1
        for side in (profile[start : start + reach], profile[stop : stop - reach : -1]):
            outside, inside = side[:3].mean(), side.min()
            # A neighbour's edge would be taken for this one's.
            if outside < 0.95 or outside - inside < 0.1:
                continue
            rise = (outside - side) / (outside - inside)
            last = int(np.argmax(rise >= 0.9))
            low = np.flatnonzero(rise[:last] <= 0.1)
            if len(low):
                first = int(low[-1])
                widths.append(_crossing(rise, last - 1, 0.9) - _crossing(rise, first, 0.1))
    return float(np.median(widths)) if len(widths) >= 4 else np.nan


def _crossing(rise: Values, before: int, level: float) -> float:
    return before + float((level - rise[before]) / (rise[before + 1] - rise[before]))


def _noise(image: Values, clear: Mask) -> float:
    # Second differences cancel shading; flat neighbourhoods are those far from any cell.
    flat = uniform_filter(clear.astype(float), 15) > 0.97
    second = image[:, 1:-1, 1] - 0.5 * (image[:, 2:, 1] + image[:, :-2, 1])
    rest = second[flat[:, 1:-1]]
    # Dust too small to leave the background is cut off with the tails.
    rest = rest[np.abs(rest) < 4]
    return float(rest.std() / np.sqrt(1.5)) if len(rest) > 500 else np.nan


def summarise(photos: Iterable[Photo]) -> dict[str, str]:
    """Return median and quartiles over fields of each of `MEASURES`, ``median (25 % - 75 %)``."""
    found = [measure(photo) for photo in photos]
    cells = {}
    for name in MEASURES:
        values = np.stack([m[name] for m in found])
        seen = values[~np.isnan(values).any(axis=1)]
        if not len(seen):
            cells[name] = "-"
            continue
        places = {"red share": 2, "noise": 2, "edge x": 1, "edge y": 1}.get(name, 0)
        low, mid, high = (
            ",".join(f"{v:.{places}f}" for v in part)
            for part in np.percentile(seen, [25, 50, 75], axis=0)
        )
        cells[name] = f"{mid} ({low} - {high})"
    return cells


def tables(rows: Iterable[tuple[str, Sequence[Photo]]]) -> str:
    """Return the table of colours and that of shapes in markdown, a row for each named set."""
    found = [(f"{name} ({len(photos)})", summarise(photos)) for name, photos in rows]
    out = []
    for names in (COLOURS, SHAPES):
        lines = [("fields", *names), ("---",) * (len(names) + 1)]
        lines += [(title, *(cells[name] for name in names)) for title, cells in found]
        out.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(out)
