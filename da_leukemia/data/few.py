"""The few labelled fields of a target that few-shot training may learn from. Free of torch."""

from __future__ import annotations

import numpy as np

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.splits import Split
from da_leukemia.errors import DataError, counted


def few_labelled(index: FieldIndex, split: Split, count: int, seed: int) -> list[FieldOfView]:
    """Choose labelled training fields at random, the same ones in every run of a seed.

    A larger count adds fields to those of a smaller one. Only the labels of fields that are chosen
    are looked at: what the others hold changes nothing, so a chosen field may hold no cell.

    Args:
        index: all fields of the target.
        split: division into parts.
        count: number of fields.
        seed: of the choice.

    Raises:
        DataError: there are fewer.
    """
    fields = sorted(split.select(index, "train").fields, key=lambda f: f.key)
    if len(fields) < count:
        raise DataError(
            f"{index.domain}: {counted(len(fields), 'training field')}, but target_labels asks for "
            f"{count}; take a smaller number"
        )
    order = np.random.default_rng((seed, 0xFE3)).permutation(len(fields))
    return [fields[i] for i in order[:count]]
