"""From raw label records to the arrays of a field: every box is kept, repaired or reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from da_leukemia.data.fields import FloatArray, IntArray
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.labels import Attribute, LabelSpace, is_cell, normalise

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

EMPTY = "holds 0 bytes"
"""What is wrong with an image file of which only the name was copied."""

_ROUNDING = 0.01
"""Pixels by which a box may pass the edge through float arithmetic alone."""


@dataclass(frozen=True)
class RawBox:
    """One box as a reader found it, its class already translated.

    Attributes:
        box: ``x1, y1, x2, y2`` in pixels.
        label: class index or `UNKNOWN`.
        written: the class name or id in the file, to tell conflicts from repetitions.
        attributes: codes, -1 where missing.
        where: place in the label file.
    """

    box: tuple[float, float, float, float]
    label: int
    written: str
    attributes: tuple[int, ...]
    where: str


def arrays(
    raw: Sequence[RawBox], width: int, height: int, space: LabelSpace, log: FindingLog
) -> tuple[FloatArray, IntArray, IntArray]:
    """Clip, check and stack the boxes of one image; order as in the file.

    Returns:
        boxes ``(N, 4)`` float32, labels ``(N,)`` int64, attributes ``(N, A)`` int64.
    """
    kept: dict[tuple[tuple[float, ...], int], RawBox] = {}
    written: dict[tuple[float, ...], str] = {}
    for item in raw:
        box = _inside(item, width, height, log)
        if box is None:
            continue
        attributes = item.attributes
        named = item.written if item.label < 0 else space.classes[item.label]
        if not is_cell(named) and any(code != MISSING for code in attributes):
            log.add("attribute_of_no_cell", item.where)
            attributes = (MISSING,) * len(attributes)
        place = tuple(round(v, 3) for v in box)
        first = written.setdefault(place, item.written)
        if first != item.written:
            log.add("box_with_two_classes", f"{item.where}: {first} and {item.written}")
        same = kept.get((place, item.label))
        if same is None:
            kept[(place, item.label)] = RawBox(
                box, item.label, item.written, attributes, item.where
            )
            continue
        log.add("duplicate_box", item.where)
        # The copy may know an attribute that the first one lacks.
        merged = tuple(b if a < 0 else a for a, b in zip(same.attributes, attributes, strict=True))
        kept[(place, item.label)] = RawBox(box, same.label, same.written, merged, same.where)
    rows = list(kept.values())
    return (
        np.array([r.box for r in rows], dtype=np.float32).reshape(-1, 4),
        np.array([r.label for r in rows], dtype=np.int64),
        np.array([r.attributes for r in rows], dtype=np.int64).reshape(
            len(rows), len(space.attributes)
        ),
    )


def _inside(
    item: RawBox, width: int, height: int, log: FindingLog
) -> tuple[float, float, float, float] | None:
    x1, y1, x2, y2 = item.box
    shown = f"{item.where}: box {x1:g}, {y1:g}, {x2:g}, {y2:g}"
    if x2 < x1 or y2 < y1:
        log.add("box_inverted", shown)
        return None
    if x2 == x1 or y2 == y1:
        log.add("empty_box", shown)
        return None
    beyond = max(-x1 / width, -y1 / height, x2 / width - 1, y2 / height - 1)
    if beyond > 1 or max(x2, y2) <= 1 < min(width, height):
        log.add("box_units", f"{shown} in {width} x {height}")
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] - clipped[0] <= _ROUNDING or clipped[3] - clipped[1] <= _ROUNDING:
        kind = "empty_box" if min(x2 - x1, y2 - y1) <= _ROUNDING else "box_outside"
        log.add(kind, f"{shown} in {width} x {height}")
        return None
    if max(abs(a - b) for a, b in zip(clipped, item.box, strict=True)) > _ROUNDING:
        log.add("box_clipped", f"{shown} in {width} x {height}")
    return clipped


def shares_to_box(
    values: Sequence[float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return ``x1, y1, x2, y2`` in pixels of centre and size given as shares of the image."""
    width, height = size
    cx, cy, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


MISSING = -1
INVALID = -2


def attribute_code(value: object, attribute: Attribute) -> int:
    """Translate the value of an attribute, a code or a name.

    Returns:
        The code, `MISSING` for None or "", `INVALID` for anything else.
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, str):
        names = [normalise(v) for v in attribute.values]
        if normalise(value) in names:
            return names.index(normalise(value))
        value = int(value) if value.strip().isascii() and value.strip().isdigit() else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return INVALID
    return int(value) if value in range(len(attribute.values)) else INVALID


def other_scales(annotations: Iterable[Mapping[str, object]], space: LabelSpace) -> dict[int, str]:
    """Find attributes whose value names belong to another grading than the label space's.

    Where "big" stands beside "small", dropping only "big" would leave a column that says "small"
    whenever it speaks. More than a tenth of foreign names makes the whole column foreign.

    Returns:
        ``column -> foreign names``, for the finding.
    """
    known: Counter[int] = Counter()
    foreign: dict[int, Counter[str]] = {}
    for attributes in annotations:
        for key, value in attributes.items():
            column = space.find_attribute(key)
            if column is None or not isinstance(value, str):
                continue
            code = attribute_code(value, space.attributes[column])
            if code >= 0:
                known[column] += 1
            elif code == INVALID:
                foreign.setdefault(column, Counter())[value] += 1
    return {
        column: ", ".join(f"{n!r} ({c})" for n, c in names.most_common(3))
        for column, names in foreign.items()
        if names.total() > 0.1 * (names.total() + known[column])
    }


def unreadable(path: Path, shown: str) -> str:
    """Return the example of an `unreadable_image`, which says where the file holds nothing."""
    empty = path.is_file() and not path.stat().st_size
    return f"{shown}: {EMPTY}" if empty else shown


def header_size(path: Path) -> tuple[int, int] | None:
    """Return stored width and height from the header of an image, None where it has none."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow's plugins raise far more than OSError on damaged files
        return None
