"""What stands behind a cell of the matrix: which cells are opened, their runs and curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from da_leukemia.report.gap import GapTable
from da_leukemia.report.headlines import reference_method
from da_leukemia.report.intervals import Bootstrap, Bounds, labelled_in
from da_leukemia.sweep.matrix import Matrix, Row
from da_leukemia.sweep.results import Result

MOST_CELLS = 60
"""Cells that are opened whole. Of more: those of the reference and the best method before others,
and of these those with the lowest scores, where a reader looks first."""

MOST_BRIEF = 900
"""Further cells that are opened with their numbers alone: all of six methods on twelve devices."""

Curve = list[tuple[float, float]]
"""(recall, precision) by rising recall."""


@dataclass(frozen=True)
class Depth:
    """One cell of the matrix with the runs behind it.

    Attributes:
        row: the cell.
        whole: whether more than its numbers is shown; if not there are no twins and no curve.
        results: its runs, by seed.
        twins: the runs without adaptation that they are compared with, by seed.
        curve: precision over recall at IoU 0.5, mean over classes and seeds; empty where no
            records are left, and of single cells, which nobody has to find.
    """

    row: Row
    whole: bool
    results: Sequence[Result]
    twins: Mapping[int, Result]
    curve: Curve

    @property
    def single_cells(self) -> bool:
        """Whether there was nothing to find, only cells to name."""
        return self.row.metric == "balanced_accuracy"

    @property
    def cells(self) -> int:
        """True cells that were scored, in the test fields of one seed."""
        per_class = self.results[0].metrics(self.row.test).get("per_class") or {}
        return sum(int(entry.get("truths") or 0) for entry in per_class.values())


def open_cells(
    bootstrap: Bootstrap,
    matrix: Matrix,
    gap: GapTable,
    results: Sequence[Result],
    metric: str,
    drawn: Sequence[str],
) -> list[Depth]:
    """Return what stands behind the cells of the methods that are drawn.

    Args:
        bootstrap: keeps what is drawn from the records.
        matrix: the means over seeds.
        gap: tells the best method.
        results: of a sweep.
        metric: decides which of many cells are opened.
        drawn: methods whose matrices are shown.
    """
    best = gap.best.method if gap.best is not None else next(iter(matrix.adapted), None)
    first = (reference_method(matrix), best)
    rows = [r for r in matrix.on_target(metric) if r.method in (*first, *drawn)]
    ranked = sorted(rows, key=lambda r: (r.method not in first, r.value))
    whole = {id(r) for r in ranked[:MOST_CELLS]}
    kept = {id(r) for r in ranked[: MOST_CELLS + MOST_BRIEF]}
    placed = by_place(results)
    found = []
    for row in rows:
        if id(row) not in kept:
            continue
        runs = runs_of(row, placed)
        if id(row) not in whole:
            found.append(Depth(row, False, runs, {}, []))
            continue
        twins = placed.get((matrix.twin(row.method), row.source, ""), []) if row.target else []
        curve = _curve(bootstrap, runs, row.test)
        found.append(Depth(row, True, runs, {r.run.seed: r for r in twins}, curve))
    return found


Placed = Mapping[tuple[str, str, str], Sequence[Result]]
"""(method, source, target) -> the runs there, by seed."""


def by_place(results: Iterable[Result]) -> Placed:
    """Put together the runs that differ in their seed."""
    placed: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: r.run):
        placed.setdefault(result.run[:3], []).append(result)
    return placed


def runs_of(row: Row, placed: Placed) -> list[Result]:
    """Return the runs behind a cell, by seed."""
    runs = placed[row.method, row.source, row.target]
    return [r for r in runs if row.test in r.content["tests"]]


def _curve(bootstrap: Bootstrap, runs: Sequence[Result], test: str) -> Curve:
    paths = [p for r in runs if (p := r.records(test)) is not None]
    if len(paths) < len(runs) or any(r.metrics(test).get("ap50") is None for r in runs):
        return []
    key = bootstrap.key("precision over recall", paths, runs[0])
    return list(bootstrap.lookup(key, partial(_draw_curve, runs, test)).values())


def _draw_curve(runs: Sequence[Result], test: str) -> Bounds:
    import numpy as np

    from da_leukemia.evaluation.detection import MatchTable
    from da_leukemia.evaluation.records import load_records

    curves = []
    for run in runs:
        path = run.records(test)
        assert path is not None  # `_curve` has looked
        curves.append(MatchTable.build(load_records(path), labelled_in(run, test)).curve())
    mean = np.mean(curves, axis=0)
    if np.isnan(mean).any():
        return {}
    points = {f"{i:03d}": (i / 100, round(float(p), 5)) for i, p in enumerate(mean)}
    return {k: point for i, (k, point) in enumerate(points.items()) if i % 2 == 0}
