"""LeukemiaAttri as released (Rehman et al., MICCAI 2024, arXiv 2405.10803), with its quirks.

``{domain}/Images/{train,test}`` with COCO files in ``json_labels`` or, without them, text files
in ``txt_labels``. Ids differ between the two (none is 14 here and 0 there), so classes are
matched by name wherever there are names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import Fields, RawField, note_unreadable
from da_leukemia.data.readers.boxes import IMAGE_SUFFIXES, RawBox, header_size, unreadable
from da_leukemia.data.readers.classes import ClassNames
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.leukemiaattri_labels import (
    ReadLabels,
    json_labels,
    labelled_classes,
    text_labels,
)
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import child, subfolders
from da_leukemia.errors import DataError, counted, did_you_mean
from da_leukemia.labels import LabelSpace

SPLITS = ("train", "test")
DOMAIN_NAME = re.compile(r"[HL]_(?:100X|40X|10X)_C[12]", re.IGNORECASE)
DEVICES = {
    "H": "high-cost microscope",
    "L": "low-cost microscope",
    "C1": "mobile phone",
    "C2": "microscope camera",
}
"""What the parts of a domain name mean; C1 and C2 are inferred from the folders (see the paper)."""

_FILE_NAME = re.compile(r"^(\d+)_(\d+)(?:_(\d+))?_(\d+)(?:_([A-Za-z]+))?$")


@dataclass(frozen=True)
class FilmName:
    """What a file name says: ``{patient}_{field}[_{frame}]_{magnification}[_{diagnosis}]``."""

    patient: str
    field: str
    magnification: int
    diagnosis: str


def parse_name(stem: str) -> FilmName | None:
    """Parse the stem of an image file name, None where it is not in the release's form."""
    match = _FILE_NAME.match(stem)
    if match is None:
        return None
    patient, number, frame, magnification, diagnosis = match.groups()
    # Leading zeros must not make one patient two.
    field = number if frame is None else f"{number}_{frame}"
    return FilmName(
        patient.lstrip("0") or "0", field, int(magnification[:9]), (diagnosis or "").upper()
    )


def list_domains(root: Path) -> list[str]:
    """Return the root's own name or the domain folders below it, as they are spelt there."""
    own = root.resolve().name
    if DOMAIN_NAME.fullmatch(own) and child(root, "images") is not None:
        return [own]
    return [p.name for p in subfolders(root) if DOMAIN_NAME.fullmatch(p.name)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one of the twelve domains (or a folder of the same layout).

    Raises:
        DataError: there is no such folder, or none of labels where the setting names one.
    """
    folder = child(source.root, source.domain)
    if folder is None and list_domains(source.root) == [source.domain]:
        folder = source.root
    if folder is None:
        raise DataError(
            f"{source.root / source.domain}: no such folder"
            f"{did_you_mean(source.domain, list_domains(source.root))}"
        )
    chosen = _chosen(source)
    if chosen and child(folder, *Path(chosen).parts) is None:
        raise DataError(
            f"{folder / chosen}: no such folder of labels; correct "
            f"data.domains.{source.domain}.annotations"
        )
    log = FindingLog()
    pattern = source.patient_regex()
    classes = ClassNames(space, log, source.declared_classes(space))
    labelled = labelled_classes(space) if classes.declared is None else classes.declared
    fields = Fields(source.domain, space, log)
    for split in SPLITS:
        images = _images(folder, split)
        labels, unread = None, False
        try:
            labels = _labels(source, folder, split, classes)
        except DataError as e:
            note_unreadable(e, log)
            unread = True
        if labels is None and images and not unread:
            archives = sorted(p.name for p in folder.rglob("*.zip"))
            for name in archives:
                log.add("zipped_labels", f"{source.domain}: {name}")
            if not archives:
                log.add("no_labels", f"{source.domain}/{split}: {counted(len(images), 'image')}")
        for path, size, rows in _resolve(images, labels, split, log):
            film = parse_name(path.stem)
            match = pattern.search(path.name) if pattern is not None else None
            if film is None and not (match and match["patient"]):
                log.add("patient_unknown", f"{source.domain}/{split}/{path.name}")
            elif film is not None and not film.diagnosis:
                log.add("diagnosis_missing", f"{source.domain}/{split}/{path.name}")
            patient = match["patient"] if match and match["patient"] else ""
            item = RawField(
                path,
                f"{split}/{path.name}",
                size,
                name=film.field if film else path.stem,
                patient=patient or (film.patient if film else ""),
                split=split,
                unread=rows is None,
            )
            fields.add(item, rows or (), labelled if labels is not None else ())
    released = " is released empty" if source.domain.upper() == "L_10X_C1" else ""
    return fields.index(folder if fields.found else f"{folder}{released}")


def _resolve(
    images: dict[str, Path],
    labels: ReadLabels | None,
    split: str,
    log: FindingLog,
) -> Iterator[tuple[Path, tuple[int, int], list[RawBox] | None]]:
    """Pair images with their labels; yields path, size and boxes in the order of the labels.

    The boxes are None where the label file of the image cannot be read.
    """
    if labels is None:
        for found in images.values():
            size = header_size(found)
            if size is None:
                log.add("unreadable_image", unreadable(found, f"{split}/{found.name}"))
            else:
                yield found, size, []
        return
    by_stem = {Path(n).stem: p for n, p in images.items()}
    used: set[Path] = set()
    for name in labels.names:
        path: Path | None = images.get(name.lower())
        if path is None:
            path = by_stem.get(labels.stem(name).lower())
            if path is not None and labels.has_suffix:
                log.add("image_renamed", f"{split}/{name}: found as {path.name}")
        elif path.name != name:
            log.add("image_renamed", f"{split}/{name}: found as {path.name}")
        if path is None:
            log.add("missing_image", f"{labels.where}: {split}/{name}")
            continue
        if path in used:
            log.add("repeated_image", f"{labels.where}: {split}/{name}")
            continue
        used.add(path)
        size = labels.size(name) or header_size(path)
        if size is None:
            log.add("unreadable_image", unreadable(path, f"{split}/{path.name}"))
            continue
        rows: list[RawBox] | None = None
        try:
            rows = labels.boxes(name, size)
        except DataError as e:
            note_unreadable(e, log)
        yield path, size, rows
    for unused in images.values():
        if unused not in used:
            log.add("image_not_in_labels", f"{split}/{unused.name}")


def _chosen(source: DomainSource) -> str | None:
    return source.labels if source.labels not in ("", "auto") else None


def _labels(
    source: DomainSource, folder: Path, split: str, classes: ClassNames
) -> ReadLabels | None:
    chosen = _chosen(source)
    wanted = [chosen] if chosen else ["json_labels", "txt_labels/AttriDet", "txt_labels"]
    wanted += [] if chosen else ["txt_labels/WBC_Detection"]
    for relative in wanted:
        place = child(folder, *Path(relative).parts)
        if place is None:
            continue
        as_json = child(place, f"{split}.json")
        if as_json is not None and as_json.is_file():
            return json_labels(as_json, classes)
        as_text = child(place, split)
        if as_text is not None and any(as_text.glob("*.txt")):
            return text_labels(as_text, classes)
    return None


def _images(folder: Path, split: str) -> dict[str, Path]:
    """Return the images of a split by lower-case file name, sorted."""
    place = child(folder, "images", split)
    if place is None or not place.is_dir():
        return {}
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return {p.name.lower(): p for p in found}
