"""Scores of a classifier of single cells. ``docs/cells.md`` says what each means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from da_leukemia.evaluation.attributes import attribute_metrics
from da_leukemia.evaluation.bootstrap import hierarchical_interval
from da_leukemia.evaluation.lookup import ClassLookup
from da_leukemia.evaluation.records import FieldRecord, FloatArray, IntArray
from da_leukemia.evaluation.reliability import binned
from da_leukemia.labels import OPEN_SET, LabelSpace

EVALUATOR_VERSION = "cells-1"
"""Raised with every change that changes a number."""

COVERAGES = tuple(round(0.1 * k, 1) for k in range(1, 11))
"""Shares of cells that are answered, the surest ones first, of the abstention curve."""


@dataclass(frozen=True)
class ClassTable:
    """What was said and what is true of every cell that is scored.

    Attributes:
        groups: patient, or group of copies, of each cell (see `FieldOfView.group`).
        truth: ``(N,)`` class.
        said: ``(N,)`` likeliest class.
        sure: ``(N,)`` its probability.
        classes: number of classes.
    """

    groups: Sequence[str]
    truth: IntArray
    said: IntArray
    sure: FloatArray
    classes: int

    @classmethod
    def build(
        cls, records: Sequence[FieldRecord], classes: int, labelled: Sequence[int]
    ) -> ClassTable:
        """Take the cells whose own label is a class that the domain labels.

        Args:
            records: of single cells, with a detection for every possible class.
            classes: number of classes.
            labelled: of them, those that the domain labels.
        """
        truth = own_labels(records)
        scored = np.flatnonzero(np.isin(truth, np.asarray(labelled, np.int64)))
        said, sure = answers(records, classes)
        groups = tuple(records[i].group for i in scored.tolist())
        return cls(groups, truth[scored], said[scored], sure[scored], classes)

    def confusion(self, weights: IntArray | None = None) -> NDArray[np.float64]:
        """Return ``(C, C)`` cells by truth (row) and answer (column)."""
        place = self.truth * self.classes + self.said
        counts = np.bincount(place, weights, self.classes**2).astype(np.float64)
        return counts.reshape(self.classes, self.classes)

    def statistic(self, weights: IntArray) -> dict[str, float]:
        """Return the scores when cell i counts ``weights[i]`` times; NaN without any cell.

        Means over classes are over those that have a cell.
        """
        table = self.confusion(weights)
        total, cells = table.sum(), table.sum(1)
        if not total:
            return dict.fromkeys(("balanced_accuracy", "accuracy", "macro_f1"), math.nan)
        there = cells > 0
        right = np.diag(table)
        f1 = 2 * right[there] / (cells + table.sum(0))[there]
        return {
            "balanced_accuracy": float((right[there] / cells[there]).mean()),
            "accuracy": float(right.sum() / total),
            "macro_f1": float(f1.mean()),
        }


def own_labels(records: Sequence[FieldRecord]) -> IntArray:
    """Return each cell's own label ``(N,)``, the first of those that it has."""
    return np.array([int(r.true_labels[0]) if len(r.true_labels) else -1 for r in records], int)


def answers(records: Sequence[FieldRecord], classes: int) -> tuple[IntArray, FloatArray]:
    """Return the likeliest class of each cell ``(N,)`` and its probability ``(N,)``."""
    table = np.zeros((len(records), classes), np.float32)
    rows = np.repeat(np.arange(len(records)), [len(r.labels) for r in records])
    if len(rows):
        labels = np.concatenate([r.labels for r in records])
        table[rows, labels] = np.concatenate([r.scores for r in records])
    return table.argmax(1), table.max(1, initial=0.0)


