"""A calibration as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from da_leukemia.calibration.record import Calibration, Quantity


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
