"""The two label formats of LeukemiaAttri: COCO files and 5-, 11- or 12-column text rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.data.readers.boxes import (
    INVALID,
    MISSING,
    RawBox,
    attribute_code,
    shares_to_box,
)
from da_leukemia.data.readers.classes import ClassNames
from da_leukemia.data.readers.cocofile import CocoBox, CocoFile, load_coco
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import Ambiguous, number_rows
from da_leukemia.errors import counted
from da_leukemia.labels import LEUKEMIAATTRI, MORPHOLOGY, LabelSpace, normalise, translate

Size = tuple[int, int]

_MISSING_JSON = 4
_MISSING_TEXT = 2
_NONE = 0


@dataclass(frozen=True)
class ReadLabels:
    """Labels of one split: names of images, their size where it is told, and their boxes."""

    where: str
    names: tuple[str, ...]
    size: Callable[[str], Size | None]
    boxes: Callable[[str, Size], list[RawBox]]
    has_suffix: bool

    def stem(self, name: str) -> str:
        """Return the image name without its suffix."""
        return Path(name).stem if self.has_suffix else name


def json_labels(path: Path, classes: ClassNames) -> ReadLabels:
    """Read ``{train,test}.json``.

    Raises:
        DataError: it cannot be parsed.
    """
    content = load_coco(path, classes.log, by_base_name=True)
    images = {i.file_name: i for i in content.images}
    columns: dict[str, int | None] = {}

    def size(name: str) -> Size | None:
        image = images[name]
        return (image.width, image.height) if image.width and image.height else None

    def boxes(name: str, _: Size) -> list[RawBox]:
        rows = []
        for box in images[name].boxes:
            written = _name(box, content, classes.log)
            label = None if written is None else classes.label(written, box.where)
            if written is None or label is None:
                continue
            is_none = LEUKEMIAATTRI.find(written) == _NONE
            codes = _json_attributes(box, classes.space, columns, classes.log, is_none=is_none)
            rows.append(RawBox(box.box, label, written, codes, box.where))
        return rows

    where = f"{path.parent.name}/{path.name}"
    return ReadLabels(where, tuple(images), size, boxes, has_suffix=True)


def text_labels(folder: Path, classes: ClassNames) -> ReadLabels:
    """Read a folder of YOLO text files, one per image.

    Raises:
        DataError: (while boxes are read) a file is not text.
    """
    files = {p.stem: p for p in sorted(folder.glob("*.txt")) if p.stem.lower() != "classes"}

    def boxes(name: str, size: Size) -> list[RawBox]:
        rows: list[RawBox] = []
        path = files[name]
        for line, values in number_rows(path, path.name, classes.log):
            found = _text_row(values, f"{path.name}: line {line}", size, classes)
            rows += [] if found is None else [found]
        return rows

    where = "/".join(folder.parts[-3:])
    return ReadLabels(where, tuple(files), lambda _: None, boxes, has_suffix=False)


def _name(box: CocoBox, content: CocoFile, log: FindingLog) -> str | None:
    """Return the class name of a box; None (reported) where it has none."""
    name = "" if box.category is None else content.categories.get(box.category, "")
    if not name:
        # Ids are trusted only where the file has no names at all: releases number differently.
        if not content.nameless or not isinstance(box.category, int):
            log.add("unknown_class_id", f"{box.where}: category_id {str(box.category)[:40]}")
            return None
        known = class_by_id(box.category)
        if known is None:
            log.add("unknown_class_id", f"{box.where}: category_id {box.category}")
            return None
        log.add("class_by_id", f"{box.where}: {box.category} = {known}")
        name = known
    return name


def class_by_id(number: float) -> str | None:
    """Return the class of an id: 0..13 as in the text files, 14 is none as in the JSON files."""
    if number == len(LEUKEMIAATTRI.classes):
        return LEUKEMIAATTRI.classes[_NONE]
    if number != int(number) or not 0 <= number < len(LEUKEMIAATTRI.classes):
        return None
    return LEUKEMIAATTRI.classes[int(number)]


def _json_attributes(
    box: CocoBox,
    space: LabelSpace,
    columns: dict[str, int | None],
    log: FindingLog,
    *,
    is_none: bool,
) -> tuple[int, ...]:
    codes = [MISSING] * len(space.attributes)
    nested = box.record.get("attributes")
    sources: list[Mapping[str, object]] = [box.record]
    if isinstance(nested, Ambiguous):
        log.add("unreadable_record", f"{box.where}: attributes: {nested}")
    elif isinstance(nested, dict):
        sources.append(nested)
    for source in sources:
        for key, value in source.items():
            if key not in columns:
                columns[key] = _column(space, key)
            column = columns[key]
            if column is None:
                continue
            if value in (_MISSING_JSON, str(_MISSING_JSON)) or (is_none and value == _MISSING_TEXT):
                continue
            code = attribute_code(value, space.attributes[column])
            if code == INVALID:
                log.add("attribute_out_of_range", f"{box.where}: {key} = {str(value)[:40]}")
            codes[column] = code if code >= 0 else MISSING
    if not is_none and MISSING in codes:
        log.add("attribute_missing", f"{box.where}: {_names(codes, space)}")
    return tuple(codes)


def _column(space: LabelSpace, key: str) -> int | None:
    """Return the column of an attribute, None where the label space grades it otherwise."""
    column = space.find_attribute(key)
    # WBCAtt has a cell size too, with two grades: its code 1 is not the medium cell of this set.
    return column if column is not None and space.attributes[column] in MORPHOLOGY else None


def _names(codes: list[int], space: LabelSpace) -> str:
    missing = [a.name for a, c in zip(space.attributes, codes, strict=True) if c == MISSING]
    return ", ".join(missing)


def labelled_classes(space: LabelSpace) -> tuple[int, ...]:
    """Return the classes of ``space`` that LeukemiaAttri labels, with boxes or without."""
    found = (translate(name, space) for name in LEUKEMIAATTRI.classes)
    return tuple(sorted({i for i in found if i is not None and i >= 0}))


def _text_row(values: list[float], where: str, size: Size, classes: ClassNames) -> RawBox | None:
    """Read a row of 5, 11 or 12 columns; None (reported) where it holds no box of this space."""
    log = classes.log
    if len(values) not in (5, 11, 12):
        hint = "; a sparse label row (15 or 16)" if len(values) in (15, 16) else ""
        columns = counted(len(values), "column")
        log.add("unreadable_record", f"{where}: {columns}, not 5, 11 or 12{hint}")
        return None
    name = class_by_id(values[0])
    if name is None:
        log.add("unknown_class_id", f"{where}: {values[0]:g}")
        return None
    log.add("class_by_id", f"{where}: {int(values[0])} = {name}")
    label = classes.label(name, where)
    if label is None:
        return None
    is_none = normalise(name) == "none"
    codes = text_attributes(values[5:], where, classes.space, log, is_none=is_none)
    return RawBox(shares_to_box(values[1:5], size), label, name, codes, where)


def text_attributes(
    values: list[float], where: str, space: LabelSpace, log: FindingLog, *, is_none: bool
) -> tuple[int, ...]:
    """Translate the six attributes of a text row, or the seven with the size, into columns."""
    codes = [MISSING] * len(space.attributes)
    # Eleven columns lack the size, which comes first.
    for attribute, value in zip(MORPHOLOGY[len(MORPHOLOGY) - len(values) :], values, strict=True):
        column = _column(space, attribute.name)
        # On a None row 2 means missing in every column; on a real cell it is a large cell.
        if column is None or value == _MISSING_JSON or (is_none and value == _MISSING_TEXT):
            continue
        code = attribute_code(value, attribute)
        if code == INVALID:
            log.add("attribute_out_of_range", f"{where}: {attribute.name} = {value:g}")
        codes[column] = code if code >= 0 else MISSING
    if not is_none and MISSING in codes:
        log.add("attribute_missing", f"{where}: {_names(codes, space)}")
    return tuple(codes)
