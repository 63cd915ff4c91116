"""What the training labels of a source say of each attribute, counted before it is learned."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from da_leukemia.data.fields import FieldOfView, IntArray
from da_leukemia.data.sparse import learned
from da_leukemia.errors import counted
from da_leukemia.labels import LabelSpace


def attribute_counts(fields: Iterable[FieldOfView], space: LabelSpace) -> IntArray:
    """Return ``(A, V)`` cells of known type by attribute and value: what a head learns from.

    A box outside the annotated patches is not learned, and not counted.
    """
    taught = [f.attributes[(f.labels >= 0) & learned(f)] for f in fields]
    codes = np.concatenate([np.zeros((0, len(space.attributes)), np.int64), *taught])
    values = np.arange(max(space.attribute_sizes, default=0))
    counts: IntArray = (codes[..., None] == values).sum(axis=0)
    return counts


def constant_attributes(counts: IntArray, space: LabelSpace) -> list[str]:
    """Say which attributes have the same value on all cells, as ``attribute: all 12 cells value``.

    Args:
        counts: of `attribute_counts`.
        space: label space of the counts.
    """
    return [
        f"{attribute.name}: all {counted(int(row.sum()), 'cell')} {attribute.values[row.argmax()]}"
        for attribute, row in zip(space.attributes, counts, strict=True)
        if (row > 0).sum() == 1
    ]
