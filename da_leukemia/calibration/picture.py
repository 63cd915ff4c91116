"""The picture of a calibration: photographs before and after, cells outlined, diameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from da_leukemia.calibration.apply import flat_field, same_colour
from da_leukemia.calibration.cells import Found
from da_leukemia.calibration.light import Mask, Values
from da_leukemia.calibration.measure import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 3
_TURN = np.linspace(0, 2 * np.pi, 40)


def draw(measured: Measured, path: Path) -> None:
    """Draw a calibration into an image file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fields, sizes = measured.light.fields, measured.sizes
    shown = sorted({int(i) for i in np.linspace(0, len(fields) - 1, _SHOWN + 2)[1:-1].round()})
    if sizes is not None:
        # The photographs with most cells say most.
        order = np.argsort([-int(mine.sum()) for mine in sizes.chosen], kind="stable")
        shown = [int(i) for i in order[: 2 * _SHOWN : 2]] or shown
    figure = Figure(figsize=(4 * len(shown) + 4, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown) + 1, squeeze=False)
    for column, index in enumerate(shown):
        field = fields[index]
        extent = (0, field.size[0], field.size[1], 0)
        before, after = axes[0, column], axes[1, column]
        before.imshow(field.pixels, extent=extent)
        before.set_title(field.path.name[:40], fontsize=8)
        even = flat_field(field.pixels, measured.calibration)
        after.imshow(same_colour(even, measured.calibration), extent=extent)
        if sizes is not None:
            _outline(after, sizes.found[index], sizes.chosen[index])
        for axis in (before, after):
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].set_ylabel("as photographed")
    axes[1, 0].set_ylabel("even light, white background,\nmeasured red cells")
    _diameters(axes[0, -1], measured)
    _text(axes[1, -1], measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _outline(axis: Axes, found: Found | None, mine: Mask) -> None:
    if found is None:
        return
    for row, red in zip(found.outlines, mine, strict=True):
        x, y = _ellipse(row)
        colour = "#00a020" if red else "#e08000"
        axis.plot(x, y, color=colour, linewidth=1.3 if red else 0.7)


def _ellipse(row: Values) -> tuple[Values, Values]:
    cx, cy, xx, yy, xy = row
    values, vectors = np.linalg.eigh(np.array([[xx, xy], [xy, yy]]))
    round_ = np.stack([np.cos(_TURN), np.sin(_TURN)])
    x, y = vectors @ (2 * np.sqrt(np.maximum(values, 0))[:, None] * round_)
    return x + cx, y + cy


def _diameters(axis: Axes, measured: Measured) -> None:
    sizes, red = measured.sizes, measured.calibration.red_cell_px
    axis.set_xlabel("diameter, px (single round things)")
    axis.set_ylabel("cells")
    if sizes is None:
        axis.text(0.5, 0.5, "no round single cells", ha="center", transform=axis.transAxes)
        return
    kept: list[float] = []
    rest: list[float] = []
    for found, mine in zip(sizes.found, sizes.chosen, strict=True):
        if found is not None:
            kept.extend(found.diameter[mine])
            rest.extend(found.diameter[~mine])
    bins = np.linspace(0, 2.5 * sizes.diameter, 51)
    axis.hist([kept, rest], bins=list(bins), stacked=True, color=["#00a020", "#e08000"],
              label=["red cells", "others"])  # fmt: skip
    if red is not None:
        axis.axvspan(red.low, red.high, color="#00a020", alpha=0.2, label="90 % interval")
    axis.legend(fontsize=8, frameon=False)


def _text(axis: Axes, measured: Measured) -> None:
    import textwrap

    from da_leukemia.calibration.text import table

    axis.axis("off")
    lines = [part for line in table(measured.calibration).splitlines()
             for part in textwrap.wrap(line, 62, subsequent_indent="    ")]  # fmt: skip
    axis.text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=6.5,
              transform=axis.transAxes)  # fmt: skip
