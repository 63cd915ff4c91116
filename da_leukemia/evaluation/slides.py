"""A film as a haematologist sums it up: differential count, blasts, how each type looks.

From what is true and from what was found, side by side. A slide is a patient (or, where a device
names none, all of its fields).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.attributes import attribute_rows, split_attributes
from da_leukemia.evaluation.matching import box_iou, inside_region
from da_leukemia.evaluation.records import FieldRecord, IntArray
from da_leukemia.labels import LINEAGE, LabelSpace, translate

COUNTED_SCORE = 0.3
"""Detections below are not counted, as they are not shown in the report."""


def counted_from(single_cells: bool) -> float:
    """Return the score from which a detection counts.

    Single cells are all there: each is counted as what it is most likely, however unsure.
    """
    return 0.0 if single_cells else COUNTED_SCORE


ONE_CELL_IOU = 0.5
"""Detections that overlap as much are one cell, whatever their types; the best one counts."""

LEVEL_Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

_NOT_COUNTED = "none"
_PATIENT = "patient:"


@dataclass(frozen=True)
class Cells:
    """Cells of some fields, true or found.

    Attributes:
        labels: ``(N,)`` class, -1 for a true cell of unknown type.
        attributes: ``(N, A)`` codes, -1 where missing.
    """

    labels: IntArray
    attributes: IntArray


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; NaN, NaN of no cells.

    It says what the number of counted cells allows to tell, as the tables for differential counts
    do. It knows nothing of cells that were missed or misnamed.
    """
    if total == 0:
        return math.nan, math.nan
    share, z2 = count / total, LEVEL_Z**2
    middle = share + z2 / (2 * total)
    half = LEVEL_Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    # The ends are 0 and 1 exactly where nothing or everything was counted.
    low = 0.0 if count == 0 else (middle - half) / scale
    high = 1.0 if count == total else (middle + half) / scale
    return low, high


def blast_classes(space: LabelSpace) -> tuple[int, ...]:
    """Return the classes that are blasts or counted as such, by the map to `LINEAGE`."""
    blast = LINEAGE.classes.index("blast")
    kinds = []
    for k, name in enumerate(space.classes):
        try:
            kinds += [k] if translate(name, LINEAGE) == blast else []
        except KeyError:  # a space of the user's own: its names are in no map
            continue
    return tuple(kinds)


def true_cells(records: Sequence[FieldRecord], space: LabelSpace) -> Cells:
    """Return all true cells inside the annotated regions."""
    fields = [inside_region(r) for r in records]
    labels = np.concatenate([np.zeros(0, np.int64), *(f.true_labels for f in fields)])
    width = len(space.attributes)
    return Cells(labels, attribute_rows([f.true_attributes for f in fields], width, "attributes"))


def found_cells(
    records: Sequence[FieldRecord], space: LabelSpace, threshold: float = COUNTED_SCORE
) -> Cells:
    """Return what was found, each cell once: of overlapping detections the most confident."""
    width = len(space.attributes)
    labels, attributes = [np.zeros(0, np.int64)], [np.zeros((0, width), np.int64)]
    for record in records:
        field = inside_region(record)
        kept = counted(field, threshold)
        labels.append(field.labels[kept])
        codes = np.full((len(kept), width), -1)
        if field.attribute_probs.shape[1] and len(kept):
            parts = split_attributes(field.key, field.attribute_probs[kept], space)
            said = [np.where(part.max(axis=1) > 0, part.argmax(axis=1), -1) for part in parts]
            codes = np.stack(said, axis=1)
        attributes.append(codes)
    return Cells(np.concatenate(labels), np.concatenate(attributes))


def counted(record: FieldRecord, threshold: float = COUNTED_SCORE) -> IntArray:
    """Return the detections of a field that count as cells, best first."""
    order = np.argsort(-record.scores, kind="stable")
    order = order[record.scores[order] >= threshold]
    near = box_iou(record.boxes[order], record.boxes[order]) >= ONE_CELL_IOU
    kept: list[int] = []
    for row in range(len(order)):
        if not near[row, kept].any():
            kept.append(row)
    chosen: IntArray = order[kept]
    return chosen


def summarise(
    records: Sequence[FieldRecord], space: LabelSpace, threshold: float = COUNTED_SCORE
) -> list[dict[str, Any]]:
    """Sum up each slide of one device.

    Args:
        records: fields of one device.
        space: label space of the records.
        threshold: detections below this score are not counted.

    Returns:
        One entry per slide in order of its name, for JSON: ``slide``, ``fields``, and ``true`` and
        ``found``, each with ``cells`` (of known type, without "none"), ``untyped`` (true cells of
        unknown type and "none"), ``types`` (count, share, low, high), ``blasts`` (the same, None
        where the space has no blast) and ``attributes`` (type -> attribute -> cells and share of
        each value). Shares are None where no cell was counted.
    """
    slides: dict[str, list[FieldRecord]] = {}
    for record in records:
        slides.setdefault(_slide(record), []).append(record)
    return [
        {
            "slide": name,
            "fields": len(slides[name]),
            "true": _summary(true_cells(slides[name], space), space),
            "found": _summary(found_cells(slides[name], space, threshold), space),
        }
        for name in sorted(slides, key=lambda name: (len(name), name))  # 2 before 10
    ]


def _slide(record: FieldRecord) -> str:
    if record.group.startswith(_PATIENT):
        return record.group.removeprefix(_PATIENT)
    return f"all of {record.key.split('/')[0]}"


def _summary(cells: Cells, space: LabelSpace) -> dict[str, Any]:
    size = len(space.classes)
    real = np.array([name != _NOT_COUNTED for name in space.classes])
    named = cells.labels >= 0
    named[named] = real[cells.labels[named]]
    counts = np.bincount(cells.labels[named], minlength=size)
    total = int(counts.sum())
    blasts = blast_classes(space)
    return {
        "cells": total,
        "untyped": int(len(cells.labels) - total),
        "types": {
            name: _share(int(counts[k]), total) for k, name in enumerate(space.classes) if real[k]
        },
        "blasts": _share(int(counts[list(blasts)].sum()), total) if blasts else None,
        "attributes": _profiles(cells, space),
    }


def _share(count: int, total: int) -> dict[str, Any]:
    low, high = wilson(count, total)
    if total == 0:
        return {"count": count, "share": None, "low": None, "high": None}
    return {
        "count": count,
        "share": round(count / total, 6),
        "low": round(low, 6),
        "high": round(high, 6),
    }


def _profiles(cells: Cells, space: LabelSpace) -> dict[str, Any]:
    """Return type -> attribute -> number of cells with a known value and the share of each."""
    if not space.attributes:
        return {}
    values = max(space.attribute_sizes)
    shape = (len(space.classes), len(space.attributes), values)
    cell, attribute = np.nonzero((cells.attributes >= 0) & (cells.labels >= 0)[:, None])
    place = (cells.labels[cell], attribute, cells.attributes[cell, attribute])
    table: NDArray[np.int64] = np.bincount(
        np.ravel_multi_index(place, shape), minlength=int(np.prod(shape))
    ).reshape(shape)
    profiles = {}
    for k, name in enumerate(space.classes):
        known = {}
        for a, told in enumerate(space.attributes):
            total = int(table[k, a].sum())
            if total:
                shares = (table[k, a, : len(told.values)] / total).round(6).tolist()
                known[told.name] = {"cells": total, **dict(zip(told.values, shares, strict=True))}
        if known and name != _NOT_COUNTED:
            profiles[name] = known
    return profiles
