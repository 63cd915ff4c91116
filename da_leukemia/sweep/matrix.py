"""The cross-device matrix and what may be read from it; its CSV file.

A row is a mean over seeds of one score of one (method, source, target, test). `Matrix.view`
arranges rows as "trained on" x "tested on". `build.build_matrix` makes a matrix from results.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from da_leukemia.config import METRICS, devices_of
from da_leukemia.errors import UserError
from da_leukemia.files import write_csv
from da_leukemia.sweep.names import FAIR, calibration_of, reference_of, uncalibrated

HEADLINES = ("ap50", "balanced_accuracy")
"""The metric that a report is about: of a detector, of a classifier of single cells."""


class Row(NamedTuple):
    """One line of ``matrix.csv``; ``low`` and ``high`` are None where there is no interval."""

    method: str
    source: str
    target: str
    test: str
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: int
    fields: int


COLUMNS = Row._fields
"""Of ``matrix.csv``."""


class Unscored(NamedTuple):
    """A run and a device of which no label is there to score it.

    Attributes:
        scores: label-free scorer -> mean over seeds (see `evaluation.label_free`).
        single: whether it names single cells.
    """

    method: str
    source: str
    target: str
    device: str
    scores: Mapping[str, float]
    single: bool = False


@dataclass(frozen=True)
class View:
    """One method and metric as a table.

    Attributes:
        sources: devices trained on, the rows.
        tests: devices tested on, the columns.
        cells: ``(source, test)`` -> row; a pair without a run is absent.
        unscored: pairs of a source and a device without labels that was run: there is no score.
        lender: the fair source-only twin.
        borrowed: cells that belong to it. An adapted method has no run of
            its own on the diagonal: there is nothing to adapt to.
    """

    method: str
    metric: str
    adapted: bool
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    cells: Mapping[tuple[str, str], Row]
    borrowed: frozenset[tuple[str, str]]
    lender: str = FAIR
    unscored: frozenset[tuple[str, str]] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.cells and not self.unscored

    def mean(self, same: bool) -> float | None:
        """Mean over the diagonal (``same``) or over all other cells; None where there is none."""
        values = [row.value for (s, t), row in self.cells.items() if (t in devices_of(s)) is same]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Matrix:
    """Rows in a fixed order, and what kept results from being comparable.

    Attributes:
        rows: see `Row`.
        unfair: method -> what distinguishes its training from that of its source-only twin.
        notes: what a reader has to know before trusting the numbers.
        unscored: runs for devices without labels, which have no score there (see `Unscored`).
    """

    rows: tuple[Row, ...]
    unfair: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unscored: tuple[Unscored, ...] = ()

    @cached_property
    def _index(self) -> dict[str, dict[tuple[str, str, str, str], Row]]:
        """Metric -> place -> row, of what was adapted to the device it is tested on, or to none.

        The other rows are nine of ten in a large sweep and are hardly ever asked for.
        """
        found: dict[str, dict[tuple[str, str, str, str], Row]] = defaultdict(dict)
        for r in self.rows:
            if not r.target or r.target == r.test:
                found[r.metric][r.method, r.source, r.target, r.test] = r
        return found

    def on_target(self, metric: str) -> Iterable[Row]:
        """Return the rows of a metric that are tested on what they adapted to, or adapted to none.

        In the order of all rows.
        """
        return self._index[metric].values() if metric in self._index else ()

    @cached_property
    def _places(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Metric -> sources and tests, in the order of the rows."""
        found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
        for row in self.rows:
            sources, tests = found.setdefault(row.metric, ({}, {}))
            sources[row.source] = tests[row.test] = None
        for metric in {*found, self.headline} if self.unscored else ():
            sources, tests = found.setdefault(metric, ({}, {}))
            for run in self.unscored:
                sources[run.source] = tests[run.device] = None
        return {m: (tuple(sources), tuple(tests)) for m, (sources, tests) in found.items()}

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of the rows."""
        return tuple(
            dict.fromkeys([*(r.method for r in self.rows), *(u.method for u in self.unscored)])
        )

    @cached_property
    def adapted(self) -> tuple[str, ...]:
        """Methods that looked at a target."""
        alone = [u.method for u in self.unscored if u.target]
        return tuple(dict.fromkeys([*(r.method for r in self.rows if r.target), *alone]))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that have a value somewhere; the first headline where nothing could be scored."""
        present = {r.metric for r in self.rows}
        if not present and self.unscored:
            single = all(run.single for run in self.unscored)
            return HEADLINES[1:] if single else HEADLINES[:1]
        return tuple(m for m in (*METRICS, *sorted(present - set(METRICS))) if m in present)

    @cached_property
    def headline(self) -> str:
        """The metric of the headline, the gap table and the picture."""
        return next((m for m in HEADLINES if m in self.metrics), HEADLINES[0])

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """Methods that know something of the device they are tested on: adapted or calibrated."""
        return tuple(m for m in self.methods if m in self.adapted or calibration_of(m))

    def reference(self, method: str) -> str:
        """Return the fair source-only method that a method is measured against.

        Without calibration wherever there is such a run, so that a share of the gap is the share
        won by everything that was done.
        """
        twin = self.twin(method)
        return uncalibrated(twin) if uncalibrated(twin) in self.methods else twin

    def twin(self, method: str) -> str:
        """Return the fair source-only method of the same calibration."""
        return reference_of(method, self.methods)

    def cell(self, method: str, source: str, target: str, test: str, metric: str) -> Row | None:
        """Return one row, None where there is none."""
        place = (method, source, target, test)
        if target and target != test:
            return next((r for r in self.rows if r.metric == metric and r[:4] == place), None)
        return self._index.get(metric, {}).get(place)

    def view(self, method: str, metric: str = "ap50") -> View:
        """Arrange a method as source x test. Adapted: cell (s, t) was adapted to t, tested on t."""
        sources, tests = self._places.get(metric, ((), ()))
        adapted = method in self.adapted
        cells: dict[tuple[str, str], Row] = {}
        borrowed = set()
        for source in sources:
            for test in tests:
                found = self.cell(method, source, test if adapted else "", test, metric)
                if found is None and adapted and test in devices_of(source):
                    found = self.cell(self.twin(method), source, "", test, metric)
                    borrowed.add((source, test))
                if found is not None:
                    cells[source, test] = found
        lender = self.twin(method)
        blind = frozenset((u.source, u.device) for u in self.unscored if u.method == method)
        lent = frozenset(borrowed)
        return View(method, metric, adapted, sources, tests, cells, lent, lender, blind)


def write_matrix(matrix: Matrix, path: Path) -> None:
    """Write the tidy table; equal matrices give equal bytes."""
    write_csv(path, COLUMNS, matrix.rows)  # whose fields are the columns


def read_matrix(path: Path) -> Matrix:
    """Read what `write_matrix` wrote (without its notes).

    Raises:
        UserError: the columns are others.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}")
        return Matrix(tuple(_row(line) for line in reader))


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        method=line["method"],
        source=line["source"],
        target=line["target"],
        test=line["test"],
        metric=line["metric"],
        value=float(line["value"]),
        low=float(line["low"]) if line["low"] else None,
        high=float(line["high"]) if line["high"] else None,
        seeds=int(line["seeds"]),
        fields=int(line["fields"]),
    )
