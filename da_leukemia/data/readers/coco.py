"""Any folder of images with a COCO ``annotations.json``: the way to bring one's own device.

Read beyond plain COCO: ``wbc_type`` of an annotation (a finer class), ``attributes`` of an
annotation (key to value name or code), ``patient`` or ``slide`` of an image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import (
    Fields,
    RawField,
    assemble,
    bare_fields,
    note_unreadable,
)
from da_leukemia.data.readers.boxes import (
    IMAGE_SUFFIXES,
    INVALID,
    MISSING,
    RawBox,
    attribute_code,
    header_size,
    other_scales,
)
from da_leukemia.data.readers.classes import ClassNames
from da_leukemia.data.readers.cocofile import CocoBox, CocoFile, CocoImage, load_coco
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import Ambiguous
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import no_folder, subfolders
from da_leukemia.errors import DataError
from da_leukemia.labels import UNKNOWN, LabelSpace

LABEL_NAMES = ("annotations.json", "_annotations.coco.json")
_INSIDE = ("annotations", "images", "json_labels")
"""Folders of a domain that are no domain of their own."""


def list_domains(root: Path) -> list[str]:
    """Return the root's own name or the subfolders where `read` finds a label file."""
    if any((root / n).is_file() for n in LABEL_NAMES):
        return [root.resolve().name]
    found = [p.name for p in subfolders(root) if p.name.lower() not in _INSIDE and _label_files(p)]
    return found or ([root.resolve().name] if _label_files(root) else [])


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one domain.

    Args:
        source: ``root`` is the folder of the domain, or the folder that holds it under its name.
        space: label space to translate into.

    Raises:
        DataError: no label file, or several.
    """
    log = FindingLog()
    label_file = _label_file(source)
    folder = label_file.parent
    folder = folder.parent if folder.name == "annotations" else folder
    on_disk = _images_below(folder)
    try:
        content = load_coco(label_file, log)
    except DataError as e:
        note_unreadable(e, log)
        raw = [replace(f, unread=True) for f in bare_fields(on_disk.values(), folder, log)]
        return assemble(source, space, folder, raw, log, classes=())
    found, listed = _found(content, folder, on_disk, log)
    if _are_corners(found):
        problem = (
            f"{label_file}: bbox: nearly every box reads as corners x1, y1, x2, y2; COCO has "
            "x, y, width, height: subtract x1 and y1 from the last two, or export it again"
        )
        note_unreadable(DataError(problem), log)
        raw = [replace(f, unread=True) for f in bare_fields(on_disk.values(), folder, log)]
        return assemble(source, space, folder, raw, log, classes=())
    reader = _Translation(content, ClassNames(space, log, source.declared_classes(space)))
    pattern = source.patient_regex()
    fields = Fields(source.domain, space, log)
    for image, path, size in found:
        patient = _patient(image)
        if not patient and pattern is not None and (match := pattern.search(path.name)):
            patient = match["patient"] or ""
        if not patient:
            log.add("no_patient", image.file_name)
        inside = path.is_relative_to(folder)
        shown = path.relative_to(folder).as_posix() if inside else image.file_name
        name = str(Path(shown).with_suffix("")).removeprefix("images/")
        split = image.record.get("split")
        item = RawField(
            path,
            image.file_name,
            size,
            name=name,
            patient=patient,
            split=split if split in ("train", "test") else "",
        )
        rows = [r for b in image.boxes if (r := reader.box(b)) is not None]
        fields.add(item, rows, reader.labelled_classes)
    _unlisted(listed, folder, on_disk, log)
    return fields.index(label_file)


class _Translation:
    """Class names and attributes of one file in the terms of a label space."""

    def __init__(self, content: CocoFile, names: ClassNames) -> None:
        self.file = content
        self.names = names
        self.space = names.space
        self.log = names.log
        self._columns: dict[str, int | None] = {}
        annotations = [b for i in content.images for b in i.boxes]
        if names.declared is not None:
            self.labelled_classes = names.declared
        else:
            self.labelled_classes = names.seen(n for b in annotations if (n := self._name(b)))
            place = f"{content.path.name}: "
            names.note_unused(content.categories.values(), self.labelled_classes, place)
        with_attributes = (
            a for b in annotations if isinstance(a := b.record.get("attributes"), dict)
        )
        self._foreign = other_scales(with_attributes, self.space)
        for column, found in self._foreign.items():
            self.log.add(
                "attribute_other_scale",
                f"{content.path.name}: {self.space.attributes[column].name}: {found}",
            )

    def box(self, box: CocoBox) -> RawBox | None:
        """Translate one annotation, or report it and return None where it is left out."""
        name = self._name(box)
        if not name:
            shown = str(box.record.get("category_id"))[:40]
            self.log.add(
                "unknown_class_id", f"{box.where}: category_id {shown} has no name in `categories`"
            )
            return None
        label = self.names.label(name, box.where)
        if label is None:
            return None
        if label >= 0 and box.record.get("iscrowd") in (1, True):
            self.log.add("crowd_box", box.where)
            label = UNKNOWN
        return RawBox(box.box, label, name, self._attributes(box), box.where)

    def _name(self, box: CocoBox) -> str:
        finer = box.record.get("wbc_type")
        if isinstance(finer, str) and finer.strip():
            return finer.strip()
        return "" if box.category is None else self.file.categories.get(box.category, "")

    def _attributes(self, box: CocoBox) -> tuple[int, ...]:
        codes = [MISSING] * len(self.space.attributes)
        found = box.record.get("attributes")
        if found is None:
            return tuple(codes)
        if not isinstance(found, dict) or isinstance(found, Ambiguous):
            fault = found if isinstance(found, dict) else "not an object"
            self.log.add("unreadable_record", f"{box.where}: attributes: {fault}")
            return tuple(codes)
        for key, value in found.items():
            if key not in self._columns:
                self._columns[key] = self.space.find_attribute(key)
            column = self._columns[key]
            if column is None:
                self.log.add("attribute_unknown", f"{box.where}: {key}")
                continue
            code = attribute_code(value, self.space.attributes[column])
            if code == INVALID and column not in self._foreign:
                self.log.add("attribute_out_of_range", f"{box.where}: {key} = {str(value)[:40]}")
            codes[column] = code if code >= 0 and column not in self._foreign else MISSING
        return tuple(codes)


def _label_file(source: DomainSource) -> Path:
    root = source.root
    if not root.is_dir():
        raise DataError(no_folder(source))
    folders = [root, root / source.domain]
    if source.labels not in ("", "auto"):
        for folder in folders:
            if (folder / source.labels).is_file():
                return folder / source.labels
        raise DataError(f"{root / source.labels}: no such label file (domain {source.domain})")
    folder = next((f for f in folders if _label_files(f)), root)
    found = _label_files(folder)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(p.relative_to(folder).as_posix() for p in found[:5])
    raise DataError(
        f"{folder}: "
        + (f"several label files ({listed})" if found else "no annotations.json")
        + f"; name one in data.domains.{source.domain}.annotations"
    )


def _label_files(folder: Path) -> list[Path]:
    """Return the label file of a folder, or all that may be it where none has a usual name."""
    for name in LABEL_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    found = [p for d in (folder, folder / "annotations") for p in sorted(d.glob("*.json"))]
    return [p for p in found if p.is_file() and _is_coco(p)]


def _is_coco(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:  # said when it is read
        return True
    return b'"images"' in content and b'"annotations"' in content


def _images_below(folder: Path) -> dict[str, Path]:
    """Return images by lower-case path relative to ``folder``; two levels deep is enough."""
    found = [*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")]
    return {
        p.relative_to(folder).as_posix().lower(): p
        for p in sorted(found)
        if p.suffix.lower() in IMAGE_SUFFIXES
    }


_Found = tuple[CocoImage, Path, tuple[int, int]]
"""A listed image, its file, and its width and height."""


def _found(
    content: CocoFile, folder: Path, on_disk: dict[str, Path], log: FindingLog
) -> tuple[list[_Found], set[Path]]:
    """Return the listed images that can be used, and all listed files; report what is missing."""
    names = Counter(_base(i.file_name) for i in content.images)
    found: list[_Found] = []
    there: set[Path] = set()
    for image in content.images:
        path = _find(image, folder, on_disk)
        base = _base(image.file_name)
        if path is None and names[base] == 1 and _ELSEWHERE.match(image.file_name):
            path = on_disk.get(base, on_disk.get(f"images/{base}"))
            if path is not None:
                shown = path.relative_to(folder).as_posix()
                log.add("image_renamed", f"{image.file_name}: found as {shown}")
        if path is None:
            log.add("missing_image", f"{content.path.name}: {image.file_name}")
            continue
        there.add(path)
        size = (image.width, image.height)
        if size[0] is None or size[1] is None:
            size = header_size(path) or (None, None)
        if size[0] is None or size[1] is None:
            log.add("unreadable_image", f"{image.file_name}: no size in the label file either")
            continue
        found.append((image, path, (size[0], size[1])))
    return found, there


_ELSEWHERE = re.compile(r"/|[A-Za-z]:/")
"""How a path of the machine begins on which a label file was written."""


def _base(file_name: str) -> str:
    return file_name.rsplit("/", 1)[-1].lower()


_ODD = 0.02
"""Share of boxes that may be otherwise: mis-drawn ones."""

_LOST = 0.25
"""Share of a box outside its image from which it is no cell that the edge cuts."""


def _are_corners(found: Sequence[_Found]) -> bool:
    """Tell whether boxes hold ``x1, y1, x2, y2`` where COCO has ``x, y, width, height``.

    Read as COCO says such a box reaches from its corner over twice of it: it is wider than its left
    edge is far from the image's, and as far down. Of three boxes or more nearly all are so, and
    some stick far out.
    """
    alike = others = out = 0
    for image, _, (width, height) in found:
        for x1, y1, right, bottom in (b.box for b in image.boxes):
            wide, high = right - x1, bottom - y1
            fits = x1 < wide <= 1.01 * width + 1 and y1 < high <= 1.01 * height + 1
            alike, others = alike + fits, others + (not fits)
            inside = max(0.0, min(right, width) - x1) * max(0.0, min(bottom, height) - y1)
            out += fits and inside < (1 - _LOST) * wide * high
    return out > 0 and alike >= 3 and others <= _ODD * alike


def _find(image: CocoImage, folder: Path, on_disk: dict[str, Path]) -> Path | None:
    name = image.file_name.lower()
    for candidate in (name, f"images/{name}"):
        if candidate in on_disk:
            return on_disk[candidate]
    path = folder / image.file_name
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


def _patient(image: CocoImage) -> str:
    for key in ("patient", "patient_id", "slide"):
        value = image.record.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()[:200].encode("utf-8", "backslashreplace").decode()
    return ""


def _unlisted(listed: set[Path], folder: Path, on_disk: dict[str, Path], log: FindingLog) -> None:
    for path in on_disk.values():
        if path not in listed:
            log.add("image_not_in_labels", path.relative_to(folder).as_posix())
