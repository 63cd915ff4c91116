"""`FieldRecord`: what a detector said about one field and what is true, and its file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from da_leukemia.errors import DataError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_FORMAT = 1


@dataclass(frozen=True)
class FieldRecord:
    """Everything evaluation needs to know about one field, in pixels of the stored image.

    Convention: boxes are ``x1, y1, x2, y2``, half-open and float, as in `FieldOfView`.

    Attributes:
        key: `FieldOfView.key`.
        group: `FieldOfView.group` (patient, or field), the unit of the bootstrap.
        true_boxes: ``(N, 4)`` float32.
        true_labels: ``(N,)`` int64, -1 for a cell whose type is unknown (see `judged`).
        true_attributes: ``(N, A)`` int64 codes, -1 where missing.
        boxes: ``(D, 4)`` float32, detections in any order.
        scores: ``(D,)`` float32 in [0, 1].
        labels: ``(D,)`` int64, never negative.
        attribute_probs: ``(D, sum(space.attribute_sizes))`` float32, the softmax of each
            attribute side by side; ``(D, 0)`` from a detector without attributes.
        regions: the annotated parts ``x1, y1, x2, y2``, None for the whole field.
        true_attribute_probs: ``(N, sum(space.attribute_sizes))`` float32, what the detector reads
            when it is given the true boxes; None where it was not asked.

    Raises:
        ValueError: the arrays do not fit together, or a score is not a number.
    """

    key: str
    group: str
    true_boxes: FloatArray
    true_labels: IntArray
    true_attributes: IntArray
    boxes: FloatArray
    scores: FloatArray
    labels: IntArray
    attribute_probs: FloatArray
    regions: tuple[tuple[float, float, float, float], ...] | None = None
    true_attribute_probs: FloatArray | None = None

    def __post_init__(self) -> None:
        truths, found = len(self.true_labels), len(self.labels)
        fits = (
            self.true_boxes.shape == (truths, 4)
            and self.true_attributes.ndim == 2
            and len(self.true_attributes) == truths
            and self.boxes.shape == (found, 4)
            and self.scores.shape == (found,)
            and self.attribute_probs.ndim == 2
            and len(self.attribute_probs) == found
            and (self.true_attribute_probs is None or len(self.true_attribute_probs) == truths)
        )
        if not fits:
            raise ValueError(
                f"{self.key}: boxes, labels, scores and attributes do not fit together"
            )
        if not (np.isfinite(self.scores).all() and np.isfinite(self.boxes).all()):
            raise ValueError(f"{self.key}: a detection has a score or a box that is not a number")
        if (self.labels < 0).any():
            raise ValueError(f"{self.key}: a detection has a negative label")


def save_records(path: Path, records: Sequence[FieldRecord]) -> None:
    """Write records as one compressed ``.npz`` without pickle; readers never see half a file.

    Args:
        path: file to write or replace; its folder must exist.
        records: fields that share one number of attributes.
    """
    arrays = {
        "format": np.array(_FORMAT),
        "key": np.array([r.key for r in records], dtype=np.str_),
        "group": np.array([r.group for r in records], dtype=np.str_),
        "truths": np.array([len(r.true_labels) for r in records], dtype=np.int64),
        "found": np.array([len(r.labels) for r in records], dtype=np.int64),
        "true_boxes": _stack([r.true_boxes for r in records], np.float32, 4),
        "true_labels": _stack([r.true_labels[:, None] for r in records], np.int64, 1)[:, 0],
        "true_attributes": _stack([r.true_attributes for r in records], np.int64, 0),
        "boxes": _stack([r.boxes for r in records], np.float32, 4),
        "scores": _stack([r.scores[:, None] for r in records], np.float32, 1)[:, 0],
        "labels": _stack([r.labels[:, None] for r in records], np.int64, 1)[:, 0],
        "attribute_probs": _stack([r.attribute_probs for r in records], np.float32, 0),
        "true_attribute_probs": _stack(
            [
                np.zeros((len(r.true_labels), 0))
                if r.true_attribute_probs is None
                else r.true_attribute_probs
                for r in records
            ],
            np.float32,
            0,
        ),
        "region": _regions(records),
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_records(path: Path) -> list[FieldRecord]:
    """Read what `save_records` wrote.

    A field without boxes comes back with as many attribute columns as the others have. Files of
    before attributes were read at true boxes have None there.

    Raises:
        DataError: the file is of another version of the format.
    """
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    if int(data.get("format", -1)) != _FORMAT:
        raise DataError(f"{path}: not a file of field records of version {_FORMAT}; evaluate again")
    truth_cuts = np.cumsum(data["truths"])[:-1]
    found_cuts = np.cumsum(data["found"])[:-1]
    of_truth: tuple[str, ...] = ("true_boxes", "true_labels", "true_attributes")
    of_found = ("boxes", "scores", "labels", "attribute_probs")
    if data.get("true_attribute_probs", np.zeros((0, 0))).shape[1]:
        of_truth = (*of_truth, "true_attribute_probs")
    columns = {name: np.split(data[name], truth_cuts) for name in of_truth}
    columns |= {name: np.split(data[name], found_cuts) for name in of_found}
    rows = data["region"]
    rows = rows[:, None] if rows.ndim == 2 else rows  # as before there could be several
    sound = [row[~np.isnan(row).any(1)].tolist() for row in rows]
    regions = [tuple(tuple(r) for r in found) or None for found in sound]
    return [
        FieldRecord(
            key=str(key),
            group=str(data["group"][i]),
            regions=regions[i],
            **{name: parts[i] for name, parts in columns.items()},
        )
        for i, key in enumerate(data["key"])
    ]


def _regions(records: Sequence[FieldRecord]) -> NDArray[np.float64]:
    """Return ``(N, R, 4)``, NaN where a field has fewer regions; all NaN is the whole field."""
    most = max((len(r.regions or ()) for r in records), default=0)
    rows = np.full((len(records), max(1, most), 4), np.nan)
    for row, record in zip(rows, records, strict=True):
        row[: len(record.regions or ())] = record.regions or np.zeros((0, 4))
    return rows


def _stack(
    parts: Sequence[NDArray[np.generic]], dtype: type[np.generic], columns: int
) -> NDArray[np.generic]:
    """Stack ``(n, c)`` parts; parts without rows may have any number of columns."""
    columns = max([columns, *(part.shape[1] for part in parts)])
    filled = [part for part in parts if len(part)]
    if not filled:
        return np.zeros((0, columns), dtype)
    return np.concatenate(filled).astype(dtype)
