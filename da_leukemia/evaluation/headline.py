"""The records of a test as a table of what is reported first: AP50, or balanced accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from da_leukemia.evaluation.bootstrap import Resamplable
from da_leukemia.evaluation.classification import ClassTable
from da_leukemia.evaluation.detection import MatchTable
from da_leukemia.evaluation.records import FieldRecord


def headline_table(
    records: Sequence[FieldRecord], metrics: Mapping[str, Any], classes: Sequence[str]
) -> Resamplable:
    """Return records as a table that can be resampled.

    Args:
        records: of a run, or of several tested on the same.
        metrics: of the test in ``result.json``, which say whether single cells were named.
        classes: of the label space.
    """
    labelled = [list(classes).index(name) for name in metrics["per_class"]]
    if "balanced_accuracy" in metrics:
        return ClassTable.build(records, len(classes), labelled)
    return MatchTable.build(records, labelled)
