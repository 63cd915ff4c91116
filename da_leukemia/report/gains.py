"""What methods gain on their fair twins: intervals and tests from the per-field records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from da_leukemia.config import devices_of
from da_leukemia.report.gap import Gain, Pair
from da_leukemia.report.intervals import Bootstrap, Bounds, Difference, scored, table_of
from da_leukemia.sweep.names import calibration_of, longer_of, reference_of, uncalibrated
from da_leukemia.sweep.results import Result, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from da_leukemia.evaluation.bootstrap import Resamplable

PERMUTATIONS = 2000


class _Runs(NamedTuple):
    """The runs behind one pair, one per seed."""

    mine: list[Result]
    twin: list[Result]
    oracle: list[Result]
    base: list[Result]  # none: the gap begins at the twin


def gains(
    bootstrap: Bootstrap,
    results: Sequence[Result],
    metric: str,
    alike: bool = False,
    longer: bool = False,
) -> dict[Pair, Gain]:
    """Return the paired interval and test of adapted - fair source-only by pair.

    Both are scored on the same drawn patients, and the seeds are drawn in pairs, so what makes a
    patient hard for every detector does not widen the interval. The p-values are adjusted for all
    pairs together (Holm).

    Args:
        bootstrap: draws and keeps.
        results: of a sweep.
        metric: an AP metric.
        alike: compare with the twin of the same calibration (see `gap_closed`).
        longer: compare with the twin of equal length (the same).
    """
    from da_leukemia.evaluation.paired import holm

    found = {}
    for pair, runs in _pairs(results, alike, longer).items():
        test = pair[2]
        paths = _paths([*runs.mine, *runs.twin], test)
        if paths is None:
            continue
        draw = partial(_draw_gain, bootstrap, runs, test)
        bounds = bootstrap.lookup(bootstrap.key("gain", paths, runs.mine[0]), draw)
        if metric not in bounds:
            continue
        key = bootstrap.key(f"paired test {metric}", paths, runs.mine[0])
        p, _ = bootstrap.lookup(key, partial(_test, runs, test, metric))[metric]
        found[pair] = Gain(*bounds[metric], p)
    adjusted = holm([gain.p for gain in found.values()])
    return {pair: g._replace(p=p) for (pair, g), p in zip(found.items(), adjusted, strict=True)}


def shares(
    bootstrap: Bootstrap,
    results: Sequence[Result],
    metric: str,
    alike: bool = False,
    longer: bool = False,
) -> dict[str, tuple[float, float]]:
    """Return the interval of each method's share of the gap closed (ratio of means)."""
    methods: dict[str, dict[str, _Runs]] = {}
    for (method, source, test), runs in _pairs(results, alike, longer).items():
        if runs.oracle:
            methods.setdefault(method, {})[f"{source} {test}"] = runs
    found = {}
    for method, pairs in methods.items():
        tests = {name: name.rpartition(" ")[2] for name in pairs}
        each = [_paths([*r.mine, *r.twin, *r.oracle, *r.base], tests[n]) for n, r in pairs.items()]
        if None in each:
            continue
        paths = [path for some in each for path in some or ()]
        first = next(iter(pairs.values())).mine[0]
        key = bootstrap.key("share", paths, first)
        draw = partial(_draw_share, pairs, tests, metric)
        bounds = bootstrap.lookup(key, draw).get(metric)
        if bounds is not None:
            found[method] = bounds
    return found


def _pairs(results: Sequence[Result], alike: bool, longer: bool) -> dict[Pair, _Runs]:
    """Return what is compared: runs tested on what they adapted to or calibrated, and the twins."""
    by_run = {r.run: r for r in results}
    methods = {run.method for run in by_run}
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for run in sorted(by_run):
        seeds.setdefault(run[:3], []).append(run.seed)
    pairs: dict[Pair, _Runs] = {}
    for method, source, target in seeds:
        reference = shorter = reference_of(method, methods)
        if longer:
            found = longer_of(method, methods)
            if found is None or not target:
                continue
            reference = found
        elif not alike and uncalibrated(reference) in methods:
            reference = shorter = uncalibrated(reference)
        if method == reference or not (target or (calibration_of(method) and not alike)):
            continue
        if seeds[method, source, target] != seeds.get((reference, source, "")):
            continue  # the means compared elsewhere would be over other seeds
        mine = [by_run[Run(method, source, target, s)] for s in seeds[method, source, target]]
        twin = [by_run[Run(reference, source, "", r.run.seed)] for r in mine]
        both = set.intersection(*(set(r.content["tests"]) for r in (*mine, *twin)))
        for test in sorted({target} if target else both):
            if test not in both or test in devices_of(source):
                continue
            oracle = [by_run[Run(shorter, test, "", s)] for s in seeds.get((shorter, test, ""), [])]
            oracle = oracle if all(test in r.content["tests"] for r in oracle) else []
            base = []
            if reference != shorter:
                chosen = seeds.get((shorter, source, ""), [])
                base = [by_run[Run(shorter, source, "", s)] for s in chosen]
                if not base or not all(test in r.content["tests"] for r in base):
                    oracle = []  # nobody knows where the gap begins
            pairs[method, source, test] = _Runs(mine, twin, oracle, base)
    return pairs


def _paths(results: Sequence[Result], test: str) -> list[Path] | None:
    paths = [r.records(test) for r in results]
    found = [p for p in paths if p is not None]
    return found if len(found) == len(paths) else None


@dataclass
class _Mixture:
    """A score of two detectors on the same fields, each field of which is from one of them."""

    table: Resamplable
    metric: str

    @property
    def groups(self) -> Sequence[str]:
        groups = list(self.table.groups)
        return groups[: len(groups) // 2]

    def statistic(self, first: NDArray[Any]) -> float:
        import numpy as np

        weights = np.concatenate([first, ~first]).astype(np.int64)
        return self.table.statistic(weights)[self.metric]


def _draw_gain(bootstrap: Bootstrap, runs: _Runs, test: str) -> Bounds:
    mine, twin = ([table_of(_only(r, test), r, test, False) for r in side] for side in runs[:2])
    return bootstrap.resample([Difference(a, b) for a, b in zip(mine, twin, strict=True)])


def _test(runs: _Runs, test: str, metric: str) -> Bounds:
    from da_leukemia.evaluation.paired import randomization_test
    from da_leukemia.evaluation.records import load_records

    pairs = []
    for mine, twin in zip(runs.mine, runs.twin, strict=True):
        records = [*load_records(_only(mine, test)), *load_records(_only(twin, test))]
        pairs.append(_Mixture(scored(records, mine, test), metric))
    outcome = randomization_test(pairs, PERMUTATIONS)
    return {metric: (outcome.p, outcome.difference)}


def _draw_share(pairs: Mapping[str, _Runs], tests: Mapping[str, str], metric: str) -> Bounds:
    from da_leukemia.evaluation.paired import Cell, share_interval

    known: dict[Path, Resamplable] = {}

    def tables(results: Sequence[Result], test: str) -> list[Resamplable]:
        for result in results:
            path = _only(result, test)
            if path not in known:
                known[path] = table_of(path, result, test, False)
        return [known[_only(r, test)] for r in results]

    cells = [
        Cell(tests[n], *(tables(side, tests[n]) for side in runs)) for n, runs in pairs.items()
    ]
    if all(len(set(t.groups)) < 2 for t in known.values()):
        return {}
    low, high = share_interval(cells, metric)
    return {metric: (low, high)} if math.isfinite(low) and math.isfinite(high) else {}


def _only(result: Result, test: str) -> Path:
    path = result.records(test)
    assert path is not None  # `_paths` has looked
    return path
