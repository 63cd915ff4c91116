"""Morphological attributes of the cells that were found, and of all cells (strict evaluation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.matching import inside_region, match
from da_leukemia.evaluation.records import FieldRecord, IntArray
from da_leukemia.labels import LabelSpace

MATCH_IOU = 0.5

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class AttributeScore:
    """Scores of one attribute; NaN where no cell carries it.

    Attributes:
        f1: macro-F1 over the values that occur among the found cells.
        balanced_accuracy: mean recall over the same values.
        f1_end_to_end: macro-F1 over all cells, see `AttributeTable`.
        truths: number of cells whose value is known.
        found: how many of them were found.
    """

    f1: float
    balanced_accuracy: float
    f1_end_to_end: float
    truths: int
    found: int


@dataclass(frozen=True)
class AttributeScores:
    """Means over the attributes that have a score, and each attribute by name."""

    attribute_f1: float
    attribute_balanced_accuracy: float
    end_to_end: float
    per_attribute: Mapping[str, AttributeScore]


@dataclass(frozen=True)
class ClassLookup:
    """The most frequent value of each attribute, by cell type: what a detector must beat.

    Attributes:
        table: ``(K, A)`` code per class.
        overall: ``(A,)`` code for a class that training never showed.
    """

    table: IntArray
    overall: IntArray

    def predict(self, labels: IntArray) -> IntArray:
        """Return ``(D, A)`` codes for ``(D,)`` predicted labels."""
        known = (labels >= 0) & (labels < len(self.table))
        return np.where(known[:, None], self.table[np.where(known, labels, 0)], self.overall)


def fit_lookup(labels: IntArray, attributes: IntArray) -> ClassLookup:
    """Learn the most frequent value of each attribute for each cell type.

    Of equally frequent values the smallest code is taken. A class without a known value gets
    the most frequent one over all cells, an attribute without any gets 0.

    Args:
        labels: ``(N,)`` true classes in training, -1 for unknown.
        attributes: ``(N, A)`` true codes in training, -1 where missing.
    """
    values = attributes.max(initial=0) + 1
    one_hot = (attributes[..., None] == np.arange(values)).astype(np.int64)
    overall = one_hot.sum(axis=0).argmax(axis=-1)
    counts = np.zeros((max(labels.max(initial=-1) + 1, 1), *one_hot.shape[1:]), dtype=np.int64)
    np.add.at(counts, labels[labels >= 0], one_hot[labels >= 0])
    table = np.where(counts.any(axis=-1), counts.argmax(axis=-1), overall)
    return ClassLookup(table, overall)


@dataclass(frozen=True)
class AttributeTable:
    """Confusion counts by field, so that scores can be recomputed for resampled fields.

    Detections are matched one to one to true boxes by falling score at IoU >= 0.5, whatever the
    classes; cells of unknown *type* take part, for their attributes may be known.

    *On found cells*: only matched cells whose value is known. *End to end*: every cell whose
    value is known; a cell that was not found counts as a wrong answer of its true value (a
    false negative of that value, a false positive of none). Detections that match no cell have
    no attribute to be wrong about and are left to AP. Macro means are over values that occur in
    the truth concerned; a wrong prediction of another value costs through the true one.

    Attributes:
        groups: group of each of the F fields.
        names: names of the A attributes.
        counts: ``(F, A, V, V + 1)`` cells by true value and predicted value, V the greatest
            number of values; the last column holds cells that were not found.
    """

    groups: Sequence[str]
    names: Sequence[str]
    counts: IntArray

    @classmethod
    def build(
        cls,
        records: Sequence[FieldRecord],
        space: LabelSpace,
        lookup: ClassLookup | None = None,
    ) -> AttributeTable | None:
        """Match and count.

        Args:
            records: fields.
            space: label space of the records.
            lookup: predict from the detected class instead of from ``attribute_probs``.

        Returns:
            None where the space, the truth or (without ``lookup``) the detector has no attributes.

        Raises:
            ValueError: attributes do not fit the label space.
        """
        fields = [inside_region(record) for record in records]
        width = len(space.attributes)
        truth = _rows([f.true_attributes for f in fields], width, "true_attributes")
        if not (truth >= 0).any():
            return None
        if (truth >= np.array(space.attribute_sizes)).any():
            raise ValueError(f"true_attributes: a code is not in label space {space.name}")
        if lookup is not None:
            predictions = [lookup.predict(f.labels) for f in fields]
        elif all(f.attribute_probs.shape[1] == 0 for f in fields):
            return None
        else:
            predictions = [_most_likely(f, space) for f in fields]
        matches = match(fields, [MATCH_IOU], by_class=False)
        hit = matches.truth[0] >= 0
        values = max(space.attribute_sizes)
        answer = np.full(truth.shape, values, dtype=np.int64)
        answer[matches.truth[0, hit]] = _rows(predictions, width, "attributes")[
            matches.detection[hit]
        ]
        shape = (len(fields), width, values, values + 1)
        field = np.repeat(np.arange(len(fields)), [len(f.true_labels) for f in fields])
        cell, attribute = np.nonzero(truth >= 0)
        place = (field[cell], attribute, truth[cell, attribute], answer[cell, attribute])
        flat = np.ravel_multi_index(place, shape)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        return cls(tuple(f.group for f in fields), tuple(a.name for a in space.attributes), counts)

    def statistic(self, weights: IntArray) -> dict[str, float]:
        """Return the three headline scores when field f counts ``weights[f]`` times."""
        counts = np.tensordot(weights, self.counts, axes=1)
        f1, balanced = _macro(counts[..., :-1], 0)
        strict, _ = _macro(counts[..., :-1], counts[..., -1])
        return {
            "attribute_f1": _mean(f1),
            "attribute_balanced_accuracy": _mean(balanced),
            "attribute_f1_end_to_end": _mean(strict),
        }

    def scores(self) -> AttributeScores:
        """Return all scores over the fields as they are."""
        counts = self.counts.sum(axis=0)
        f1, balanced = _macro(counts[..., :-1], 0)
        strict, _ = _macro(counts[..., :-1], counts[..., -1])
        found = counts[..., :-1].sum(axis=(1, 2))
        truths = counts.sum(axis=(1, 2))
        per_attribute = {
            name: AttributeScore(
                float(f1[a]), float(balanced[a]), float(strict[a]), int(truths[a]), int(found[a])
            )
            for a, name in enumerate(self.names)
        }
        return AttributeScores(_mean(f1), _mean(balanced), _mean(strict), per_attribute)


def attribute_metrics(
    records: Sequence[FieldRecord], space: LabelSpace, lookup: ClassLookup | None = None
) -> AttributeScores | None:
    """Score attributes as `AttributeTable` defines; None where there are none to score."""
    table = AttributeTable.build(records, space, lookup)
    return None if table is None else table.scores()


def _rows(parts: Sequence[IntArray], width: int, what: str) -> IntArray:
    """Concatenate ``(n, A)`` parts; a field or a data set without attributes counts as missing."""
    if any(part.shape[1] not in (0, width) for part in parts):
        raise ValueError(f"{what}: expected {width} columns, one per attribute of the label space")
    return np.concatenate(
        [np.zeros((0, width), np.int64)]
        + [p if p.shape[1] == width else np.full((len(p), width), -1) for p in parts]
    )


def _most_likely(record: FieldRecord, space: LabelSpace) -> IntArray:
    """Return ``(D, A)`` codes from the probabilities of each attribute."""
    if not len(record.labels):
        return np.zeros((0, len(space.attributes)), np.int64)
    if record.attribute_probs.shape[1] != sum(space.attribute_sizes):
        raise ValueError(
            f"{record.key}: attribute_probs has {record.attribute_probs.shape[1]} columns, "
            f"label space {space.name} has {sum(space.attribute_sizes)} values"
        )
    cuts = np.cumsum(space.attribute_sizes)[:-1]
    parts = np.split(record.attribute_probs, cuts, axis=1)
    return np.stack([part.argmax(axis=1) for part in parts], axis=1)


def _macro(confusion: IntArray, missed: IntArray | int) -> tuple[Float64Array, Float64Array]:
    """Return ``(A,)`` macro-F1 and balanced accuracy of ``(A, V, V)`` counts, NaN without truth."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    truth = confusion.sum(axis=2) + missed
    predicted = confusion.sum(axis=1)
    present = truth > 0
    values = present.sum(axis=1)
    f1 = np.where(present, 2 * right / np.maximum(truth + predicted, 1), 0.0).sum(axis=1)
    recall = np.where(present, right / np.maximum(truth, 1), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return f1 / values, recall / values


def _mean(values: Float64Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
