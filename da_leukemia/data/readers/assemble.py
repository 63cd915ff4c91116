"""From the cells that a reader found, named as in its files, to the index of a domain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers.boxes import MISSING, RawBox, arrays, header_size, unreadable
from da_leukemia.data.readers.classes import ClassNames
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import DataError, counted
from da_leukemia.labels import UNKNOWN, LabelSpace

_WHY_NO_LABELS = ("no_labels", "zipped_labels", "unreadable_label_file")
"""Findings that say already why a domain has no labels."""


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
    """One image with its rows.

    Attributes:
        shown: its path below the folder of the domain.
        unread: its label file cannot be read, so it counts as unlabelled.
    """

    image: Path
    shown: str
    size: tuple[int, int]
    cells: list[RawCell] = field(default_factory=list)
    name: str = ""
    patient: str = ""
    split: str = ""
    region: tuple[float, float, float, float] | None = None
    unread: bool = False


class Fields:
    """Collects the fields of a domain; two of one name are told apart by their file.

    Args:
        domain: name of the device.
        space: label space of the boxes.
        log: receives what is wrong.
    """

    def __init__(self, domain: str, space: LabelSpace, log: FindingLog) -> None:
        self.found: list[FieldOfView] = []
        self._domain = domain
        self._space = space
        self._log = log
        self._names: set[tuple[str, str]] = set()

    def add(
        self,
        item: RawField,
        rows: Sequence[RawBox],
        labelled_classes: tuple[int, ...],
    ) -> None:
        """Check and stack the boxes of one image; ``cells`` of ``item`` are not looked at."""
        name = item.name or item.image.stem
        if (item.patient, name) in self._names:
            self._log.add("field_name_repeated", item.shown)
            name = item.shown
        self._names.add((item.patient, name))
        boxes, labels, attributes = arrays(rows, *item.size, self._space, self._log)
        self.found.append(
            FieldOfView(
                image=item.image,
                domain=self._domain,
                patient=item.patient,
                name=name,
                width=item.size[0],
                height=item.size[1],
                boxes=boxes,
                labels=labels,
                attributes=attributes,
                labelled_classes=() if item.unread else labelled_classes,
                annotated_regions=None if item.region is None else (item.region,),
                released_split=item.split,
            )
        )

    def index(self, place: Path | str) -> FieldIndex:
        """Return the index of the domain; ``place`` says where its labels are."""
        if not self.found:
            self._log.add("empty_domain", str(place))
        elif not (
            any(f.labelled_classes or len(f.boxes) for f in self.found)
            or any(kind in self._log for kind in _WHY_NO_LABELS)
        ):
            self._log.add("no_labels", f"{place}: no box of a class of {self._space.name!r}")
        return FieldIndex(self._domain, tuple(self.found), self._log.findings())


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
    """
    names = ClassNames(space, log, source.declared_classes(space))
    if names.declared is not None:
        classes = names.declared
    elif classes is None:
        classes = names.seen(c.name for f in raw for c in f.cells if c.name is not None)
        names.note_unused(listed, classes)
    pattern = source.patient_regex()
    fields = Fields(source.domain, space, log)
    for item in raw:
        match = pattern.search(item.image.name) if pattern is not None else None
        item.patient = (match["patient"] if match else "") or item.patient
        if not item.patient and not item.unread:  # what cannot be read may tell it
            log.add(without_patient, item.shown)
        fields.add(item, _rows(item, names), classes if labelled else ())
    if raw and not labelled:
        log.add(
            "no_labels",
            f"{folder}: {counted(len(raw), 'image')} and no label file such as annotations.json, "
            "labels/*.txt or Annotations/*.xml",
        )
    return fields.index(folder)


def bare_fields(images: Iterable[Path], folder: Path, log: FindingLog) -> Iterator[RawField]:
    """Yield images as fields without rows; one without a size is reported."""
    for image in images:
        shown, size = image.relative_to(folder).as_posix(), header_size(image)
        if size is None:
            log.add("unreadable_image", unreadable(image, shown))
        else:
            yield RawField(image, shown, size)


@contextmanager
def unread_noted(item: RawField, log: FindingLog) -> Iterator[None]:
    """Note that the label file which is read inside cannot be read; go on with the next one."""
    try:
        yield
    except DataError as e:
        item.unread = True
        note_unreadable(e, log)


def note_unreadable(error: DataError, log: FindingLog) -> None:
    """Count a label file that cannot be read."""
    for problem in error.problems:
        log.add("unreadable_label_file", problem)


def _rows(item: RawField, names: ClassNames) -> list[RawBox]:
    rows = []
    for cell in item.cells:
        attributes = cell.attributes or (MISSING,) * len(names.space.attributes)
        label = UNKNOWN if cell.name is None else names.label(cell.name, cell.where)
        if label is not None:
            rows.append(RawBox(cell.box, label, cell.name or "", attributes, cell.where))
    return rows
