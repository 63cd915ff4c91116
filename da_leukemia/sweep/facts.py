"""What a job was trained and tested on, so that a result of other data is not taken for its own.

Free of torch: the runner compares before it believes that a job is done, the worker before it goes
on from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from da_leukemia.calibration.record import Calibration
from da_leukemia.config import Data, Job
from da_leukemia.config.origin import file_hash
from da_leukemia.data.devices import Progress, measure_devices
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.few import few_labelled
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.sparse import made_sparse
from da_leukemia.data.splits import Split

TRAINED_ON = "trained_on.json"
"""In a job's folder: `Facts.trained_on` of its checkpoint."""


class Facts:
    """An experiment's data as they are now.

    Attributes:
        indexes: all fields of each device.
        split: their division.
        devices: calibration of each device; empty where none is used.
    """

    def __init__(
        self,
        indexes: Mapping[str, FieldIndex],
        split: Split,
        devices: Mapping[str, Calibration],
    ) -> None:
        self.indexes = indexes
        self.split = split
        self.devices = devices
        self._prints: dict[tuple[str, str, bool], str] = {}
        self._learned: dict[str, FieldIndex] = {}
        self._counts: dict[str, tuple[int, int, str]] = {}

    def learned(self, job: Job, device: str) -> FieldIndex:
        """Return a device of a job's source as the job may know it: see `made_sparse`."""
        settings = job.data.sparse
        if settings.whole or device not in job.seen:
            return self.indexes[device]
        key = f"{device} {settings}"
        if key not in self._learned:
            self._learned[key] = made_sparse(self.indexes[device], self.split, settings)
        return self._learned[key]

    def trained_on(self, job: Job) -> dict[str, Any]:
        """Return what a job learns from, for its result."""
        seen = list(job.seen)
        counts = [self._count(job, name) for name in seen]
        prints = [told for _, _, told in counts]
        if job.checkpoint is not None:  # which stands for all that was learned
            prints = [job.checkpoint.sha256[:16]]
        facts: dict[str, Any] = {
            "fingerprint": prints[0] if len(prints) == 1 else _hash(" ".join(prints)),
            "train_fields": sum(fields for fields, _, _ in counts),
            "train_boxes": sum(boxes for _, boxes, _ in counts),
        }
        if job.target is not None:
            facts["target_fingerprint"] = self._print(job.target, "train", labels=False)
            facts["target_images"] = self._count(job, job.target)[0]
            seen.append(job.target)
            if job.method.target_labels:
                few = few_labelled(
                    self.indexes[job.target], self.split, job.method.target_labels, job.seed
                )
                facts["few_labelled"] = fingerprint(few)
        if job.detector.init_from and Path(job.detector.init_from).is_file():
            facts["init_from"] = file_hash(Path(job.detector.init_from))[:16]
        if job.data.calibration.used:
            told = {name: self.devices[name].to_dict() for name in seen}
            facts["calibration"] = json.loads(json.dumps(told))
        return facts

    def tested_on(self, job: Job, device: str) -> str:
        """Return a fingerprint of what a job is tested on."""
        found = self._print(device, "test", labels=True)
        if not job.data.calibration.used:
            return found
        return _hash(f"{found} {json.dumps(self.devices[device].to_dict())}")

    def _count(self, job: Job, device: str) -> tuple[int, int, str]:
        """Return training fields, their boxes and a fingerprint; once for 20,000 jobs."""
        index = self.learned(job, device)
        key = device if index is self.indexes[device] else f"{device} {job.data.sparse}"
        if key not in self._counts:
            train = self.split.select(index, "train")
            boxes = sum(len(f.labels) for f in train)
            self._counts[key] = (len(train), boxes, fingerprint(train))
        return self._counts[key]

    def _print(self, device: str, part: str, labels: bool) -> str:
        key = (device, part, labels)
        if key not in self._prints:
            self._prints[key] = fingerprint(self.split.select(self.indexes[device], part), labels)
        return self._prints[key]


def read_facts(data: Data, progress: Progress | None = None) -> Facts:
    """Read and divide every device, and measure those that are to be calibrated.

    Args:
        data: settings.
        progress: of the measuring, called with (devices done, devices).

    Raises:
        ConfigError: settings of the data that cannot be.
        DataError: a device that cannot be read.
    """
    indexes, split = read_experiment_data(data)
    return Facts(indexes, split, measure_devices(data, indexes, split, progress))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(fields: Iterable[FieldOfView], labels: bool = True) -> str:
    """Hash the names, image sizes and labels of fields, in an order of their own.

    Of an image its length in bytes counts: reading all of them would take minutes, and times of
    change do not survive a copy.

    Args:
        fields: the fields.
        labels: False for fields of which only the images are used.
    """
    digest = hashlib.sha256()
    for field in sorted(fields, key=lambda f: f.key):
        told = (field.key, field.width, field.height, _bytes(field.image))
        digest.update(repr(told).encode("utf-8", "surrogateescape"))
        if labels:
            digest.update(field.boxes.tobytes() + field.labels.tobytes())
            digest.update(field.attributes.tobytes())
            regions = field.annotated_regions
            # One region is told as it was before there could be several.
            patch = regions[0] if regions is not None and len(regions) == 1 else regions
            digest.update(repr((field.labelled_classes, patch)).encode())
    return digest.hexdigest()[:16]


def _bytes(image: Path) -> int:
    try:
        return image.stat().st_size
    except OSError:
        return -1
