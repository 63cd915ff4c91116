"""Which fields a job reads, and its detections on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from da_leukemia.config import Job
from da_leukemia.config.origin import Origin
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.images import Store
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.sparse import learned
from da_leukemia.errors import DataError
from da_leukemia.evaluation import ClassLookup, evaluate, fit_lookup
from da_leukemia.evaluation.classification import evaluate_cells
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace, get_label_space
from da_leukemia.sweep.facts import Facts
from da_leukemia.tasks.detection import DetectionTask


@dataclass(frozen=True)
class Fields:
    """What a job reads its fields with; ``origin`` where its source is a checkpoint."""

    job: Job
    facts: Facts
    prepared: Mapping[str, Preparation]
    store: Store
    origin: Origin | None = None

    @property
    def source_classes(self) -> tuple[int, ...]:
        """The classes that the source labels."""
        if self.origin is not None:
            return tuple(sorted(self.space.classes.index(c) for c in self.origin.classes))
        return self.labelled(*self.job.seen)

    @cached_property
    def source_cells(self) -> dict[str, int] | None:
        """Labelled training cells of the source by class, None where nobody counted."""
        if self.origin is not None:
            return self.origin.cells
        fields = [f for device in self.job.seen for f in self.part(device, "train").fields]
        cells = np.concatenate([f.labels for f in fields])
        return {name: int((cells == i).sum()) for i, name in enumerate(self.space.classes)}

    @property
    def space(self) -> LabelSpace:
        """The job's label space."""
        return get_label_space(self.job.data.label_space)

    def part(self, device: str, part: str) -> FieldDataset:
        """Return a part of a device; what the job learns from, as sparse as it may know it."""
        fields = list(self.facts.split.select(self.facts.learned(self.job, device), part))
        return FieldDataset(fields, self.space, self.prepared[device], self.store)

    def unlabelled(self, device: str) -> FieldDataset:
        """Return a device's training fields without their labels."""
        return self.part(device, "train").without_labels()

    def labelled(self, *devices: str) -> tuple[int, ...]:
        """Return the classes that devices label in any of their fields."""
        fields = [f for device in devices for f in self.facts.indexes[device]]
        return tuple(sorted({c for f in fields for c in f.labelled_classes}))

    @cached_property
    def lookup(self) -> ClassLookup:
        """Attributes by cell type, from the training labels of the source or sources."""
        if self.origin is not None:
            return ClassLookup.from_dict(self.origin.lookup, self.space)
        indexes = [self.facts.learned(self.job, name) for name in self.job.seen]
        seen = [f for index in indexes for f in self.facts.split.select(index, "train")]
        return fit_lookup(
            np.concatenate([f.labels[learned(f)] for f in seen]),
            np.concatenate([f.attributes[learned(f)] for f in seen]),
        )


def predict_domain(
    task: DetectionTask, fields: Fields, domain: str, part: str = "test"
) -> list[FieldRecord]:
    """Detect on every field of a part of a device."""
    data = fields.part(domain, part)
    if not len(data):
        raise DataError(no_test_field(domain))
    with prepared_for(task, fields, domain):
        return task.predict_fields(data.searches(fields.job.trainer.batch_size), data)


def no_test_field(domain: str) -> str:
    """Say that the split leaves nothing of a device to test on."""
    return (
        f"{domain}: no field to test on; see data.split. To look at all photographs of a folder: "
        "`da-leukemia predict`"
    )


def predict_unlabelled(task: DetectionTask, fields: Fields, domain: str) -> list[FieldRecord]:
    """Detect on a device that nothing is scored on: its test fields, or else those adapted to.

    Labels that it may have all the same are in no record.
    """
    data = fields.part(domain, "test").without_labels()
    if not len(data):
        data = fields.unlabelled(domain)
    with prepared_for(task, fields, domain):
        return task.predict_fields(data.searches(fields.job.trainer.batch_size), data)


def evaluate_domain(records: Sequence[FieldRecord], fields: Fields, domain: str) -> dict[str, Any]:
    """Score the records of a device as its task asks, for ``result.json``."""
    labelled = fields.labelled(domain)
    if fields.job.detector.kind == "classifier":
        return evaluate_cells(records, fields.space, labelled, fields.lookup)
    return evaluate(records, fields.space, labelled, fields.lookup)


@contextlib.contextmanager
def prepared_for(task: DetectionTask, fields: Fields, domain: str) -> Iterator[None]:
    """Within, the task detects on a device as it is tested there.

    On the device that the job adapted to, with what its components make of the finished network
    and that device's unlabelled training images (see `DetectionTask.finished`).
    """
    trainer = fields.job.trainer
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    task.eval().to("cuda" if on_gpu else "cpu")
    if domain == fields.job.target and task.finishes:
        seen = fields.part(domain, "train")
        with task.finished(lambda: seen.searches(trainer.batch_size, shuffled=True)):
            yield
    else:
        yield
