"""The labels of a scene in the release's formats: COCO files and 5-, 12- and 16-column text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate.domains import PATCH_ORDERS
from da_leukemia.simulate.scene import SIDE, Scene

ATTRIBUTE_KEYS = (
    "cell_size",
    "nuclear_chromatio",
    "nuclear_shape",
    "nucleolus",
    "cytoplasm",
    "cytoplasmic_basophilia",
    "cytoplasmic_vacuoles",
)
"""The release's keys, spelling included."""

MISSING_JSON, MISSING_TXT = 4, 2
COCO_NONE = 14

CATEGORIES: tuple[str, ...] = (*LEUKEMIAATTRI.classes[1:], LEUKEMIAATTRI.classes[0])
"""Class names in the order of the COCO ids, from 1."""

Row = dict[str, Any]
Region = tuple[int, int, int, int]


def text_rows(scene: Scene) -> list[str]:
    """Return the 12-column rows of a scene; the first five columns are the YOLO row."""
    rows = []
    for box, label, codes in zip(scene.boxes, scene.labels, scene.attributes, strict=True):
        x0, y0, x1, y1 = box / SIDE
        place = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        numbers = " ".join(f"{round(float(v), 3):g}" for v in place)
        known = [MISSING_TXT if code < 0 else int(code) for code in codes]
        rows.append(f"{label} {numbers} {' '.join(map(str, known))}")
    return rows


def five_columns(row: str) -> str:
    """Return the YOLO row of a 12-column row."""
    return " ".join(row.split(" ")[:5])


def sparse_rows(rows: Sequence[str], patch: Region, order: str, *, whole: bool) -> list[str]:
    """Return 16-column rows.

    Args:
        rows: 12-column rows.
        patch: ``x1, y1, x2, y2`` in pixels of the squeezed frame.
        order: one of `PATCH_ORDERS`.
        whole: keep boxes outside the patch too, as in test files, where the patch means nothing.
    """
    x1, y1, x2, y2 = map(str, patch)
    columns = [x1, y1, x2, y2] if order == PATCH_ORDERS[0] else [x1, x2, y1, y2]
    out = []
    for row in rows:
        words = row.split(" ")
        if whole or _holds(patch, *_centre(row)):
            out.append(" ".join([*words[:5], *columns, *words[5:]]))
    return out


def draw_patch(rows: Sequence[str], share: float, rng: np.random.Generator) -> Region:
    """Draw the annotated patch of a field.

    The patch is on every row and nowhere else, so a file can only tell it where a box is inside:
    the patch is placed so that it holds the centre of a box drawn from ``rows``.

    Args:
        rows: 12-column rows; where there are none, the patch lies anywhere.
        share: of the area of the field.
        rng: of the field.

    Returns:
        ``x1, y1, x2, y2`` in pixels of the squeezed frame.
    """
    stretch = float(np.exp(rng.uniform(-0.4, 0.4)))
    width = int(np.clip(round(SIDE * (share * stretch) ** 0.5), 1, SIDE))
    height = int(np.clip(round(share * SIDE * SIDE / width), 1, SIDE))
    corner = []
    held = _centre(rows[int(rng.integers(len(rows)))]) if rows else (None, None)
    for centre, length in zip(held, (width, height), strict=True):
        low, high = 0, SIDE - length
        if centre is not None:
            pixel = min(int(centre), SIDE - 1)
            low, high = max(low, pixel - length + 1), min(high, pixel)
        corner.append(int(rng.integers(low, high + 1)))
    x, y = corner
    return x, y, x + width, y + height


def _centre(row: str) -> tuple[float, float]:
    """Return the centre of a row's box in pixels, from the rounded numbers that a reader sees."""
    _, x, y, *_ = row.split(" ")
    return float(x) * SIDE, float(y) * SIDE


def _holds(patch: Region, x: float, y: float) -> bool:
    x1, y1, x2, y2 = patch
    return x1 <= x < x2 and y1 <= y < y2


def json_rows(scene: Scene) -> list[Row]:
    """Return the annotations of a scene, without ids."""
    out = []
    for box, label, codes in zip(scene.boxes, scene.labels, scene.attributes, strict=True):
        x0, y0, x1, y1 = (round(float(v), 2) for v in box)
        width, height = round(x1 - x0, 2), round(y1 - y0, 2)
        row: Row = {
            "category_id": int(label) or COCO_NONE,
            "bbox": [x0, y0, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
        }
        known = (MISSING_JSON if code < 0 else int(code) for code in codes)
        row.update(zip(ATTRIBUTE_KEYS, known, strict=True))
        out.append(row)
    return out


def coco(
    entries: Sequence[tuple[str, Sequence[Row]]],
    names: Sequence[str] = CATEGORIES,
    *,
    repeated: bool = False,
    sensor: tuple[int, int] = (SIDE, SIDE),
) -> Row:
    """Return the content of a COCO file.

    Args:
        entries: file name and annotations of each image.
        names: class names in the order of their ids.
        repeated: list an image anew, under another id, for each of its boxes.
        sensor: ``width, height`` of the images; boxes of the entries are those of 640 x 640.
    """
    width, height = sensor
    images: list[Row] = []
    annotations: list[Row] = []
    for name, rows in entries:
        groups = [[row] for row in rows] if repeated and rows else [rows]
        for group in groups:
            number = len(images) + 1
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for row in group:
                row = row if sensor == (SIDE, SIDE) else _scaled(row, width / SIDE, height / SIDE)
                annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _scaled(row: Row, x: float, y: float) -> Row:
    left, top, width, height = row["bbox"]
    box = [round(v, 2) for v in (left * x, top * y, width * x, height * y)]
    return {**row, "bbox": box, "area": round(box[2] * box[3], 2)}
