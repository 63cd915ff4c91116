"""Single cells cut out of whole fields: true boxes with a margin, as files that are made once.

A crop is square, in the pixels of its field: nothing is resampled before the network's own resize,
and beyond the field's edge its last pixels go on.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from da_leukemia.data import pixels
from da_leukemia.data.cache import code_version, file_name, file_state
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.errors import ConfigError
from da_leukemia.labels import UNKNOWN

_THREADS = 4
_MARK = "#"
_CODE = code_version([Path(__file__), Path(pixels.__file__)])


def field_name(cell: FieldOfView) -> str:
    """Return the name of the field that a cell was cut out of."""
    return cell.name.rpartition(_MARK)[0]


def square(box: NDArray[np.float32], margin: float) -> tuple[int, int, int]:
    """Return left, top and side of the square around a box, in whole pixels.

    Args:
        box: ``x1, y1, x2, y2``, half-open.
        margin: share of the longer side that is added on every side.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(2, math.ceil(max(x2 - x1, y2 - y1) * (1 + 2 * margin)))
    return round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2), side


def cut(image: NDArray[np.uint8], left: int, top: int, side: int) -> NDArray[np.uint8]:
    """Return ``(side, side, 3)`` of an image ``(H, W, 3)``; outside it, its edge is repeated."""
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    return image[rows[:, None], columns]


def cut_cells(index: FieldIndex, margin: float, caches: Path | None) -> FieldIndex:
    """Return the labelled cells of fields as single cells.

    Every box becomes a cell, also one of unknown type: what is there must not tell which types are
    known. Cells of a field without a patient are kept together by a split.

    Args:
        index: fields of one device.
        margin: see `square`.
        caches: where the crops are kept, ``crops/DEVICE-HASH/NUMBER.png``.

    Raises:
        ConfigError: there is no such folder.
        DataError: an image that cannot be decoded.
    """
    if caches is None:
        raise ConfigError(
            f"data.domains.{index.domain}.crop: cells are cut into files, which need a folder; set "
            "data.cache_dir"
        )
    told = [_CODE, repr(margin)]
    told += [f"{Path.cwd() / f.image}\0{file_state(f.image)}\0" for f in index]
    digest = hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape"))
    for field in index:
        digest.update(field.boxes.tobytes())
    folder = caches / "crops" / f"{file_name(index.domain)}-{digest.hexdigest()[:24]}"
    if not folder.is_dir():
        _write(index, margin, folder)
    cells = []
    for number, field in enumerate(index):
        for place, box in enumerate(field.boxes):
            cells.append(_cell(field, place, box, margin, folder / f"{number:05d}-{place:03d}.png"))
    return FieldIndex(index.domain, tuple(cells), index.findings)


def _cell(
    field: FieldOfView, place: int, box: NDArray[np.float32], margin: float, path: Path
) -> FieldOfView:
    side = square(box, margin)[2]
    return FieldOfView(
        image=path,
        domain=field.domain,
        patient=field.patient,
        name=f"{field.name}{_MARK}{place}",
        width=side,
        height=side,
        boxes=np.array([[0, 0, side, side]], np.float32),
        labels=np.maximum(field.labels[place : place + 1], UNKNOWN),
        attributes=field.attributes[place : place + 1],
        labelled_classes=field.labelled_classes,
        released_split=field.released_split,
        together="" if field.patient else field.group,
    )


def _write(index: FieldIndex, margin: float, folder: Path) -> None:
    """Cut all cells into a folder that appears whole or not at all."""
    from da_leukemia.data.images import read_image  # which loads torch

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder.parent))

    def write(numbered: tuple[int, FieldOfView]) -> None:
        number, field = numbered
        if not len(field.boxes):
            return
        image = read_image(field.image)
        for place, box in enumerate(field.boxes):
            picture = Image.fromarray(cut(image, *square(box, margin)))
            picture.save(temporary / f"{number:05d}-{place:03d}.png", compress_level=1)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(write, enumerate(index)))
        try:
            temporary.replace(folder)
        except OSError:  # another job was faster, and its cells are the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
