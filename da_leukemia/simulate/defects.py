"""The defects of the release, put into a simulation and counted, to test checks against.

Each domain gets missing and truncated images and false labels; every other one (the first, the
third, ...) also repeated image entries, a lower-case image folder and other class names; the last
one tests a patient that the others train on. As released, the labels of ``L_100X_C2`` are zipped
(and otherwise sound) and ``L_10X_C1`` is empty.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from da_leukemia.simulate.domains import EMPTY_DOMAIN, ZIPPED_DOMAIN
from da_leukemia.simulate.labelfiles import (
    ATTRIBUTE_KEYS,
    CATEGORIES,
    COCO_NONE,
    Row,
    coco,
    five_columns,
)

SHARE = 0.05
"""Of a domain's training images, at least one: missing, truncated, false labels of each kind."""

OUT_OF_RANGE = 3
"""No attribute has a fourth level; 4 would mean missing."""

VARIANTS = {
    "myeloblast": "Myeloblast",
    "atypical_lymphocyte": "atypicallymphocyte",
    "abnormal_promyelocyte": "Abnormal promyelocyte",
    "none": "Unidentified",
}
"""Class names as some files of the release spell them."""

Truth = dict[str, dict[str, int]]


@dataclass
class _Entry:
    """One image with its boxes, each as in the JSON file and as in the 12-column text."""

    stem: str
    rows: list[tuple[Row, str]]

    @property
    def patient(self) -> str:
        return self.stem.split("_")[0]


def add_defects(root: Path, domains: Sequence[str], seed: int) -> Truth:
    """Damage the tree that was written to ``root``.

    Args:
        root: the simulation, without sparse labels.
        domains: its domains; at least two besides ``L_10X_C1``, and one of them not ``L_100X_C2``.
        seed: of the simulation.

    Returns:
        Counts by domain ("all" for what concerns several) and defect, under the names of
        `da_leukemia.data.readers.findings.KINDS` and, for what harms no reader that matches
        names, ``lower_case_images`` and ``class_name_variants``. ``zipped_labels`` counts the
        parts (train, test) whose labels are in the archive.
    """
    truth: Truth = {"all": {"patient_leak": 1}}
    damaged = [domain for domain in domains if domain not in (EMPTY_DOMAIN, ZIPPED_DOMAIN)]
    for number, domain in enumerate(damaged):
        rng = np.random.default_rng([seed, 31, *domain.encode()])
        truth[domain] = _damage(
            root / domain, rng, traps=number % 2 == 0, moves=number == len(damaged) - 1
        )
    if ZIPPED_DOMAIN in domains:
        _zip_labels(root / ZIPPED_DOMAIN)
        truth[ZIPPED_DOMAIN] = {"zipped_labels": 2}
    if EMPTY_DOMAIN in domains:
        _empty(root / EMPTY_DOMAIN)
        truth[EMPTY_DOMAIN] = {"empty_domain": 1}
    return truth


def _damage(folder: Path, rng: np.random.Generator, *, traps: bool, moves: bool) -> dict[str, int]:
    counts: Counter[str] = Counter()
    parts = {split: _read(folder, split) for split in ("train", "test")}
    # Spared by the missing files everywhere, so that the leak is there in any case.
    leaky = parts["train"][0].patient
    pool = [entry for entry in parts["train"] if entry.patient != leaky]
    if moves:
        _move(folder, parts, leaky)
    number = max(1, round(SHARE * len(pool)))
    order = [pool[i] for i in rng.permutation(len(pool))]
    missing, truncated = order[:number], order[number : 2 * number]
    for entry in missing:
        _image(folder, "train", entry).unlink()
    for entry in truncated:
        file = _image(folder, "train", entry)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    counts["missing_image"], counts["unreadable_image"] = len(missing), len(truncated)
    gone = {entry.stem for entry in missing}
    readable = [e for entries in parts.values() for e in entries if e.stem not in gone]
    counts.update(_falsify(readable, number, rng))
    names = list(CATEGORIES)
    if traps:
        counts["repeated_image"] = sum(max(len(e.rows) - 1, 0) for e in parts["train"])
        names = [VARIANTS.get(name, name) for name in names]
        counts["class_name_variants"] = len(VARIANTS)
        (folder / "Images").rename(folder / "images")
        counts["lower_case_images"] = 1
    for split, entries in parts.items():
        _write(folder, split, entries, names, repeated=traps and split == "train")
    return dict(counts)


