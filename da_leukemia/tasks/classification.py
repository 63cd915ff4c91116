"""`CellClassification`: training and testing of a classifier of single cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.classification import ClassTable
from da_leukemia.models.classifier import CellClassifier
from da_leukemia.tasks.detection import DetectionTask
from da_leukemia.tasks.testing import cell_records, named


class CellClassification(DetectionTask):
    """Trains a `CellClassifier` as `DetectionTask` trains a detector; tests it cell by cell.

    The steps, views, components, twins and the average of weights are those of the detector: a
    cell is a field with one box. Only what is asked at a test differs.
    """

    def know(self, fields: Sequence[FieldOfView]) -> None:
        """Count the classes of the training cells, for the loss and for what can be named at all.

        Args:
            fields: all cells that are learned from with their labels.
        """
        own = np.array([int(f.labels[0]) for f in fields if len(f.labels)], np.int64)
        counts = np.bincount(own[own >= 0], minlength=self.detector.classes)
        for network in (self.detector, *((self.ema.network,) if self.ema is not None else ())):
            cast(CellClassifier, network).know(torch.from_numpy(counts))

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.tested.eval()

    def validation_step(self, batch: UnlabelledBatch, batch_idx: int) -> None:
        """Name the source's validation cells."""
        del batch_idx
        self._seen.append(named(cast(CellClassifier, self.tested), batch))

    def on_validation_epoch_end(self) -> None:
        """Score them."""
        assert self.validation is not None
        fields = self.validation.fields
        records = cell_records(fields, *(torch.cat(a) for a in zip(*self._seen, strict=True)))
        labelled = sorted({c for field in fields for c in field.labelled_classes})
        table = ClassTable.build(records, self.detector.classes, labelled)
        for name, value in table.statistic(np.ones(len(table.groups), np.int64)).items():
            if not np.isnan(value):
                self.log(f"val/{name}", value)
