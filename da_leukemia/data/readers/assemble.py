"""From the cells that a reader found, named as in its files, to the index of a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers.boxes import MISSING, RawBox, arrays, unlabelled_note
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import DataError, did_you_mean
from da_leukemia.labels import UNKNOWN, LabelSpace, known_names, translate

_PROBLEMS = 10


@dataclass(frozen=True)
class RawCell:
    """One label row.

    Attributes:
        box: ``x1, y1, x2, y2`` in pixels.
        name: class as the file names it; None for a cell of unknown type, which the reader has
            reported.
        where: place in the label file, below the folder of the domain.
        attributes: codes, empty where the format has none.
    """

    box: tuple[float, float, float, float]
    name: str | None
    where: str
    attributes: tuple[int, ...] = ()


@dataclass
class RawField:
    """One image with its rows; ``shown`` is its path below the folder of the domain."""

    image: Path
    shown: str
    size: tuple[int, int]
    cells: list[RawCell] = field(default_factory=list)
    name: str = ""
    patient: str = ""
    split: str = ""
    region: tuple[float, float, float, float] | None = None


def assemble(
    source: DomainSource,
    space: LabelSpace,
    folder: Path,
    raw: Sequence[RawField],
    log: FindingLog,
    *,
    listed: Sequence[str] = (),
    labelled: bool = True,
    classes: tuple[int, ...] | None = None,
    without_patient: str = "no_patient",
) -> FieldIndex:
    """Translate classes, settle patients and names, and stack the boxes.

    Args:
        source: of the domain.
        space: label space to translate into.
        folder: of the domain, for messages.
        raw: fields in the order of the index.
        log: receives what is wrong.
        listed: class names that the label files declare, with or without boxes.
        labelled: False where there are no label files at all.
        classes: what is labelled where the setting does not say; None takes the classes seen.
        without_patient: kind of finding for an image whose patient is not told.

    Raises:
        DataError: class names that nobody knows, each with its place.
    """
    labels = _labels(raw, folder, space)
    seen = {i for i in labels.values() if i is not None and i >= 0}
    declared = source.declared_classes(space)
    if declared is not None:
        classes = declared
    elif classes is None:
        classes = tuple(sorted(seen))
        for name in listed:
            index = _known(name, space)
            if index is not None and index not in seen:
                log.add("class_without_boxes", name)
    pattern = source.patient_regex()
    names: set[tuple[str, str]] = set()
    fields = []
    for item in raw:
        match = pattern.search(item.image.name) if pattern is not None else None
        patient = (match["patient"] or "") if match else ""
        patient = patient or item.patient
        if not patient:
            log.add(without_patient, item.shown)
        name = item.name or item.image.stem
        if (patient, name) in names:
            log.add("field_name_repeated", item.shown)
            name = item.shown
        names.add((patient, name))
        boxes, codes, attributes = arrays(
            _rows(item, labels, classes, space, log), *item.size, space, log
        )
        fields.append(
            FieldOfView(
                image=item.image,
                domain=source.domain,
                patient=patient,
                name=name,
                width=item.size[0],
                height=item.size[1],
                boxes=boxes,
                labels=codes,
                attributes=attributes,
                labelled_classes=classes if labelled else (),
                annotated_region=item.region,
                released_split=item.split,
            )
        )
    if not fields:
        log.add("empty_domain", str(folder))
    elif not labelled or (not classes and not any(len(f.boxes) for f in fields)):
        log.add("no_labels", f"{folder}: no box of a class of {space.name!r}")
    return FieldIndex(source.domain, tuple(fields), log.findings())


def _labels(raw: Sequence[RawField], folder: Path, space: LabelSpace) -> dict[str, int | None]:
    labels: dict[str, int | None] = {}
    problems: dict[str, str] = {}
    for cell in (c for f in raw for c in f.cells):
        if cell.name is None or cell.name in labels or cell.name in problems:
            continue
        try:
            labels[cell.name] = translate(cell.name, space)
        except KeyError:
            problems[cell.name] = (
                f"{folder / cell.where}: unknown class {cell.name[:80]!r}"
                f"{did_you_mean(cell.name[:80].lower(), known_names(space))}. Rename the class"
            )
    if problems:
        raise DataError(list(problems.values())[:_PROBLEMS])
    return labels


def _known(name: str, space: LabelSpace) -> int | None:
    try:
        index = translate(name, space)
    except KeyError:
        return None
    return index if index is not None and index >= 0 else None


def _rows(
    item: RawField,
    labels: dict[str, int | None],
    classes: tuple[int, ...],
    space: LabelSpace,
    log: FindingLog,
) -> list[RawBox]:
    rows = []
    for cell in item.cells:
        attributes = cell.attributes or (MISSING,) * len(space.attributes)
        if cell.name is None:
            rows.append(RawBox(cell.box, UNKNOWN, "", attributes, cell.where))
            continue
        label = labels[cell.name]
        if label is None:
            log.add("not_in_label_space", f"{cell.where}: {cell.name}")
            continue
        if label >= 0 and label not in classes:
            log.add("class_not_declared", f"{cell.where}: {cell.name}")
            label = UNKNOWN
        else:
            unlabelled_note(label, cell.where, cell.name, log)
        rows.append(RawBox(cell.box, label, cell.name, attributes, cell.where))
    return rows
