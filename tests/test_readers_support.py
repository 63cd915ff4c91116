"""One small data set in every format that a reader exists for: what the shared tests share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.labels import LEUKEMIAATTRI, M5, WBC5, LabelSpace

SIZE = (64, 48)
STEMS = ("1_1_1000_ALL", "2_1_1000_ALL", "3_1_1000_ALL")
NAMES = ("neutrophil", "monocyte", "eosinophil")
STAGES = ("ring", "schizont", "gametocyte")
BOXES = ((8, 12, 16, 24), (32, 12, 48, 36), (40, 30, 64, 48))
CODES = (2, 0, 1, 1, 1, 1, 0)
SPARSE_CODES = " ".join(map(str, CODES))

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """A data set of three images with the three `BOXES` each.

    Attributes:
        fmt: name of the reader.
        domain: of the only device.
        root: of the data set.
        space: label space to read it into.
        labels: label file of the last image (of all images in COCO).
        images: files of the images, in the order of the index.
        patients: of the fields.
        rows: reads a label file naively: every row that it has, with box and class where it is
            sound, None otherwise.
        settings: more of `DomainSource`.
    """

    fmt: str
    domain: str
    root: Path
    space: LabelSpace
    labels: Path
    images: tuple[Path, ...]
    patients: tuple[str, ...]
    rows: Callable[[bytes], list[tuple[Box, str] | None]]
    settings: dict[str, Any] = field(default_factory=dict)

    def read(self) -> FieldIndex:
        return read_domain(
            DomainSource(self.domain, self.root, **self.settings), self.fmt, self.space
        )


def _put_images(folder: Path) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for n, stem in enumerate(STEMS):
        Image.new("RGB", SIZE, (200, 100, n)).save(folder / f"{stem}.png")
    return tuple(folder / f"{stem}.png" for stem in STEMS)


def _write(folder: Path, suffix: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        (folder / f"{stem}{suffix}").write_text(text.replace("STEM", stem))
    return folder / f"{STEMS[-1]}{suffix}"


def _shares(box: Box) -> str:
    (x1, y1, x2, y2), (w, h) = box, SIZE
    values = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
    return " ".join(f"{v:.9g}" for v in values)


def _text_rows(names: tuple[str, ...], columns: tuple[int, ...]):
    def rows(content: bytes) -> list[tuple[Box, str] | None]:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        found: list[tuple[Box, str] | None] = []
        for line in (x.split() for x in text.split("\n") if x.strip()):
            try:
                assert all(re.fullmatch(r"[-+.e0-9]+", v, re.IGNORECASE) for v in line)
                values = [float(v) for v in line]
                name = names[int(values[0])]
                assert len(values) in columns
                assert 0 <= values[0] == int(values[0])
            except (ValueError, IndexError, OverflowError, AssertionError):
                found.append(None)
                continue
            cx, cy, w, h = (v * s for v, s in zip(values[1:5], SIZE * 2, strict=True))
            found.append(((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), name))
        return found

    return rows


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


Pairs = tuple[tuple[str, Any], ...]


def _load(content: bytes) -> Any:
    """Return JSON with objects that have a key twice as a tuple of their pairs."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Pairs:
        return dict(pairs) if len({k for k, _ in pairs}) == len(pairs) else tuple(pairs)

    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)


def _coco_rows(content: bytes) -> list[tuple[Box, str] | None]:
    data = _load(content)
    if isinstance(data, tuple):
        keys = [k for k, _ in data]
        assert all(keys.count(k) == 1 for k in ("images", "annotations", "categories"))
        data = dict(data)
    listed = [c for c in data.get("categories") or () if not isinstance(c, tuple)]
    categories = [c for c in listed if isinstance(c.get("name"), str)]
    names = {c["id"]: c["name"] for c in categories if "id" in c}
    found: list[tuple[Box, str] | None] = []
    for row in data["annotations"]:
        try:
            x, y, w, h = map(_number, row["bbox"])
            found.append(((x, y, x + w, y + h), names[row["category_id"]]))
        except (KeyError, TypeError, ValueError):
            found.append(None)
    return found


def _raabin_rows(content: bytes) -> list[tuple[Box, str] | None]:
    found: list[tuple[Box, str] | None] = []
    data = _load(content)
    pairs = list(data if isinstance(data, tuple) else data.items())
    keys = [k for k, _ in pairs]
    for key, cell in pairs:
        if keys.count(key) > 1:
            found.append(None)
            continue
        if not isinstance(cell, dict | list | tuple) and not key.startswith("Cell_"):
            continue
        try:
            x1, x2, y1, y2 = (_number(cell[k]) for k in ("x1", "x2", "y1", "y2"))
            name = cell.get("Label2")
            found.append(((x1, y1, x2, y2), name if isinstance(name, str) else None))
        except (KeyError, TypeError, ValueError):
            found.append(None)
    return found


def _voc_rows(content: bytes) -> list[tuple[Box, str] | None]:
    text = content.decode("utf-8-sig")
    found: list[tuple[Box, str] | None] = []
    for piece in text.split("<object>")[1:]:
        try:
            piece = piece.split("</object>")[0]
            tags = re.findall(r"<(name|bndbox|xmin|ymin|xmax|ymax)>", piece)
            assert len(set(tags)) == len(tags)
            values = [
                float(piece.split(f"<{k}>")[1].split("</")[0])
                for k in ("xmin", "ymin", "xmax", "ymax")
            ]
            name = piece.split("<name>")[1].split("</")[0].strip()
        except (IndexError, ValueError, AssertionError):
            found.append(None)
            continue
        x1, y1 = (v if 0 <= v < 1 else v - 1 for v in values[:2])
        found.append(((x1, y1, values[2], values[3]), name))
    return found


