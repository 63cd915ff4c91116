"""Intervals of the matrix from the per-field records, kept on disk so that they are drawn once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.labels import LABEL_SPACES
from da_leukemia.sweep.matrix import HEADLINES
from da_leukemia.sweep.results import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from da_leukemia.evaluation.bootstrap import Interval, Resamplable
    from da_leukemia.evaluation.records import FieldRecord

VERSION = 2
"""Raised when an interval of the same records would come out otherwise."""

Bounds = dict[str, tuple[float, float]]

AGREEMENT = 1e-3
"""Records from which the result's own score does not follow belong to something else."""


@dataclass
class _Together:
    """Several tables of the same fields as one, which computes each resample once.

    Few patients have few resamples (four have 35), and then most of the work falls away.
    """

    tables: Sequence[Resamplable]
    _known: dict[bytes, dict[str, float]] = field(default_factory=dict)

    @property
    def groups(self) -> Sequence[str]:
        return self.tables[0].groups

    def statistic(self, weights: NDArray[Any]) -> dict[str, float]:
        key = weights.tobytes()
        if key not in self._known:
            parts = [table.statistic(weights) for table in self.tables]
            self._known[key] = {k: v for part in parts for k, v in part.items()}
        return self._known[key]


@dataclass
class Difference:
    """Scores of one table minus those of another, on the same resample of the same fields."""

    table: Resamplable
    twin: Resamplable

    @property
    def groups(self) -> Sequence[str]:
        """Group of each field, the same in both."""
        return self.table.groups

    def statistic(self, weights: NDArray[Any]) -> dict[str, float]:
        """Return what both have a score of."""
        twin = self.twin.statistic(weights)
        return {k: v - twin[k] for k, v in self.table.statistic(weights).items() if k in twin}


@dataclass
class Bootstrap:
    """Hierarchical bootstrap over seeds and patients (fields where there are no patients).

    Usable as ``intervals`` of `build_matrix`. A cell has no interval if a run has no records, if
    there is one patient only, or if its runs were adapted to another device than the one tested:
    nothing is read off those, and in a large sweep they are nine cells of ten.

    Attributes:
        cache: JSON file, keyed by the contents of the records; None keeps nothing.
        replicates: number of resamples.
    """

    cache: Path | None = None
    replicates: int = 1000
    _known: dict[str, Bounds] = field(default_factory=dict, repr=False)
    _used: dict[str, Bounds] = field(default_factory=dict, repr=False)
    _digests: dict[Path, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.cache is None or not self.cache.is_file():
            return
        try:
            stored = json.loads(self.cache.read_text(encoding="utf-8"))
            self._known = {k: {m: (b[0], b[1]) for m, b in v.items()} for k, v in stored.items()}
        except (ValueError, AttributeError, LookupError, TypeError, OSError):
            self._known = {}  # a cut-off cache costs time, never a report

    def __call__(self, results: Sequence[Result], test: str) -> Bounds:
        """Return metric -> (low, high) for one result per seed, tested on one device."""
        results = [r for r in results if any(r.metrics(test).get(m) is not None for m in HEADLINES)]
        if any(r.run.target not in ("", test) for r in results):
            return {}
        paths = [r.records(test) for r in results]
        if not results or None in paths:
            return {}
        found = [p for p in paths if p is not None]
        key = self.key("cell", found, results[0])
        return self.lookup(key, lambda: self._draw(results, found, test))

    def save(self) -> None:
        """Keep what this report used, and forget what it did not."""
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            part = self.cache.with_suffix(".part")
            part.write_text(json.dumps(self._used, sort_keys=True, indent=0), encoding="utf-8")
            part.replace(self.cache)

    def key(self, what: str, paths: Sequence[Path], result: Result) -> str:
        """Return what a drawn number is kept under: it depends on nothing but these records."""
        for path in paths:
            if path not in self._digests:
                self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        parts = [VERSION, what, self.replicates, result.content.get("label_space")]
        parts += [self._digests[p] for p in paths]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def lookup(self, key: str, draw: Callable[[], Bounds]) -> Bounds:
        """Return what is kept under a key, drawn now where it is not."""
        if key not in self._known:
            self._known[key] = draw()
        self._used[key] = self._known[key]
        return self._known[key]

    def _draw(self, results: Sequence[Result], paths: Sequence[Path], test: str) -> Bounds:
        tables = [table_of(p, r, test, True) for p, r in zip(paths, results, strict=True)]
        means = {}
        for metric in (*HEADLINES, "attribute_f1"):
            values = [r.metrics(test).get(metric) for r in results]
            if None not in values:
                means[metric] = math.fsum(v for v in values if v is not None) / len(values)
        return self.resample(tables, means)

    def resample(
        self, tables: Sequence[Resamplable], means: Mapping[str, float] | None = None
    ) -> Bounds:
        """Return the intervals; none where the scores do not agree with those of the results."""
        from da_leukemia.evaluation.bootstrap import hierarchical_interval

        groups = list(tables[0].groups)
        if len(set(groups)) < 2 or any(list(t.groups) != groups for t in tables):
            return {}
        drawn: dict[str, Interval] = hierarchical_interval(tables, replicates=self.replicates)
        for metric, mean in (means or {}).items():
            if metric in drawn and abs(drawn[metric].mean - mean) > AGREEMENT:
                return {}
        return {
            metric: (interval.low, interval.high)
            for metric, interval in drawn.items()
            if math.isfinite(interval.low) and math.isfinite(interval.high)
        }


def labelled_in(result: Result, test: str) -> list[int]:
    """Return the classes that a device labels."""
    classes = list(result.content["classes"])
    return [classes.index(name) for name in result.metrics(test)["per_class"]]


def scored(records: Sequence[FieldRecord], result: Result, test: str) -> Resamplable:
    """Return records of a result, or of several tested on the same, as a table of its headline."""
    from da_leukemia.evaluation.headline import headline_table

    return headline_table(records, result.metrics(test), result.content["classes"])


def table_of(path: Path, result: Result, test: str, attributes: bool) -> Resamplable:
    """Return the records of one result as a table that can be resampled."""
    from da_leukemia.evaluation.attributes import AttributeTable
    from da_leukemia.evaluation.records import load_records

    records = load_records(path)
    tables: list[Resamplable] = [scored(records, result, test)]
    space = LABEL_SPACES.get(str(result.content.get("label_space"))) if attributes else None
    if space is not None:
        both = (AttributeTable.build(records, space, given_boxes=given) for given in (False, True))
        tables += [table for table in both if table is not None]
    return _Together(tables)
