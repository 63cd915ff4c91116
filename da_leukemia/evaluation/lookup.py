"""Attributes guessed from the cell type alone: what an attribute head must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from da_leukemia.evaluation.records import IntArray
from da_leukemia.labels import LabelSpace


@dataclass(frozen=True)
class ClassLookup:
    """The most frequent value of each attribute, by cell type.

    Attributes:
        table: ``(K, A)`` code per class.
        overall: ``(A,)`` code for a class that training never showed.
    """

    table: IntArray
    overall: IntArray

    def predict(self, labels: IntArray) -> IntArray:
        """Return ``(D, A)`` codes for ``(D,)`` labels; an unknown type (-1) gets ``overall``."""
        known = (labels >= 0) & (labels < len(self.table))
        return np.where(known[:, None], self.table[np.where(known, labels, 0)], self.overall)

    def to_dict(self, space: LabelSpace) -> dict[str, Any]:
        """Return it by name, for ``result.json``."""

        def spell(codes: IntArray) -> dict[str, str]:
            return {
                a.name: a.values[code]
                for a, code in zip(space.attributes, codes.tolist(), strict=True)
            }

        rows = self.predict(np.arange(len(space.classes)))
        return {
            "overall": spell(self.overall),
            "classes": {name: spell(row) for name, row in zip(space.classes, rows, strict=True)},
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any] | None, space: LabelSpace) -> ClassLookup:
        """Read what `to_dict` wrote; None, of a space without attributes, gives an empty one."""

        def codes(values: Mapping[str, str]) -> list[int]:
            return [a.values.index(values[a.name]) for a in space.attributes]

        if told is None:
            return cls(np.zeros((len(space.classes), 0), np.int64), np.zeros(0, np.int64))
        table = [codes(told["classes"][name]) for name in space.classes]
        return cls(np.array(table, np.int64), np.array(codes(told["overall"]), np.int64))


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