def evaluate_cells(
    records: Sequence[FieldRecord],
    space: LabelSpace,
    labelled: Sequence[int],
    lookup: ClassLookup | None = None,
) -> dict[str, Any]:
    """Score the answers on one test domain.

    Args:
        records: of its cells.
        space: label space of the records.
        labelled: classes that the domain labels; cells of other or unknown types are not scored.
        lookup: attributes by cell type, scored beside those that were read.

    Returns:
        For JSON: scores in [0, 1], None for one that does not exist. ``intervals`` holds the 95 %
        bootstrap interval over groups of this one run; ``confusion`` counts by truth and answer.
    """
    table = ClassTable.build(records, len(space.classes), labelled)
    cells = len(table.truth)
    scores = table.statistic(np.ones(cells, np.int64))
    confusion = table.confusion()
    reliability = binned(table.sure.astype(np.float64), table.truth == table.said)
    found = attribute_metrics(records, space, given_boxes=True)
    guess = attribute_metrics(records, space, lookup, given_boxes=True) if lookup else None
    return {
        "evaluator_version": EVALUATOR_VERSION,
        **{name: _number(value) for name, value in scores.items()},
        "ece": _number(reliability.ece),
        **abstention(table.sure, table.truth == table.said),
        **_open_set(records, len(space.classes), labelled),
        "attribute_f1_true_boxes": _number(found.attribute_f1 if found else math.nan),
        "attribute_f1_lookup": _number(guess.attribute_f1 if found and guess else math.nan),
        "intervals": _intervals(table),
        "per_class": {space.classes[k]: _of_class(confusion, k) for k in sorted(labelled)},
        "per_attribute": {
            name: {
                "f1": _number(score.f1),
                "balanced_accuracy": _number(score.balanced_accuracy),
                "truths": score.truths,
            }
            for name, score in (found.per_attribute if found else {}).items()
        },
        "confusion": confusion.astype(int).tolist(),
        "reliability": {"types": reliability.to_dict()},
        "fields": len(records),
        "boxes": cells,
    }


def abstention(sure: FloatArray, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what answering only the surest cells would bring.

    Returns:
        ``abstention``: rows of ``coverage`` (share of cells answered), ``accuracy`` of those and
        the least probability ``from`` which is answered; ``aurc``: area under the curve of error
        over coverage (Geifman and El-Yaniv, NeurIPS 2017), lower is better.
    """
    count = len(sure)
    if not count:
        return {"abstention": [], "aurc": None}
    order = np.argsort(-sure, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, count + 1)
    rows = []
    for coverage in COVERAGES:
        last = max(1, round(coverage * count)) - 1
        rows.append(
            {
                "coverage": coverage,
                "accuracy": round(float(accuracy[last]), 6),
                "from": round(float(sure[order[last]]), 6),
            }
        )
    return {"abstention": rows, "aurc": float((1 - accuracy).mean())}


def _open_set(
    records: Sequence[FieldRecord], classes: int, labelled: Sequence[int]
) -> dict[str, Any]:
    """Return how well certainty tells known types from those of the open set (AUROC)."""
    truth, (_, sure) = own_labels(records), answers(records, classes)
    known, other = sure[np.isin(truth, np.asarray(labelled))], sure[truth == OPEN_SET]
    area = None
    if len(known) and len(other):
        ranks = rankdata(np.concatenate([known, other]))[: len(known)]
        area = float((ranks.sum() / len(known) - (len(known) + 1) / 2) / len(other))
    return {"open_set_auroc": area, "open_set_cells": len(other)}


def _of_class(confusion: NDArray[np.float64], k: int) -> dict[str, Any]:
    right, truths, said = confusion[k, k], confusion[k].sum(), confusion[:, k].sum()
    return {
        "f1": float(2 * right / (truths + said)) if truths else None,
        "recall": float(right / truths) if truths else None,
        "precision": float(right / said) if said else None,
        "truths": int(truths),
    }


def _intervals(table: ClassTable) -> dict[str, list[float]]:
    if len(set(table.groups)) < 2:
        return {}
    drawn = hierarchical_interval([table])
    return {n: [round(i.low, 6), round(i.high, 6)] for n, i in drawn.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
