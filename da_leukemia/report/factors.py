"""What each optical factor costs: score lost between two devices that differ in nothing else.

The simulator names its mixed devices after what they take from another one
(``H_100X_C2~blur~L_100X_C1``, see docs/simulator.md), so the results tell which tests differ by one
factor. Both are of the same run and the same fields: the loss is paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from da_leukemia.errors import ConfigError
from da_leukemia.files import write_csv
from da_leukemia.report.headlines import metric_name
from da_leukemia.report.intervals import Bootstrap, Bounds, Difference, table_of
from da_leukemia.report.markup import escape, table
from da_leukemia.simulate.domains import FACTORS, DomainName, parse_domain
from da_leukemia.sweep.results import Result

ALONE, LAST, ALL = "alone", "last", "all"
"""The factor is the only one that changed; all others had changed before it; all at once."""

TOGETHER = "all together"
_EVERY = frozenset(FACTORS)

COLUMNS = (
    *("method", "source", "factor", "context", "metric", "before", "after"),
    *("kept", "changed", "lost", "low", "high", "seeds", "fields"),
)


@dataclass(frozen=True)
class Cost:
    """Score lost by a change of one factor, or of all.

    Attributes:
        method: as the matrix calls it; not adapted.
        source: device trained on.
        factor: what changes.
        context: `ALONE`, `LAST` or `ALL`.
        before: device on which the factor is as on the source.
        after: the same device with the factor of the other one.
        kept: score on ``before``, mean over seeds.
        changed: score on ``after``.
        low: lower end of the 95 % interval of the loss, None where there is none.
        high: upper end.
        seeds: runs behind it.
        fields: test fields of each.
    """

    method: str
    source: str
    factor: str
    context: str
    before: str
    after: str
    kept: float
    changed: float
    low: float | None
    high: float | None
    seeds: int
    fields: int

    @property
    def lost(self) -> float:
        """Score lost; below zero the change did good."""
        return self.kept - self.changed


def factor_costs(bootstrap: Bootstrap, results: Sequence[Result], metric: str) -> list[Cost]:
    """Return what each factor costs each method that looks at no target.

    Args:
        bootstrap: draws and keeps the intervals: over seeds, and over patients that both devices
            share.
        results: of a sweep; devices that are not simulated take no part.
        metric: an AP metric.
    """
    runs: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: r.run):
        if not result.run.target:
            runs.setdefault((result.run.method, result.run.source), []).append(result)
    found = []
    for (method, source), seeds in runs.items():
        tests = [
            t for t in seeds[0].content["tests"] if all(t in r.content["tests"] for r in seeds)
        ]
        for factor, context, before, after in changes(source, tests):
            scores = [[r.metrics(t).get(metric) for r in seeds] for t in (before, after)]
            kept, changed = ([v for v in s if v is not None] for s in scores)
            if len(kept) < len(seeds) or len(changed) < len(seeds):
                continue
            low, high = _interval(bootstrap, seeds, before, after, metric)
            fields = int(seeds[0].metrics(after).get("fields", 0))
            ends = (low, high, len(seeds), fields)
            where = (method, source, factor, context, before, after)
            found.append(Cost(*where, fmean(kept), fmean(changed), *ends))
    return found


def changes(source: str, tests: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield ``factor, context, before, after`` for every change that the tests can tell apart.

    Args:
        source: one device as it is. Another source yields nothing.
        tests: it, other devices, and mixtures of the two, named from either side:
            ``L_100X_C1~jpeg~H_100X_C2`` is ``H_100X_C2`` with all factors of the other but JPEG.
    """
    origin = _parse(source)
    if origin is None or origin.factors:
        return
    taken: dict[str, dict[frozenset[str], str]] = {}
    for test in tests:
        device = _parse(test)
        if device is None or device.sensor != origin.sensor or test == source:
            continue
        changed, other = frozenset(device.factors), device.other
        if device.base != origin.base:  # the other device, with some factors of the source
            changed, other = _EVERY - changed, device.base
            if device.other not in ("", origin.base):
                continue
        taken.setdefault(other, {}).setdefault(changed, test)
    for found in taken.values():
        if source in tests:
            found[frozenset()] = source
        none: frozenset[str] = frozenset()
        pairs = [(f, ALONE, none, frozenset({f})) for f in FACTORS]
        pairs += [(f, LAST, _EVERY - {f}, _EVERY) for f in FACTORS]
        pairs = [p for p in pairs if p[2] in found and p[3] in found]
        if pairs and none in found and _EVERY in found:
            pairs.append((TOGETHER, ALL, none, _EVERY))
        for factor, context, before, after in pairs:
            yield factor, context, found[before], found[after]


