"""Which detection found which cell: COCO's greedy matching over all fields at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.sparse import TOLERANCE, centred_in
from da_leukemia.evaluation.records import FieldRecord, FloatArray, IntArray

IGNORE_IOU = 0.5
"""Overlap from which a detection is said to be about a cell of unknown type."""


def box_iou(first: FloatArray, second: FloatArray) -> NDArray[np.float64]:
    """Return the ``(D, N)`` intersection over union of two sets of xyxy boxes.

    The arithmetic is that of ``bbIou`` in pycocotools' ``maskApi.c``, on x, y, width and height
    in double precision, so that an overlap of exactly one half falls on the same side.
    """
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    far = np.minimum(a[..., :2] + size_a, b[..., :2] + size_b)
    overlap = (far - np.maximum(a[..., :2], b[..., :2])).clip(min=0.0)
    both = overlap[..., 0] * overlap[..., 1]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - both
    iou: NDArray[np.float64] = np.divide(both, union, out=np.zeros_like(both), where=both > 0)
    return iou


def inside_region(record: FieldRecord) -> FieldRecord:
    """Keep what is about the annotated region: its cells, and the detections that concern it.

    Cells are those that are learned: their centre lies inside, or as near as makes no difference
    (`TOLERANCE`). Outside nobody looked, and a detection there is neither right nor wrong. One on
    the edge goes with the cell that it overlaps by `IGNORE_IOU`, wherever its own centre is: a
    pixel more or less must not make a find of a miss.
    """
    if record.regions is None:
        return record
    cells = centred_in(record.true_boxes, record.regions, TOLERANCE)
    iou = box_iou(record.boxes, record.true_boxes)
    on_cell = iou[:, cells].max(axis=1, initial=0.0)
    on_stray = iou[:, ~cells].max(axis=1, initial=0.0)
    inside = centred_in(record.boxes, record.regions)
    overlaps = np.maximum(on_cell, on_stray) >= IGNORE_IOU
    concerned = np.where(overlaps, on_cell >= on_stray, inside)
    return _keep(record, cells, concerned)


def judged(record: FieldRecord) -> FieldRecord:
    """Return the part of a field on which finding *and naming* a cell can be judged.

    Besides `inside_region`, cells of unknown type (label -1) leave, and with them every detection
    that is about such a cell: its best IoU with one is at least `IGNORE_IOU` and greater than
    its best IoU with any cell of known type, whatever the classes. (COCO's ``iscrowd`` is not
    used: it divides by the detection's area, so any small box inside a cell would be excused.)
    """
    record = inside_region(record)
    unknown = record.true_labels < 0
    if not unknown.any():
        return record
    iou = box_iou(record.boxes, record.true_boxes)
    on_unknown = iou[:, unknown].max(axis=1)
    on_known = iou[:, ~unknown].max(axis=1, initial=0.0)
    excused = (on_unknown >= IGNORE_IOU) & (on_unknown > on_known)
    return _keep(record, ~unknown, ~excused)


def _keep(record: FieldRecord, truths: NDArray[np.bool_], found: NDArray[np.bool_]) -> FieldRecord:
    asked = record.true_attribute_probs
    return replace(
        record,
        true_attribute_probs=None if asked is None else asked[truths],
        true_boxes=record.true_boxes[truths],
        true_labels=record.true_labels[truths],
        true_attributes=record.true_attributes[truths],
        boxes=record.boxes[found],
        scores=record.scores[found],
        labels=record.labels[found],
        attribute_probs=record.attribute_probs[found],
    )


@dataclass(frozen=True)
class Matches:
    """Detections of all fields, by field, then class (if matched by class), then falling score.

    Attributes:
        detection: ``(M,)`` index into the detections of all records, concatenated.
        field: ``(M,)`` index of the record.
        truth: ``(T, M)`` for each IoU threshold the index into the true boxes of all records,
            concatenated, or -1.
    """

    detection: IntArray
    field: IntArray
    truth: IntArray


def match(
    records: Sequence[FieldRecord],
    thresholds: Sequence[float],
    by_class: bool,
    limit: int | None = None,
) -> Matches:
    """Match detections to true boxes one to one, as ``COCOeval.evaluateImg`` does.

    Inside a field (and class, with ``by_class``) detections choose in order of falling score,
    equal scores in their given order; each takes the free true box of greatest IoU, of equal
    ones the last, provided the threshold is reached. Fields and classes are independent, so the
    n-th choices of all of them are made together.

    Args:
        records: fields; see `judged` for what should have been taken out.
        thresholds: T IoU thresholds.
        by_class: match only within a class; otherwise labels play no part.
        limit: number of best detections kept per field (and class), None for all.
    """
    sizes = np.array([len(r.labels) for r in records], dtype=np.int64)
    field = np.repeat(np.arange(len(records)), sizes)
    label = np.concatenate([r.labels for r in records] or [np.zeros(0, np.int64)])
    score = np.concatenate([r.scores for r in records] or [np.zeros(0, np.float32)])
    group = field * (label.max(initial=0) + 1) + label if by_class else field
    order = np.lexsort((-score, group))
    rank = _position_in_run(group[order])
    order = order[rank < limit] if limit is not None else order
    truth = np.full((len(thresholds), len(order)), -1, dtype=np.int64)

    place = np.full(len(score), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    chooser, chosen, iou = candidates(records, min(thresholds), by_class)
    chooser = place[chooser]
    kept = chooser >= 0
    chooser, chosen, iou = chooser[kept], chosen[kept], iou[kept]
    by_chooser = np.argsort(chooser, kind="stable")
    choosers, first = np.unique(chooser[by_chooser], return_index=True)
    turn_of = _position_in_run(group[order][choosers])
    turn = np.repeat(turn_of, np.diff(np.append(first, len(chooser))))
    by_turn = by_chooser[np.argsort(turn, kind="stable")]
    chooser, chosen, iou = chooser[by_turn], chosen[by_turn], iou[by_turn]
    in_turn = np.bincount(turn)
    ends = np.cumsum(in_turn)

    limits = np.minimum(np.asarray(thresholds, dtype=np.float64), 1 - 1e-10)[:, None]
    taken = np.zeros((len(thresholds), sum(len(r.true_labels) for r in records)), dtype=np.bool_)
    for start, end in zip(ends - in_turn, ends, strict=True):
        who, what, how = chooser[start:end], chosen[start:end], iou[start:end]
        head = np.flatnonzero(np.diff(who, prepend=-1))
        length = np.diff(np.append(head, len(who)))
        free = (how >= limits) & ~taken[:, what]
        value = np.where(free, how, -1.0)
        best = np.repeat(np.maximum.reduceat(value, head, axis=1), length, axis=1)
        candidate = np.where(free & (value == best), np.arange(len(who)), -1)
        last = np.maximum.reduceat(candidate, head, axis=1)
        level, nth = np.nonzero(last >= 0)
        winner = what[last[level, nth]]
        truth[level, who[head][nth]] = winner
        taken[level, winner] = True
    return Matches(order, field[order], truth)


def candidates(
    records: Sequence[FieldRecord], threshold: float, by_class: bool
) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """Return all pairs (detection, true box, IoU) of one field that could match.

    Indices count through the detections and true boxes of all records, concatenated.
    """
    pairs: list[tuple[IntArray, IntArray, NDArray[np.float64]]] = []
    found = truths = 0
    for record in records:
        if len(record.labels) and len(record.true_labels):
            iou = box_iou(record.boxes, record.true_boxes)
            possible = iou >= min(threshold, 1 - 1e-10)
            if by_class:
                possible &= record.labels[:, None] == record.true_labels
            d, n = np.nonzero(possible)
            pairs.append((d + found, n + truths, iou[d, n]))
        found += len(record.labels)
        truths += len(record.true_labels)
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detection, truth, overlap = zip(*pairs, strict=True)
    return np.concatenate(detection), np.concatenate(truth), np.concatenate(overlap)


def _position_in_run(values: IntArray) -> IntArray:
    """Return for each element its position in its run of equal values."""
    index = np.arange(len(values))
    new = np.append(True, values[1:] != values[:-1])[: len(values)]
    return index - np.maximum.accumulate(np.where(new, index, 0))
