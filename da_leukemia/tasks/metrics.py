"""The evaluation as a torchmetrics metric, for use inside a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric

from da_leukemia.evaluation import evaluate
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace


class FieldMetric(Metric):
    """Collects `FieldRecord`s and scores them all at once, as `evaluate` does.

    Records are numpy arrays of unequal length, so they are kept beside torchmetrics' tensor states
    and are not gathered over processes: a job tests on one device.

    Args:
        space: label space of the records.
        labelled: class indices that the domain labels.
    """

    full_state_update = False

    def __init__(self, space: LabelSpace, labelled: Sequence[int]) -> None:
        super().__init__()
        self.space = space
        self.labelled = tuple(labelled)
        self.records: list[FieldRecord] = []

    def update(self, records: Sequence[FieldRecord]) -> None:
        """Add the records of a batch."""
        self.records += records

    def compute(self) -> dict[str, Any]:
        """Return the scores, None where there is nothing to score (see `evaluate`)."""
        return evaluate(self.records, self.space, self.labelled)

    def reset(self) -> None:
        """Forget every record."""
        super().reset()
        self.records = []
