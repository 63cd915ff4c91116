"""Sparse-LeukemiaAttri (Rehman et al., Medical Image Analysis 106:103760, arXiv 2504.02602).

Text rows of 16 columns, ``class x y width height  p1 p2 p3 p4  size + six`` (15 without size): in a
training image only the patch ``p1..p4``, in pixels, is annotated; it becomes the one of
``FieldOfView.annotated_regions``. The README of the release orders it ``x1 x2 y1 y2``, its code
``x1 y1 x2 y2``: the order is found per data set from the boxes, which must lie inside, and told
(`patch_order`); the setting ``patch_order`` forces it. Test images are annotated whole, their patch
columns mean nothing.

Files lie as in LeukemiaAttri (``Images/train`` and ``txt_labels/AttriDet/train``) or as in YOLO.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.data.fields import FieldIndex, Region
from da_leukemia.data.readers.assemble import RawCell, RawField, assemble, note_unreadable
from da_leukemia.data.readers.boxes import header_size, shares_to_box, unreadable
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import number_rows
from da_leukemia.data.readers.leukemiaattri import parse_name
from da_leukemia.data.readers.leukemiaattri_labels import (
    class_by_id,
    labelled_classes,
    text_attributes,
)
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import (
    Pairing,
    domain_folder,
    pairings,
    released_split,
    subfolders,
    zipped,
)
from da_leukemia.errors import ConfigError, DataError, counted, did_you_mean
from da_leukemia.labels import LabelSpace

ORDERS = {"x1y1x2y2": (0, 1, 2, 3), "x1x2y1y2": (0, 2, 1, 3)}
"""Readings of the patch columns: which column is x1, y1, x2, y2."""

_LABEL_FOLDERS = ("labels", "txt_labels/AttriDet", "txt_labels")
_COLUMNS = (15, 16)
_TOLERANCE = 1.0
"""Pixels by which a centre may leave its patch: coordinates are rounded to 1/1000 of 640."""
_SHARES = 2.0
"""Numbers up to this are shares of an image, which may pass its edge; no patch is so small."""


@dataclass(frozen=True)
class _File:
    """One image and its rows: ``place, values``."""

    image: Path
    part: str
    size: tuple[int, int]
    rows: list[tuple[str, list[float]]]
    unread: bool


def list_domains(root: Path) -> list[str]:
    """Return the subfolders, or the root's own name, where label rows have 15 or 16 columns."""
    if _is_sparse(root):
        return [root.resolve().name]
    return [p.name for p in subfolders(root) if _is_sparse(p)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one domain.

    Raises:
        ConfigError: an unknown ``patch_order``.
        DataError: no images or labels, or no order of the patch columns that fits better than
            the other.
    """
    if source.patch_order not in ("auto", *ORDERS):
        raise ConfigError(
            f"data.domains.{source.domain}.patch_order: unknown value {source.patch_order!r}"
            f"{did_you_mean(source.patch_order, ('auto', *ORDERS))}"
        )
    log = FindingLog()
    folder = domain_folder(source)
    chosen = source.labels if source.labels not in ("", "auto") else None
    pairs = _pairs(folder, (chosen,) if chosen else _LABEL_FOLDERS)
    if not pairs:
        zipped(folder, source.domain, log)
        hint = "; unpack the archive of labels" if log.findings() else ""
        raise DataError(
            f"{folder}: no text files in txt_labels or labels beside the images{hint}; name their "
            f"folder in data.domains.{source.domain}.annotations"
        )
    files = _files(pairs, folder, log)
    sparse = [f for f in files if f.part != "test"]
    order = _order(source, folder, sparse, log)
    parts = [p.part for p in pairs]
    raw = []
    for file in files:
        shown = file.image.relative_to(folder).as_posix()
        region = None
        if file.part != "test" and not file.unread:
            region = _region(file, order, shown, log)
            if region is None:
                continue
            _note_outside(file, region, log)
        film = parse_name(file.image.stem)
        if film is not None and not film.diagnosis:
            log.add("diagnosis_missing", shown)
        raw.append(
            RawField(
                file.image,
                shown,
                file.size,
                _cells(file, space, log),
                name=film.field if film else file.image.stem,
                patient=film.patient if film else "",
                split=released_split(file.part, parts),
                region=region,
                unread=file.unread,
            )
        )
    return assemble(
        source,
        space,
        folder,
        raw,
        log,
        classes=labelled_classes(space),
        without_patient="patient_unknown",
    )


def _pairs(folder: Path, names: Sequence[str]) -> list[Pairing]:
    for name in names:
        found = pairings(folder, name)
        if any(p.labels for p in found):
            return found
    return []


def _files(pairs: Sequence[Pairing], folder: Path, log: FindingLog) -> list[_File]:
    files: list[_File] = []
    for pair in pairs:
        for image, path in pair.matched(folder, log):
            size = header_size(image)
            if size is None:
                log.add("unreadable_image", unreadable(image, image.relative_to(folder).as_posix()))
                continue
            shown = path.relative_to(folder).as_posix()
            rows: list[tuple[str, list[float]]] = []
            unread = False
            try:
                for line, values in number_rows(path, shown, log):
                    where = f"{shown}: line {line}"
                    if len(values) in _COLUMNS:
                        rows.append((where, values))
                    else:
                        columns = counted(len(values), "column")
                        log.add("unreadable_record", f"{where}: {columns}, not 15 or 16")
            except DataError as e:
                note_unreadable(e, log)
                unread = True
            files.append(_File(image, pair.part, size, rows, unread))
    return files


def _order(
    source: DomainSource, folder: Path, files: Sequence[_File], log: FindingLog
) -> tuple[int, ...]:
    """Return the reading of the patch columns that puts more boxes inside their patch."""
    fits = dict.fromkeys(ORDERS, 0)
    total = 0
    for file in files:
        for _, values in file.rows:
            if max(values[1:5]) > _SHARES or _in_shares(values, file.size):
                continue  # boxes in pixels, patches in shares: reported and left out
            total += 1
            for name, columns in ORDERS.items():
                x1, y1, x2, y2 = (values[5 + c] for c in columns)
                fits[name] += x1 < x2 and y1 < y2 and _holds((x1, y1, x2, y2), values, file.size)
    told = ", ".join(f"{name} fits {n} of {counted(total, 'row')}" for name, n in fits.items())
    if source.patch_order != "auto":
        log.add("patch_order", f"{folder}: {source.patch_order}, forced ({told})")
        return ORDERS[source.patch_order]
    best, other = sorted(fits, key=lambda name: -fits[name])
    if total and fits[best] == fits[other]:
        raise DataError(
            f"{folder}: the order of the patch columns cannot be found ({told}); set "
            f"data.domains.{source.domain}.patch_order to one of {', '.join(ORDERS)}"
        )
    if total:
        log.add("patch_order", f"{folder}: {best} ({told})")
    return ORDERS[best]


def _in_shares(values: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a row's patch is written in shares of the image instead of pixels."""
    return 0 < max(values[5:9]) <= _SHARES < min(size)


def _holds(region: Region, values: Sequence[float], size: tuple[int, int]) -> bool:
    x, y = values[1] * size[0], values[2] * size[1]
    x1, y1, x2, y2 = region
    return x1 - _TOLERANCE <= x <= x2 + _TOLERANCE and y1 - _TOLERANCE <= y <= y2 + _TOLERANCE


def _region(file: _File, order: tuple[int, ...], shown: str, log: FindingLog) -> Region | None:
    """Return the patch of a training image, None (reported) where it cannot be told."""
    patches = Counter(tuple(values[5 + c] for c in order) for _, values in file.rows)
    if not patches:
        log.add("patch_missing", shown)
        return None
    if len(patches) > 1:
        log.add("several_patches", f"{shown}: {len(patches)} patches")
    x1, y1, x2, y2 = chosen = patches.most_common(1)[0][0]
    for where, values in file.rows:
        if tuple(values[5 + c] for c in order) == chosen and _in_shares(values, file.size):
            written = ", ".join(f"{v:g}" for v in values[5:9])
            place = f"{where}: columns 6 to 9: {written} in {file.size[0]} x {file.size[1]}"
            log.add("patch_units", place, len(file.rows))
            return None
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(file.size[0])), min(y2, float(file.size[1])))
    if cut[2] - cut[0] < 1 or cut[3] - cut[1] < 1:  # less than a pixel holds nothing
        place = f"{shown}: {x1:g}, {y1:g}, {x2:g}, {y2:g} in {file.size[0]} x {file.size[1]}"
        log.add("patch_unusable", place, len(file.rows))
        return None
    if cut != (x1, y1, x2, y2):
        log.add("patch_clipped", f"{shown}: {x1:g}, {y1:g}, {x2:g}, {y2:g}")
    return cut


def _note_outside(file: _File, region: Region, log: FindingLog) -> None:
    for where, values in file.rows:
        if not _holds(region, values, file.size):
            log.add("box_outside_patch", where)


def _cells(file: _File, space: LabelSpace, log: FindingLog) -> list[RawCell]:
    cells = []
    for where, values in file.rows:
        name = class_by_id(values[0])
        if name is None:
            log.add("unknown_class_id", f"{where}: {values[0]:g}")
            continue
        log.add("class_by_id", f"{where}: {values[0]:g} = {name}")
        codes = text_attributes(values[9:], where, space, log, is_none=name == "none")
        cells.append(RawCell(shares_to_box(values[1:5], file.size), name, where, codes))
    return cells


def _is_sparse(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    for pair in _pairs(folder, _LABEL_FOLDERS):
        for path in list((pair.labels or {}).values())[:3]:
            with path.open("rb") as file:
                columns = len(file.readline(4096).split())
            if columns:
                return columns in _COLUMNS
    return False
