"""`FieldOfView`: one photograph of a film and what is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

Region = tuple[float, float, float, float]
"""A rectangle ``x1, y1, x2, y2``, half-open."""


@dataclass(frozen=True)
class FieldOfView:
    """One image with its labels, in the label space it was read into.

    Convention: boxes are ``x1, y1, x2, y2`` in pixels of the stored image, half-open and float
    (a cell that fills a 4-px image is ``0, 0, 4, 4``).

    Attributes:
        image: path of the image file.
        domain: name of the device.
        patient: patient or slide, "" where the data set does not say.
        name: name of the field inside its domain; equal names of one patient in two domains are
            the same cells seen through two devices.
        width: image width in pixels.
        height: image height in pixels.
        boxes: ``(N, 4)`` float32.
        labels: ``(N,)`` int64, class index, or -1 for a cell whose type is not known in this
            label space (never a target, never a false positive).
        attributes: ``(N, A)`` int64 codes, -1 where missing.
        labelled_classes: class indices that the domain labels at all; other classes are
            unlabelled there, not absent.
        annotated_regions: the annotated parts, None for the whole field. Outside them nobody
            looked: no box there is no background.
        released_split: "train", "test" or "" as the data set was released.
        together: what a split must not divide where that is more than the patient or the field:
            single cells of one field, copies of one picture.
    """

    image: Path
    domain: str
    patient: str
    name: str
    width: int
    height: int
    boxes: FloatArray
    labels: IntArray
    attributes: IntArray
    labelled_classes: tuple[int, ...]
    annotated_regions: tuple[Region, ...] | None = None
    released_split: str = ""
    together: str = ""

    @property
    def key(self) -> str:
        """Identity over all domains: ``domain/patient/name``."""
        return f"{self.domain}/{self.patient}/{self.name}"

    @property
    def group(self) -> str:
        """What must not be divided by a split: the patient, or the field where there is none."""
        if self.together:
            return self.together
        return f"patient:{self.patient}" if self.patient else f"field:{self.domain}/{self.name}"


@dataclass(frozen=True)
class Finding:
    """One kind of anomaly in a data set.

    Attributes:
        kind: short snake_case name, stable over versions.
        severity: "error" where a result would be corrupted, "warning" otherwise.
        message: what it is and what to do about it.
        count: how often it was seen.
        examples: a few places, ``file: detail``.
    """

    kind: str
    severity: str
    message: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class FieldIndex:
    """All fields of one domain, as read, with what the reader found on the way."""

    domain: str
    fields: tuple[FieldOfView, ...]
    findings: tuple[Finding, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[FieldOfView]:
        return iter(self.fields)

    def only(self, keys: Sequence[str]) -> FieldIndex:
        """Return the index with the fields named by ``keys`` (see `FieldOfView.key`)."""
        wanted = set(keys)
        chosen = tuple(f for f in self.fields if f.key in wanted)
        return FieldIndex(self.domain, chosen, self.findings)
