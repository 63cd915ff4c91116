"""How much of the cross-device loss a method wins back, and where that can be said.

Methods are adapted or calibrated. Gap closed = (adapted - fair source-only) / (oracle - fair
source-only), all three tested on the same device. *Fair source-only* has the same steps, size,
augmentation and EMA and saw no image of the target; the *oracle* is the same recipe trained on the
target's own labels. Half of many published gains is augmentation and EMA, which is why the plain
source-only run is no reference (Kay et al., ALDI, TMLR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from da_leukemia.config import devices_of
from da_leukemia.sweep.matrix import Matrix
from da_leukemia.sweep.names import PLAIN, detector_of, longer_of

Pair = tuple[str, str, str]
"""(method, source, target)."""


class Gain(NamedTuple):
    """A paired comparison with the fair twin.

    Attributes:
        low: lower end of the interval of the gain.
        high: upper end.
        p: of a paired randomization test, adjusted for all pairs of the table (Holm); NaN where
            there is one patient only.
    """

    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Gap:
    """One adapted or calibrated method from one source to one target.

    Attributes:
        target: device it adapted to or calibrated, on which it was tested.
        base: where the gap begins: ``fair``, or source-only of the oracle's length where ``fair``
            has the method's greater length.
        closed: share of the gap that was won back, gain / (oracle - base); None where it is
            refused.
        reason: why it is refused.
        gain: adapted - fair; below zero the adaptation did harm (negative transfer).
        paired: interval and test of the gain, None where there are none.
    """

    method: str
    source: str
    target: str
    adapted: float
    fair: float | None
    oracle: float | None
    base: float | None
    closed: float | None
    reason: str | None
    paired: Gain | None = None

    @property
    def harmed(self) -> bool:
        """Whether the method is significantly below its twin (5 %, all pairs together)."""
        return self.paired is not None and self.paired.p < 0.05 and (self.gain or 0.0) < 0

    @property
    def gain(self) -> float | None:
        """Adapted - fair source-only, None without the twin."""
        return None if self.fair is None else self.adapted - self.fair


@dataclass(frozen=True)
class GapSummary:
    """An adapted method over all its pairs.

    Attributes:
        pairs: pairs that were run.
        whole: pairs that have all three numbers, from which the ratio of means is.
        refused: pairs without a gap of their own.
        ratio_of_means: mean gain / mean gap over the whole pairs, whether or not their own gap is
            positive; the headline, as no pair with a tiny gap governs it.
        mean_of_ratios: mean of `Gap.closed` over the pairs that have it.
        compared: pairs that have a fair twin.
        negative: how many of those ended below it.
        harmed: how many of those significantly so.
        share_low: lower end of the interval of the ratio of means, None where there is none.
        share_high: upper end.
        worst: the pair with the lowest score.
        reason: why there is no ratio of means.
    """

    method: str
    pairs: int
    whole: int
    refused: int
    ratio_of_means: float | None
    mean_of_ratios: float | None
    mean_gain: float | None
    compared: int
    negative: int
    harmed: int
    worst: Gap
    reason: str | None
    share_low: float | None = None
    share_high: float | None = None


@dataclass(frozen=True)
class GapTable:
    """All pairs and their summaries.

    Attributes:
        notes: where another run than the fair source-only had to stand in.
    """

    metric: str
    gaps: tuple[Gap, ...]
    summaries: tuple[GapSummary, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> GapSummary | None:
        """The method that closes most of the gap, None where none can be compared."""
        known = [s for s in self.summaries if s.ratio_of_means is not None]
        return max(known, key=lambda s: s.ratio_of_means or 0.0) if known else None


def gap_closed(
    matrix: Matrix,
    metric: str = "ap50",
    gains: Mapping[Pair, Gain] | None = None,
    shares: Mapping[str, tuple[float, float]] | None = None,
    alike: bool = False,
    longer: bool = False,
) -> GapTable:
    """Compare every adapted or calibrated run that was tested on its target with its twins.

    Args:
        matrix: the means over seeds.
        metric: a score of which more is better.
        gains: intervals and tests of the gain, where there are any (see `report.gains`).
        shares: intervals of the ratio of means by method, where there are any.
        alike: compare adapted runs with the twin of the same calibration: what adaptation adds to
            it. By default the twin is not calibrated wherever there is such a run.
        longer: compare with the twin of equal length, the methods that have one (see
            `sweep.plan.longer_twin`): what the target's images add to as many steps on the source.
            The gap stays that of the table without it: an oracle of fewer steps than the twin would
            make any gain a large share.
    """
    gaps = []
    notes: dict[str, None] = {}
    twin = matrix.twin if alike or longer else matrix.reference
    references = {method: twin(method) for method in matrix.methods}
    for row in matrix.on_target(metric):
        reference = shorter = references[row.method]
        if longer:
            found = longer_of(row.method, matrix.methods)
            if found is None or not row.target:
                continue
            reference = found
        if row.test in devices_of(row.source) or (alike and not row.target):
            continue
        if row.method not in matrix.compared or row.method == reference:
            continue
        fair = matrix.cell(reference, row.source, "", row.test, metric)
        base = matrix.cell(shorter, row.source, "", row.test, metric)
        oracle = matrix.cell(shorter, row.test, "", row.test, metric)
        plain = PLAIN + detector_of(row.method)
        if oracle is None and (instead := matrix.cell(plain, row.test, "", row.test, metric)):
            oracle = instead
            notes[
                f"The oracle of {row.test} is the plain {plain} run: there is no {shorter} run "
                f"trained on it."
            ] = None
        reason = matrix.unfair.get(row.method)
        if reason is not None:
            reason = f"the twin was trained differently: {reason}"
        elif fair is None:
            reason = f"no {reference} run trained on {row.source}"
        elif base is None:
            reason = f"no {shorter} run trained on {row.source}"
        elif oracle is None:
            reason = f"no oracle: no {shorter} run trained on {row.test}"
        elif oracle.value <= base.value:
            reason = f"oracle {oracle.value:.3f} is not above {shorter} {base.value:.3f}"
        closed = None
        if reason is None and fair is not None and base is not None and oracle is not None:
            closed = (row.value - fair.value) / (oracle.value - base.value)
        gaps.append(
            Gap(
                row.method,
                row.source,
                row.test,
                row.value,
                fair.value if fair else None,
                oracle.value if oracle else None,
                base.value if base else None,
                closed,
                reason,
                (gains or {}).get((row.method, row.source, row.test)),
            )
        )
    methods = dict.fromkeys(g.method for g in gaps)
    summaries = tuple(
        _summary(m, [g for g in gaps if g.method == m], m in matrix.unfair, (shares or {}).get(m))
        for m in methods
    )
    return GapTable(metric, tuple(gaps), summaries, tuple(notes))


def _summary(
    method: str, gaps: list[Gap], unfair: bool, share: tuple[float, float] | None
) -> GapSummary:
    gains = [g.gain for g in gaps if g.gain is not None]
    ratios = [g.closed for g in gaps if g.closed is not None]
    known = [
        (g.gain, g.oracle - g.base)
        for g in gaps
        if g.gain is not None and g.oracle is not None and g.base is not None
    ]
    gained, possible = sum(g for g, _ in known), sum(p for _, p in known)
    reason = None
    if unfair:
        reason = gaps[0].reason
    elif not known:
        reason = "no pair has both a fair source-only run and an oracle"
    elif possible <= 0:
        reason = "the oracles are not above fair source-only on average"
    return GapSummary(
        method=method,
        pairs=len(gaps),
        whole=len(known),
        refused=len(gaps) - len(ratios),
        ratio_of_means=gained / possible if reason is None else None,
        mean_of_ratios=sum(ratios) / len(ratios) if ratios else None,
        mean_gain=sum(gains) / len(gains) if gains else None,
        compared=len(gains),
        negative=sum(gain < 0 for gain in gains),
        harmed=sum(gap.harmed for gap in gaps),
        worst=min(gaps, key=lambda g: g.adapted),
        reason=reason,
        share_low=share[0] if share is not None and reason is None else None,
        share_high=share[1] if share is not None and reason is None else None,
    )