def _parse(device: str) -> DomainName | None:
    try:
        return parse_domain(device)
    except ConfigError:
        return None


def _interval(
    bootstrap: Bootstrap, runs: Sequence[Result], before: str, after: str, metric: str
) -> tuple[float, float] | tuple[None, None]:
    paths = [p for r in runs for t in (before, after) if (p := r.records(t)) is not None]
    if len(paths) < 2 * len(runs):
        return None, None
    draw = partial(_draw, bootstrap, runs, before, after)
    bounds = bootstrap.lookup(bootstrap.key("factor", paths, runs[0]), draw)
    return bounds.get(metric, (None, None))


def _draw(bootstrap: Bootstrap, runs: Sequence[Result], before: str, after: str) -> Bounds:
    tables = []
    for run in runs:
        kept, changed = run.records(before), run.records(after)
        assert kept is not None  # `_interval` has looked
        assert changed is not None
        pair = (table_of(kept, run, before, False), table_of(changed, run, after, False))
        if list(pair[0].groups) != list(pair[1].groups):
            return {}  # other fields were tested: not the same films
        tables.append(Difference(*pair))
    return bootstrap.resample(tables)


# --- shown -----------------------------------------------------------------------------------

FACTORS_HEADER = ("method", "trained on", "factor", "lost alone", "lost last")

HOW_TO_READ = (
    "Trained on one simulated device and tested on devices that differ from it in single optical "
    "factors. Alone: only this factor is that of the other device. Last: all other factors are "
    "already, and this one joins them. What stands between the two is interaction: JPEG takes "
    "noise away, sharpening strengthens it, and a detector that is lost already has little left to "
    "lose. In brackets the 95 % interval of the loss, both devices scored on the same resampled "
    "patients and seeds; below zero the change did good."
)


def _loss(cost: Cost | None) -> str:
    if cost is None:
        return "-"
    ends = "" if cost.low is None else f" [{cost.low:+.3f}, {cost.high:+.3f}]"
    return f"{cost.lost:+.3f}{ends}"


def factor_rows(costs: Sequence[Cost]) -> list[list[str]]:
    """Return the cells under `FACTORS_HEADER`; the dearest factor of each method first."""
    places: dict[tuple[str, str, str], dict[str, dict[str, Cost]]] = {}
    for cost in costs:
        by_factor = places.setdefault((cost.method, cost.source, _other(cost)), {})
        by_factor.setdefault(cost.factor, {})[cost.context] = cost
    rows = []
    for (method, source, other), by_factor in places.items():
        together = by_factor.pop(TOGETHER, {}).get(ALL)

        def dearest(item: tuple[str, dict[str, Cost]]) -> float:
            return -max(cost.lost for cost in item[1].values())

        for factor, found in sorted(by_factor.items(), key=dearest):
            cells = [_loss(found.get(context)) for context in (ALONE, LAST)]
            rows.append([method, f"{source} (to {other})", factor, *cells])
        if together is not None:
            single = [c[ALONE].lost for c in by_factor.values() if ALONE in c]
            summed = f"sum of those alone: {sum(single):+.3f}" if single else "-"
            rows.append([method, f"{source} (to {other})", TOGETHER, _loss(together), summed])
    return rows


def _other(cost: Cost) -> str:
    """Return the device that the factors come from."""
    origin = _parse(cost.source)
    for device in (_parse(cost.after), _parse(cost.before)):
        if device is not None and origin is not None:
            if device.base != origin.base:
                return device.base
            if device.other:
                return device.other
    return cost.after


def factors_section(costs: Sequence[Cost], metric: str) -> str:
    """The section of the page; nothing where no two devices differ in one factor."""
    if not costs:
        return ""
    return f"<p>{escape(metric_name(metric))}. {escape(HOW_TO_READ)}</p>" + table(
        FACTORS_HEADER, factor_rows(costs), words=3
    )


def write_factors(costs: Sequence[Cost], metric: str, path: Path) -> None:
    """Write a line for every change; no file where there is none."""
    if not costs:
        path.unlink(missing_ok=True)
        return
    rows = []
    for c in costs:
        scores = [round(v, 6) for v in (c.kept, c.changed, c.lost)]
        ends = [None if v is None else round(v, 6) for v in (c.low, c.high)]
        places = [c.method, c.source, c.factor, c.context, metric, c.before, c.after]
        rows.append([*places, *scores, *ends, c.seeds, c.fields])
    write_csv(path, COLUMNS, rows)