def _falsify(entries: Sequence[_Entry], number: int, rng: np.random.Generator) -> Counter[str]:
    """Put ``number`` false labels of each kind on as many different cells."""
    cells = [
        (entry, i)
        for entry in entries
        for i, (row, _) in enumerate(entry.rows)
        if row["category_id"] != COCO_NONE
    ]
    kinds = ("duplicate_box", "empty_box", "box_with_two_classes", "attribute_out_of_range")
    chosen = [cells[i] for i in rng.permutation(len(cells))[: number * len(kinds)]]
    counts: Counter[str] = Counter()
    for position, (entry, i) in enumerate(chosen):
        kind = kinds[position % len(kinds)]
        row, text = dict(entry.rows[i][0]), entry.rows[i][1].split(" ")
        if kind == "empty_box":
            x, y, _, height = row["bbox"]
            row.update(bbox=[x, y, 0.0, height], area=0.0)
            text[3] = "0"
        elif kind == "box_with_two_classes":
            other = row["category_id"] % (COCO_NONE - 1) + 1
            row["category_id"], text[0] = other, str(other)
        elif kind == "attribute_out_of_range":
            column = int(rng.integers(len(ATTRIBUTE_KEYS)))
            row[ATTRIBUTE_KEYS[column]], text[5 + column] = OUT_OF_RANGE, str(OUT_OF_RANGE)
        if kind == "attribute_out_of_range":
            entry.rows[i] = (row, " ".join(text))
        else:
            entry.rows.append((row, " ".join(text)))
        counts[kind] += 1
    return counts


def _move(folder: Path, parts: dict[str, list[_Entry]], patient: str) -> None:
    """Make a training patient a test patient of this domain."""
    moved = [entry for entry in parts["train"] if entry.patient == patient]
    for entry in moved:
        _image(folder, "train", entry).rename(_image(folder, "test", entry))
        for text in _texts(folder, "train", entry):  # written anew by `_write`
            text.unlink()
    parts["train"] = [entry for entry in parts["train"] if entry.patient != patient]
    parts["test"] = moved + parts["test"]


def _image(folder: Path, split: str, entry: _Entry) -> Path:
    return folder / "Images" / split / f"{entry.stem}.png"


def _texts(folder: Path, split: str, entry: _Entry) -> Iterator[Path]:
    for kind in ("AttriDet", "WBC_Detection"):
        yield folder / "txt_labels" / kind / split / f"{entry.stem}.txt"


def _read(folder: Path, split: str) -> list[_Entry]:
    content = json.loads((folder / "json_labels" / f"{split}.json").read_text())
    entries = {
        image["id"]: _Entry(Path(image["file_name"]).stem, []) for image in content["images"]
    }
    boxes: dict[int, list[Row]] = {number: [] for number in entries}
    for row in content["annotations"]:
        del row["id"]
        boxes[row.pop("image_id")].append(row)
    for number, entry in entries.items():
        twelve, _ = _texts(folder, split, entry)
        entry.rows = list(zip(boxes[number], twelve.read_text().splitlines(), strict=True))
    return list(entries.values())


def _write(
    folder: Path, split: str, entries: Sequence[_Entry], names: Sequence[str], *, repeated: bool
) -> None:
    images = [(f"{entry.stem}.png", [row for row, _ in entry.rows]) for entry in entries]
    content = coco(images, names, repeated=repeated)
    (folder / "json_labels" / f"{split}.json").write_text(json.dumps(content))
    for entry in entries:
        twelve, five = _texts(folder, split, entry)
        twelve.write_text("".join(f"{text}\n" for _, text in entry.rows))
        five.write_text("".join(f"{five_columns(text)}\n" for _, text in entry.rows))


def _zip_labels(folder: Path) -> None:
    with zipfile.ZipFile(folder / "labels.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("json_labels", "txt_labels"):
            for file in sorted((folder / name).rglob("*")):
                if file.is_file():
                    # A fixed date: the same settings give the same bytes.
                    record = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                    record.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(record, file.read_bytes())
            shutil.rmtree(folder / name)


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        shutil.rmtree(child)
    for split in ("train", "test"):
        (folder / "Images" / split).mkdir(parents=True)
