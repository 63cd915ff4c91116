"""`CellClassification`: training and testing of a classifier of single cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.classification import ClassTable
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.models.classifier import CellClassifier
from da_leukemia.tasks.detection import DetectionTask


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

    @torch.no_grad()
    def _answers(self, batch: UnlabelledBatch) -> tuple[Tensor, Tensor]:
        """Return the probabilities of classes ``(B, C)`` and of attributes ``(B, S)``."""
        network = cast(CellClassifier, self.tested)
        images = batch.images.float().div(255).contiguous(memory_format=torch.channels_last)
        outputs = network(images)
        classes = network.probabilities(outputs)
        if network.attributes is None:
            return classes, classes[:, :0]
        logits = network.attributes_at(outputs, images.new_zeros(len(images), 1, 4))
        return classes, network.attributes.probabilities(logits)[:, 0]

    def predict_fields(
        self, batches: Iterable[UnlabelledBatch], data: FieldDataset
    ) -> list[FieldRecord]:
        """Name every cell of a data set.

        Args:
            batches: its images in order (see `FieldDataset.searches`).
            data: the data set.

        Returns:
            A record of each cell: a detection of every class that has any probability, all of the
            whole picture, and its attributes as read at the true box.
        """
        answers = [self._answers(batch.to(self.device)) for batch in batches]
        return cell_records(data.fields, *(torch.cat(a) for a in zip(*answers, strict=True)))

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.tested.eval()

    def validation_step(self, batch: UnlabelledBatch, batch_idx: int) -> None:
        """Name the source's validation cells."""
        del batch_idx
        self._seen.append(self._answers(batch))

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


def cell_records(
    fields: Sequence[FieldOfView], classes: Tensor, attributes: Tensor
) -> list[FieldRecord]:
    """Return answers as records.

    Args:
        fields: single cells.
        classes: ``(N, C)`` probabilities.
        attributes: ``(N, S)`` probabilities; ``S = 0`` without attributes.
    """
    said, read = classes.float().cpu().numpy(), attributes.float().cpu().numpy()
    records = []
    for field, probabilities, values in zip(fields, said, read, strict=True):
        named = np.flatnonzero(probabilities > 0)
        whole = np.array([0, 0, field.width, field.height], np.float32)
        records.append(
            FieldRecord(
                key=field.key,
                group=field.group,
                true_boxes=field.boxes,
                true_labels=field.labels,
                true_attributes=field.attributes,
                boxes=np.tile(whole, (len(named), 1)),
                scores=probabilities[named],
                labels=named.astype(np.int64),
                attribute_probs=np.zeros((len(named), 0), np.float32),
                true_attribute_probs=np.tile(values, (len(field.labels), 1))
                if len(values)
                else None,
            )
        )
    return records
