"""Results become the matrix: a pure function, in which nothing trains and nothing imports torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from da_leukemia.config import METRICS
from da_leukemia.errors import UserError
from da_leukemia.sweep import partial
from da_leukemia.sweep.fairness import unfair
from da_leukemia.sweep.matrix import Matrix, Row, Unscored
from da_leukemia.sweep.names import FAIR, PLAIN, area_of
from da_leukemia.sweep.results import Result, Run

DIGITS = 6
"""Decimals of every number in the matrix, so that a CSV read back is the same matrix."""

IntervalsOf = Callable[[Sequence[Result], str], Mapping[str, tuple[float, float]]]
"""(one result per seed, test device) -> metric -> (low, high). See `report.intervals`."""

_UNKNOWN = (math.nan, math.nan)


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
    return Matrix(tuple(rows), unfair(by_run), _notes(by_run, cells), tuple(found))


def _unscored(by_run: Mapping[Run, Result]) -> Iterator[Unscored]:
    """Yield the runs that looked at devices without labels: adapted to them or not."""

    def unlabelled(result: Result, device: str) -> bool:
        domains = (result.content.get("config") or {}).get("data", {}).get("domains", {})
        return bool(domains.get(device, {}).get("labels") == "none")

    blind = {run.target for run, r in by_run.items() if run.target and unlabelled(r, run.target)}
    seeds: dict[tuple[str, str, str, str], list[Mapping[str, float]]] = defaultdict(list)
    single = set()
    for run, result in by_run.items():
        if (result.content.get("config") or {}).get("detector", {}).get("kind") == "classifier":
            single.add(run.method)
        judged = {d for d in result.content.get("label_free") or {} if unlabelled(result, d)}
        for device in sorted(blind | judged) if not run.target else {run.target} & blind:
            scores = (result.content.get("label_free") or {}).get(device) or {}
            seeds[run.method, run.source, run.target, device].append(scores)
    for key, each in seeds.items():
        names = [n for n in each[0] if all(n in scores for scores in each)]
        scores = {n: math.fsum(s[n] for s in each) / len(each) for n in names}
        yield Unscored(*key, scores, key[0] in single)


def _rank(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    place = {name: i for i, name in reversed(list(enumerate(order)))}
    return lambda name: (place.get(name, len(order)), name)


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
