"""A trained detector on photographs that belong to no experiment: all that a checkpoint needs.

The photographs are prepared as those of a test device are: where the detector was trained with
calibrated images, their device is measured from themselves first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from da_leukemia import config
from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.fields import find_images
from da_leukemia.calibration.record import Calibration
from da_leukemia.config.files import read_as
from da_leukemia.config.origin import AT_TEST, Origin, read_origin
from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import Memory, read_image
from da_leukemia.data.integrity import whole
from da_leukemia.data.preparation import Preparation, preparations
from da_leukemia.data.readers.assemble import assemble, bare_fields
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import DataError, UserError
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace, get_label_space
from da_leukemia.models.factory import build_detector, load_weights
from da_leukemia.tasks.testing import answers

Progress = Callable[[int, int], None]

WINDOWS = 16
"""Parts of photographs that are looked at side by side."""

_SOURCE = "/source"
"""Stands for the device that the detector learned from; no folder is called so."""


@dataclass(frozen=True)
class Prediction:
    """What a detector found.

    Attributes:
        device: name of the photographs' device: of their folder.
        fields: the photographs, in the order of their names.
        records: what was found on each.
        space: label space of the records.
        single_cells: the photographs are of single cells, and each was named.
        notes: what a user should know: photographs left out, a scale that is unknown.
    """

    device: str
    fields: Sequence[FieldOfView]
    records: Sequence[FieldRecord]
    space: LabelSpace
    single_cells: bool
    notes: tuple[str, ...]


def predict(
    checkpoint: Path,
    photographs: Path,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Detect on every photograph of a folder.

    Args:
        checkpoint: ``last.ckpt`` of a finished job, or the job's folder.
        photographs: a folder, with all that is below it, or one photograph.
        calibration: of their device; by default measured from them, where it is used at all.
        progress: called with (parts of photographs done, all).

    Raises:
        UserError: no checkpoint of ours, or one that is nothing without its device's training
            images; no photograph that can be read.
    """
    path = _weights(checkpoint)
    origin = read_origin(path, "CHECKPOINT")
    _refuse_unfinished(path)
    space = get_label_space(origin.label_space)
    device, fields, left_out = _read(photographs, space)
    how, doubts = _prepared(origin, device, fields, calibration)
    settings = read_as(config.Detector, origin.detector)
    settings = dataclasses.replace(settings, pretrained=False, init_from=None)
    network = build_detector(settings, space, origin.image_size)
    load_weights(network, path, "CHECKPOINT", whole=True)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    network.eval().to(place).to(memory_format=torch.channels_last)
    data = FieldDataset(fields, space, how, Memory(0))

    def batches() -> Iterator[UnlabelledBatch]:
        for batch in data.searches(WINDOWS):
            yield batch
            if progress is not None:
                progress(int(batch.index[-1]) + 1, len(data.windows))

    records = answers(network, batches(), data, place)
    single = settings.kind == "classifier"
    return Prediction(device, fields, records, space, single, (*left_out, *doubts))


def _weights(given: Path) -> Path:
    """Return the checkpoint's file, of a job's folder the one in it."""
    path = given / "checkpoints" / "last.ckpt" if given.is_dir() else given
    if not path.is_file():
        what = "no checkpoints/last.ckpt in this folder" if given.is_dir() else "no such file"
        raise UserError(
            f"{given}: {what}; expected a finished job's folder (runs/NAME/jobs/HASH) or the "
            "last.ckpt in it"
        )
    return path


def _refuse_unfinished(path: Path) -> None:
    """Refuse the detector of a job that changes it at every test: the file holds it before that."""
    changed = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(AT_TEST)
    if changed:
        raise UserError(
            f"{path}: {', '.join(changed)} changes the detector at every test, with the training "
            "images of the job's device, and the checkpoint is the detector before that; test it "
            "with `da-leukemia evaluate JOB_FOLDER`"
        )


def _read(photographs: Path, space: LabelSpace) -> tuple[str, list[FieldOfView], list[str]]:
    """Return the device's name, its photographs, and what was left out of them."""
    single = photographs.is_file()
    folder = photographs.resolve().parent if single else photographs
    paths = [photographs.resolve()] if single else find_images(folder)
    above = folder.resolve()
    device = (above.parent if above.name.lower() == "images" else above).name or "photographs"
    log = FindingLog()
    raw = list(bare_fields(paths, folder, log))
    for item in raw:
        item.name = item.shown.removesuffix(item.image.suffix)
    index = assemble(DomainSource(device, folder), space, folder, raw, log, labelled=False)
    fields = [field for field, _ in whole(index.fields, log) if _decodes(field, log)]
    told = []
    for finding in log.findings():
        if finding.kind == "unreadable_image":
            names = ", ".join(finding.examples)
            told.append(f"left out, cannot be read ({finding.count}): {names}")
        elif finding.kind == "nearly_black":
            told.append(f"{finding.message} ({', '.join(finding.examples)})")
    if not fields:
        raise DataError(f"{photographs}: no photograph that can be read; {'; '.join(told)}")
    return device, fields, told


def _decodes(field: FieldOfView, log: FindingLog) -> bool:
    """Tell whether a photograph is sound to its end: one that is not must not end a long run."""
    try:
        read_image(field.image)
    except DataError as error:
        log.add("unreadable_image", str(error))
        return False
    return True


def _prepared(
    origin: Origin, device: str, fields: Sequence[FieldOfView], given: Calibration | None
) -> tuple[Preparation, list[str]]:
    """Return how the photographs are prepared, and what to doubt of it."""
    use = read_as(config.Calibration, origin.calibration)
    domains = {device: config.Domain()}
    data = config.Data(domains=domains, image_size=origin.image_size, calibration=use)
    if not use.used or origin.device is None:
        doubts = ["the detector uses no calibration: the one given is not used"] if given else []
        return Preparation(origin.image_size), doubts
    if given is None and origin.detector.get("kind") == "classifier":
        raise UserError(
            "the classifier was trained with calibrated cells, and nothing can be measured on "
            "single cells: give the calibration of the photographs that they were cut out of, "
            "--calibration FILE"
        )
    measured = given or calibrate_images([f.image for f in fields], most=use.images)
    devices = {device: measured, _SOURCE: Calibration.from_dict(origin.device)}
    how = preparations(data, devices, _SOURCE)[device]
    doubts = [] if given else list(measured.notes)
    if use.scale and devices[_SOURCE].px_per_um_x.known and not how.scaled:
        doubts.append(
            "the scale of these photographs could not be measured, so each is fitted whole into "
            f"{origin.image_size} px, and cells may be of another size than the detector knows. "
            "Give the calibration of 10 to 50 fields of this device: --calibration FILE, written "
            "by `da-leukemia calibrate`"
        )
    return how, doubts
