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
from da_leukemia.simulate.defects import add_defects
from da_leukemia.simulate.devices import device_of, photograph
from da_leukemia.simulate.labelfiles import (
    Region,
    Row,
    coco,
    draw_patch,
    five_columns,
    json_rows,
    sparse_rows,
    text_rows,
)
from da_leukemia.simulate.patients import diagnosis_of
from da_leukemia.simulate.scene import render_field

MARKER = "simulation.json"
"""Holds the settings, and under "truth" what the label files do not tell."""


@dataclass(frozen=True)
class _Job:
    """One field of view through all devices: the unit that a worker does."""

    root: Path
    domains: tuple[str, ...]
    seed: int
    patient: int
    field: int
    split: str
    sparse: float | None
    patch_order: str


@dataclass(frozen=True)
class _Written:
    """What the label files of a whole domain need of a field; ``patch`` where it is sparse."""

    rows: list[Row]
    patch: Region | None


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
    if isinstance(found, dict):
        found.pop("truth", None)
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
    fields, sparse = int(settings["fields_per_patient"]), settings.get("sparse")
    # The sparse set has text files only: no other format of the release knows of a patch.
    kinds = ("AttriDet",) if sparse else ("AttriDet", "WBC_Detection")
    for domain in domains:
        for split in ("train", "test"):
            (root / domain / "Images" / split).mkdir(parents=True)
            for kind in kinds:
                (root / domain / "txt_labels" / kind / split).mkdir(parents=True)
    jobs = [
        _Job(
            root,
            domains,
            int(settings["seed"]),
            patient,
            field,
            split_of(patient, patients),
            sparse,
            settings.get("patch_order", ""),
        )
        for patient in range(1, patients + 1)
        for field in range(1, fields + 1)
    ]
    written: list[tuple[_Job, _Written]] = []
    for done, pair in enumerate(zip(jobs, _run(jobs, workers), strict=True), start=1):
        written.append(pair)
        if progress:
            progress(done, len(jobs))
    truth: dict[str, Any] = {}
    if sparse:
        truth["patches"] = {f"{j.patient}_{j.field}": w.patch for j, w in written if w.patch}
    else:
        for domain in domains:
            _write_coco(root / domain / "json_labels", domain, written)
    if settings.get("defects"):
        truth["defects"] = add_defects(root, domains, int(settings["seed"]))
    marker = {**settings, "truth": truth} if truth else settings
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n")


def _write_coco(folder: Path, domain: str, written: list[tuple[_Job, _Written]]) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        entries = [
            (f"{file_stem(domain, job.patient, job.field)}.png", found.rows)
            for job, found in written
            if job.split == split
        ]
        content = coco(entries, sensor=device_of(domain).sensor)
        (folder / f"{split}.json").write_text(json.dumps(content))


def _run(jobs: list[_Job], workers: int) -> Iterator[_Written]:
    if workers == 1 or len(jobs) == 1:
        yield from map(_write_field, jobs)
        return
    # Spawned, because the caller may hold threads (torch) that do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(_write_field, jobs, chunksize=4)


def _write_field(job: _Job) -> _Written:
    """Render, photograph and write one field."""
    scene = render_field(job.seed, job.patient, job.field)
    twelve = text_rows(scene)
    texts = {"AttriDet": twelve, "WBC_Detection": [five_columns(row) for row in twelve]}
    patch = None
    if job.sparse is not None:
        # One patch for all domains: their labels are those of one domain, transferred.
        rng = np.random.default_rng([job.seed, job.patient, job.field, 29])
        whole = job.split == "test"
        patch = draw_patch([] if whole else twelve, job.sparse, rng)
        texts = {"AttriDet": sparse_rows(twelve, patch, job.patch_order, whole=whole)}
        patch = None if whole else patch
    for domain in job.domains:
        device = device_of(domain)
        grain = device.noise_of.encode()
        noise = np.random.default_rng([job.seed, job.patient, job.field, *grain])
        image = Image.fromarray(photograph(scene, device, noise))
        stem = file_stem(domain, job.patient, job.field)
        base = job.root / domain
        image.save(base / "Images" / job.split / f"{stem}.png", compress_level=1)
        for kind, rows in texts.items():
            text = "".join(f"{row}\n" for row in rows)
            (base / "txt_labels" / kind / job.split / f"{stem}.txt").write_text(text)
    return _Written(json_rows(scene), patch)
