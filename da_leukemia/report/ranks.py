"""Average ranks of the methods over all changes of device, with the critical-difference plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from da_leukemia.config import devices_of
from da_leukemia.report.headlines import metric_name
from da_leukemia.report.markup import escape, table
from da_leukemia.sweep.matrix import Matrix

if TYPE_CHECKING:
    from da_leukemia.evaluation.ranks import Ranking

FEWEST_METHODS, FEWEST_CELLS = 3, 5
"""From which ranks are given. Below, every difference would be called chance."""

PRESENT = 0.5
"""Share of the cells that a method needs to be ranked: one run must not cost all others theirs."""

RANKS_HEADER = ("method", "average rank")


@dataclass(frozen=True)
class Ranks:
    """A ranking, and what it is not about.

    Attributes:
        metric: a score of which more is better.
        ranking: over cells, a cell being a source and another device it is tested on.
        cells: cells in which any method has a score.
        absent: methods that are left out because they lack most of the cells.
    """

    metric: str
    ranking: Ranking
    cells: int
    absent: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know."""
        r = self.ranking
        said = [
            f"Friedman's test over {r.blocks} cells: chi-square {r.statistic:.2f}, p {_p(r.p)}. "
            f"Critical difference (Nemenyi, {100 * r.level:.0f} %, all pairs together): "
            f"{r.distance:.2f}."
        ]
        if r.p >= r.level:
            said.append("Taken together the methods do not differ: read nothing into the order.")
        if r.blocks < self.cells:
            left = self.cells - r.blocks
            said.append(f"{left} of {self.cells} cells lack a method and take no part.")
        if self.absent:
            said.append(f"Not ranked, with most cells missing: {', '.join(self.absent)}.")
        return said


HOW_TO_READ = (
    "In every cell off the diagonal (trained on one device, tested on another; means over seeds) "
    "the methods are ranked, 1 being the best. Methods under one bar are no farther apart than the "
    "critical difference. Cells share devices and test patients, so they count for less than their "
    "number: take a difference just above the critical one for a hint."
)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def ranks_of(matrix: Matrix, metric: str) -> Ranks | None:
    """Rank the methods of a matrix; None where there are too few of them, or of cells.

    Args:
        matrix: the means over seeds.
        metric: a score of which more is better.
    """
    from da_leukemia.evaluation.ranks import rank_methods

    views = {m: matrix.view(m, metric) for m in matrix.methods}
    shape = next(iter(views.values()), None)
    if shape is None:
        return None
    places = [
        (s, t)
        for s, t in product(shape.sources, shape.tests)
        if t not in devices_of(s) and any((s, t) in v.cells for v in views.values())
    ]
    there = {m: sum(place in v.cells for place in places) for m, v in views.items()}
    ranked = [m for m, n in there.items() if n and n >= PRESENT * len(places)]
    whole = [p for p in places if all(p in views[m].cells for m in ranked)]
    if len(ranked) < FEWEST_METHODS or len(whole) < FEWEST_CELLS:
        return None
    scores = [[views[m].cells[place].value for m in ranked] for place in whole]
    absent = tuple(m for m in matrix.methods if m not in ranked)
    return Ranks(metric, rank_methods(ranked, scores), len(places), absent)


def rank_rows(ranks: Ranks) -> list[list[str]]:
    """Return the cells under `RANKS_HEADER`."""
    r = ranks.ranking
    return [[m, f"{rank:.2f}"] for m, rank in zip(r.methods, r.ranks, strict=True)]


def ranks_section(ranks: Ranks | None) -> str:
    """The section of the page; nothing where there are no ranks."""
    if ranks is None:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in ranks.notes)
    return (
        f"<p>{escape(metric_name(ranks.metric))}. {escape(HOW_TO_READ)}</p>"
        f"<ul class='said'>{notes}</ul>"
        f"<figure class='ranks scroll'>{svg(ranks)}</figure>"
        f"<details><summary>As a table</summary>{table(RANKS_HEADER, rank_rows(ranks), words=1)}"
        "</details>"
    )


