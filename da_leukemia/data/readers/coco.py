"""Any folder of images with a COCO ``annotations.json``: the way to bring one's own device.

Read beyond plain COCO: ``wbc_type`` of an annotation (a finer class), ``attributes`` of an
annotation (key to value name or code), ``patient`` or ``slide`` of an image.
"""

from __future__ import annotations

from pathlib import Path

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers.boxes import (
    IMAGE_SUFFIXES,
    INVALID,
    MISSING,
    RawBox,
    arrays,
    attribute_code,
    header_size,
    other_scales,
    unlabelled_note,
)
from da_leukemia.data.readers.cocofile import CocoBox, CocoFile, CocoImage, load_coco
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import DataError, did_you_mean
from da_leukemia.labels import UNKNOWN, LabelSpace, known_names, translate

LABEL_NAMES = ("annotations.json", "_annotations.coco.json")


def list_domains(root: Path) -> list[str]:
    """Return the subfolders with a label file, or the root's own name where it has one."""
    if not root.is_dir():
        return []
    if any((root / n).is_file() for n in LABEL_NAMES):
        return [root.resolve().name]
    found = (p for p in root.iterdir() if p.is_dir())
    return sorted(p.name for p in found if any((p / n).is_file() for n in LABEL_NAMES))


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one domain.

    Args:
        source: ``root`` is the folder of the domain, or the folder that holds it under its name.
        space: label space to translate into.

    Raises:
        DataError: no label file, one that cannot be parsed, or a class name nobody knows.
    """
    log = FindingLog()
    label_file = _label_file(source)
    content = load_coco(label_file, log)
    _refuse_normalised(content)
    reader = _Translation(content, space, source.declared_classes(space), log)
    pattern = source.patient_regex()
    folder = label_file.parent
    folder = folder.parent if folder.name == "annotations" else folder
    on_disk = _images_below(folder)
    fields = []
    names: set[tuple[str, str]] = set()
    for image in content.images:
        path = _find(image, folder, on_disk)
        if path is None:
            log.add("missing_image", f"{label_file.name}: {image.file_name}")
            continue
        size = (image.width, image.height)
        if size[0] is None or size[1] is None:
            size = header_size(path) or (None, None)
        if size[0] is None or size[1] is None:
            log.add("unreadable_image", f"{image.file_name}: no size in the label file either")
            continue
        patient = _patient(image)
        if not patient and pattern is not None and (match := pattern.search(path.name)):
            patient = match["patient"] or ""
        if not patient:
            log.add("no_patient", image.file_name)
        name = str(Path(image.file_name).with_suffix("")).removeprefix("images/")
        if (patient, name) in names:  # a.png beside a.jpg
            log.add("field_name_repeated", image.file_name)
            name = image.file_name
        names.add((patient, name))
        raw = [r for b in image.boxes if (r := reader.box(b)) is not None]
        boxes, labels, attributes = arrays(raw, size[0], size[1], space, log)
        split = image.record.get("split")
        fields.append(
            FieldOfView(
                image=path,
                domain=source.domain,
                patient=patient,
                name=name,
                width=size[0],
                height=size[1],
                boxes=boxes,
                labels=labels,
                attributes=attributes,
                labelled_classes=reader.labelled_classes,
                released_split=split if split in ("train", "test") else "",
            )
        )
    _unlisted(content, on_disk, log)
    if not fields:
        log.add("empty_domain", str(label_file))
    elif not reader.labelled_classes and not any(len(f.boxes) for f in fields):
        log.add("no_labels", f"{label_file}: no box of a class of {space.name!r}")
    return FieldIndex(source.domain, tuple(fields), log.findings())


class _Translation:
    """Class names and attributes of one file in the terms of a label space."""

    def __init__(
        self,
        content: CocoFile,
        space: LabelSpace,
        declared: tuple[int, ...] | None,
        log: FindingLog,
    ) -> None:
        self.file = content
        self.space = space
        self.log = log
        self._names: dict[str, int | None] = {}
        self._columns: dict[str, int | None] = {}
        annotations = [b for i in content.images for b in i.boxes]
        seen = {label for b in annotations if (label := self._label(b)) is not None and label >= 0}
        self.labelled_classes = tuple(sorted(seen)) if declared is None else declared
        if declared is None:
            for name in content.categories.values():
                index = self._known(name)
                if index is not None and index not in seen:
                    log.add("class_without_boxes", f"{content.path.name}: {name}")
        with_attributes = (
            a for b in annotations if isinstance(a := b.record.get("attributes"), dict)
        )
        self._foreign = other_scales(with_attributes, space)
        for column, found in self._foreign.items():
            log.add(
                "attribute_other_scale",
                f"{content.path.name}: {space.attributes[column].name}: {found}",
            )

    def box(self, box: CocoBox) -> RawBox | None:
        """Translate one annotation, or report it and return None where it is background."""
        name, label = self._written(box), self._label(box)
        if label is None:
            self.log.add("not_in_label_space", f"{box.where}: {name}")
            return None
        if label >= 0 and label not in self.labelled_classes:
            self.log.add("class_not_declared", f"{box.where}: {name}")
            label = UNKNOWN
        elif box.record.get("iscrowd") in (1, True):
            self.log.add("crowd_box", box.where)
            label = UNKNOWN
        else:
            unlabelled_note(label, box.where, name, self.log)
        return RawBox(box.box, label, name, self._attributes(box), box.where)

    def _written(self, box: CocoBox) -> str:
        finer = box.record.get("wbc_type")
        if isinstance(finer, str) and finer.strip():
            return finer.strip()
        name = "" if box.category is None else self.file.categories.get(box.category, "")
        if not name:
            raise DataError(
                f"{self.file.path.parent / box.where}: category_id {box.category!r} "
                "has no name in `categories`; add it there"
            )
        return name

    def _label(self, box: CocoBox) -> int | None:
        name = self._written(box)
        if name not in self._names:
            try:
                self._names[name] = translate(name, self.space)
            except KeyError:
                raise DataError(
                    f"{self.file.path.parent / box.where}: unknown class {name!r}"
                    f"{did_you_mean(name.lower(), known_names(self.space))}. Rename the category"
                ) from None
        return self._names[name]

    def _known(self, name: str) -> int | None:
        try:
            index = translate(name, self.space)
        except KeyError:
            return None
        return index if index is not None and index >= 0 else None

    def _attributes(self, box: CocoBox) -> tuple[int, ...]:
        codes = [MISSING] * len(self.space.attributes)
        found = box.record.get("attributes")
        if found is None:
            return tuple(codes)
        if not isinstance(found, dict):
            self.log.add("unreadable_record", f"{box.where}: attributes: not an object")
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
        raise DataError(f"{root}: no such folder; correct data.domains.{source.domain}.root")
    folders = [root, root / source.domain]
    if source.labels not in ("", "auto"):
        for folder in folders:
            if (folder / source.labels).is_file():
                return folder / source.labels
        raise DataError(f"{root / source.labels}: no such label file (domain {source.domain})")
    for folder in folders:
        for name in LABEL_NAMES:
            if (folder / name).is_file():
                return folder / name
    found = sorted(p for f in folders for d in (f, f / "annotations") for p in d.glob("*.json"))
    if len(found) == 1:
        return found[0]
    listed = ", ".join(str(p.relative_to(root)) for p in found[:5])
    raise DataError(
        f"{root}: "
        + (f"several label files ({listed})" if found else "no annotations.json")
        + f"; name one in data.domains.{source.domain}.annotations"
    )


def _refuse_normalised(content: CocoFile) -> None:
    boxes = [b.box for i in content.images for b in i.boxes]
    if boxes and max(max(b) for b in boxes) <= 1.0:
        raise DataError(
            f"{content.path}: all boxes lie between 0 and 1; COCO boxes are x, y, width, height "
            "in pixels: multiply them by the image size"
        )


def _images_below(folder: Path) -> dict[str, Path]:
    """Return images by lower-case path relative to ``folder``; two levels deep is enough."""
    found = [*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")]
    return {
        p.relative_to(folder).as_posix().lower(): p
        for p in sorted(found)
        if p.suffix.lower() in IMAGE_SUFFIXES
    }


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


def _unlisted(content: CocoFile, on_disk: dict[str, Path], log: FindingLog) -> None:
    listed = {i.file_name.lower() for i in content.images}
    listed |= {f"images/{n}" for n in listed}
    for name in on_disk:
        if name not in listed:
            log.add("image_not_in_labels", name)
