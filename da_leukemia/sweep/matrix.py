"""The cross-device matrix: a pure function of the result files, and what may be read from it.

A row is a mean over seeds of one score of one (method, source, target, test). `view` arranges rows
as "trained on" x "tested on"; `gap_closed` compares adapted runs with their twins and refuses
where a comparison would not be fair. Nothing here trains, and nothing imports torch.
"""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from da_leukemia.config import METRICS, devices_of
from da_leukemia.errors import UserError
from da_leukemia.sweep import partial
from da_leukemia.sweep.names import FAIR, PLAIN, area_of, calibration_of, reference_of, uncalibrated

COLUMNS = (
    *("method", "source", "target", "test", "metric"),
    *("value", "low", "high", "seeds", "fields"),
)
_UNKNOWN = (math.nan, math.nan)
HEADLINES = ("ap50", "balanced_accuracy")
"""The metric that a report is about: of a detector, of a classifier of single cells."""
DIGITS = 6
"""Decimals of every number in the matrix, so that a CSV read back is the same matrix."""


class Run(NamedTuple):
    """What a run is called in the matrix; ``target`` is empty for source-only."""

    method: str
    source: str
    target: str
    seed: int

    def __str__(self) -> str:
        goal = f" -> {self.target}" if self.target else ""
        return f"{self.method}: {self.source}{goal}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished job: the content of its ``result.json`` and the folder where it lies."""

    content: Mapping[str, Any]
    folder: Path | None = None

    @cached_property
    def run(self) -> Run:
        """Its name in the matrix."""
        c = self.content
        return Run(c["method"], c["source"], c.get("target") or "", int(c["seed"]))

    @property
    def job(self) -> str:
        """Content hash of the job."""
        return str(self.content["job"])

    def metrics(self, test: str) -> Mapping[str, Any]:
        """Scores on one test device."""
        metrics: Mapping[str, Any] = self.content["tests"][test]["metrics"]
        return metrics

    def looked_at(self, test: str) -> bool:
        """Whether the run was tested on a device, or left what it finds there without a score."""
        return test in self.content["tests"] or test in (self.content.get("label_free") or {})

    def records(self, test: str) -> Path | None:
        """File of the per-field records, None where it is not there."""
        name = self.content["tests"].get(test, {}).get("records")
        if self.folder is None or not name:
            return None
        path = os.path.join(self.folder, name)  # noqa: PTH118  (asked 100,000 times in a report)
        return Path(path) if os.path.isfile(path) else None  # noqa: PTH113


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


IntervalsOf = Callable[[Sequence[Result], str], Mapping[str, tuple[float, float]]]
"""(one result per seed, test device) -> metric -> (low, high). See `report.intervals`."""


def build_matrix(
    results: Iterable[Result],
    *,
    intervals: IntervalsOf | None = None,
    methods: Sequence[str] = (),
    devices: Sequence[str] = (),
) -> Matrix:
    """Average `METRICS` over seeds; one that a result has as None is left out.

    Args:
        results: in any order; the matrix does not depend on it.
        intervals: gives the intervals; without it rows have none.
        methods: order of the methods; others follow by name, source-only first.
        devices: order of the devices; others follow by name.

    Raises:
        UserError: two different jobs claim the same place.
    """
    by_run: dict[Run, Result] = {}
    for result in results:
        other = by_run.setdefault(result.run, result)
        if other.job != result.job:
            raise UserError(
                f"{result.run}: two jobs claim this place, {other.job} and {result.job}; "
                "they were trained with different settings, so report them apart"
            )
    method_rank = _rank([*methods, PLAIN, FAIR])
    device_rank = _rank(devices)
    cells: dict[tuple[str, str, str, str], list[Result]] = defaultdict(list)
    for run in sorted(by_run):
        for test in by_run[run].content["tests"]:
            cells[run.method, run.source, run.target, test].append(by_run[run])

    def place(key: tuple[str, str, str, str]) -> tuple[Any, ...]:
        method, *places = key
        return (method_rank(method), *(device_rank(p) for p in places))

    rows = []
    for key in sorted(cells, key=place):
        test = key[-1]
        bounds = intervals(cells[key], test) if intervals is not None else {}
        told = [r.metrics(test) for r in cells[key]]
        fields = max(int(t.get("fields", 0)) for t in told)
        by_seed = map(partial.scores, told)
        for metric, each in zip(METRICS, zip(*by_seed, strict=True), strict=True):
            values = [v for v in each if v is not None]
            if not values:
                continue
            value = round(math.fsum(values) / len(values), DIGITS)
            low, high = bounds.get(metric, _UNKNOWN)
            if math.isfinite(low) and math.isfinite(high):
                ends = (round(low, DIGITS), round(high, DIGITS))
                rows.append(Row(*key, metric, value, *ends, len(values), fields))
            else:
                rows.append(Row(*key, metric, value, None, None, len(values), fields))
    found = sorted(_unscored(by_run), key=lambda u: place(u[:4]))
    return Matrix(tuple(rows), _unfair(by_run), _notes(by_run, cells), tuple(found))


