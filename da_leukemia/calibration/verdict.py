"""Whether a size of red cells can be believed, and how far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from da_leukemia.calibration.scale import Light, Sizes, find_all

_FEWEST_CELLS, _FEWEST_PER_IMAGE = 15, 0.5
FEW_CELLS, FEW_FIELDS = 50, 5
"""Below, chance widens the interval noticeably: by up to 4 % (scatter of cells), or 3 % (films)."""

_WIDEST = 0.24
"""Largest spread of log diameter among red cells: discs of one kind stay near 0.1."""

_METHOD = 0.055
"""Relative error that stays with many cells (docs/calibration.md)."""

_PARTED, _PARTED_ASPECT = 0.03, 0.08
"""Relative errors of size and aspect of cells that were cut from their neighbours."""

_INSCRIBED = 0.91
"""Largest inscribed circle over diameter of red cells as they are, not quite round."""

_BETWEEN = 0.06
"""Relative standard deviation of red cells' size from film to film of one device."""

_MIXED = 0.2
"""Share of images of another size above which there is no one size of the folder."""

_LOOKED_AT = 12
"""Images without a red cell of the common size in which others are sought."""

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
        mixed: whether the images seem to come from more than one device.
        notes: reasons and warnings.
    """

    known: bool
    diameter: float = 0.0
    error: float = 0.0
    aspect: float = 1.0
    aspect_error: float = 0.0
    cells: int = 0
    mixed: bool = False
    notes: tuple[str, ...] = ()


def _unknown(why: str, cells: int = 0, *, mixed: bool = False) -> Verdict:
    more = ("light and colours: unknown, they would be of no one device",) if mixed else ()
    return Verdict(False, cells=cells, mixed=mixed, notes=(f"red cells: unknown, {why}", *more))


def enough(cells: int, fields: int) -> bool:
    """Whether so many red cells in so many images can tell a size at all."""
    return cells >= max(_FEWEST_CELLS, _FEWEST_PER_IMAGE * fields)


def judge(light: Light, sizes: Sizes | None) -> Verdict:
    """Judge whether the cells found are red cells of one device, and how well they are known."""
    if sizes is None:
        return _unknown("no round single cells were found")
    of_field, each, ratio, middle = [], [], [], []
    parted = 0
    for field, found, mine in zip(light.fields, sizes.found, sizes.chosen, strict=True):
        if found is None or not mine.any():
            continue
        each.append(found.diameter[mine])
        parted += int((mine & ~found.alone).sum())
        ratio.append((found.width / found.height)[mine])
        if mine.sum() >= 3:
            of_field.append(float(np.median(found.diameter[mine])))
        where = np.hypot(found.x / field.size[0] - 0.5, found.y / field.size[1] - 0.5)
        middle.append((where < 0.12)[mine])
    if not each:
        return _unknown("no round single cells were found")
    diameters = np.concatenate(each)
    cells, fields = len(diameters), len(light.fields)
    if not enough(cells, fields):
        return _unknown(f"only {cells} round single cells in {fields} images", cells)
    central = float(np.concatenate(middle).mean())
    if central > 0.3 and cells < 2.5 * fields:
        return _unknown(f"{central:.0%} lie in the middle of their image: single-cell crops", cells)
    diameter = float(np.median(diameters))
    shortest = min(min(field.size) for field in light.fields)
    if diameter > _PART * shortest or (diameter > 0.25 * shortest and cells < fields):
        return _unknown(f"one cell fills the image ({diameter:.0f} of {shortest} px)", cells)
    spread = sizes.spread
    if spread > _WIDEST:
        return _unknown(f"round things of all sizes (spread {spread:.0%}), no red cells", cells)
    if sizes.share < 0.35:
        return _unknown(f"only {sizes.share:.0%} of the round things are of about one size", cells)
    error = float(np.hypot(_METHOD, 1.25 * spread / np.sqrt(cells)))
    error = float(np.hypot(error, _BETWEEN / np.sqrt(len(each))))
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
            return _unknown(
                f"images disagree on their size ({low:.0f}-{high:.0f} px): "
                "more than one device or objective in the folder?",
                cells,
                mixed=True,
            )
    notes, mixed = _others(light, sizes, diameter)
    if mixed:
        return _unknown(notes[0], cells, mixed=True)
    turn = 0.02
    if parted:
        turn, error = _PARTED_ASPECT, float(np.hypot(error, _PARTED))
        notes = (*notes, f"few red cells lie alone: {parted} of {cells} were cut from others")
    ratios = np.log(np.concatenate(ratio))
    wobble = 1.25 * 1.48 * float(np.median(np.abs(ratios - np.median(ratios))))
    return Verdict(
        True,
        diameter,
        error,
        float(np.exp(np.median(ratios))),
        float(np.hypot(turn, wobble / np.sqrt(cells))),
        cells,
        notes=notes,
    )


def _others(light: Light, sizes: Sizes, diameter: float) -> tuple[tuple[str, ...], bool]:
    """Look for another device among the images that show no red cell of the common size.

    Returns:
        What to say of them, and whether they are too many for one size to hold.
    """
    rest = [
        index
        for index, (found, mine) in enumerate(zip(sizes.found, sizes.chosen, strict=True))
        if found is not None and not mine.any() and found.foreground > 0.01
    ]
    if len(rest) < max(3, 0.1 * len(light.fields)):
        return (), False
    part = light.part(
        [rest[i] for i in np.linspace(0, len(rest) - 1, min(len(rest), _LOOKED_AT)).astype(int)]
    )
    others = find_all(part)
    if others is None or sum(int(mine.sum()) for mine in others.chosen) < _FEWEST_CELLS:
        return (), False
    if abs(np.log(others.diameter / diameter)) < 0.25:
        return (), False
    shown = round(len(rest) * float(np.mean([mine.any() for mine in others.chosen])))
    text = (
        f"{shown} images show round cells of {others.diameter:.0f} px, the others of "
        f"{diameter:.0f} px: more than one device or objective in the folder?"
    )
    return (text,), len(rest) > _MIXED * len(light.fields)
