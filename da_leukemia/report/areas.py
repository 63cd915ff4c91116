"""What a share of the annotation is worth: scores against annotated area, where that is an axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from da_leukemia.report.contents import Contents
from da_leukemia.report.headlines import metric_name
from da_leukemia.report.markup import table
from da_leukemia.report.tables import DASH, markdown_rows, percent, score
from da_leukemia.sweep.matrix import Matrix, Row
from da_leukemia.sweep.names import FAIR, area_of, without_area

HOW_TO_READ = (
    "Training and validation fields were annotated inside random patches of this share of their "
    "area; test fields are whole. In brackets: the share of what "
    f"{FAIR} reaches with whole annotation."
)


class Place(NamedTuple):
    """Where a curve was measured; ``target`` is empty for source-only."""

    source: str
    target: str
    test: str

    def __str__(self) -> str:
        goal = f", adapted to {self.target}" if self.target else ""
        return f"{self.source}{goal}, tested on {self.test}"


@dataclass(frozen=True)
class Curve:
    """The scores of one method by annotated area, on one metric."""

    method: str
    place: Place
    rows: Mapping[float, Row]


def curves(matrix: Matrix, metric: str) -> list[Curve]:
    """Return the curves of a metric, in the order of the matrix; none where areas do not vary."""
    if len({area_of(method) for method in matrix.methods}) < 2:
        return []  # without a look at a hundred thousand rows
    found: dict[tuple[Place, str], dict[float, Row]] = defaultdict(dict)
    for row in matrix.rows:
        if row.metric == metric:
            place = Place(row.source, row.target, row.test)
            found[place, without_area(row.method)][area_of(row.method)] = row
    if len({area for rows in found.values() for area in rows}) < 2:
        return []
    return [Curve(method, place, rows) for (place, method), rows in found.items()]


def _table(found: list[Curve]) -> tuple[list[str], list[list[str]]]:
    areas = sorted({area for curve in found for area in curve.rows})
    whole = {c.place: c.rows[1.0].value for c in found if c.method == FAIR and 1.0 in c.rows}
    rows = []
    for curve in found:
        reference = whole.get(curve.place._replace(target=""))
        cells = [_cell(curve.rows.get(area), reference) for area in areas]
        rows.append([curve.method, str(curve.place), *cells])
    return ["method", "trained on", *(f"{100 * area:g} %" for area in areas)], rows


def _cell(row: Row | None, whole: float | None) -> str:
    if row is None:
        return DASH
    return f"{score(row.value)} ({percent(row.value / whole)})" if whole else score(row.value)


def _metrics(matrix: Matrix) -> tuple[str, ...]:
    return (matrix.headline, "attribute_f1")


def areas_markdown(contents: Contents) -> list[str]:
    """Return the tables as lines of Markdown; none where areas do not vary."""
    lines: list[str] = []
    for metric in _metrics(contents.matrix):
        if found := curves(contents.matrix, metric):
            header, rows = _table(found)
            lines += ["", f"## {metric_name(metric)} against annotated area", "", HOW_TO_READ, ""]
            lines += markdown_rows(header, rows)
    return lines


def areas_section(contents: Contents) -> str:
    """Return the tables as HTML; empty where areas do not vary."""
    parts = [
        f"<h3>{metric_name(metric)}</h3>{table(*_table(found), words=2)}"
        for metric in _metrics(contents.matrix)
        if (found := curves(contents.matrix, metric))
    ]
    return f"<p>{HOW_TO_READ}</p>{''.join(parts)}" if parts else ""


def draw_areas(contents: Contents, path: Path) -> None:
    """Write the curves as PNG, a row of panels per metric; nothing where areas do not vary."""
    from matplotlib.figure import Figure

    metrics = _metrics(contents.matrix)
    drawn = [(m, found) for m in metrics if (found := curves(contents.matrix, m))]
    if not drawn:
        return
    places = list(dict.fromkeys(c.place for _, found in drawn for c in found))
    figure = Figure(figsize=(4.6 * len(places), 3.6 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), len(places), squeeze=False)
    for line, (metric, found) in zip(panels, drawn, strict=True):
        for axes, place in zip(line, places, strict=True):
            for curve in found:
                if curve.place != place:
                    continue
                areas = sorted(curve.rows)
                rows = [curve.rows[area] for area in areas]
                (drawing,) = axes.plot(
                    areas, [r.value for r in rows], marker="o", label=curve.method
                )
                if all(r.low is not None and r.high is not None for r in rows):
                    low, high = [r.low for r in rows], [r.high for r in rows]
                    axes.fill_between(areas, low, high, alpha=0.12, color=drawing.get_color())
            ticks = sorted({area for c in found for area in c.rows})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{100 * t:g} %" for t in ticks])
            axes.minorticks_off()
            axes.set_ylabel(metric_name(metric))
            axes.set_xlabel("annotated area of the training fields")
            axes.set_title(str(place), loc="left", fontsize=9)
            axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=160, metadata={"Software": "da_leukemia"})
