"""Intervals from resampling what was sampled: training seeds and patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from da_leukemia.evaluation.records import IntArray


class Resamplable(Protocol):
    """Per-field counts from which scores of any resample of the fields follow."""

    @property
    def groups(self) -> Sequence[str]:
        """Group (patient or field) of each field."""

    def statistic(self, weights: IntArray) -> dict[str, float]:
        """Return scores when field f counts ``weights[f]`` times; NaN where there is none."""


@dataclass(frozen=True)
class Interval:
    """A score over seeds with its interval.

    Attributes:
        mean: mean over seeds of the score on all fields (not of the replicates).
        low: lower end, NaN where no replicate had a score.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def hierarchical_interval(
    tables_by_seed: Sequence[Resamplable],
    level: float = 0.95,
    replicates: int = 1000,
    rng_seed: int = 0,
) -> dict[str, Interval]:
    """Return a percentile bootstrap interval of every score, over seeds and patients.

    Each replicate draws seeds with replacement, then groups with replacement (one draw for all
    seeds, for they were tested on the same films), recomputes the score of each drawn seed and
    takes their mean. With one seed only groups are drawn: the interval then says nothing about
    training. A score that a replicate does not have (no cell drawn) leaves that replicate out.

    Args:
        tables_by_seed: one table per training seed, of the same test fields in the same order.
        level: probability mass of the interval.
        replicates: number of resamples.
        rng_seed: seed of the draws; equal inputs give equal intervals.

    Raises:
        ValueError: no table, or tables of different fields.
    """
    if not tables_by_seed:
        raise ValueError("no tables to take an interval over")
    groups = list(tables_by_seed[0].groups)
    if any(list(table.groups) != groups for table in tables_by_seed):
        raise ValueError("the seeds were not tested on the same fields in the same order")
    seeds = len(tables_by_seed)
    names, member = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)
    everything = np.ones(len(groups), dtype=np.int64)
    point = _mean_over([t.statistic(everything) for t in tables_by_seed], np.ones(seeds, np.int64))

    rng = np.random.default_rng(rng_seed)
    draws: dict[str, list[float]] = {name: [] for name in point}
    for _ in range(replicates):
        times = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weights = drawn[member]
        used = times > 0
        scores = _mean_over(
            [t.statistic(weights) for t, u in zip(tables_by_seed, used, strict=True) if u],
            times[used],
        )
        for name, value in scores.items():
            draws[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    result = {}
    for name, values in draws.items():
        known = np.array(values)[~np.isnan(values)]
        low, high = np.quantile(known, tails) if len(known) else (np.nan, np.nan)
        result[name] = Interval(point[name], float(low), float(high))
    return result


def _mean_over(scores: Sequence[dict[str, float]], times: IntArray) -> dict[str, float]:
    """Return the mean of each score over seeds, of which seed s was drawn ``times[s]`` times."""
    return {
        name: float(np.average([score[name] for score in scores], weights=times))
        for name in scores[0]
    }
