"""Synthetic sweeps for the tests of the matrix, the report and the tracker: no training."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from da_leukemia.config import Data, Domain, Experiment, Job, complete
from da_leukemia.evaluation import FieldRecord, evaluate, save_records
from da_leukemia.labels import LABEL_SPACES
from da_leukemia.sweep.plan import make_plan

DEVICES = ("microscope", "low_cost", "phone")
METHODS = ("source_only", "fair_source_only", "dann", "mean_teacher")
QUALITY = {"source_only": 0.35, "fair_source_only": 0.45, "dann": 0.42, "mean_teacher": 0.68}
SPACE = LABEL_SPACES["lineage"]
FIELDS = 12


def make_experiment(
    folder: Path,
    devices: Sequence[str] = DEVICES,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1),
) -> Experiment:
    experiment = Experiment(
        name="synthetic",
        runs_dir=str(folder / "runs"),
        data=Data(label_space=SPACE.name, domains={d: Domain() for d in devices}),
        methods=list(methods),
        seeds=list(seeds),
    )
    complete(experiment)
    return experiment


def quality(job: Job, test: str) -> float:
    if test == job.source:
        return 0.9
    return QUALITY[job.method_name] if job.target in (None, test) else 0.4


def make_records(test: str, share_found: float, seed: int, name: str) -> list[FieldRecord]:
    """Fields of one device: the same cells for everybody, found as well as ``share_found``."""
    world = np.random.default_rng(zlib.crc32(test.encode()))
    luck = np.random.default_rng(zlib.crc32(f"{name}{seed}{test}".encode()))
    sizes = SPACE.attribute_sizes
    records = []
    for i in range(FIELDS):
        n, extra = int(world.integers(2, 6)), 6
        corner = world.uniform(0, 250, (n, 2))
        truth = np.hstack([corner, corner + 50]).astype(np.float32)
        labels = world.integers(0, len(SPACE.classes), n)
        codes = np.stack([world.integers(0, s, n) for s in sizes], axis=1)
        found = luck.random(n) < share_found
        place = luck.uniform(0, 250, (extra, 2))
        boxes = np.concatenate([truth[found] + 2, np.hstack([place, place + 50])])
        scores = np.concatenate([luck.uniform(0.4, 1, found.sum()), luck.uniform(0, 0.6, extra)])
        named = np.concatenate([labels[found], luck.integers(0, len(SPACE.classes), extra)])
        records.append(
            FieldRecord(
                key=f"{test}/{i}",
                group=f"patient{i // 3}",
                true_boxes=truth,
                true_labels=labels,
                true_attributes=codes,
                boxes=boxes.astype(np.float32),
                scores=scores.astype(np.float32),
                labels=named,
                attribute_probs=luck.random((len(boxes), sum(sizes))).astype(np.float32),
            )
        )
    return records


def make_result(experiment: Experiment, job: Job, records: bool = True) -> dict[str, Any]:
    folder = experiment.folder / "jobs" / job.hash
    tests = {}
    for test in job.tests:
        share = quality(job, test)
        if records:
            fields = make_records(test, share, job.seed, f"{job.method_name}{job.source}")
            metrics = evaluate(fields, SPACE, range(len(SPACE.classes)))
            (folder / "records").mkdir(parents=True, exist_ok=True)
            save_records(folder / "records" / f"{test}.npz", fields)
        else:
            metrics = plain_metrics(share + 0.01 * job.seed)
        tests[test] = {"metrics": metrics, "records": f"records/{test}.npz"}
    return {
        "version": 1,
        "job": job.hash,
        "method": job.method_name,
        "source": job.source,
        "target": job.target,
        "seed": job.seed,
        "label_space": SPACE.name,
        "classes": list(SPACE.classes),
        "tests": tests,
        "config": asdict(job),
        "versions": {"da_leukemia": "0.1.0", "torch": "2.15.0", "python": "3.11"},
        "data": {"fingerprint": "0123456789abcdef", "fields": 36},
        "timings": {"train_s": 12.5, "test_s": 1.5},
        "device": "cpu",
    }


def plain_metrics(value: float) -> dict[str, Any]:
    names = ("ap50", "ap50_95", "recall", "attribute_f1", "attribute_f1_end_to_end")
    return {
        **dict.fromkeys(names, value),
        "attribute_balanced_accuracy": None,
        "ece": 0.1,
        "per_class": {c: {"ap50": value, "ap50_95": value, "truths": 9} for c in SPACE.classes},
        "per_attribute": {},
        "fields": FIELDS,
        "boxes": 36,
    }


def write_samples(experiment: Experiment, job: Job) -> None:
    folder = experiment.folder / "jobs" / job.hash / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    images = experiment.folder / "images"
    images.mkdir(exist_ok=True)
    for test in job.tests:
        share = quality(job, test)
        path = images / f"{test}.jpg"
        fields = make_records(test, share, job.seed, f"{job.method_name}{job.source}")[:2]
        if not path.exists():
            picture = Image.new("RGB", (320, 320), (236, 214, 205))
            draw = ImageDraw.Draw(picture)
            for x1, y1, x2, y2 in fields[0].true_boxes.tolist():
                draw.ellipse((x1, y1, x2, y2), fill=(150, 130, 190), outline=(110, 80, 160))
                draw.ellipse((x1 + 12, y1 + 12, x2 - 8, y2 - 10), fill=(84, 48, 130))
            picture.save(path, quality=92)
        samples = [sample(path, field) for field in fields[:1]]
        (folder / f"{test}.json").write_text(json.dumps(samples), encoding="utf-8")


def sample(path: Path, field: FieldRecord) -> dict[str, Any]:
    def values(codes: Sequence[int]) -> dict[str, str]:
        return {a.name: a.values[c] for a, c in zip(SPACE.attributes, codes, strict=True)}

    truths = zip(
        field.true_boxes.tolist(), field.true_labels, field.true_attributes.tolist(), strict=True
    )
    found = zip(field.boxes.tolist(), field.scores.tolist(), field.labels, strict=True)
    return {
        "image": str(path),
        "name": field.key,
        "truths": [
            {"box": b, "type": SPACE.classes[k], "attributes": values(c)} for b, k, c in truths
        ],
        "detections": [
            {
                "box": b,
                "score": s,
                "type": SPACE.classes[k],
                "attributes": {a.name: [a.values[0], 0.8] for a in SPACE.attributes},
            }
            for b, s, k in found
        ],
    }


def make_sweep(
    folder: Path, records: bool = True, **choices: Any
) -> tuple[Experiment, list[dict[str, Any]]]:
    """Return an experiment and the results of its whole plan."""
    experiment = make_experiment(folder, **choices)
    return experiment, [make_result(experiment, j, records) for j in make_plan(experiment)]
