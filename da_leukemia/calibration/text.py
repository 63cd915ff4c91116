"""A calibration as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from da_leukemia.calibration.record import Calibration, Quantity
from da_leukemia.calibration.verdict import FEW_CELLS, FEW_FIELDS, enough
from da_leukemia.errors import counted


def table(calibration: Calibration) -> str:
    """Return what was measured, one quantity in a row, with its 90 % interval."""
    c = calibration
    rows = [("images", f"{c.fields}, {c.size[0]} x {c.size[1]} px", "")]
    red = c.red_cell_px
    if red is None:
        rows.append(("red cell", "unknown", ""))
    else:
        rows.append(
            (
                "red cell",
                f"{red.width:.1f} x {red.height:.1f} px",
                f"diameter {red.low:.1f} - {red.high:.1f}, {c.cells} cells",
            )
        )
    rows += [
        _row("scale x", c.px_per_um_x, 2, " px/um"),
        _row("scale y", c.px_per_um_y, 2, " px/um"),
        _row("aspect", c.aspect, 3, " width/height"),
        _row("light lost", c.illumination_fall, 2, " of 1"),
        _within("light field", c.illumination_error),
        _colours("background", c.background),
        _colours("red cells", c.red_cell_colour),
        _colours("nuclei", c.nucleus_colour),
        _row("edge x", c.edge_x, 1, " px"),
        _row("edge y", c.edge_y, 1, " px"),
        _row("noise", c.noise, 2, " grey levels"),
    ]
    if c.valid is None:
        rows.append(("valid field", "whole frame", ""))
    else:
        x, y, across, down = c.valid
        rows += [
            ("valid field", f"ellipse at {x.value:.1%}, {y.value:.1%}", _reaches(x, y)),
            ("its radii", f"{across.value:.1%} of width, {down.value:.1%} of height",
             _reaches(across, down)),
        ]  # fmt: skip
    first = max(len(row[0]) for row in rows)
    second = max(len(row[1]) for row in rows)
    lines = [f"{a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in calibration.notes)])


def conclusion(calibration: Calibration, mixed: bool = False) -> str:
    """Say in one line what the measurement is good for.

    Args:
        calibration: what was measured.
        mixed: whether the images seem to come from more than one device.
    """
    c = calibration
    if c.px_per_um_x.known and c.px_per_um_y.known:
        x, y, aspect = c.px_per_um_x, c.px_per_um_y, c.aspect
        if (aspect.low or 1.0) <= 1.0 <= (aspect.high or 1.0):
            scale = _reach(min(x, y, key=_low), max(x, y, key=_high))
        else:
            scale = f"{_reach(x, x)} across, {_reach(y, y)} down"
        told = f"Scale known ({scale}): `calibration=[default]` can bring this device to a "
        told += "common scale."
        if c.cells < FEW_CELLS or c.fields < FEW_FIELDS:
            told += f" It rests on {counted(c.cells, 'red cell')} in "
            told += f"{counted(c.fields, 'image')}; more images would make it surer."
        return told
    lost = "this device cannot be brought to a common scale."
    if mixed:
        return (
            f"The images do not agree on one size of red cells: {lost} Calibrate the images of "
            "each camera and objective on their own."
        )
    if c.cells > 0 and not enough(c.cells, c.fields):
        return (
            f"Too few round single cells were found ({c.cells} in {counted(c.fields, 'image')}): "
            f"{lost} More images may tell."
        )
    if c.cells:
        return f"What was found cannot be trusted to be red cells (see the notes): {lost}"
    return f"No red cells could be measured: {lost} Are these fields of a blood film?"


def _low(quantity: Quantity) -> float:
    return quantity.low or 0.0


def _high(quantity: Quantity) -> float:
    return quantity.high or 0.0


def _reach(least: Quantity, most: Quantity) -> str:
    return f"{_low(least):.2f} to {_high(most):.2f} px per um"


def _row(name: str, quantity: Quantity, places: int, unit: str) -> tuple[str, str, str]:
    if quantity.value is None or quantity.low is None or quantity.high is None:
        return name, "unknown", ""
    reach = f"{quantity.low:.{places}f} - {quantity.high:.{places}f}"
    return name, f"{quantity.value:.{places}f}{unit}", reach


def _within(name: str, error: float | None) -> tuple[str, str, str]:
    return (name, "unknown", "") if error is None else (name, f"within {error:.1%} (RMS)", "")


def _reaches(*parts: Quantity) -> str:
    return ", ".join(f"{q.low:.1%} - {q.high:.1%}" for q in parts)


def _colours(name: str, triple: Sequence[Quantity] | None) -> tuple[str, str, str]:
    if triple is None:
        return name, "unknown", ""
    values = ", ".join(f"{q.value:.0f}" for q in triple)
    return name, f"RGB {values}", ", ".join(f"{q.low:.0f}-{q.high:.0f}" for q in triple)
