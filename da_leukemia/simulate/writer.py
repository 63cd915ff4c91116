"""Write a simulation as the LeukemiaAttri release lies on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.simulate.devices import device_of, photograph
from da_leukemia.simulate.patients import diagnosis_of
from da_leukemia.simulate.scene import SIDE, Scene, render_field

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
MARKER = "simulation.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """One field of view through all devices: the unit that a worker does."""

    root: Path
    domains: tuple[str, ...]
    seed: int
    patient: int
    field: int
    split: str


def split_of(patient: int, patients: int) -> str:
    """Return "train" or "test" of a patient: every third is test, in every domain.

    Three has no factor in common with the five diagnoses, so the test patients go through all of
    them.
    """
    return "test" if patient % 3 == 0 or patient == patients == 2 else "train"


def file_stem(domain: str, patient: int, field: int) -> str:
    """Return an image's name without suffix, as the release writes it."""
    # Only the 40X names carry a frame number; the 10X pattern is not documented (100 = 10 x 10).
    objective = domain.split("_")[1]
    tail = {"100X": "1000", "40X": "1_400", "10X": "100"}[objective]
    return f"{patient}_{field}_{tail}_{diagnosis_of(patient)}"


def write_simulation(
    out: Path,
    settings: dict[str, Any],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the tree of ``settings`` (see ``simulate``) to ``out``, whole or not at all."""
    if _is_finished(out, settings):
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"simulate.out: {out} is not empty and is no finished simulation; name another folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f".{out.name}.part-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _write_tree(part, settings, workers, progress)
        try:
            part.rename(out)
        except OSError:
            # Another process (a second rank of the same run) may have been quicker.
            if not _is_finished(out, settings):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Say whether ``out`` is this very simulation; refuse it if it is another one."""
    marker = out / MARKER
    if not marker.is_file():
        return False
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        found = None
    if found != settings:
        raise ConfigError(
            f"simulate.out: {out} holds a simulation of other settings or of another version of "
            "the simulator; name another folder or remove it"
        )
    return True


def _write_tree(
    root: Path,
    settings: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    domains, patients = tuple(settings["domains"]), int(settings["patients"])
    fields = int(settings["fields_per_patient"])
    for domain in domains:
        for split in ("train", "test"):
            (root / domain / "Images" / split).mkdir(parents=True)
            for kind in ("AttriDet", "WBC_Detection"):
                (root / domain / "txt_labels" / kind / split).mkdir(parents=True)
        (root / domain / "json_labels").mkdir()
    jobs = [
        _Job(root, domains, int(settings["seed"]), patient, field, split_of(patient, patients))
        for patient in range(1, patients + 1)
        for field in range(1, fields + 1)
    ]
    rows: dict[str, list[tuple[_Job, list[Row]]]] = {"train": [], "test": []}
    for done, (job, found) in enumerate(zip(jobs, _run(jobs, workers), strict=True), start=1):
        rows[job.split].append((job, found))
        if progress:
            progress(done, len(jobs))
    for domain in domains:
        for split, entries in rows.items():
            target = root / domain / "json_labels" / f"{split}.json"
            target.write_text(json.dumps(_coco(domain, entries)))
    (root / MARKER).write_text(json.dumps(settings, indent=2) + "\n")


def _run(jobs: list[_Job], workers: int) -> Iterator[list[Row]]:
    if workers == 1 or len(jobs) == 1:
        yield from map(_write_field, jobs)
        return
    # Spawned, because the caller may hold threads (torch) that do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_write_field, jobs, chunksize=4)


def _write_field(job: _Job) -> list[Row]:
    """Render, photograph and write one field; return its boxes for the JSON files."""
    scene = render_field(job.seed, job.patient, job.field)
    five, twelve = _txt(scene)
    for domain in job.domains:
        device = device_of(domain)
        grain = device.noise_of.encode()
        noise = np.random.default_rng([job.seed, job.patient, job.field, *grain])
        image = Image.fromarray(photograph(scene, device, noise))
        stem = file_stem(domain, job.patient, job.field)
        base = job.root / domain
        image.save(base / "Images" / job.split / f"{stem}.png", compress_level=1)
        for kind, text in (("AttriDet", twelve), ("WBC_Detection", five)):
            (base / "txt_labels" / kind / job.split / f"{stem}.txt").write_text(text)
    return _json_rows(scene)


def _txt(scene: Scene) -> tuple[str, str]:
    five, twelve = [], []
    for box, label, codes in zip(scene.boxes, scene.labels, scene.attributes, strict=True):
        x0, y0, x1, y1 = box / SIDE
        place = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        row = f"{label} " + " ".join(f"{round(float(v), 3):g}" for v in place)
        five.append(row + "\n")
        known = [MISSING_TXT if code < 0 else int(code) for code in codes]
        twelve.append(f"{row} {' '.join(map(str, known))}\n")
    return "".join(five), "".join(twelve)


def _json_rows(scene: Scene) -> list[Row]:
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


def _coco(domain: str, entries: list[tuple[_Job, list[Row]]]) -> Row:
    images: list[Row] = []
    annotations: list[Row] = []
    for number, (job, rows) in enumerate(entries, start=1):
        name = f"{file_stem(domain, job.patient, job.field)}.png"
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for row in rows:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    names = [*LEUKEMIAATTRI.classes[1:], LEUKEMIAATTRI.classes[0]]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
