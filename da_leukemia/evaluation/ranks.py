"""Do methods differ over many data sets, and which of them? Friedman's test and Nemenyi's distance.

Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006), 1-30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import friedmanchisquare, rankdata, studentized_range


@dataclass(frozen=True)
class Ranking:
    """Methods by their average rank over blocks.

    Attributes:
        methods: best first; of equal rank in the order given.
        ranks: average rank of each, 1 the best; equal scores share the mean of their ranks.
        blocks: how many there are.
        statistic: Friedman's chi-square, corrected for ties.
        p: of the hypothesis that all methods are alike; 1 where no block tells them apart.
        distance: critical difference: two average ranks farther apart differ at ``level``, all
            pairs together (Nemenyi).
        level: probability of a false claim.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    statistic: float
    p: float
    distance: float
    level: float

    def alike(self) -> list[tuple[int, int]]:
        """Return the largest groups that cannot be told apart, as first and last place."""
        groups: list[tuple[int, int]] = []
        for first, rank in enumerate(self.ranks):
            last = max(i for i, r in enumerate(self.ranks) if r - rank <= self.distance)
            if last > first and not any(a <= first and last <= b for a, b in groups):
                groups.append((first, last))
        return groups


def rank_methods(methods: Sequence[str], scores: ArrayLike, level: float = 0.05) -> Ranking:
    """Rank methods in every block and compare the averages.

    Args:
        methods: k names.
        scores: ``(blocks, k)``, more is better, none missing.
        level: probability of a false claim about any pair.

    Raises:
        ValueError: fewer than three methods or two blocks, or a score that is missing.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(methods):
        raise ValueError(f"expected (blocks, {len(methods)}) scores, got {table.shape}")
    blocks, k = table.shape
    if k < 3 or blocks < 2:
        raise ValueError(f"{k} methods in {blocks} blocks: at least 3 in 2 are needed")
    if not np.isfinite(table).all():
        raise ValueError("a score is missing; leave its block out")
    average = rankdata(-table, axis=1).mean(axis=0)
    if (table == table[:, :1]).all():  # the test divides by the spread within blocks
        statistic, p = 0.0, 1.0
    else:
        statistic, p = (float(v) for v in friedmanchisquare(*table.T))
    order = np.argsort(average, kind="stable")
    return Ranking(
        methods=tuple(methods[i] for i in order),
        ranks=tuple(float(average[i]) for i in order),
        blocks=blocks,
        statistic=statistic,
        p=p,
        distance=critical_difference(k, blocks, level),
        level=level,
    )


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Return the distance of average ranks from which two methods differ (Nemenyi).

    The quantile is that of the studentized range with infinitely many degrees of freedom, divided
    by the root of two.
    """
    quantile = float(studentized_range.ppf(1 - level, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))
