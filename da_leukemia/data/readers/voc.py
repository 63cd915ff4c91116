"""Any folder of images with Pascal VOC xml files, such as BCCD (MIT, Shenggan/BCCD_Dataset).

``Annotations/*.xml`` with ``JPEGImages`` and ``ImageSets/Main``, or xml files beside the images,
with or without ``train``, ``valid`` and ``test`` folders.

Convention: VOC counts pixels from 1 and includes the last one, so a box over a whole image of 640
pixels is ``xmin 1, xmax 640``; it is read as ``x1 = xmin - 1, x2 = xmax``, half-open as everywhere
here. A corner at 0, which some tools write, stays at 0 and is reported (``voc_from_zero``).

Objects marked ``difficult`` or ``truncated`` are read like the others.

The size in the xml is right unless it is missing, 0, or a box lies beyond it and inside the image
file: then the size of the image file is used and that is reported (``size_wrong_in_labels``).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import (
    RawCell,
    RawField,
    assemble,
    bare_fields,
    note_unreadable,
)
from da_leukemia.data.readers.boxes import header_size, unreadable
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import LARGEST, parse_number, read_text
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import (
    PARTS,
    by_stem,
    child,
    domain_folder,
    images_in,
    released_split,
    subfolders,
)
from da_leukemia.errors import DataError
from da_leukemia.labels import LabelSpace

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Image", "img")
_LABEL_FOLDERS = ("Annotations", "annotation", "labels", "xml")

Box = tuple[float, float, float, float]


def list_domains(root: Path) -> list[str]:
    """Return the root's own name or the subfolders that hold xml files in a known place."""
    if _has_labels(root):
        return [root.resolve().name]
    return [p.name for p in subfolders(root) if _has_labels(p)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one domain.

    Raises:
        DataError: no xml files.
    """
    folder = domain_folder(source)
    log = FindingLog()
    chosen = source.labels if source.labels not in ("", "auto") else None
    if chosen and child(folder, *Path(chosen).parts) is None:
        raise DataError(
            f"{folder / chosen}: no such folder of labels; correct "
            f"data.domains.{source.domain}.annotations"
        )
    places = label_folders(folder, chosen)
    labels = [(part, path) for part, place in places for path in xml_in(place)]
    if not labels:
        raise DataError(
            f"{folder}: no xml files in Annotations/ or beside images; name their folder in "
            f"data.domains.{source.domain}.annotations"
        )
    images = [p for f in image_folders(folder, [p for _, p in places]) for p in images_in(f)]
    raw = read_fields(folder, labels, images, log)
    sets = _image_sets(folder)
    for item in raw:
        item.split = sets.get(item.image.stem, "") or item.split
    return assemble(source, space, folder, raw, log)


def read_fields(
    folder: Path, labels: Sequence[tuple[str, Path]], images: Sequence[Path], log: FindingLog
) -> list[RawField]:
    """Pair xml files with images and read them, in the order of the xml files.

    Args:
        folder: of the domain; places are told below it.
        labels: part ("train", ..., "" for none) and path of every xml file.
        images: every image of the domain.
        log: receives what is wrong.
    """
    parts = [part for part, _ in labels]
    names: dict[str, list[Path]] = {}
    for path in images:
        names.setdefault(path.name.lower(), []).append(path)
    stems: dict[str, list[Path]] = {}
    for path in images:
        stems.setdefault(path.stem.lower(), []).append(path)
    raw: dict[Path, RawField] = {}
    broken: set[Path] = set()
    for part, path in labels:
        shown = path.relative_to(folder).as_posix()
        content: VocFile | None
        try:
            content = read_xml(path, shown, log)
        except DataError as e:
            note_unreadable(e, log)
            content = None
        image = _find(content.file_name if content else "", path, names, stems, part)
        if content is None:
            if image is not None and image not in raw:
                broken.add(image)
                for item in bare_fields([image], folder, log):
                    raw[image] = replace(item, split=released_split(part, parts))
            if image in raw:
                raw[image].unread = True
            continue
        if image is None:
            log.add("missing_image", f"{shown}: {content.file_name or path.stem}")
            continue
        if content.file_name and image.name != content.file_name:
            log.add("image_renamed", f"{shown}: {content.file_name}: found as {image.name}")
        if image in raw:
            log.add("repeated_image", f"{shown}: {image.name} has another label file")
        else:
            size = _size(content, image, shown, log)
            if size is None:
                log.add("unreadable_image", unreadable(image, image.relative_to(folder).as_posix()))
                broken.add(image)
                continue
            split = released_split(part, parts)
            raw[image] = RawField(image, image.relative_to(folder).as_posix(), size, split=split)
        raw[image].cells += [
            RawCell(_edges(box, where, log), name, where) for box, name, where in content.objects
        ]
    for image in images:
        if image not in raw and image not in broken:
            log.add("image_not_in_labels", image.relative_to(folder).as_posix())
    return list(raw.values())


@dataclass(frozen=True)
class VocFile:
    """One xml file: image name, size as written, and ``box, class name, place`` of its objects."""

    file_name: str
    size: tuple[int, int] | None
    objects: list[tuple[Box, str, str]]


def read_xml(path: Path, shown: str, log: FindingLog) -> VocFile:
    """Read one VOC file; objects that cannot be used are reported.

    Raises:
        DataError: no XML; says where.
    """
    text = read_text(path)
    if re.search(r"<!(?:DOCTYPE|ENTITY)", text):
        raise DataError(
            f"{path}: the file defines entities, which no label file needs; remove them"
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as e:
        line, column = e.position
        raise DataError(
            f"{path}: line {line}, column {column + 1}: no XML ({str(e).split(':')[0]}); copy it "
            "again or repair it"
        ) from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read as XML ({e}); export it again") from None
    objects: list[tuple[Box, str, str]] = []
    for position, node in enumerate(root.iter("object"), start=1):
        where = f"{shown}: object {position}"
        box, name = _box(node), _text(node, "name")
        if isinstance(box, str) or not name:
            fault = box if isinstance(box, str) else "needs one name"
            log.add("unreadable_record", f"{where}: {fault}")
            continue
        objects.append((box, name, where))
    # A box or name that has slipped out of its object would be lost without a word.
    loose = len(list(root.iter("bndbox"))) - sum(
        len(list(o.iter("bndbox"))) for o in root.iter("object")
    )
    if loose or root.tag != "annotation":
        log.add(
            "unreadable_record", f"{shown}: not <annotation> with <object> in it", max(loose, 1)
        )
    size = [parse_number(_text(root, f"size/{k}")) for k in ("width", "height")]
    known = all(v is not None and 1 <= v <= LARGEST for v in size)
    name = _text(root, "filename").replace("\\", "/").rsplit("/", 1)[-1]
    return VocFile(name, (int(size[0] or 0), int(size[1] or 0)) if known else None, objects)


def xml_in(folder: Path) -> list[Path]:
    """Return the xml files directly in a folder, sorted."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() == ".xml")


def label_folders(folder: Path, chosen: str | None = None) -> list[tuple[str, Path]]:
    """Return part and path of the folders with xml files, each once."""
    found: dict[Path, str] = {}
    for part in ("", *PARTS):
        tail = (part,) if part else ()
        for name in (chosen,) if chosen else (*_LABEL_FOLDERS, "", *_IMAGE_FOLDERS):
            inner = Path(name).parts
            for parts in ((*inner, *tail), (*tail, *inner)):
                place = child(folder, *parts)
                if place is not None and place.is_dir() and xml_in(place):
                    found.setdefault(place, part)
    return [(part, place) for place, part in found.items()]


def image_folders(folder: Path, beside: Sequence[Path]) -> list[Path]:
    """Return the folders that may hold images, each once."""
    found: dict[Path, None] = dict.fromkeys(beside)
    for part in ("", *PARTS):
        tail = (part,) if part else ()
        for name in ("", *_IMAGE_FOLDERS):
            inner = Path(name).parts
            for parts in ((*inner, *tail), (*tail, *inner)):
                place = child(folder, *parts)
                if place is not None and place.is_dir():
                    found.setdefault(place)
    return list(found)


def _has_labels(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    for _, place in label_folders(folder):
        with xml_in(place)[0].open("rb") as file:
            if b"<annotation" in file.read(4096):
                return True
    return False


def _text(node: ElementTree.Element, path: str) -> str:
    """Return the text of a child, "" where there is none or more than one."""
    found = node.findall(path)
    return (found[0].text or "").strip() if len(found) == 1 else ""


def _box(node: ElementTree.Element) -> Box | str:
    """Return the corners of an object, or what is wrong with them."""
    if len(node.findall("bndbox")) != 1:
        return "needs one bndbox"
    values = []
    for corner in _CORNERS:
        written = _text(node, f"bndbox/{corner}")
        value = parse_number(written)
        if value is None or not abs(value) <= LARGEST:  # NaN too
            return f"{corner} {written[:40]!r} is no pixel number"
        values.append(value)
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def _edges(box: Box, where: str, log: FindingLog) -> Box:
    """Return half-open edges of a box that counts from 1 and includes its last pixel."""
    x1, y1, x2, y2 = box
    if 0 <= x1 < 1 or 0 <= y1 < 1:
        log.add("voc_from_zero", f"{where}: corner {x1:g}, {y1:g}")
    return (x1 if 0 <= x1 < 1 else x1 - 1), (y1 if 0 <= y1 < 1 else y1 - 1), x2, y2


def _size(content: VocFile, image: Path, shown: str, log: FindingLog) -> tuple[int, int] | None:
    stored = header_size(image)
    written = content.size
    if stored is None or written == stored:
        return written if stored is not None else None
    told = "no size" if written is None else f"{written[0]} x {written[1]}"
    needed = [max((b[k] for b, _, _ in content.objects), default=0) for k in (2, 3)]
    if written is None or (
        any(n > w for n, w in zip(needed, written, strict=True))
        and all(n <= s for n, s in zip(needed, stored, strict=True))
    ):
        log.add("size_wrong_in_labels", f"{shown}: {told}, the file is {stored[0]} x {stored[1]}")
        return stored
    return written


def _find(
    file_name: str,
    path: Path,
    names: dict[str, list[Path]],
    stems: dict[str, list[Path]],
    part: str,
) -> Path | None:
    """Find the image of an xml file, by the xml's own name first: `filename` is often stale."""
    for wanted in (
        stems.get(path.stem.lower(), []),
        names.get(file_name.lower(), []),
        stems.get(Path(file_name).stem.lower(), []) if file_name else [],
    ):
        beside = [p for p in wanted if p.parent == path.parent]
        same_part = [p for p in wanted if part and part in (q.lower() for q in p.parts)]
        exact = [p for p in wanted if p.name.lower() == file_name.lower()]
        for choice in (beside, same_part, exact, wanted):
            if choice:
                return choice[0]
    return None


def _image_sets(folder: Path) -> dict[str, str]:
    place = child(folder, "ImageSets", "Main") or child(folder, "ImageSets")
    files, _ = by_stem(sorted(place.glob("*.txt")) if place is not None else ())
    found: dict[str, str] = {}
    parts = [p for p in (*PARTS, "trainval") if p in files]
    for part in reversed(parts):  # of an image in train and test, train wins: never test on it
        for line in read_text(files[part]).split("\n"):
            if line.strip():
                found[line.split()[0]] = released_split(part, parts).removesuffix("val")
    return found