def _voc(names: tuple[str, ...]) -> str:
    objects = "\n".join(
        f"<object>\n<name>{n}</name>\n<bndbox>\n<xmin>{b[0] + 1}</xmin>\n<ymin>{b[1] + 1}</ymin>\n"
        f"<xmax>{b[2]}</xmax>\n<ymax>{b[3]}</ymax>\n</bndbox>\n</object>"
        for n, b in zip(names, BOXES, strict=True)
    )
    return (
        "<annotation>\n<filename>STEM.png</filename>\n<size>\n<width>64</width>\n"
        f"<height>48</height>\n</size>\n{objects}\n</annotation>\n"
    )


def _coco(by_base_name: bool) -> str:
    folder = "" if by_base_name else "images/"
    codes = dict(zip((a.name for a in LEUKEMIAATTRI.attributes), CODES, strict=True))
    images = [
        {"id": n, "file_name": f"{folder}{stem}.png", "width": SIZE[0], "height": SIZE[1]}
        | ({} if by_base_name else {"patient": stem[0]})
        for n, stem in enumerate(STEMS, start=1)
    ]
    annotations = [
        {
            "id": 10 * n + k,
            "image_id": n,
            "category_id": k,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            **(codes if by_base_name else {"attributes": codes}),
        }
        for n in (1, 2, 3)
        for k, b in enumerate(BOXES, start=1)
    ]
    categories = [{"id": k, "name": n} for k, n in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, indent=1)


def make(name: str, root: Path) -> Sample:
    """Write the data set of one of `SAMPLES` and say what is in it."""
    patients = tuple(s[0] for s in STEMS)
    ids = [LEUKEMIAATTRI.classes.index(n) for n in NAMES]
    domain = "H_100X_C2"
    if name in ("coco", "leukemiaattri_json"):
        plain = name == "coco"
        labels = root / ("annotations.json" if plain else f"{domain}/json_labels/train.json")
        images = _put_images(root / ("images" if plain else f"{domain}/Images/train"))
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(_coco(not plain))
        fmt = "coco" if plain else "leukemiaattri"
        return Sample(fmt, domain, root, LEUKEMIAATTRI, labels, images, patients, _coco_rows)
    if name in ("leukemiaattri_text", "sparse"):
        patch = " 4 4 64 48" if name == "sparse" else ""
        text = "".join(
            f"{i} {_shares(b)}{patch} {SPARSE_CODES}\n" for i, b in zip(ids, BOXES, strict=True)
        )
        images = _put_images(root / domain / "Images/train")
        labels = _write(root / domain / "txt_labels/AttriDet/train", ".txt", text)
        fmt, columns = ("sparse", (15, 16)) if patch else ("leukemiaattri", (5, 11, 12))
        classes = (*LEUKEMIAATTRI.classes, "none")
        rows = _text_rows(classes, columns)
        return Sample(fmt, domain, root, LEUKEMIAATTRI, labels, images, patients, rows)
    if name == "yolo":
        text = "".join(f"{i} {_shares(b)}\n" for i, b in enumerate(BOXES))
        images = _put_images(root / "images/train")
        labels = _write(root / "labels/train", ".txt", text)
        (root / "data.yaml").write_text(f"names: [{', '.join(NAMES)}]\n")
        settings = {"patient_pattern": r"^(?P<patient>\d+)_"}
        rows = _text_rows(NAMES, (5,))
        return Sample("yolo", "phone", root, WBC5, labels, images, patients, rows, settings)
    if name == "voc":
        images = _put_images(root / "JPEGImages")
        labels = _write(root / "Annotations", ".xml", _voc(NAMES))
        return Sample("voc", "scope", root, WBC5, labels, images, ("",) * 3, _voc_rows)
    if name == "m5":
        images = _put_images(root / "Images/LCM/400x/train")
        labels = _write(root / "Images/LCM/400x/train", ".xml", _voc(STAGES))
        return Sample("m5", "LCM_400x", root, M5, labels, images, STEMS, _voc_rows)
    if name == "raabin":
        cells = {
            f"Cell_{k}": {"x1": str(b[0]), "x2": b[2], "y1": b[1], "y2": b[3], "Label2": n}
            for k, (b, n) in enumerate(zip(BOXES, NAMES, strict=True))
        }
        text = json.dumps({"Cell Numbers": 3, **cells}, indent=1)
        images = _put_images(root / "zeiss/film_1")
        labels = _write(root / "zeiss/film_1", ".json", text)
        films = ("film_1",) * 3
        return Sample("raabin", "zeiss", root, WBC5, labels, images, films, _raabin_rows)
    if name == "images":
        images = _put_images(root / "phone" / "images")
        settings = {"patient_pattern": r"^(?P<patient>\d+)_"}
        return Sample(
            "images", "phone", root, WBC5, images[-1], images, patients, lambda _: [], settings
        )
    raise KeyError(name)


SAMPLES = (
    "coco",
    "leukemiaattri_json",
    "leukemiaattri_text",
    "sparse",
    "m5",
    "voc",
    "yolo",
    "raabin",
)
"""Formats with labels; "images" has none."""
