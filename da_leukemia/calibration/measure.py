"""Measure a device from its own unlabelled photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from da_leukemia.calibration import optics
from da_leukemia.calibration.fields import Field, find_images, read_fields, spread
from da_leukemia.calibration.light import (
    GRID,
    Mask,
    Values,
    dark_rim,
    ellipse,
    fit_light,
    render,
    rim_of,
    tiles,
)
from da_leukemia.calibration.record import (
    RED_CELL_UM,
    RED_CELL_UM_SPREAD,
    Calibration,
    Quantity,
    RedCells,
    Surface,
)
from da_leukemia.calibration.scale import Light, Sizes, find_all
from da_leukemia.calibration.verdict import Verdict, judge

Progress = Callable[[int, int], None]

_Z90 = 1.645

_LAMP, _LAMP_SHARE = 0.01, 1 / 6
"""What stays of a lamp's error with many photographs: so much at least, and so much of the light
that is lost (docs/calibration.md)."""


@dataclass(frozen=True)
class Measured:
    """A calibration and what it was measured on, for the picture.

    Attributes:
        calibration: the result.
        light: photographs and their light.
        sizes: the cells, None where none were found.
        mixed: whether the photographs seem to be of more than one device.
    """

    calibration: Calibration
    light: Light
    sizes: Sizes | None
    mixed: bool = False


def calibrate_folder(folder: Path, progress: Progress | None = None) -> Measured:
    """Measure the device that took a folder's photographs.

    Args:
        folder: images, also in subfolders; of more than 50 an even choice is read.
        progress: called with (done, total).

    Raises:
        DataError: no such folder, no image in it, or none can be read.
    """
    return measure_images(spread(find_images(folder)), progress)


def measure_images(paths: Sequence[Path], progress: Progress | None = None) -> Measured:
    """Measure the device that took some images, all of which are read.

    Args:
        paths: at least one image; those that cannot be read are left out and noted.
        progress: called with (done, total).

    Raises:
        DataError: none of them can be read.
    """
    total = 2 * len(paths)

    def first(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    def second(done: int, _: int) -> None:
        if progress is not None:
            progress(len(paths) + done, total)

    fields, problems = read_fields(paths, first)
    measured = calibrate(fields, second)
    notes = (*(f"left out: {text}" for text in problems), *measured.calibration.notes)
    return replace(measured, calibration=replace(measured.calibration, notes=notes))


def calibrate(fields: Sequence[Field], progress: Progress | None = None) -> Measured:
    """Measure the device that took some photographs.

    Args:
        fields: at least one photograph.
        progress: called with (done, total).
    """
    notes: list[str] = []
    size = Counter(f.size for f in fields).most_common(1)[0][0]
    others = sum(f.size != size for f in fields)
    if others:
        notes.append(f"sizes differ: {others} of {len(fields)} images are not {size[0]}x{size[1]}")
    turned = sum(f.turned for f in fields)
    if turned:
        notes.append(f"{turned} images ask to be turned (EXIF); measured as the sensor saw them")
    grey = sum(f.grey for f in fields)
    if grey:
        notes.append(f"{grey} images are grey-scale: colours say nothing of the stain")

    levels = np.stack([tiles(f.pixels) for f in fields])
    rim = dark_rim(levels)
    valid = [~rim_of(f.pixels, bool(rim.any())) for f in fields]
    lamp = fit_light(levels, _tile_rim(valid) | rim)
    if lamp is None:
        notes.append("illumination: unknown, too little clear background was seen")
        surface, fall = None, None
        backgrounds = np.percentile(levels.reshape(len(fields), -1, 3), 90, axis=1)
    else:
        surface, backgrounds, fall, _ = lamp
    backgrounds, weights = optics.sharpen_background(fields, valid, surface, backgrounds)
    light = Light(fields, surface, backgrounds, valid, weights)

    sizes = find_all(light, progress)
    verdict = judge(light, sizes)
    notes.extend(verdict.notes)
    known = sizes if verdict.known else None
    noise = _quantity(optics.noises(light))
    if verdict.mixed:
        lamp, fall, noise = None, None, Quantity()
    colours = optics.stains(light, known)
    edge_x, edge_y = (_quantity(each) for each in optics.edges(light, known))
    fallen, unsure = _reliable(levels, _tile_rim(valid) | rim, surface, fall)
    calibration = Calibration(
        fields=len(fields),
        size=size,
        illumination=surface if lamp is not None else None,
        illumination_error=unsure,
        illumination_fall=fallen,
        background=_triple(backgrounds) if lamp is not None else None,
        red_cell_colour=_triple(colours[0]),
        nucleus_colour=_triple(colours[1]),
        edge_x=edge_x,
        edge_y=edge_y,
        noise=noise,
        valid=_valid(valid, rim),
        cells=verdict.cells,
        notes=tuple(notes),
    )
    return Measured(_with_scale(calibration, verdict), light, sizes, verdict.mixed)


def _tile_rim(valid: Sequence[Mask]) -> Mask:
    """Return the tiles that lie in the rim of any photograph."""
    out = np.zeros((GRID, GRID), dtype=bool)
    for mask in valid:
        if not mask.all():
            rows = np.linspace(0, mask.shape[0], GRID + 1).astype(int)[:-1]
            columns = np.linspace(0, mask.shape[1], GRID + 1).astype(int)[:-1]
            lit = np.logical_and.reduceat(np.logical_and.reduceat(mask, rows), columns, axis=1)
            out |= ~lit
    return out if out.mean() < 0.8 else np.zeros_like(out)


def _valid(
    valid: Sequence[Mask], rim: Mask
) -> tuple[Quantity, Quantity, Quantity, Quantity] | None:
    """Return the ellipse inside the rim; None where there is none, or under three show it."""
    each = [ellipse(mask) for mask in valid if mask.any() and not mask.all()]
    found = [one for one in each if one is not None]
    if not rim.any() or not found:
        return None
    x, y, across, down = (_quantity(column) for column in np.array(found).T)
    return (x, y, across, down) if x.known else None


def _blur_error(calibration: Calibration, diameter: float) -> float:
    """Return the relative error of size that blur adds: cells out of focus look larger.

    Drawn discs: none up to edges of .3 of a cell, 7 % at .39, 27 % at .46 (docs/calibration.md).
    """
    widths = [q.value for q in (calibration.edge_x, calibration.edge_y) if q.value is not None]
    share = max(widths, default=0.0) / diameter
    return 6.0 * max(0.0, share - 0.3) ** 2


def _with_scale(calibration: Calibration, verdict: Verdict) -> Calibration:
    if not verdict.known:
        return calibration
    root = np.sqrt(verdict.aspect)
    width, height = verdict.diameter * root, verdict.diameter / root
    error = float(np.hypot(verdict.error, _blur_error(calibration, verdict.diameter)))
    low, high = (verdict.diameter * float(np.exp(s * _Z90 * error)) for s in (-1, 1))
    um = _Z90 * float(np.hypot(error, RED_CELL_UM_SPREAD))

    def scale(pixels: float) -> Quantity:
        per_um = pixels / RED_CELL_UM
        return Quantity(per_um, per_um * float(np.exp(-um)), per_um * float(np.exp(um)))

    turn = _Z90 * verdict.aspect_error
    return replace(
        calibration,
        red_cell_px=RedCells(float(width), float(height), low, high),
        px_per_um_x=scale(float(width)),
        px_per_um_y=scale(float(height)),
        aspect=Quantity(
            verdict.aspect,
            verdict.aspect * float(np.exp(-turn)),
            verdict.aspect * float(np.exp(turn)),
        ),
    )


def _reliable(
    levels: Values, rim: Mask, surface: Surface | None, fall: float | None
) -> tuple[Quantity, float | None]:
    """Return the loss of light and the error of the lamp's field, from halves of the photographs.

    Args:
        levels: ``(n, GRID, GRID, 3)`` of the photographs' tiles.
        rim: ``(GRID, GRID)`` tiles outside the valid field.
        surface: the lamp's field from all of them.
        fall: share of light lost, None where unknown.
    """
    if fall is None or surface is None:
        return Quantity(), None
    halves = [fit_light(levels[part::2], rim) for part in (0, 1) if len(levels) > 3]
    known = [half for half in halves if half is not None]
    if len(known) < 2:
        reach = _Z90 * 0.5 * fall + 0.02
        return Quantity(fall, max(0.0, fall - reach), min(1.0, fall + reach)), None
    reach = _Z90 * abs(known[0][2] - known[1][2]) / 2 + 0.02
    one, other = (np.log(render(half[0], GRID, GRID)[~rim]) for half in known)
    apart = one - other
    apart -= apart.mean(axis=0)  # a field's brightness is its level's, not the lamp's
    random = _Z90 * np.sqrt(np.mean(apart**2)) / 2
    error = float(np.linalg.norm([random, _LAMP, _LAMP_SHARE * fall]))
    return Quantity(fall, max(0.0, fall - reach), min(1.0, fall + reach)), error


def _quantity(values: Values) -> Quantity:
    """Return the median over photographs and its 90 % interval."""
    seen = values[np.isfinite(values)]
    if len(seen) < 3:
        return Quantity()
    middle = float(np.median(seen))
    # 1.25: the median's standard error over the mean's; 1.48: MAD to standard deviation.
    error = 1.25 * 1.48 * float(np.median(np.abs(seen - middle))) / np.sqrt(len(seen))
    reach = _Z90 * float(np.hypot(error, 0.02 * abs(middle)))
    return Quantity(middle, middle - reach, middle + reach)


def _triple(values: Values) -> tuple[Quantity, Quantity, Quantity] | None:
    out = [_quantity(column) for column in values.reshape(-1, 3).T]
    return (out[0], out[1], out[2]) if all(q.known for q in out) else None
