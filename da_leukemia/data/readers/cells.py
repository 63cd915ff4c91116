"""Single cells, one image each, in folders that are called like their types.

The published layouts differ in little and are read alike:

- MLL23: ``myeloblast/myeloblast/*.tif``, a folder inside the folder of its name.
- Matek-19 (AML-Cytomorphology_LMU): ``BAS/*.tiff``, codes for names.
- Acevedo-20 (PBC): ``ig/MMY_123.jpg``, where the file name tells more than the folder; beside it
  WBCAtt's tables of attributes (``*.csv`` with a column ``img_name``), whose names tell its parts.
- Raabin-WBC: ``Train/Basophil/*.jpg``, ``TestA/...``; a microscope is a device of its own, so take
  ``folders: [Train, TestA]`` for one and ``folders: [TestB]`` for the other.

A cell is a `FieldOfView` with one box, the whole image, so that all that is done with fields is
done with cells. Types that the label space does not have become `OPEN_SET`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from da_leukemia.data.fields import FieldIndex, FieldOfView, IntArray
from da_leukemia.data.readers.boxes import IMAGE_SUFFIXES, MISSING, header_size, unreadable
from da_leukemia.data.readers.cellattributes import attribute_tables
from da_leukemia.data.readers.classes import ClassNames
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import domain_folder, subfolders
from da_leukemia.errors import DataError, did_you_mean
from da_leukemia.labels import (
    MAPS,
    OPEN_SET,
    UNKNOWN,
    LabelSpace,
    is_cell,
    known_names,
    normalise,
    translate,
)

_THREADS = 8
"""Headers read side by side: a network drive answers late, not slowly."""

_PARTS = {
    **{"train": "train", "training": "train", "val": "train", "valid": "train"},
    **{"validation": "train", "test": "test", "testa": "test", "testb": "test"},
}
"""Folders between a data set and its types, and the released part that they are."""

_FINER = {
    "sne": "neutrophil_segmented",
    "bne": "neutrophil_band",
    "pmy": "promyelocyte",
    "my": "myelocyte",
    "mmy": "metamyelocyte",
}
"""What the file names of Acevedo-20 tell beyond the folders ``neutrophil`` and ``ig``."""

_FINER_IN = frozenset({"neutrophil", "ig"})


class _Cell(NamedTuple):
    """One image file: the folder that names its type, and the released part."""

    path: Path
    folder: str
    part: str


def list_domains(root: Path) -> list[str]:
    """Return the root's own name where it holds folders of types, or the subfolders that do."""
    if not root.is_dir():
        return []
    if _holds_types(root):
        return [root.resolve().name]
    return [p.name for p in subfolders(root) if _holds_types(p)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one data set of single cells.

    Raises:
        DataError: there is no such folder, or one that ``folders`` names is not there.
        ConfigError: an unknown class in the settings.
    """
    log = FindingLog()
    folder = domain_folder(source)
    cells = [c for top in _tops(source, folder) for c in _walk(top, "", _part(top, folder), log)]
    cells.sort()
    names = ClassNames(space, log, source.declared_classes(space))
    known = [c for c in cells if _known(c, folder, names, log)]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(header_size, [c.path for c in known]))
    tables = attribute_tables(folder, space, log)
    pattern = source.patient_regex()
    labels = [_label(c, names, log) for c in known]
    labelled = tuple(sorted({x for x in labels if x >= 0}))
    if names.declared is not None:
        labelled = names.declared
    fields = []
    for cell, size, label in zip(known, sizes, labels, strict=True):
        shown = cell.path.relative_to(folder).as_posix()
        if size is None:
            log.add("unreadable_image", unreadable(cell.path, shown))
            continue
        row = tables.pop(cell.path.name.lower(), None)
        codes = None if row is None else row.codes
        named = cell.folder if label < 0 else space.classes[label]
        if row is not None and not is_cell(named) and (row.codes != MISSING).any():
            log.add("attribute_of_no_cell", row.where)
            codes = None
        match = pattern.search(cell.path.name) if pattern is not None else None
        if pattern is not None and not match:
            log.add("patient_unknown", shown)
        fields.append(
            whole_image_cell(
                cell.path,
                source.domain,
                match["patient"] if match else "",
                shown.removesuffix(cell.path.suffix),
                size,
                (label,),
                codes,
                space,
                labelled,
                cell.part or (row.part if row is not None else ""),
            )
        )
    for row in tables.values():
        log.add("attributes_without_image", row.where)
    if not fields:
        log.add("empty_domain", str(folder))
    elif not labelled:
        log.add("no_labels", f"{folder}: no cell of a class of {space.name!r}")
    if fields and pattern is None:
        log.add("no_patient", f"{folder}: the folders tell types only", len(fields))
    return FieldIndex(source.domain, tuple(fields), log.findings())


def whole_image_cell(
    image: Path,
    domain: str,
    patient: str,
    name: str,
    size: tuple[int, int],
    labels: Iterable[int],
    attributes: IntArray | None,
    space: LabelSpace,
    labelled: tuple[int, ...],
    part: str = "",
    together: str = "",
) -> FieldOfView:
    """Return a single cell as a field with one box per label, each the whole image.

    Args:
        image: its file.
        domain: name of the device.
        patient: "" where nobody told.
        name: inside its domain.
        size: width and height in pixels.
        labels: its own first, then others that copies of it have.
        attributes: ``(A,)`` codes, None where it has none.
        space: label space.
        labelled: classes that the domain labels.
        part: released part.
        together: see `FieldOfView`.
    """
    own = np.array(list(labels), np.int64)
    codes = np.full((len(own), len(space.attributes)), MISSING, np.int64)
    if attributes is not None:
        codes[0] = attributes
    return FieldOfView(
        image=image,
        domain=domain,
        patient=patient,
        name=name,
        width=size[0],
        height=size[1],
        boxes=np.tile(np.array([0, 0, *size], np.float32), (len(own), 1)),
        labels=own,
        attributes=codes,
        labelled_classes=labelled,
        released_split=part,
        together=together,
    )


# --- folders -------------------------------------------------------------------------------------


@functools.cache
def _is_type(name: str) -> bool:
    """Whether a folder is called like a cell type, in any of the data sets' ways."""
    try:
        translate(name, _ANY)
    except KeyError:
        return False
    return True


_ANY = LabelSpace("any", tuple(MAPS))
"""Every type that has a name."""


def _holds_types(folder: Path) -> bool:
    """Whether at least two folders below are types that hold images."""
    found = 0
    for place in subfolders(folder):
        inner = subfolders(place) if place.name.lower().replace("-", "") in _PARTS else [place]
        for one in inner:
            if _is_type(one.name) and any(_is_image(p) for p in _files(one)):
                found += 1
                if found == 2:
                    return True
    return False


def _files(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder of a type, and in the one of the same name inside it."""
    for path in folder.iterdir():
        if path.is_dir() and normalise(path.name) == normalise(folder.name):
            yield from path.iterdir()
        else:
            yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _part(folder: Path, root: Path) -> str:
    return "" if folder == root else _PARTS.get(normalise(folder.name), "")


def _tops(source: DomainSource, folder: Path) -> list[Path]:
    if not source.folders:
        return [folder]
    there = {p.name.lower(): p for p in subfolders(folder)}
    missing = [name for name in source.folders if name.lower() not in there]
    if missing:
        raise DataError(
            f"data.domains.{source.domain}.folders: {folder} has no folder {missing[0]!r}"
            f"{did_you_mean(missing[0].lower(), there)}"
        )
    return [there[name.lower()] for name in source.folders]


def _walk(folder: Path, kind: str, part: str, log: FindingLog) -> Iterator[_Cell]:
    """Yield the images below a folder; the outermost folder that is no part names the type."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            log.add("junk_file", path.name)
        elif path.is_dir():
            own = _PARTS.get(normalise(path.name)) if not kind else None
            yield from _walk(path, kind or ("" if own else path.name), own or part, log)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            if kind:  # tables and remarks beside the folders are no junk
                log.add("junk_file", f"{kind}/{path.name}")
        else:
            yield _Cell(path, kind, part)


# --- types ---------------------------------------------------------------------------------------


def _known(cell: _Cell, folder: Path, names: ClassNames, log: FindingLog) -> bool:
    """Whether the cell's folder is a type; one that nobody knows is reported with a suggestion."""
    if cell.folder and _is_type(cell.folder):
        return True
    shown = cell.path.relative_to(folder).as_posix()
    where = cell.folder[:80] or "images beside the folders of types"
    hint = did_you_mean(cell.folder.lower(), known_names(names.space)) if cell.folder else ""
    log.add("unknown_class_folder", f"{where!r} ({shown}){hint}")
    return False


def _label(cell: _Cell, names: ClassNames, log: FindingLog) -> int:
    """Return the class of a cell, by its file name where that tells more than its folder."""
    written = cell.folder
    if normalise(written) in _FINER_IN:
        finer = _FINER.get(cell.path.name.partition("_")[0].lower(), "")
        if finer and (names.find(finer) or 0) >= 0:
            written = finer
    label = names.find(written)
    if label is None or label == UNKNOWN:
        log.add("open_set_cell", f"{cell.folder}/{cell.path.name}")
        return OPEN_SET
    if names.declared is not None and label not in names.declared:
        log.add("class_not_declared", f"{cell.folder}/{cell.path.name}")
        return UNKNOWN
    return label
