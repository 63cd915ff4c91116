"""Scores, and the records that intervals are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from da_leukemia.evaluation.attributes import AttributeTable, attribute_metrics, fit_lookup
from da_leukemia.evaluation.bootstrap import Interval, hierarchical_interval
from da_leukemia.evaluation.calibration import reliability
from da_leukemia.evaluation.detection import MatchTable, detection_metrics
from da_leukemia.evaluation.records import FieldRecord, load_records, save_records
from da_leukemia.labels import LabelSpace

__all__ = [
    "EVALUATOR_VERSION",
    "AttributeTable",
    "FieldRecord",
    "Interval",
    "MatchTable",
    "attribute_metrics",
    "evaluate",
    "fit_lookup",
    "hierarchical_interval",
    "load_records",
    "save_records",
]

EVALUATOR_VERSION = "1"
"""Raised with every change that changes a number. Scores of two versions are not comparable."""


def evaluate(
    records: Sequence[FieldRecord], space: LabelSpace, labelled: Sequence[int]
) -> dict[str, Any]:
    """Score the detections of one test domain (the strict evaluation).

    Args:
        records: the fields of the domain.
        space: label space of the records.
        labelled: indices of the classes that the domain labels; only these are scored.

    Returns:
        A dictionary that goes into JSON as it is: numbers in [0, 1], counts, and None for a
        score that does not exist (no true box, no attributes, no detection). ``boxes`` counts
        the true boxes that were scored; `DetectionScores`, `AttributeTable` and `Reliability`
        define the scores.
    """
    detection = detection_metrics(records, space.classes, labelled)
    attributes = attribute_metrics(records, space)
    ece = reliability(MatchTable.build(records, labelled)).ece
    return {
        "evaluator_version": EVALUATOR_VERSION,
        "ap50": _number(detection.ap50),
        "ap50_95": _number(detection.ap50_95),
        "recall": _number(detection.recall),
        "attribute_f1": _number(attributes.attribute_f1 if attributes else math.nan),
        "attribute_f1_end_to_end": _number(attributes.end_to_end if attributes else math.nan),
        "attribute_balanced_accuracy": _number(
            attributes.attribute_balanced_accuracy if attributes else math.nan
        ),
        "ece": _number(ece),
        "per_class": {
            name: {
                "ap50": _number(detection.ap50_per_class[name]),
                "ap50_95": _number(detection.ap_per_class[name]),
                "truths": truths,
            }
            for name, truths in detection.truths_per_class.items()
        },
        "per_attribute": {
            name: {
                "f1": _number(score.f1),
                "balanced_accuracy": _number(score.balanced_accuracy),
                "truths": score.truths,
            }
            for name, score in (attributes.per_attribute if attributes else {}).items()
        },
        "fields": len(records),
        "boxes": sum(detection.truths_per_class.values()),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
