"""Is one detector better than another on the same films? A test, and an interval of the share won.

Both work on tables of the same fields (see `bootstrap.Resamplable`), one per training seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.bootstrap import Resamplable

IntArray = NDArray[np.int64]


class Swappable(Protocol):
    """Two detectors on the same fields, each field of which can be taken from either."""

    @property
    def groups(self) -> Sequence[str]:
        """Group (patient or field) of each field."""

    def statistic(self, first: NDArray[np.bool_]) -> float:
        """Return the score where field f is the first detector's if ``first[f]``, else the other's.

        NaN where there is none.
        """


@dataclass(frozen=True)
class Randomization:
    """Outcome of a paired randomization test.

    Attributes:
        difference: score of the first detector minus the other's, mean over seeds.
        p: two-sided; the chance of a difference at least as large if it were a toss-up, for each
            patient, which detector said what. NaN where it cannot be told.
    """

    difference: float
    p: float


def randomization_test(
    pairs: Sequence[Swappable], permutations: int = 1000, rng_seed: int = 0
) -> Randomization:
    """Exchange the two detectors' output patient by patient, at random (Noreen, 1989).

    A test for scores that are no mean over fields, as average precision is none. One exchange
    holds for all seeds: the films are what is sampled. With fewer than two groups nothing can be
    told; with few of them small values are out of reach (n groups have 2^(n-1) outcomes).

    Args:
        pairs: one per training seed, of the same fields in the same order.
        permutations: number of exchanges.
        rng_seed: of the exchanges.
    """
    groups = list(pairs[0].groups)
    names, member = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)

    known: dict[bytes, list[float]] = {}  # few groups have few exchanges: each is scored once

    def scores(first: NDArray[np.bool_]) -> list[float]:
        key = first.tobytes()
        if key not in known:
            known[key] = [p.statistic(first[member]) for p in pairs]
        return known[key]

    def difference(first: NDArray[np.bool_]) -> float:
        both = zip(scores(first), scores(~first), strict=True)
        return float(np.mean([one - other for one, other in both]))

    observed = difference(np.ones(len(names), dtype=bool))
    if len(names) < 2 or not np.isfinite(observed):
        return Randomization(observed, float("nan"))
    rng = np.random.default_rng(rng_seed)
    drawn = [difference(rng.random(len(names)) < 0.5) for _ in range(permutations)]
    extreme = np.abs(np.array(drawn)[np.isfinite(drawn)]) >= abs(observed) - 1e-12
    return Randomization(observed, float((1 + extreme.sum()) / (1 + len(extreme))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one family for all of its claims together (Holm, 1979).

    NaN stays NaN and is no part of the family.
    """
    p = np.array(p_values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = p.copy()
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(v) for v in adjusted]


@dataclass(frozen=True)
class Cell:
    """What the share of the gap that one cell closes is computed from, one table per seed.

    Attributes:
        test: device tested on: cells of one device are resampled alike.
        adapted: the method.
        fair: its source-only twin.
        oracle: the twin trained on the tested device.
        base: where the gap begins, if not at ``fair``: source-only of the oracle's length.
    """

    test: str
    adapted: Sequence[Resamplable]
    fair: Sequence[Resamplable]
    oracle: Sequence[Resamplable]
    base: Sequence[Resamplable] = ()

    @property
    def sides(self) -> tuple[Sequence[Resamplable], ...]:
        """The runs: adapted, fair, oracle, and base where there is one."""
        return self.adapted, self.fair, self.oracle, *([self.base] if self.base else [])


def share_interval(
    cells: Sequence[Cell],
    metric: str,
    level: float = 0.95,
    replicates: int = 300,
    rng_seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of ``sum(adapted - fair) / sum(oracle - base)`` over cells.

    Each replicate draws seeds, and patients of each test device, with replacement; all cells of a
    device and all runs of a cell see the same draw. Replicates in which the oracles are not
    above the base have no share; where they are more than the tail, the interval is open
    (infinite) there.

    Raises:
        ValueError: tables of different fields.
    """
    rng = np.random.default_rng(rng_seed)
    members = _members(cells)
    shares = []
    for _ in range(replicates):
        luck = rng.random(64)
        weights = {}
        for test, member in members.items():
            count = member.max() + 1
            weights[test] = np.bincount(rng.integers(count, size=count), minlength=count)[member]
        gained = possible = 0.0
        for cell in cells:
            adapted, fair, oracle, *base = scores = [
                _drawn(tables, luck, weights[cell.test], metric) for tables in cell.sides
            ]
            if np.isfinite(scores).all():
                gained += adapted - fair
                possible += oracle - (base[0] if base else fair)
        shares.append(gained / possible if possible > 0 else np.copysign(np.inf, gained))
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def _members(cells: Sequence[Cell]) -> Mapping[str, IntArray]:
    groups: dict[str, list[str]] = {}
    for cell in cells:
        for table in itertools.chain(*cell.sides):
            if list(table.groups) != groups.setdefault(cell.test, list(table.groups)):
                raise ValueError(f"{cell.test}: the runs were not tested on the same fields")
    return {
        test: np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1]
        for test, names in groups.items()
    }


def _drawn(
    tables: Sequence[Resamplable], luck: NDArray[np.float64], weights: IntArray, metric: str
) -> float:
    """Return the mean score of as many seeds as there are, drawn with replacement."""
    chosen = (luck[: len(tables)] * len(tables)).astype(np.int64)
    times = np.bincount(chosen, minlength=len(tables))
    scores = [t.statistic(weights)[metric] for t, n in zip(tables, times, strict=True) if n]
    return float(np.average(scores, weights=times[times > 0]))
