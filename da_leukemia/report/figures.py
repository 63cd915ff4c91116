"""The matrix as heat maps side by side, and the colours that the page shares with them."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.report.contents import Contents
from da_leukemia.report.headlines import METRIC_MEANINGS, metric_name
from da_leukemia.report.tables import percent
from da_leukemia.sweep.matrix import View
from da_leukemia.sweep.names import calibration_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
"""Monotone in lightness, so that it also reads without colour vision; has no grey of its own."""

GREY = "#d9d9d9"


def top_of_scale(values: Iterable[float]) -> float:
    """Return the upper end of the colour scale, which starts at 0: the next tenth, at most 1."""
    largest = max(values, default=1.0)
    return min(1.0, max(0.1, math.ceil(largest * 10 - 1e-9) / 10))


@functools.lru_cache(4096)
def colour(value: float, top: float) -> tuple[str, str]:
    """Return the colour of a cell and one in which text on it can be read."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rgb = colormaps[COLOURS](min(max(value / top, 0.0), 1.0))[:3]
    return to_hex(rgb), text_on(rgb)


def text_on(rgb: Iterable[float]) -> str:
    """Return near-black or white, whichever contrasts more (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.06 else "#111111"


def draw_matrix(contents: Contents, *paths: Path, metric: str | None = None) -> None:
    """Write the heat maps of one metric, a method each, on one colour scale.

    Args:
        contents: what is reported.
        paths: files to write, ``.png`` or ``.svg`` (with text as text).
        metric: what the cells show; by default the headline's.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    matrix = contents.matrix
    metric = metric or matrix.headline
    views = [v for v in (matrix.view(m, metric) for m in contents.shown) if v.cells]
    if not views:
        figure = Figure(figsize=(6, 2))
        figure.text(0.5, 0.5, "No result yet", ha="center", va="center", fontsize=14)
        _save(figure, paths)
        return
    rows, columns = len(views[0].sources), len(views[0].tests)
    size = 1.05 if columns <= 5 else 0.86 if columns <= 8 else 0.74
    across = 2 if len(views) == 4 else min(3, len(views))
    down = math.ceil(len(views) / across)
    names = [*views[0].sources, *views[0].tests]
    left = 0.4 + 0.085 * _longest(names)
    wide, high = columns * size, rows * size
    turn = columns > 5
    lines = max(n.count("\n") for n in _wrapped(names))
    below = 0.6 + (0.085 * _longest(names) if turn else 0.14 * (lines + 1))
    head, foot, gap = 0.75, 0.45, 0.35
    width = left + across * (wide + gap) - gap + 1.15
    height = down * (head + high + below) + foot + 0.35
    figure = Figure(figsize=(width, height), facecolor="white")
    top = top_of_scale(r.value for v in views for r in v.cells.values())
    closed = {s.method: s.ratio_of_means for s in contents.gap.summaries}
    for i, view in enumerate(views):
        x = (i % across) * (wide + gap) + left
        y = height - 0.35 - (i // across) * (head + high + below) - head - high
        axes = figure.add_axes((x / width, y / height, wide / width, high / height))
        _heat_map(axes, view, top, size, turn, first=i % across == 0)
        note = "adapted" if view.adapted else "calibrated" if calibration_of(view.method) else ""
        if metric == matrix.headline and closed.get(view.method) is not None:
            note += f"; gap closed: {percent(closed[view.method])}"
        elif note:
            note += " to the test device"
        note = note or "the row's device alone"
        axes.set_title(view.method, loc="left", fontsize=12, fontweight="bold", pad=22)
        axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=8.5, color="#555555")
    bar = figure.add_axes(((width - 0.85) / width, y / height, 0.16 / width, high / height))
    figure.colorbar(ScalarMappable(Normalize(0, top), COLOURS), cax=bar)
    bar.set_title(metric_name(metric), fontsize=9, loc="left", pad=6)
    bar.tick_params(labelsize=8)
    seeds = sorted({r.seeds for v in views for r in v.cells.values()})
    about = f"{metric_name(metric)}: {METRIC_MEANINGS.get(metric, '')}. " + _seeds(seeds)
    if any(r.low is not None for v in views for r in v.cells.values()):
        about += ", 95 % bootstrap intervals over seeds and patients (fields of devices without)"
    if any(v.borrowed for v in views):
        about += "; grey: not adapted (fair_source_only)"
    about += f". {contents.left_out.rstrip('.')}" if contents.left_out else ""
    lines_below = textwrap.wrap(f"{about}.", int(width * 13))
    note_text = "\n".join(lines_below)
    figure.text(0.12 / width, 0.12 / height, note_text, fontsize=8, color="#555555")
    _save(figure, paths, dpi=160 if columns <= 8 else 110)


def _save(figure: Figure, paths: Iterable[Path], dpi: int = 160) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "da_leukemia"}):
        for path in paths:
            vector = path.suffix == ".svg"
            about = (
                {"Date": None, "Creator": "da_leukemia"} if vector else {"Software": "da_leukemia"}
            )
            figure.savefig(path, dpi=dpi, metadata=about)


def _seeds(seeds: list[int]) -> str:
    if seeds == [1]:
        return "One seed"
    return f"Mean over {'-'.join(str(s) for s in dict.fromkeys((seeds[0], seeds[-1])))} seeds"


def _wrapped(names: Iterable[str]) -> list[str]:
    """Break long device names at underscores, spaces and hyphens."""
    return ["\n".join(textwrap.wrap(n.replace("_", "_ "), 14)).replace("_ ", "_") for n in names]


def _longest(names: Iterable[str]) -> int:
    return max(len(line) for name in _wrapped(names) for line in name.split("\n"))


def _heat_map(axes: Axes, view: View, top: float, size: float, turn: bool, first: bool) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    columns, rows = len(view.tests), len(view.sources)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    tiles, fills = [], []
    edge: dict[str, Any] = {"linewidth": 1.5, "edgecolor": "white"}
    for i, source in enumerate(view.sources):
        for j, test in enumerate(view.tests):
            row = view.cells.get((source, test))
            borrowed = (source, test) in view.borrowed
            if row is None:
                axes.add_patch(Rectangle((j, i), 1, 1, facecolor="#f4f4f4", hatch="///", **edge))
                continue
            fill, ink = (GREY, "#444444") if borrowed else colour(row.value, top)
            tiles.append(Rectangle((j, i), 1, 1))
            fills.append(fill)
            interval = row.low is not None
            axes.text(
                j + 0.5,
                i + (0.42 if interval else 0.5),
                f"{row.value:.2f}",
                ha="center",
                va="center",
                color=ink,
                fontsize=13 if size > 1 else 11 if size > 0.8 else 9.5,
            )
            if interval:
                axes.text(
                    j + 0.5,
                    i + 0.72,
                    f"{row.low:.2f}-{row.high:.2f}",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=8 if size > 1 else 7 if size > 0.8 else 6,
                )
    axes.add_collection(  # one thing to draw: a hundred cells one by one take as long as the text
        PatchCollection(tiles, facecolor=fills, **edge)
    )
    axes.set_xticks([j + 0.5 for j in range(columns)], _wrapped(view.tests), fontsize=9)
    labels = _wrapped(view.sources) if first else [""] * rows
    axes.set_yticks([i + 0.5 for i in range(rows)], labels, fontsize=9)
    if turn:
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("tested on", fontsize=9, color="#555555")
    if first:
        axes.set_ylabel("trained on", fontsize=9, color="#555555")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