def _unscored(by_run: Mapping[Run, Result]) -> Iterator[Unscored]:
    """Yield the runs for targets without labels, and the runs that nothing was adapted in."""

    def unlabelled(result: Result, device: str) -> bool:
        domains = (result.content.get("config") or {}).get("data", {}).get("domains", {})
        return bool(domains.get(device, {}).get("labels") == "none")

    blind = {run.target for run, r in by_run.items() if run.target and unlabelled(r, run.target)}
    seeds: dict[tuple[str, str, str, str], list[Mapping[str, float]]] = defaultdict(list)
    single = set()
    for run, result in by_run.items():
        if (result.content.get("config") or {}).get("detector", {}).get("kind") == "classifier":
            single.add(run.method)
        for device in sorted(blind) if not run.target else {run.target} & blind:
            scores = (result.content.get("label_free") or {}).get(device) or {}
            seeds[run.method, run.source, run.target, device].append(scores)
    for key, each in seeds.items():
        names = [n for n in each[0] if all(n in scores for scores in each)]
        scores = {n: math.fsum(s[n] for s in each) / len(each) for n in names}
        yield Unscored(*key, scores, key[0] in single)


def _rank(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    place = {name: i for i, name in reversed(list(enumerate(order)))}
    return lambda name: (place.get(name, len(order)), name)


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run and its twin must share, flat."""
    data = config.get("data", {})
    sections = {
        "detector": config.get("detector", {}),
        "augmentation": config.get("augmentation", {}),
        "trainer": {
            k: v
            for k, v in config.get("trainer", {}).items()
            if k not in ("threads", "workers", "accelerator", "precision", "compile")
        },
        "data": {k: data.get(k) for k in ("image_size", "label_space", "split") if k in data},
        "method": {
            k: v for k, v in config.get("method", {}).items() if k in ("augmentation", "ema")
        },
    }
    return {f"{name}.{key}": v for name, inner in sections.items() for key, v in inner.items()}


def _unfair(by_run: Mapping[Run, Result]) -> dict[str, str]:
    unfair: dict[str, str] = {}
    methods = {run.method for run in by_run}
    twins = {method: reference_of(method, methods) for method in methods}
    for run, result in sorted(by_run.items()):
        if not run.target or run.method in unfair:
            continue
        twin = by_run.get(Run(twins[run.method], run.source, "", run.seed))
        if twin is None:
            continue
        mine, theirs = (r.content.get("config") or {} for r in (result, twin))
        if _same(mine, theirs):
            continue
        mine, theirs = _recipe(mine), _recipe(theirs)
        differing = sorted(k for k in mine.keys() & theirs.keys() if mine[k] != theirs[k])
        if differing:
            unfair[run.method] = "; ".join(
                f"{k} is {mine[k]}, in {twins[run.method]} {theirs[k]}" for k in differing[:3]
            )
    return unfair


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two recipes are the same for certain; settings that are one object cost nothing."""
    methods = [c.get("method", {}) for c in (a, b)]
    return all(
        a.get(part) == b.get(part) for part in ("detector", "augmentation", "trainer", "data")
    ) and all(methods[0].get(k) == methods[1].get(k) for k in ("augmentation", "ema"))


def _notes(by_run: Mapping[Run, Result], cells: Mapping[Any, Sequence[Result]]) -> tuple[str, ...]:
    notes = []
    contents = [r.content for r in by_run.values()]
    prints: dict[tuple[str, str, float], set[str]] = defaultdict(set)
    for run, result in by_run.items():  # a job may know the data of its own devices only
        fingerprint = (result.content.get("data") or {}).get("fingerprint", "")
        prints[run.source, run.target, area_of(run.method)].add(str(fingerprint))
    states = max((len(found) for found in prints.values()), default=1)
    if states > 1:
        notes.append(f"The results come from {states} different states of the data.")
    versions = {str((c.get("versions") or {}).get("da_leukemia", "")) for c in contents}
    if len(versions) > 1:
        notes.append(f"The results come from {len(versions)} versions of da_leukemia.")
    counts = {len(found) for found in cells.values()}
    if len(counts) > 1:
        notes.append(
            f"Cells are means over {min(counts)} to {max(counts)} seeds; compare them with care."
        )
    return tuple(notes)


def write_csv(matrix: Matrix, path: Path) -> None:
    """Write the tidy table; equal matrices give equal bytes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(matrix.rows)  # whose fields are the columns; None is written as nothing


def read_csv(path: Path) -> Matrix:
    """Read what `write_csv` wrote (without its notes).

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
