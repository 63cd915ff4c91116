"""Morphological attributes of the cells that were found, and of all cells (strict evaluation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.lookup import ClassLookup
from da_leukemia.evaluation.matching import inside_region, match
from da_leukemia.evaluation.records import FieldRecord, FloatArray, IntArray
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
        balanced_accuracy_end_to_end: the same for the mean recall.
        truths: number of cells whose value is known.
        found: how many of them were found.
        values: number of values that occur among ``truths``; with one, the truth is constant and
            any detector that always says so is perfect.
    """

    f1: float
    balanced_accuracy: float
    f1_end_to_end: float
    balanced_accuracy_end_to_end: float
    truths: int
    found: int
    values: int


@dataclass(frozen=True)
class AttributeScores:
    """Means over the attributes that have a score, and each attribute by name.

    An attribute without a known cell has no score and no part in a mean: it can be neither right
    nor wrong. ``per_attribute`` tells which these are.
    """

    attribute_f1: float
    attribute_balanced_accuracy: float
    end_to_end: float
    balanced_accuracy_end_to_end: float
    per_attribute: Mapping[str, AttributeScore]


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

    An attribute that the detector has no answer to on any of the fields (see `answered`) has no
    score, neither the detector's nor the lookup's.

    *On true boxes* (``given_boxes``): nothing is matched, for the detector was asked to read the
    attributes at the true boxes; every cell counts as found.

    Attributes:
        groups: group of each of the F fields.
        names: names of the A attributes.
        counts: ``(F, A, V, V + 1)`` cells by true value and predicted value, V the greatest
            number of values; the last column holds cells that were not found.
        given_boxes: whether the attributes were read at the true boxes.
    """

    groups: Sequence[str]
    names: Sequence[str]
    counts: IntArray
    given_boxes: bool = False

    @classmethod
    def build(
        cls,
        records: Sequence[FieldRecord],
        space: LabelSpace,
        lookup: ClassLookup | None = None,
        *,
        given_boxes: bool = False,
    ) -> AttributeTable | None:
        """Match and count.

        Args:
            records: fields.
            space: label space of the records.
            lookup: predict from the detected class instead of from ``attribute_probs``; on true
                boxes from the true class, as no class was detected there.
            given_boxes: score what was read at the true boxes.

        Returns:
            None where the space, the truth or (without ``lookup``) the detector has no attributes,
            or was not asked to read them at the true boxes.

        Raises:
            ValueError: attributes do not fit the label space.
        """
        fields = [inside_region(record) for record in records]
        width = len(space.attributes)
        truth = attribute_rows([f.true_attributes for f in fields], width, "true_attributes")
        if not (truth >= 0).any():
            return None
        if (truth >= np.array(space.attribute_sizes)).any():
            raise ValueError(f"true_attributes: a code is not in label space {space.name}")
        values = max(space.attribute_sizes)
        labels = [f.true_labels if given_boxes else f.labels for f in fields]
        probabilities = [read_attributes(f, given_boxes) for f in fields]
        truth = np.where(answered(probabilities, space), truth, -1)
        if not (truth >= 0).any():
            return None
        if lookup is not None:
            predictions = [lookup.predict(found) for found in labels]
        elif all(p.shape[1] == 0 for p in probabilities):
            return None
        else:
            predictions = [
                _most_likely(f.key, p, space) for f, p in zip(fields, probabilities, strict=True)
            ]
        answer = attribute_rows(predictions, width, "attributes")
        if not given_boxes:
            matches = match(fields, [MATCH_IOU], by_class=False)
            hit = matches.truth[0] >= 0
            said, answer = answer, np.full(truth.shape, values, dtype=np.int64)
            answer[matches.truth[0, hit]] = said[matches.detection[hit]]
        shape = (len(fields), width, values, values + 1)
        field = np.repeat(np.arange(len(fields)), [len(f.true_labels) for f in fields])
        cell, attribute = np.nonzero(truth >= 0)
        place = (field[cell], attribute, truth[cell, attribute], answer[cell, attribute])
        flat = np.ravel_multi_index(place, shape)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        names = tuple(a.name for a in space.attributes)
        return cls(tuple(f.group for f in fields), names, counts, given_boxes)

    def statistic(self, weights: IntArray) -> dict[str, float]:
        """Return the headline scores when field f counts ``weights[f]`` times."""
        counts = np.tensordot(weights, self.counts, axes=1)
        f1, balanced = _macro(counts[..., :-1], 0)
        if self.given_boxes:
            return {
                "attribute_f1_true_boxes": _mean(f1),
                "attribute_balanced_accuracy_true_boxes": _mean(balanced),
            }
        strict, strict_balanced = _macro(counts[..., :-1], counts[..., -1])
        return {
            "attribute_f1": _mean(f1),
            "attribute_balanced_accuracy": _mean(balanced),
            "attribute_f1_end_to_end": _mean(strict),
            "attribute_balanced_accuracy_end_to_end": _mean(strict_balanced),
        }

    def scores(self) -> AttributeScores:
        """Return all scores over the fields as they are."""
        counts = self.counts.sum(axis=0)
        f1, balanced = _macro(counts[..., :-1], 0)
        strict, strict_balanced = _macro(counts[..., :-1], counts[..., -1])
        by_value = counts.sum(axis=2)
        per_attribute = {
            name: AttributeScore(
                f1=float(f1[a]),
                balanced_accuracy=float(balanced[a]),
                f1_end_to_end=float(strict[a]),
                balanced_accuracy_end_to_end=float(strict_balanced[a]),
                truths=int(by_value[a].sum()),
                found=int(counts[a, :, :-1].sum()),
                values=int((by_value[a] > 0).sum()),
            )
            for a, name in enumerate(self.names)
        }
        return AttributeScores(
            attribute_f1=_mean(f1),
            attribute_balanced_accuracy=_mean(balanced),
            end_to_end=_mean(strict),
            balanced_accuracy_end_to_end=_mean(strict_balanced),
            per_attribute=per_attribute,
        )


def attribute_metrics(
    records: Sequence[FieldRecord],
    space: LabelSpace,
    lookup: ClassLookup | None = None,
    *,
    given_boxes: bool = False,
) -> AttributeScores | None:
    """Score attributes as `AttributeTable` defines; None where there are none to score."""
    table = AttributeTable.build(records, space, lookup, given_boxes=given_boxes)
    return None if table is None else table.scores()


def read_attributes(record: FieldRecord, given_boxes: bool = False) -> FloatArray:
    """Return the probabilities at the detections or at the true boxes, ``(n, S)`` or ``(n, 0)``."""
    if not given_boxes:
        return record.attribute_probs
    if record.true_attribute_probs is None:
        return np.zeros((len(record.true_labels), 0), np.float32)
    return record.true_attribute_probs


def attribute_rows(parts: Sequence[IntArray], width: int, what: str) -> IntArray:
    """Concatenate ``(n, A)`` parts; a field or a data set without attributes counts as missing."""
    if any(part.shape[1] not in (0, width) for part in parts):
        raise ValueError(f"{what}: expected {width} columns, one per attribute of the label space")
    return np.concatenate(
        [np.zeros((0, width), np.int64)]
        + [p if p.shape[1] == width else np.full((len(p), width), -1) for p in parts]
    )


def split_attributes(key: str, probabilities: FloatArray, space: LabelSpace) -> list[FloatArray]:
    """Return the ``(n, V)`` probabilities of each attribute.

    Raises:
        ValueError: the columns are not those of the label space.
    """
    if probabilities.shape[1] != sum(space.attribute_sizes):
        raise ValueError(
            f"{key}: attribute_probs has {probabilities.shape[1]} columns, "
            f"label space {space.name} has {sum(space.attribute_sizes)} values"
        )
    return np.split(probabilities, np.cumsum(space.attribute_sizes)[:-1], axis=1)


def answered(probabilities: Sequence[FloatArray], space: LabelSpace) -> NDArray[np.bool_]:
    """Return ``(A,)``: which attributes a detector has an answer to.

    Where it has none, the probability of every value is 0 (`AttributeHead.probabilities`): the
    head does not read the attribute, or training did not tell its values apart.

    Args:
        probabilities: ``(n, S)`` of each field; without any the question is open, and all count.
        space: label space of the columns.
    """
    said = [p for p in probabilities if p.shape[1] and len(p)]
    if not said:
        return np.ones(len(space.attributes), dtype=np.bool_)
    highest = np.stack([p.max(axis=0) for p in said]).max(axis=0)[None]
    parts = split_attributes("records", highest, space)
    return np.array([part.max() > 0 for part in parts], dtype=np.bool_)


def _most_likely(key: str, probabilities: FloatArray, space: LabelSpace) -> IntArray:
    """Return ``(n, A)`` codes from the probabilities of each attribute."""
    if not len(probabilities):
        return np.zeros((0, len(space.attributes)), np.int64)
    parts = split_attributes(key, probabilities, space)
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
