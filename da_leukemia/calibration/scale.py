"""Size of a device's red cells from the cells of many photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from da_leukemia.calibration.cells import (
    Found,
    absorption,
    correlation,
    find_cells,
    shrink,
)
from da_leukemia.calibration.fields import Field
from da_leukemia.calibration.light import Mask, Values, flatten, zoomed
from da_leukemia.calibration.record import Surface

COMFORTABLE, LEAST = 30.0, 20.0
"""Pixels across a red cell to which photographs are reduced or enlarged: enough, and fast."""

_ACROSS = 24
"""Cells along the longest side that is searched, in the middle: smaller cells are plenty."""

_ENOUGH_IN_ONE = 8
"""Single cells of a photograph that are enough while the size is sought."""

_WITH_CIRCLES = 20
"""Photographs, about, in which inscribed circles are sought: they are a check only."""

_STARTS = (1.5, 2.5, 0.8)
"""Widths to start from, in that of autocorrelation: pale-centred cells give half their size."""

_SAME = 0.12
"""Log ratio of widths below which two starts have come to the same cells."""

_FARTHEST = 1.1
"""Most change of the log width from a start: beyond it lie specks and clumps."""

_MOST_ZOOM = 4.0
_NEAR = 0.3
"""Distance in log diameter from the mode within which a round cell is a red cell."""

_ENOUGH_ALONE = 25
"""Cells that touch nothing, above which those cut from their neighbours are not needed."""

_NUCLEATED = 0.1
"""Share of a cell that may look like nucleus: overlaps and inclusions of red cells."""

_TRIED = 10
"""Photographs on which the rough size is found."""


@dataclass(frozen=True)
class Light:
    """A device's photographs and what is known of their light.

    Attributes:
        fields: the photographs.
        surface: the lamp's field, None where unknown.
        backgrounds: ``(n, 3)`` clear background of each photograph in an even light.
        valid: of each photograph the pixels inside the dark rim.
        weights: ``(3,)`` of the channels.
    """

    fields: Sequence[Field]
    surface: Surface | None
    backgrounds: Values
    valid: Sequence[Mask]
    weights: Values

    def part(self, rows: Sequence[int]) -> Light:
        """Return some of the photographs."""
        return replace(
            self,
            fields=[self.fields[row] for row in rows],
            backgrounds=self.backgrounds[list(rows)],
            valid=[self.valid[row] for row in rows],
        )


@dataclass(frozen=True)
class Sizes:
    """The red cells of a device.

    Attributes:
        found: of each photograph what was found, None where nothing stood out.
        chosen: of each photograph which of the found cells are red cells.
        diameter: mode of the diameters of single cells, original px.
        aspect: width over height.
        red: ``(3,)`` light of a red cell as a share of the background's.
        inscribed: diameter in x by inscribed circles, original px; NaN where unknown.
        correlated: diameter in x by autocorrelation, original px; NaN where unknown.
        spread: robust standard deviation of the log diameter of single cells.
        share: of the round things of a cell's order of size, those taken for red cells.
    """

    found: Sequence[Found | None]
    chosen: Sequence[Mask]
    diameter: float
    aspect: float
    red: Values
    inscribed: float
    correlated: float
    spread: float
    share: float


def log_mode(values: Values, weights: Values, width: float = 0.09) -> float:
    """Return the mode of positive values by a kernel density over their logarithm."""
    logs = np.log(values)
    grid = np.arange(logs.min() - width, logs.max() + 2 * width, width / 4)
    density = np.exp(-0.5 * ((grid[:, None] - logs) / width) ** 2) @ weights
    return float(np.exp(grid[int(np.argmax(density))]))


def look(
    light: Light, index: int, zoom: float, window: int, **how: float | Values | None
) -> Found | None:
    """Search one photograph at a zoom, a window in the middle of it."""
    field = light.fields[index]
    height, width = zoomed(field, zoom)
    valid = shrink(light.valid[index], height, width)
    if valid.mean() < 0.05:
        return None
    pixel = field.size[0] / width
    top, left = (max(0, (side - window) // 2) for side in (height, width))
    inside = (slice(top, top + window), slice(left, left + window))
    found = find_cells(
        flatten(field, light.surface, zoom, inside),
        valid[inside],
        light.backgrounds[index],
        light.weights,
        pixel=pixel,
        **how,  # type: ignore[arg-type]
    )
    return found and found.moved(left * pixel, top * pixel)


def rough(light: Light) -> tuple[float, float] | None:
    """Return the rough width and height of cells in original px, from autocorrelation."""
    sizes = []
    for index in _some(len(light.fields)):
        field = light.fields[index]
        zoom = min(1.0, 800 / max(field.pixels.shape[:2]))
        flat = flatten(field, light.surface, zoom)
        valid = shrink(light.valid[index], *flat.shape[:2])
        if valid.mean() < 0.05:
            continue
        missing = absorption(flat, light.backgrounds[index], light.weights)
        size = correlation(missing, valid)
        if size is not None:
            sizes.append(np.array(size) * field.size[0] / flat.shape[1])
    if not sizes:
        return None
    width, height = np.median(sizes, axis=0)
    return float(width), float(height)


def _some(count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, _TRIED)).round()})


def _anisotropy(found: Sequence[Found], centre: float) -> float:
    """Return width over height of the cells near a size: cells lie in all directions."""
    ratios: list[float] = []
    for one in found:
        near = np.abs(np.log(one.diameter / centre)) < 0.25
        ratios.extend((one.width / one.height)[near])
    return float(np.exp(np.median(np.log(ratios)))) if len(ratios) >= 5 else 1.0


@dataclass(frozen=True)
class Start:
    """A first idea of a device's red cells, from some photographs.

    Attributes:
        width: original px.
        aspect: width over height.
        red: ``(3,)`` light of a red cell as a share of the background's.
        weight: number of such cells times their diameter, px.
    """

    width: float
    aspect: float
    red: Values
    weight: float


def settle(light: Light) -> tuple[Start, float] | None:
    """Find size, aspect and colour of red cells on some photographs.

    The size is sought from several starts: autocorrelation sees the rim of pale-centred cells
    rather than the cells, and clumps of them as larger ones.

    Returns:
        The result with most cells, and the width by autocorrelation in original px; None where no
        cells were found.
    """
    size = rough(light)
    if size is None:
        return None
    aspect = float(np.clip(size[0] / size[1], 0.4, 2.5))
    if 0.87 < aspect < 1.15:
        aspect = 1.0
    starts: list[Start] = []
    for factor in _STARTS:
        start = _settle_from(light, factor * size[0], aspect)
        if start is None:
            continue
        agreed = any(abs(np.log(start.width / other.width)) < _SAME for other in starts)
        starts.append(start)
        if agreed:
            break
    if not starts:
        return None
    return max(starts, key=lambda start: start.weight), size[0]


def _settle_from(light: Light, first: float, aspect: float) -> Start | None:
    """Follow the cells' size from a first width; None where it leads nowhere or far away."""
    width, weight = first, 0.0
    red: Values | None = None
    for _ in range(6):
        found = [
            one
            for index in _some(len(light.fields))
            if (
                one := look(
                    light,
                    index,
                    _zoom(light.fields[index], width, LEAST),
                    window=int(_ACROSS * LEAST),
                    expected=_expected(light.fields[index], width, LEAST),
                    aspect=aspect,
                    red=red,
                    enough=_ENOUGH_IN_ONE,
                    circles=False,
                )
            )
        ]
        diameter = np.concatenate([one.diameter for one in found]) if found else np.zeros(0)
        nucleus = np.concatenate([one.nucleus for one in found]) if found else np.zeros(0)
        plain = nucleus < _NUCLEATED
        centre = width / np.sqrt(aspect)
        plain &= (diameter > 0.33 * centre) & (diameter < 2.2 * centre)
        if plain.sum() < 4:
            return None
        mode = log_mode(diameter[plain], diameter[plain] ** 1.0)
        before, shape = width, aspect
        # Cells were chosen as round in the last aspect, which holds the new one back.
        aspect = float(np.clip(shape * (_anisotropy(found, mode) / shape) ** 1.7, 0.3, 3.0))
        width = mode * np.sqrt(aspect)
        if abs(np.log(width / first)) > _FARTHEST:
            return None
        colours = np.concatenate([one.colour for one in found])
        near = plain & (np.abs(np.log(diameter / mode)) < 0.3)
        weight = float(near.sum() * mode)
        settled = red is not None and abs(np.log(width / before)) < 0.08
        settled &= abs(np.log(aspect / shape)) < 0.02
        red = np.median(colours[near], axis=0)
        if settled:
            break
    assert red is not None  # set in the first round
    return Start(float(width), aspect, red, weight)


