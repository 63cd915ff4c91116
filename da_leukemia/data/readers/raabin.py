"""Raabin-WBC (Kouzehkanan et al., Sci Rep 12:1123, 2022): one JSON file per image.

``{"Cell Numbers": 2, "Cell_0": {"x1": ..., "x2": ..., "y1": ..., "y2": ..., "Label1": ...,
"Label2": ...}, "Cell_1": ...}``, corners in pixels, numbers or texts. ``Label2`` is the type that
counts. Every folder below the root is a device (there are two microscopes), every folder in it a
film that a split holds together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from da_leukemia.calibration.record import NAME as CALIBRATION
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import RawCell, RawField, assemble, unread_noted
from da_leukemia.data.readers.boxes import IMAGE_SUFFIXES, header_size, unreadable
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import Ambiguous, number, parse_number, read_json
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import PARTS, domain_folder, released_split, subfolders
from da_leukemia.errors import DataError, counted
from da_leukemia.labels import LabelSpace, normalise

_CELL = re.compile(r"cell[_ ]?\d+", re.IGNORECASE)
_NO_FILM = frozenset({*PARTS, "images", "image", "json", "jsons", "labels", "annotations"})

_TYPES = {
    "smalllymph": "lymphocyte",
    "largelymph": "lymphocyte",
    "smalllymphocyte": "lymphocyte",
    "largelymphocyte": "lymphocyte",
    "lymph": "lymphocyte",
    "mono": "monocyte",
    "eosin": "eosinophil",
    "baso": "basophil",
    "neut": "neutrophil",
    "band": "neutrophil",
    "meta": "metamyelocyte",
    "burst": "none",
    "burstcell": "none",
}
"""Short names of the release; names of the label spaces are known anyway."""


def list_domains(root: Path) -> list[str]:
    """Return the subfolders with JSON files of cells, or the root's own name where it has them."""
    if not root.is_dir():
        return []
    if any(_holds_cells(p) for p in _files(root, "*.json")[:1]):
        return [root.resolve().name]
    found = ((p, _files(p, "**/*.json")) for p in subfolders(root))
    return [p.name for p, files in found if files and _holds_cells(files[0])]


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return JSON files, without what `da-leukemia calibrate` leaves beside the images."""
    return sorted(p for p in folder.glob(pattern) if p.name != CALIBRATION)


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one microscope.

    Raises:
        DataError: no JSON files.
    """
    log = FindingLog()
    folder = domain_folder(source)
    files = _files(folder, "**/*.json")
    if not files:
        raise DataError(f"{folder}: no JSON files; correct data.domains.{source.domain}.root")
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.stem.lower(), []).append(path)
    parts = sorted({p.lower() for f in files for p in f.relative_to(folder).parts} & set(PARTS))
    used: set[Path] = set()
    raw: list[RawField] = []
    for path in files:
        shown = path.relative_to(folder).as_posix()
        choices = images.get(path.stem.lower(), [])
        image = next((p for p in choices if p.parent == path.parent), None)
        if image is None and len(choices) == 1:
            image = choices[0]
        if image is None or image in used:
            log.add("missing_image", f"{shown}: {counted(len(choices), 'image')} of this name")
            continue
        used.add(image)
        size = header_size(image)
        if size is None:
            log.add("unreadable_image", unreadable(image, image.relative_to(folder).as_posix()))
            continue
        above = path.relative_to(folder).parts[:-1]
        item = RawField(
            image,
            image.relative_to(folder).as_posix(),
            size,
            patient=next((p for p in above if p.lower() not in _NO_FILM), ""),
            split=next((released_split(p.lower(), parts) for p in above if p.lower() in PARTS), ""),
        )
        with unread_noted(item, log):
            item.cells = _cells(path, shown, log)
        raw.append(item)
    for image in (p for same in images.values() for p in same if p not in used):
        log.add("image_not_in_labels", image.relative_to(folder).as_posix())
    return assemble(source, space, folder, raw, log)


def _cells(path: Path, shown: str, log: FindingLog) -> list[RawCell]:
    data = read_json(path)
    cells = []
    told = None
    count = 0
    for key, value in data.items():
        where = f"{shown}: {key[:40]}"
        if isinstance(data, Ambiguous) and (times := data.repeated.get(key)):
            log.add("unreadable_record", f"{where}: the key comes {times} times", times)
            count += times
            continue
        if normalise(key) == "cellnumbers":
            told = parse_number(str(value).strip())
            continue
        if not _CELL.fullmatch(key.strip()) and not isinstance(value, dict | list):
            continue  # remarks about the photograph
        count += 1
        box = _box(value) if _CELL.fullmatch(key.strip()) else "is called like no cell"
        if isinstance(box, str):
            log.add("unreadable_record", f"{where}: {box}")
            continue
        cells.append(RawCell(box, _type(value, where, log), where))
    if told is not None and told != count:
        log.add("cell_count_differs", f"{shown}: {told:g} told, {count} there")
    return cells


def _box(record: Any) -> tuple[float, float, float, float] | str:
    """Return the corners of a cell, or what is wrong with them."""
    if not isinstance(record, dict):
        return "not an object"
    if isinstance(record, Ambiguous):
        return str(record)
    values = []
    for corner in ("x1", "y1", "x2", "y2"):
        value = record.get(corner)
        found = number(parse_number(value.strip()) if isinstance(value, str) else value)
        if found is None:
            return f"{corner} {str(value)[:40]!r} is no pixel number"
        values.append(found)
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _type(record: dict[str, Any], where: str, log: FindingLog) -> str | None:
    written = record.get("Label2")
    if not isinstance(written, str) or not written.strip():
        log.add("unknown_cell_type", f"{where}: no Label2")
        return None
    return _TYPES.get(normalise(written), written.strip())


def _holds_cells(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return re.search(rb'"Cell[_ ]?\d+"', head) is not None
