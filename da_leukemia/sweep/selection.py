"""Which epoch of a run is reported: a pure function of what was recorded of its epochs.

A *choice* is a run as it is judged on one test device. Each rule picks one of its epochs and the
true score of that epoch is what the rule would have reported. Only the oracle looks at that score.
Nothing here imports torch.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import rankdata, spearmanr

from da_leukemia.config import devices_of
from da_leukemia.evaluation.label_free import SCORERS
from da_leukemia.sweep.results import Result, Run

LAST, VALIDATION, CONSENSUS, ORACLE = "last", "source_validation", "consensus", "target_oracle"

SELECTIONS = (LAST, VALIDATION, *SCORERS, CONSENSUS, ORACLE)
"""All rules in the order of the report; the last one is no legal choice."""

JUDGES = (VALIDATION, *SCORERS, CONSENSUS)
"""The rules that are a score of an epoch, and so have a rank correlation to the truth."""

FEWEST = 3
"""Epochs, or runs, from which a rank correlation is given."""


@dataclass(frozen=True)
class Choice:
    """A run with the records of its epochs, judged on one test device.

    Attributes:
        epochs: numbers of the epochs, rising.
        truth: AP50 of each on the test device.
        scores: judge -> score of each epoch, for the judges that were recorded throughout.
    """

    run: Run
    test: str
    epochs: tuple[int, ...]
    truth: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]

    def place(self, selection: str) -> int | None:
        """Return which of the epochs a rule picks, of equal ones the later; None if it cannot.

        Raises:
            KeyError: there is no such rule.
        """
        if selection == LAST:
            return len(self.epochs) - 1
        if selection == ORACLE:
            return _latest_best(self.truth)
        if selection not in JUDGES:
            raise KeyError(selection)
        scores = self.scores.get(selection)
        return None if scores is None else _latest_best(scores)

    def score(self, selection: str) -> float | None:
        """Return the true score of the epoch that a rule picks."""
        place = self.place(selection)
        return None if place is None else self.truth[place]


@dataclass(frozen=True)
class Correlation:
    """How well a judge's ranks follow the truth (Spearman).

    Attributes:
        within: mean over cells (a run on one device) of the correlation over the epochs; None if
            there is none.
        cells: how many that is.
        between: by test device, the correlation over the last epochs of all runs.
    """

    within: float | None
    cells: int
    between: Mapping[str, float]

    @property
    def mean_between(self) -> float | None:
        """Mean over the test devices."""
        return fmean(self.between.values()) if self.between else None


def choices(results: Iterable[Result]) -> list[Choice]:
    """Return what can be chosen from: each recorded run on the devices it was recorded for.

    An epoch without a true score on the device takes no part.
    """
    found = []
    for result in results:
        records = sorted(result.content.get("epochs") or [], key=lambda r: int(r["epoch"]))
        for test in dict.fromkeys(t for r in records for t in r["tests"]):
            scored = [r for r in records if r["tests"].get(test) is not None]
            if not scored:
                continue
            columns = {VALIDATION: [r.get(VALIDATION) for r in scored]}
            for name in SCORERS:
                columns[name] = [(r["scores"].get(test) or {}).get(name) for r in scored]
            scores = {
                name: tuple(float(v) for v in values)
                for name, values in columns.items()
                if all(v is not None for v in values)
            }
            agreed = consensus([scores[n] for n in SCORERS if n in scores])
            if agreed:
                scores[CONSENSUS] = agreed
            found.append(
                Choice(
                    run=result.run,
                    test=test,
                    epochs=tuple(int(r["epoch"]) for r in scored),
                    truth=tuple(float(r["tests"][test]) for r in scored),
                    scores=scores,
                )
            )
    return found


def consensus(scores: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean of the ranks that several judges give; nothing without a judge."""
    if not scores:
        return ()
    ranks = np.mean([rankdata(s) for s in scores], axis=0)
    return tuple(ranks.tolist())


def selected(found: Iterable[Choice]) -> dict[str, dict[str, float | None]]:
    """Return method -> rule -> mean true score off the diagonal.

    A rule that cannot choose in one of a method's runs has no mean there: the columns of a row are
    all over the same runs.
    """
    by_method: dict[str, list[Choice]] = defaultdict(list)
    for choice in found:
        if choice.test not in devices_of(choice.run.source):
            by_method[choice.run.method].append(choice)
    table: dict[str, dict[str, float | None]] = {}
    for method, members in by_method.items():
        table[method] = {}
        for rule in SELECTIONS:
            scores = [c.score(rule) for c in members]
            known = [s for s in scores if s is not None]
            table[method][rule] = fmean(known) if len(known) == len(scores) else None
    return table


def correlations(found: Sequence[Choice]) -> dict[str, Correlation]:
    """Return how well each judge's ranks follow the truth, within runs and between them.

    Between runs the last epochs are compared: all methods, sources and seeds on one test device.
    """
    table = {}
    for judge in JUDGES:
        within = [spearman(c.scores[judge], c.truth) for c in found if judge in c.scores]
        known = [w for w in within if w is not None]
        between = {}
        for test in sorted({c.test for c in found}):
            members = [c for c in found if c.test == test and test not in devices_of(c.run.source)]
            value = spearman(_last_scores(members, judge), [c.truth[-1] for c in members])
            if value is not None:
                between[test] = value
        table[judge] = Correlation(fmean(known) if known else None, len(known), between)
    return table


def _last_scores(members: Sequence[Choice], judge: str) -> Sequence[float]:
    """Return a judge's scores of the last epochs; nothing where one of them has none.

    The consensus ranks anew, among these runs: ranks within a run say nothing about another.
    """
    if judge == CONSENSUS:
        return consensus([s for n in SCORERS if (s := _last_scores(members, n))])
    if any(judge not in c.scores for c in members):
        return ()
    return [c.scores[judge][-1] for c in members]


def spearman(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Return the rank correlation, None for fewer than `FEWEST` pairs or where one side is flat."""
    if len(scores) != len(truth) or len(truth) < FEWEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flat side gives NaN, which is said below
        value = float(spearmanr(scores, truth).statistic)
    return value if math.isfinite(value) else None


def _latest_best(values: Sequence[float]) -> int:
    best = max(values)
    return max(i for i, v in enumerate(values) if v == best)
