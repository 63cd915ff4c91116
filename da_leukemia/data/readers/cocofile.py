"""The structure of a COCO label file: images by file name, each with its boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import Ambiguous, identity, number, read_json, records
from da_leukemia.errors import DataError


@dataclass(frozen=True)
class CocoBox:
    """One annotation.

    Attributes:
        box: ``x1, y1, x2, y2`` in pixels, as written.
        category: category id, None where it has none.
        record: the whole annotation.
        where: place for a message, ``file: annotation 17``.
    """

    box: tuple[float, float, float, float]
    category: int | str | None
    record: dict[str, Any]
    where: str


@dataclass
class CocoImage:
    """One image file; width and height are None where the file does not say."""

    file_name: str
    width: int | None
    height: int | None
    record: dict[str, Any]
    boxes: list[CocoBox] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """A label file.

    Attributes:
        path: of the file.
        categories: ids to names, "" where a category has no name.
        images: in the order of the file.
        nameless: the list of categories is whole, and empty or without a single name: ids are
            all that the file says of classes. Not so where the list is missing or damaged.
    """

    path: Path
    categories: dict[int | str, str]
    images: list[CocoImage]
    nameless: bool


def load_coco(path: Path, log: FindingLog, *, by_base_name: bool = False) -> CocoFile:
    """Read a COCO file, putting repeated entries of one image together.

    Args:
        path: the label file.
        log: receives records that cannot be used.
        by_base_name: two entries are the same image where the last part of their path is.

    Raises:
        DataError: the file cannot be parsed.
    """
    data = read_json(path)
    for key in ("images", "annotations", "categories"):
        if isinstance(data, Ambiguous) and key in data.repeated:
            raise DataError(f"{path}: the key {key!r} comes twice; put the two lists together")
    images = records(data, "images", path)
    annotations = records(data, "annotations", path)
    categories = data.get("categories")
    names = _categories(categories or [], path, log)
    nameless = isinstance(categories, list) and len(names) == len(categories)
    nameless = nameless and not any(c.get("name") for c in categories or ())
    by_id = _images(images, path, log, by_base_name=by_base_name)
    for position, record in enumerate(annotations):
        where = f"{path.name}: annotation {_shown_id(record, position)}"
        if not isinstance(record, dict) or isinstance(record, Ambiguous):
            fault = record if isinstance(record, dict) else "not an object"
            log.add("unreadable_record", f"{where}: {fault}")
            continue
        image_id = spelt(by_id, identity(record.get("image_id")))
        if image_id is None or image_id not in by_id:
            log.add(
                "annotation_without_image", f"{where}: image_id {str(record.get('image_id'))[:40]}"
            )
            continue
        image = by_id[image_id]
        if image is None:
            log.add("image_id_conflict", f"{where}: image_id {image_id}")
            continue
        box = _box(record.get("bbox"))
        if box is None:
            shown = str(record.get("bbox"))[:60]
            log.add("unreadable_record", f"{where}: bbox {shown} is not four pixel numbers")
            continue
        category = spelt(names, identity(record.get("category_id")))
        image.boxes.append(CocoBox(box, category, record, where))
    unique = {id(i): i for i in by_id.values() if i is not None}
    return CocoFile(path, names, list(unique.values()), nameless)


def spelt(known: Mapping[int | str, object], given: int | str | None) -> int | str | None:
    """Return an id as the other list spells it: ``7`` where it is known as ``"7"`` alone."""
    if given is None or given in known:
        return given
    other: int | str = str(given) if isinstance(given, int) else given
    if isinstance(given, str) and given.isascii() and given.isdigit():
        other = int(given)
    return other if other in known else given


def _images(
    entries: list[Any], path: Path, log: FindingLog, *, by_base_name: bool
) -> dict[int | str, CocoImage | None]:
    """Return images by id; None marks an id that stands for two files."""
    by_id: dict[int | str, CocoImage | None] = {}
    by_name: dict[str, CocoImage] = {}
    for position, record in enumerate(entries):
        where = f"{path.name}: image {_shown_id(record, position)}"
        if isinstance(record, Ambiguous):
            log.add("unreadable_record", f"{where}: {record}")
            continue
        name = _file_name(record)
        image_id = identity(record.get("id")) if name is not None else None
        if name is None or image_id is None:
            log.add("unreadable_record", f"{where}: needs an id and a file_name")
            continue
        if by_base_name:
            name = name.rsplit("/", 1)[-1]
        width, height = (_side(record, key, where, log) for key in ("width", "height"))
        image = by_name.get(name)
        if image is None:
            image = by_name[name] = CocoImage(name, width, height, record)
        else:
            log.add("repeated_image", f"{where}: {name}")
            if (width, height) != (image.width, image.height):
                log.add(
                    "size_conflict",
                    f"{where}: {name}: {image.width} x {image.height} and {width} x {height}",
                )
        if by_id.setdefault(image_id, image) is not image:
            by_id[image_id] = None
    return by_id


def _categories(entries: Any, path: Path, log: FindingLog) -> dict[int | str, str]:
    if not isinstance(entries, list):
        log.add("unreadable_record", f"{path.name}: categories: not a list")
        return {}
    names: dict[int | str, str] = {}
    for position, record in enumerate(entries):
        sound = isinstance(record, dict) and not isinstance(record, Ambiguous)
        category = identity(record.get("id")) if sound else None
        if category is None:
            fault = f": {record}" if isinstance(record, Ambiguous) else ""
            log.add("unreadable_record", f"{path.name}: category at position {position}{fault}")
            continue
        name = record.get("name")
        names[category] = name.strip() if isinstance(name, str) else ""
    return names


def _file_name(record: Any) -> str | None:
    name = record.get("file_name") if isinstance(record, dict) else None
    if not isinstance(name, str) or not name.strip("/\\ ") or "\0" in name or len(name) > 1000:
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    return name.replace("\\", "/").removeprefix("./")


def _box(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, w, h = map(number, value)
    if x is None or y is None or w is None or h is None:
        return None
    return x, y, x + w, y + h


def _side(record: dict[str, Any], key: str, where: str, log: FindingLog) -> int | None:
    value = record.get(key)
    side = number(value)
    if side is None and isinstance(value, int | float) and not isinstance(value, bool):
        log.add("unreadable_record", f"{where}: {key} {str(value)[:40]} is no number of pixels")
    return int(side) if side is not None and side >= 1 else None


def _shown_id(record: Any, position: int) -> str:
    doubtful = isinstance(record, Ambiguous) and "id" in record.repeated
    found = identity(record.get("id")) if isinstance(record, dict) and not doubtful else None
    return str(found)[:40] if found is not None else f"at position {position}"
