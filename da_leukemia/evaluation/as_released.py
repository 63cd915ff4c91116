"""The rules of AttriDet's released test script, to stand beside the numbers published with it.

They are not the rules of `evaluate`: a missed cell costs no attribute, and a detection may match
any cell. What the script does to its own input is not followed: it pairs attribute truths with the
wrong cells from the second field of a batch on, and appends to the table of earlier runs. In
batches of one, into an empty table, it gives these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.attributes import answered, split_attributes
from da_leukemia.evaluation.detection import IOU_THRESHOLDS, RECALL_THRESHOLDS
from da_leukemia.evaluation.matching import box_iou, candidates, inside_region, judged
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.001, 0.6, 300
"""Settings of the detector in that script (`detector.score_threshold` and its neighbours)."""


@dataclass(frozen=True)
class ReleasedAttributes:
    """Binary F1 of the attributes with two values.

    Attributes:
        f1: by attribute; 0 where neither truth nor prediction has a positive.
        positives: by attribute, cells whose value is code 1.
        cells: number of cells that were scored.
        dropped: cells left out because one of the attributes is missing.
        without_prediction: cells left out because nothing was found on their field.
    """

    f1: Mapping[str, float]
    positives: Mapping[str, int]
    cells: int
    dropped: int
    without_prediction: int


def released_attributes(records: Sequence[FieldRecord], space: LabelSpace) -> ReleasedAttributes:
    """Score attributes as released.

    Each true box takes the attributes of the prediction with the highest IoU, whatever that IoU,
    its score and its class; of equal ones (all zero: nothing lies near) the one with the highest
    score. A cell with any of these attributes missing is left out, and so are the cells of a
    field on which nothing was found. F1 has code 1 as its positive. Attributes with more than two
    values (Cell Size) take no part. One that the detector has no answer to counts as never said
    to be code 1. F1 is empty where no cell is left to score, or the detector has no attributes.
    """
    fields = [inside_region(record) for record in records]
    silent = not answered([f.attribute_probs for f in fields], space).any()
    columns = [i for i, a in enumerate(space.attributes) if len(a.values) == 2 and not silent]
    truths, answers = [np.zeros((0, len(columns)), np.int64)], []
    dropped = without = 0
    for field in fields:
        if not columns or not len(field.true_labels) or field.true_attributes.shape[1] == 0:
            continue
        truth = field.true_attributes[:, columns]
        complete = (truth >= 0).all(axis=1)
        if not len(field.labels):
            without += int(complete.sum())
            dropped += int((~complete).sum())
            continue
        if field.attribute_probs.shape[1] == 0:
            return ReleasedAttributes({}, {}, 0, 0, 0)
        order = np.argsort(-field.scores, kind="stable")
        best = order[box_iou(field.boxes[order], field.true_boxes).argmax(axis=0)]
        parts = split_attributes(field.key, field.attribute_probs, space)
        codes = np.stack([parts[i].argmax(axis=1) for i in columns], axis=1)
        truths.append(truth[complete])
        answers.append(codes[best[complete]])
        dropped += int((~complete).sum())
    truth = np.concatenate(truths)
    if not len(truth):
        return ReleasedAttributes({}, {}, 0, dropped, without)
    said = np.concatenate(answers)
    right = ((truth == 1) & (said == 1)).sum(axis=0)
    both = (truth == 1).sum(axis=0) + (said == 1).sum(axis=0)
    f1 = 2 * right / np.maximum(both, 1)
    names = [space.attributes[i].name for i in columns]
    return ReleasedAttributes(
        dict(zip(names, f1.tolist(), strict=True)),
        dict(zip(names, (truth == 1).sum(axis=0).tolist(), strict=True)),
        len(truth),
        dropped,
        without,
    )


def released_map(records: Sequence[FieldRecord]) -> tuple[float, float]:
    """Return mAP50 and mAP50-95 as YOLOv5 computes them, over every class that has a true box.

    Inside a class each detection chooses the true box of its highest IoU, and of the detections
    that chose a box the most confident one is right; COCO lets the others choose again. The curve
    of precision over recall starts at (0, 1), is joined by straight lines, falls to (1, 0), and its
    area is taken over 101 points, so that a perfect detector reaches 0.995. Cells of unknown type
    leave as in `judged`; LeukemiaAttri has none in its own label space.

    Returns:
        NaN, NaN where there is no true box.
    """
    fields = [judged(record) for record in records]
    truth_label = np.concatenate([np.zeros(0, np.int64), *(f.true_labels for f in fields)])
    label = np.concatenate([np.zeros(0, np.int64), *(f.labels for f in fields)])
    score = np.concatenate([np.zeros(0, np.float32), *(f.scores for f in fields)])
    if not len(truth_label):
        return float("nan"), float("nan")
    correct = _correct(fields, score)
    order = np.argsort(-score, kind="stable")
    classes, truths = np.unique(truth_label, return_counts=True)
    ap = np.zeros((len(classes), len(IOU_THRESHOLDS)))
    for row, (k, total) in enumerate(zip(classes, truths, strict=True)):
        hits = correct[order[label[order] == k]]
        if not len(hits):
            continue
        found = hits.cumsum(axis=0)
        recall = found / (total + 1e-16)
        precision = found / np.arange(1, len(hits) + 1)[:, None]
        ap[row] = [_area(r, p) for r, p in zip(recall.T, precision.T, strict=True)]
    return float(ap[:, 0].mean()), float(ap.mean())


def _correct(fields: Sequence[FieldRecord], score: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return ``(D, 10)``: whether each detection is right, at each IoU threshold."""
    correct = np.zeros((len(score), len(IOU_THRESHOLDS)), dtype=np.bool_)
    detection, truth, iou = candidates(fields, float(IOU_THRESHOLDS[0]), by_class=True)
    # The last of each detection's pairs in this order is its choice.
    order = np.lexsort((iou, detection))
    detection, truth, iou = detection[order], truth[order], iou[order]
    choice = np.append(detection[1:] != detection[:-1], True)[: len(detection)]
    detection, truth, iou = detection[choice], truth[choice], iou[choice]
    order = np.lexsort((detection, -score[detection]))
    detection, truth, iou = detection[order], truth[order], iou[order]
    for level, threshold in enumerate(IOU_THRESHOLDS):
        near = iou >= threshold
        first = np.unique(truth[near], return_index=True)[1]
        correct[detection[near][first], level] = True
    return correct


def _area(recall: NDArray[Any], precision: NDArray[Any]) -> float:
    x = np.concatenate(([0.0], recall, [1.0]))
    y = np.concatenate(([1.0], precision, [0.0]))
    envelope = np.maximum.accumulate(y[::-1])[::-1]
    curve = np.interp(RECALL_THRESHOLDS, x, envelope)
    return float(((curve[1:] + curve[:-1]) / 2 * np.diff(RECALL_THRESHOLDS)).sum())


def as_released(records: Sequence[FieldRecord], space: LabelSpace) -> dict[str, Any]:
    """Return all scores of this module for JSON; None for one that does not exist."""
    map50, map50_95 = released_map(records)
    scores = released_attributes(records, space)
    known = not np.isnan(map50)
    return {
        "map50": map50 if known else None,
        "map50_95": map50_95 if known else None,
        "attribute_f1": float(np.mean(list(scores.f1.values()))) if scores.f1 else None,
        "cells": scores.cells,
        "dropped": scores.dropped,
        "without_prediction": scores.without_prediction,
        "per_attribute": {
            name: {"f1": f1, "positives": scores.positives[name]} for name, f1 in scores.f1.items()
        },
    }
