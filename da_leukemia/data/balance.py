"""Groups dealt to train, validation and test so that every stratum comes near its wanted shares.

A stratum is a domain, counted in fields, or a class of a domain, counted in cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.fields import IntArray

Array = NDArray[np.float64]

FIELDS = -1
"""In the place of a class: the stratum is all fields of the domain."""

Stratum = tuple[str, int]
"""A domain and one of its classes, or `FIELDS`."""

_EMPTY = 100.0
"""Cost of a part that a domain lacks: more than all share errors together."""

_ABSENT = 0.01
"""Cost of a part that a class lacks: as much as a domain whose parts are off by six points each.

More makes shares poor where few patients hold several rare classes. Of 48 drawn patients on six
devices with 84 classes in all, shares were off by up to 0.035 (mean of three draws) and 6 classes
absent in train or test, 19 without strata; with 0.1 it was 0.12 and 4, with 0.003 0.02 and 7.
"""

_LESS = 1e-12
"""By how much a cost must fall: less is rounding."""

_FEW = 400
"""Groups up to which pairs are exchanged when moves of single ones do not help any more, and up to
which another order is worth its time for a class that lacks a part."""


class Balance:
    """How far each stratum is from its wanted shares, under moves of groups.

    The cost is a sum over strata of squared share errors and of parts that are empty (`_EMPTY` and
    `_ABSENT`). A class's share errors are weighted by its part of the domain's labelled cells. So
    the classes of a domain weigh together as much as its fields, a class of few cells, whose shares
    are coarse, hardly moves the domain's, and the sum over classes is, but for a weight of each
    part, the chi-square of parts against classes.

    Args:
        groups: what each group holds of each stratum; none is empty.
        wanted: shares of train, validation and test.
    """

    def __init__(
        self, groups: Mapping[str, Mapping[Stratum, int]], wanted: tuple[float, float, float]
    ) -> None:
        strata = sorted({s for held in groups.values() for s in held})
        place = {s: i for i, s in enumerate(strata)}
        self.wanted = wanted
        self.groups = {g: [(place[s], held[s]) for s in sorted(held)] for g, held in groups.items()}
        self.part: dict[str, int] = {}
        self.counts = [[0, 0, 0] for _ in strata]
        self.members = [[0, 0, 0] for _ in strata]
        self.total = [0] * len(strata)
        size = [0] * len(strata)
        for held in self.groups.values():
            for s, count in held:
                self.total[s] += count
                size[s] += 1
        cells: dict[str, int] = defaultdict(int)
        for (domain, k), total in zip(strata, self.total, strict=True):
            cells[domain] += total if k != FIELDS else 0
        self.empty = [_EMPTY if k == FIELDS else _ABSENT for _, k in strata]
        self.weight = [
            1.0 if k == FIELDS else total / cells[domain]
            for (domain, k), total in zip(strata, self.total, strict=True)
        ]
        # The most needed part first, for strata of too few groups.
        self.needed = [[p for p in (0, 2, 1) if wanted[p] > 0][:n] for n in size]
        self._usable = [p for p in range(3) if wanted[p] > 0 or p == 0]

    @property
    def cost(self) -> float:
        """The cost over all strata."""
        return sum([self._cost_of(s) for s in range(len(self.total))])

    @property
    def settled(self) -> bool:
        """Whether every stratum is in the parts that it needs, as far as is worth another order."""
        few = len(self.groups) <= _FEW
        return not any(
            self._missing(s) for s, cost in enumerate(self.empty) if few or cost == _EMPTY
        )

    def _missing(self, stratum: int) -> int:
        members, missing = self.members[stratum], 0
        for p in self.needed[stratum]:
            missing += not members[p]
        return missing

    def _cost_of(self, stratum: int) -> float:
        (a, b, c), (x, y, z), n = self.counts[stratum], self.wanted, self.total[stratum]
        error = sum([(a / n - x) ** 2, (b / n - y) ** 2, (c / n - z) ** 2])
        return self.weight[stratum] * error + self.empty[stratum] * self._missing(stratum)

    def _move(self, group: str, part: int) -> None:
        """Put a group into a part, taking it out of its present one."""
        old = self.part.get(group)
        for s, count in self.groups[group]:
            if old is not None:
                self.counts[s][old] -= count
                self.members[s][old] -= 1
            self.counts[s][part] += count
            self.members[s][part] += 1
        self.part[group] = part

    def _place(self, group: str) -> bool:
        """Move a group to its best part; tell whether that lowered the cost."""
        start = self.part.get(group)
        costs: dict[int, float] = {}
        for part in self._usable:
            self._move(group, part)
            costs[part] = sum([self._cost_of(s) for s, _ in self.groups[group]])
        best = min(costs, key=lambda p: (costs[p], p != start, p))
        better = start is None or costs[best] < costs[start] - _LESS
        self._move(group, best if better or start is None else start)
        return better

    def deal(self, order: Sequence[str]) -> None:
        """Place the groups in order, then move single ones and exchange pairs while it helps."""
        for group in order:
            self._place(group)
        for _ in range(20):
            moved = sum(self._place(g) for g in order)
            if not moved and not (len(order) <= _FEW and self._exchange(order)):
                return

    def _exchange(self, order: Sequence[str]) -> bool:
        """Exchange the first pair in ``order`` that lowers the cost; tell whether there is one."""
        held = np.zeros((len(order), len(self.total)))
        for row, group in enumerate(order):
            for s, count in self.groups[group]:
                held[row, s] = count
        there = (held > 0).astype(np.float64)
        part = np.array([self.part[g] for g in order])
        change = _Change(self)
        for i, mine in enumerate(part):
            others = i + 1 + np.flatnonzero(part[i + 1 :] != mine)
            won, more = held[others] - held[i], there[others] - there[i]
            costs = change(np.full(len(others), mine), won, more)
            costs += change(part[others], -won, -more)
            better = np.flatnonzero(costs < -_LESS)
            if len(better):
                other = others[better[0]]
                self._move(order[i], int(part[other]))
                self._move(order[other], int(mine))
                return True
        return False


class _Change:
    """What the cost of parts changes by, for many exchanges at once."""

    def __init__(self, balance: Balance) -> None:
        self.counts = np.array(balance.counts, np.float64).T
        self.members = np.array(balance.members, np.float64).T
        self.total = np.array(balance.total, np.float64)
        self.weight, self.empty = np.array(balance.weight), np.array(balance.empty)
        self.wanted = np.array(balance.wanted)
        self.needed = np.array([[p in needed for needed in balance.needed] for p in range(3)])

    def __call__(self, part: IntArray, won: Array, more: Array) -> Array:
        """Return ``(B,)`` for parts ``(B,)`` that win cells and groups of strata ``(B, S)``."""
        wanted, counts = self.wanted[part][:, None], self.counts[part]
        error = ((counts + won) / self.total - wanted) ** 2 - (counts / self.total - wanted) ** 2
        members = self.members[part]
        missing = self.needed[part] * ((members + more == 0) * 1.0 - (members == 0))
        costs: Array = (self.weight * error + self.empty * missing).sum(1)
        return costs
