"""Whether a size of red cells can be believed, and how far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from da_leukemia.calibration.scale import Light, Sizes

_FEWEST_CELLS = 25
_WIDEST = 0.24
"""Largest spread of log diameter among red cells: discs of one kind stay near 0.1."""

_METHOD = 0.045
"""Relative error that stays with many cells (docs/calibration.md)."""

_INSCRIBED = 0.91
"""Largest inscribed circle over diameter of red cells as they are, not quite round."""

_PART = 0.4
"""Most of an image's shorter side that a red cell may take."""


@dataclass(frozen=True)
class Verdict:
    """The size of a device's red cells, or why it is unknown.

    Attributes:
        known: whether the size may be used.
        diameter: ``sqrt(width * height)``, original px.
        error: relative standard deviation of it.
        aspect: width over height.
        aspect_error: relative standard deviation of it.
        cells: red cells measured.
        notes: reasons and warnings.
    """

    known: bool
    diameter: float = 0.0
    error: float = 0.0
    aspect: float = 1.0
    aspect_error: float = 0.0
    cells: int = 0
    notes: tuple[str, ...] = ()


def _unknown(why: str, cells: int = 0) -> Verdict:
    return Verdict(False, cells=cells, notes=(f"red cells: unknown, {why}",))


def judge(light: Light, sizes: Sizes | None) -> Verdict:
    """Judge whether the cells found are red cells of one device, and how well they are known."""
    if sizes is None:
        return _unknown("no round single cells were found")
    of_field, each, ratio, middle = [], [], [], []
    for field, found, mine in zip(light.fields, sizes.found, sizes.chosen, strict=True):
        if found is None or not mine.any():
            continue
        each.append(found.diameter[mine])
        ratio.append((found.width / found.height)[mine])
        if mine.sum() >= 3:
            of_field.append(float(np.median(found.diameter[mine])))
        where = np.hypot(found.x / field.size[0] - 0.5, found.y / field.size[1] - 0.5)
        middle.append((where < 0.12)[mine])
    if not each:
        return _unknown("no round single cells were found")
    diameters = np.concatenate(each)
    cells, fields = len(diameters), len(light.fields)
    if cells < _FEWEST_CELLS:
        return _unknown(f"only {cells} round single cells in {fields} images", cells)
    central = float(np.concatenate(middle).mean())
    if central > 0.3 and cells < 2.5 * fields:
        return _unknown(f"{central:.0%} lie in the middle of their image: single-cell crops", cells)
    diameter = float(np.median(diameters))
    shortest = min(min(field.size) for field in light.fields)
    if diameter > _PART * shortest:
        return _unknown(f"one cell fills the image ({diameter:.0f} of {shortest} px)", cells)
    spread = sizes.spread
    if spread > _WIDEST:
        return _unknown(f"round things of all sizes (spread {spread:.0%}), no red cells", cells)
    if sizes.share < 0.35:
        return _unknown(f"only {sizes.share:.0%} of the round things are of about one size", cells)
    notes = []
    error = np.hypot(_METHOD, 1.25 * spread / np.sqrt(cells))
    cross = sizes.inscribed / _INSCRIBED / np.sqrt(sizes.aspect)
    apart = abs(np.log(cross / diameter)) if np.isfinite(cross) else 0.3
    if apart > 0.35:
        return _unknown(
            f"cues disagree: single cells {diameter:.1f} px, inscribed circles {cross:.1f} px",
            cells,
        )
    error = float(np.hypot(error, max(0.0, apart - 0.12) / 2))
    if len(of_field) >= 3:
        logs = np.log(of_field)
        off = float((np.abs(logs - np.log(diameter)) > 0.22).mean())
        if off > 0.25:
            low, high = np.percentile(of_field, [10, 90])
            notes.append(
                f"images disagree on the size of red cells ({low:.0f}-{high:.0f} px): "
                "more than one device or objective in the folder?"
            )
            error = float(np.hypot(error, 0.5 * np.ptp(np.log([low, high]))))
    ratios = np.log(np.concatenate(ratio))
    wobble = 1.25 * 1.48 * float(np.median(np.abs(ratios - np.median(ratios))))
    return Verdict(
        True,
        diameter,
        error,
        float(np.exp(np.median(ratios))),
        float(np.hypot(0.015, wobble / np.sqrt(cells))),
        cells,
        tuple(notes),
    )