def write_ranks(ranks: Ranks | None, path: Path) -> None:
    """Write the plot as a file of its own; no file where there are no ranks."""
    if ranks is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(svg(ranks, alone=True) + "\n", encoding="utf-8")


# --- the plot --------------------------------------------------------------------------------

_WIDE, _LETTER, _LINE, _BAR = 360.0, 6.7, 19.0, 9.0
_STYLE = (
    "<style>.cd text{font:12px sans-serif;fill:currentColor}.cd path{fill:none;"
    "stroke:currentColor}.cd .bar{stroke-width:4;stroke-linecap:round}</style>"
)


def svg(ranks: Ranks, alone: bool = False) -> str:
    """Draw the critical-difference plot (Demsar, 2006): best on the left, bars over what is alike.

    Args:
        ranks: what is drawn.
        alone: as a file of its own, black on white.
    """
    r = ranks.ranking
    k = len(r.methods)
    groups = r.alike()
    rows, half = _rows(groups), (k + 1) // 2
    side = 45 + _LETTER * max(len(m) for m in r.methods)
    axis = 44.0
    under = axis + 10 + _BAR * (max(rows, default=-1) + 1)

    def x(rank: float) -> float:
        return side + _WIDE * (rank - 1) / (k - 1)

    parts = [f'<path d="M{side:.1f} {axis}H{side + _WIDE:.1f}"/>']
    for i in range(1, k + 1):
        parts.append(f'<path d="M{x(i):.1f} {axis}v-6"/>')
        if k <= 15 or i in (1, k) or i % 5 == 0:
            parts.append(f'<text x="{x(i):.1f}" y="{axis - 10}" text-anchor="middle">{i}</text>')
    end = min(x(1 + r.distance), side + _WIDE)
    cut = "" if x(1 + r.distance) <= end else " (longer than the axis)"
    parts.append(f'<path d="M{side:.1f} 12H{end:.1f}M{side:.1f} 8v8M{end:.1f} 8v8"/>')
    parts.append(f'<text x="{end + 8:.1f}" y="16">CD {r.distance:.2f}{cut}</text>')
    for (first, last), row in zip(groups, rows, strict=True):
        y = axis + 9 + _BAR * row
        a, b = x(r.ranks[first]) - 3, x(r.ranks[last]) + 3
        parts.append(f'<path class="bar" d="M{a:.1f} {y}H{b:.1f}"/>')
    for i, (method, rank) in enumerate(zip(r.methods, r.ranks, strict=True)):
        left = i < half
        y = under + 12 + _LINE * (i if left else k - 1 - i)
        edge = side - 8 if left else side + _WIDE + 8
        anchor, at = ("end", edge - 4) if left else ("start", edge + 4)
        parts.append(f'<path d="M{x(rank):.1f} {axis}V{y}H{edge:.1f}"/>')
        label = escape(f"{method} {rank:.2f}")
        parts.append(f'<text x="{at:.1f}" y="{y + 4}" text-anchor="{anchor}">{label}</text>')
    high = under + 12 + _LINE * half
    wide = _WIDE + 2 * side
    told = (
        f"Average ranks over {r.blocks} cells, critical difference {r.distance:.2f}: "
        + ", ".join(f"{m} {v:.2f}" for m, v in zip(r.methods, r.ranks, strict=True))
    )
    frame = (
        f' xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" '
        'style="background:white;color:black"'
        if alone
        else ""
    )
    return (
        f'<svg class="cd"{frame} viewBox="0 0 {wide:.0f} {high:.0f}" role="img" '
        f'aria-label="{escape(told)}">{_STYLE}{"".join(parts)}</svg>'
    )


def _rows(groups: Sequence[tuple[int, int]]) -> list[int]:
    """Put bars that overlap one below the other."""
    ends: list[int] = []
    rows = []
    for first, last in groups:
        row = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[row : row + 1] = [last]
        rows.append(row)
    return rows