def find_all(light: Light, progress: Callable[[int, int], None] | None = None) -> Sizes | None:
    """Find the red cells of all photographs; None where there are none to be found."""
    start = settle(light)
    if start is None:
        return None
    (width, aspect, red), correlated = (start[0].width, start[0].aspect, start[0].red), start[1]
    centre = width / np.sqrt(aspect)
    step = max(1, len(light.fields) // _WITH_CIRCLES)
    # Touching cells are taken apart only where too few lie alone: it costs time and accuracy.
    for enough in (0.0, np.inf):
        found: list[Found | None] = []
        for index, field in enumerate(light.fields):
            expected = _expected(field, width)
            found.append(
                look(
                    light,
                    index,
                    _zoom(field, width),
                    window=int(_ACROSS * expected),
                    expected=expected,
                    aspect=aspect,
                    red=red,
                    enough=enough,
                    circles=index % step == 0,
                )
            )
            if progress is not None and enough == 0:
                progress(index + 1, len(light.fields))
        seen = [one for one in found if one is not None]
        if not seen:
            return None
        diameter = np.concatenate([one.diameter for one in seen])
        plain = np.concatenate([one.nucleus for one in seen]) < _NUCLEATED
        order = plain & (np.abs(np.log(diameter / centre)) < 0.8)
        if order.sum() >= _ENOUGH_ALONE:
            break
    if order.sum() < 3:
        return None
    mode = log_mode(diameter[order], diameter[order])
    chosen = [
        (np.abs(np.log(one.diameter / mode)) < _NEAR) & (one.nucleus < _NUCLEATED)
        if one is not None
        else np.zeros(0, dtype=bool)
        for one in found
    ]
    near = order & (np.abs(np.log(diameter / mode)) < _NEAR)
    logs = np.log(diameter[order])
    spread = 1.48 * float(np.median(np.abs(logs - np.median(logs))))
    circles = np.concatenate([one.inscribed for one in seen])
    circles = circles[np.abs(np.log(np.maximum(circles, 0.1) / width)) < 0.7]
    return Sizes(
        found=found,
        chosen=chosen,
        diameter=float(np.median(diameter[near])),
        aspect=_anisotropy(seen, mode),
        red=red,
        inscribed=log_mode(circles, np.ones(len(circles))) if len(circles) >= 5 else np.nan,
        correlated=correlated,
        spread=spread,
        share=float(near.sum() / order.sum()),
    )


def _zoom(field: Field, width: float, most: float = COMFORTABLE) -> float:
    """Return the zoom of a photograph's pixels at which a cell has a comfortable size."""
    across = width / field.reduced
    if across < LEAST:
        return min(_MOST_ZOOM, LEAST / across)
    return float(min(1.0, max(0.05, most / across)))


def _expected(field: Field, width: float, most: float = COMFORTABLE) -> float:
    return width / field.reduced * _zoom(field, width, most)
