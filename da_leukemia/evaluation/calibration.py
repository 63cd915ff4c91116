"""Does a score of 0.8 mean that four of five such detections are right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.detection import MatchTable

BINS = 15
MIN_SCORE = 0.05
"""Detectors emit hundreds of boxes below this that nobody sees; they would drown the error."""


@dataclass(frozen=True)
class Reliability:
    """A reliability table of `BINS` score bins of equal width over [0, 1].

    Attributes:
        ece: expected calibration error, the mean over detections of the gap between the
            confidence and the precision of their bin; NaN without detections.
        count: ``(BINS,)`` number of detections.
        confidence: ``(BINS,)`` mean score, NaN in an empty bin.
        precision: ``(BINS,)`` share of correct detections, NaN in an empty bin.
    """

    ece: float
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]


def reliability(table: MatchTable) -> Reliability:
    """Compare detection scores with how often they are right.

    A detection is right if it is a true positive of its class at IoU 0.5. Follows Guo et al.
    (ICML 2017), applied to detections above a score as Kueppers et al. (CVPRW 2020) do, without
    their binning over position; the score is `MIN_SCORE`.
    """
    seen = table.score >= MIN_SCORE
    score, correct = table.score[seen].astype(np.float64), table.correct[seen]
    place = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, score, minlength=BINS) / count
        precision = np.bincount(place, correct, minlength=BINS) / count
    filled = count > 0
    gap = np.abs(confidence - precision)[filled]
    ece = float(gap @ count[filled] / count.sum()) if filled.any() else float("nan")
    return Reliability(ece, count, confidence, precision)
