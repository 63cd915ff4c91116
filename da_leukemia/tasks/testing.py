"""What a network answers on fields: the same at a test, on the validation fields, and in use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.models.base import AnyDetector
from da_leukemia.models.classifier import CellClassifier
from da_leukemia.tasks.joining import Join


def network_input(batch: UnlabelledBatch) -> Tensor:
    """Return the images of a batch as a network takes them: ``(B, 3, S, S)``, 0 to 1."""
    return batch.images.float().div(255).contiguous(memory_format=torch.channels_last)


def answers(
    network: AnyDetector,
    batches: Iterable[UnlabelledBatch],
    data: FieldDataset,
    device: torch.device | str,
) -> list[FieldRecord]:
    """Return what a network finds on a data set: a record of each field, in its order.

    Boxes are in pixels of the stored images. A classifier's record is of a cell: a detection of
    every class that has any probability, all of the whole picture.

    Args:
        network: in eval mode, on ``device``.
        batches: the windows of ``data`` in their order (see `FieldDataset.searches`).
        data: the data set.
        device: to compute on.
    """
    if isinstance(network, CellClassifier):
        given = [named(network, batch.to(device)) for batch in batches]
        return cell_records(data.fields, *(torch.cat(a) for a in zip(*given, strict=True)))
    join = Join(data, network.max_detections)
    for batch in batches:
        detect(network, batch.to(device), data, join)
    return join.finish()


@torch.no_grad()
def detect(network: AnyDetector, batch: UnlabelledBatch, data: FieldDataset, join: Join) -> None:
    """Detect in windows of ``data``, and read the attributes at the true boxes beside it."""
    numbers = batch.index.tolist()
    outputs = network(network_input(batch))
    logits = network.attributes_at(outputs, data.true_boxes(numbers).to(batch.images.device))
    asked = None
    if logits.shape[-1]:
        assert network.attributes is not None
        asked = network.attributes.probabilities(logits)
    join.add(network.decode(outputs), numbers, asked)


@torch.no_grad()
def named(network: CellClassifier, batch: UnlabelledBatch) -> tuple[Tensor, Tensor]:
    """Return the probabilities of classes ``(B, C)`` and of attributes ``(B, S)`` of cells."""
    images = network_input(batch)
    outputs = network(images)
    classes = network.probabilities(outputs)
    if network.attributes is None:
        return classes, classes[:, :0]
    logits = network.attributes_at(outputs, images.new_zeros(len(images), 1, 4))
    return classes, network.attributes.probabilities(logits)[:, 0]


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
