"""Scores, and the records that intervals are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from da_leukemia.evaluation.as_released import as_released
from da_leukemia.evaluation.attributes import AttributeScores, AttributeTable, attribute_metrics
from da_leukemia.evaluation.bootstrap import Interval, hierarchical_interval
from da_leukemia.evaluation.detection import MatchTable, detection_metrics
from da_leukemia.evaluation.lookup import ClassLookup, fit_lookup
from da_leukemia.evaluation.records import FieldRecord, load_records, save_records
from da_leukemia.evaluation.reliability import attribute_reliability, reliability
from da_leukemia.labels import LabelSpace

__all__ = [
    "DETAILS",
    "EVALUATOR_VERSION",
    "AttributeTable",
    "ClassLookup",
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

DETAILS = frozenset(
    {"attributes", "as_released", "reliability", "abstention", "confusion", "intervals"}
)
"""Entries of a result that hold tables; their headline scores stand beside them as numbers."""

ARTEFACT = "none"
"""The class of boxed artefacts. Scored with the others, and beside it ignored."""


def evaluate(
    records: Sequence[FieldRecord],
    space: LabelSpace,
    labelled: Sequence[int],
    lookup: ClassLookup | None = None,
) -> dict[str, Any]:
    """Score the detections of one test domain by both evaluations, strict and as released.

    ``docs/evaluation.md`` says what each score is and what it may be compared with.

    Args:
        records: the fields of the domain.
        space: label space of the records.
        labelled: indices of the classes that the domain labels; only these are scored.
        lookup: attributes by cell type, learned from the source's training labels; it is scored
            beside the detector's own.

    Returns:
        A dictionary that goes into JSON as it is: numbers in [0, 1], counts, and None for a
        score that does not exist (no true box, no attributes, no detection). ``boxes`` counts
        the true boxes that were scored; `DetectionScores`, `AttributeTable`, `Reliability` and
        `as_released` define the scores. A gain is the detector's score minus the lookup's.
    """
    detection = detection_metrics(records, space.classes, labelled)
    attributes = attribute_metrics(records, space)
    released = as_released(records, space)
    found = reliability(MatchTable.build(records, labelled))
    of_attributes = attribute_reliability(records, space)
    real = without_artefacts(records, space, labelled)
    views = _attribute_views(records, space, attributes, lookup)
    given = views.get("true_boxes", {})
    return {
        "evaluator_version": EVALUATOR_VERSION,
        "ap50": _number(detection.ap50),
        "ap50_95": _number(detection.ap50_95),
        "recall": _number(detection.recall),
        "attribute_f1": _number(attributes.attribute_f1 if attributes else math.nan),
        "attribute_f1_end_to_end": _number(attributes.end_to_end if attributes else math.nan),
        "attribute_f1_true_boxes": given.get("f1"),
        "attribute_balanced_accuracy": _number(
            attributes.attribute_balanced_accuracy if attributes else math.nan
        ),
        "attribute_balanced_accuracy_end_to_end": _number(
            attributes.balanced_accuracy_end_to_end if attributes else math.nan
        ),
        "attribute_balanced_accuracy_true_boxes": given.get("balanced_accuracy"),
        "ece": _number(found.ece),
        "attribute_ece": _number(of_attributes[0].ece if of_attributes else math.nan),
        "map50_as_released": released["map50"],
        "map50_95_as_released": released["map50_95"],
        "attribute_f1_as_released": released["attribute_f1"],
        "ap50_without_none": _number(real[0]),
        "ap50_95_without_none": _number(real[1]),
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
        "attributes": views,
        "as_released": released,
        "reliability": {
            "types": found.to_dict(),
            "attributes": of_attributes[0].to_dict() if of_attributes else None,
            "ece_per_attribute": {
                name: _number(table.ece)
                for name, table in (of_attributes[1] if of_attributes else {}).items()
            },
        },
        "fields": len(records),
        "boxes": sum(detection.truths_per_class.values()),
    }


def without_artefacts(
    records: Sequence[FieldRecord], space: LabelSpace, labelled: Sequence[int]
) -> tuple[float, float]:
    """Return AP50 and AP50-95 with the class "none" ignored: neither a target nor a false alarm.

    Its true boxes count as of unknown type (see `judged`), detections named so leave. NaN where
    the space or the domain has no such class: then `detection_metrics` says the same.
    """
    artefact = space.find(ARTEFACT)
    if artefact is None or artefact not in labelled:
        return math.nan, math.nan
    kept = [
        replace(r, true_labels=np.where(r.true_labels == artefact, -1, r.true_labels))
        for r in records
    ]
    scores = detection_metrics(kept, space.classes, [k for k in labelled if k != artefact])
    return scores.ap50, scores.ap50_95


def _attribute_views(
    records: Sequence[FieldRecord],
    space: LabelSpace,
    found: AttributeScores | None,
    lookup: ClassLookup | None,
) -> dict[str, Any]:
    """Return the attribute scores on true boxes, found cells and end to end, beside the lookup's.

    ``scored`` counts the attributes that a mean is over. A view that does not exist is absent.
    """
    given = attribute_metrics(records, space, given_boxes=True)
    guess = attribute_metrics(records, space, lookup) if lookup and found else None
    guess_given = (
        attribute_metrics(records, space, lookup, given_boxes=True) if lookup and given else None
    )
    views = {}
    for name, scores, guessed, end in (
        ("true_boxes", given, guess_given, ""),
        ("found", found, guess, ""),
        ("end_to_end", found, guess, "_end_to_end"),
    ):
        if scores is None:
            continue
        view = _means(scores, end)
        rows = {n: _scores_of(s, end) for n, s in scores.per_attribute.items()}
        view["scored"] = sum(row["f1"] is not None for row in rows.values())
        if guessed is not None:
            _compare(view, _means(guessed, end))
            for attribute, row in rows.items():
                _compare(row, _scores_of(guessed.per_attribute[attribute], end))
        views[name] = {**view, "per_attribute": rows}
    return views


def _means(scores: AttributeScores, end: str) -> dict[str, Any]:
    if end:
        pair = scores.end_to_end, scores.balanced_accuracy_end_to_end
    else:
        pair = scores.attribute_f1, scores.attribute_balanced_accuracy
    return {"f1": _number(pair[0]), "balanced_accuracy": _number(pair[1])}


def _scores_of(score: Any, end: str) -> dict[str, Any]:
    return {
        "f1": _number(getattr(score, f"f1{end}")),
        "balanced_accuracy": _number(getattr(score, f"balanced_accuracy{end}")),
        "truths": score.truths,
        "found": score.found,
        "values": score.values,
    }


def _compare(row: dict[str, Any], guessed: dict[str, Any]) -> None:
    """Put the lookup's scores and the gain over them beside the detector's."""
    for name in ("f1", "balanced_accuracy"):
        mine, theirs = row[name], guessed[name]
        row[f"lookup_{name}"] = theirs
        row[f"gain_{name}"] = None if mine is None or theirs is None else mine - theirs


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
