"""Does a score of 0.8 mean that four of five such detections are right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.attributes import (
    MATCH_IOU,
    answered,
    attribute_rows,
    split_attributes,
)
from da_leukemia.evaluation.detection import MatchTable
from da_leukemia.evaluation.matching import inside_region, match
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace

BINS = 15
MIN_SCORE = 0.05
"""Detectors emit hundreds of boxes below this that nobody sees; they would drown the error."""


@dataclass(frozen=True)
class Reliability:
    """A reliability table of `BINS` score bins of equal width over [0, 1].

    Attributes:
        ece: expected calibration error, the mean over detections (or answers) of the gap between
            the confidence and the precision of their bin; NaN without any.
        count: ``(BINS,)`` number of detections.
        confidence: ``(BINS,)`` mean score, NaN in an empty bin.
        precision: ``(BINS,)`` share of correct detections, NaN in an empty bin.
    """

    ece: float
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: None for an empty bin, and for the error without any answer."""

        def known(values: NDArray[np.float64]) -> list[float | None]:
            return [None if np.isnan(v) else round(v, 6) for v in values.tolist()]

        return {
            "ece": None if np.isnan(self.ece) else self.ece,
            "count": self.count.tolist(),
            "confidence": known(self.confidence),
            "precision": known(self.precision),
        }


def reliability(table: MatchTable) -> Reliability:
    """Compare detection scores with how often they are right.

    A detection is right if it is a true positive of its class at IoU 0.5. Follows Guo et al.
    (ICML 2017), applied to detections above a score as Kueppers et al. (CVPRW 2020) do, without
    their binning over position; the score is `MIN_SCORE`.
    """
    seen = table.score >= MIN_SCORE
    return binned(table.score[seen].astype(np.float64), table.correct[seen])


def binned(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Reliability:
    """Compare ``(M,)`` confidences in [0, 1] with whether each answer was right."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, confidence, minlength=BINS) / count
        precision = np.bincount(place, correct, minlength=BINS) / count
    filled = count > 0
    gap = np.abs(mean - precision)[filled]
    ece = float(gap @ count[filled] / count.sum()) if filled.any() else float("nan")
    return Reliability(ece, count, mean, precision)


def attribute_reliability(
    records: Sequence[FieldRecord], space: LabelSpace
) -> tuple[Reliability, dict[str, Reliability]] | None:
    """Compare the probability of each attribute's likeliest value with how often it is right.

    On the cells that were found (one to one at IoU 0.5, whatever the type) and whose value is
    known. With two values no confidence is below 0.5, with three none below one third.

    Returns:
        All answers of all attributes together, and each attribute by name; None where the truth
        or the detector has no attributes.
    """
    fields = [inside_region(r) for r in records]
    width = len(space.attributes)
    if not any((f.true_attributes >= 0).any() for f in fields):
        return None
    if all(f.attribute_probs.shape[1] == 0 for f in fields):
        return None
    matches = match(fields, [MATCH_IOU], by_class=False)
    hit = matches.truth[0] >= 0
    detection, cell = matches.detection[hit], matches.truth[0, hit]
    truth = attribute_rows([f.true_attributes for f in fields], width, "true_attributes")[cell]
    none = np.zeros((0, sum(space.attribute_sizes)), np.float32)
    said = np.concatenate([none, *(f.attribute_probs for f in fields if len(f.labels))])
    parts = split_attributes("records", said[detection], space)
    has_answer = answered([said], space)
    if not has_answer.any():
        return None
    confidences, rights, by_name = [], [], {}
    for column, part in enumerate(parts):
        if not has_answer[column]:
            continue
        codes = truth[:, column]
        known = codes >= 0
        confidence = part.max(axis=1)[known].astype(np.float64).clip(0, 1)
        right = part.argmax(axis=1)[known] == codes[known]
        confidences.append(confidence)
        rights.append(right)
        by_name[space.attributes[column].name] = binned(confidence, right)
    return binned(np.concatenate(confidences), np.concatenate(rights)), by_name
