"""The calibration of every device of an experiment, measured once from its unlabelled images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.record import Calibration, load
from da_leukemia.config import Data
from da_leukemia.data import pixels
from da_leukemia.data.cache import (
    cache_folder,
    code_version,
    file_name,
    file_state,
    read_cached,
    store,
)
from da_leukemia.data.cells.crops import field_name
from da_leukemia.data.experiment import domain_source
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.splits import Split
from da_leukemia.errors import DataError
from da_leukemia.labels import get_label_space

Progress = Callable[[int, int], None]

_ESTIMATOR = code_version(
    [*(Path(__file__).resolve().parent.parent / "calibration").glob("*.py"), Path(pixels.__file__)]
)


def measure_devices(
    data: Data,
    indexes: Mapping[str, FieldIndex],
    split: Split,
    progress: Progress | None = None,
) -> dict[str, Calibration]:
    """Return the calibration of each device, read from its file or measured.

    Measured are images of the training part, so nothing of a test field is used, and no label.

    Args:
        data: settings; without a calibration switched on nothing is measured.
        indexes: all fields of each device.
        split: their division.
        progress: called with (devices done, devices).

    Returns:
        By device; empty where no calibration is used.

    Raises:
        DataError: a calibration file that cannot be read; no image of a device can be read.
    """
    if not data.calibration.used:
        return {}
    found = {}
    for done, (name, index) in enumerate(indexes.items()):
        if progress is not None:
            progress(done, len(indexes))
        given = data.domains[name].calibration
        if given != "auto":
            found[name] = load(Path(data.root) / given)
        else:
            found[name] = _measured(data, index, split)
    if progress is not None:
        progress(len(indexes), len(indexes))
    return found


def _photographs(data: Data, index: FieldIndex, part: FieldIndex) -> list[Path]:
    """Return the images of some of a device's fields; of cut cells those they were cut out of."""
    if data.domains[index.domain].crop is None:
        return [f.image for f in part]
    source, space = domain_source(data, index.domain), get_label_space(data.label_space)
    fields = read_cached(
        source, data.domains[index.domain].format, space, cache_folder(data.cache_dir)
    )
    wanted = {(cell.patient, field_name(cell)) for cell in part}
    return [f.image for f in fields if (f.patient, f.name) in wanted]


def _measured(data: Data, index: FieldIndex, split: Split) -> Calibration:
    train = _photographs(data, index, split.select(index, "train"))
    paths = sorted(set(train or _photographs(data, index, index)))
    told = [_ESTIMATOR, data.calibration.images]
    told += [(str(Path.cwd() / p), file_state(p)) for p in paths]
    digest = hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    folder = cache_folder(data.cache_dir)
    entry = folder / "calibration" / f"{file_name(index.domain)}-{digest}.json" if folder else None
    if entry is not None and entry.is_file():
        try:
            return load(entry)
        except DataError:  # cut off by a full disk: measured again
            pass
    try:
        calibration = calibrate_images(paths, most=data.calibration.images)
    except DataError as error:
        raise DataError([f"{index.domain}: {problem}" for problem in error.problems]) from error
    if not train:
        note = "the split leaves no training image: measured on all images of the device"
        calibration = replace(calibration, notes=(note, *calibration.notes))
    if entry is not None:
        store(entry, (json.dumps(calibration.to_dict()) + "\n").encode())
    return calibration
