"""What is recorded of the epochs of a job, so that an epoch can be chosen after the fact.

Training knows nothing of this: it keeps weights, and everything here is computed from them when
training is over. See docs/selection.md.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from da_leukemia.config import Job
from da_leukemia.evaluation.detection import detection_metrics
from da_leukemia.evaluation.pseudo import pseudo_label_quality
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.sweep.prediction import Fields, evaluate_domain, predict_domain, prepared_for
from da_leukemia.tasks.detection import DetectionTask
from da_leukemia.tasks.epochs import KeepEpochs, epoch_path, label_free_scores

FOLDER = "epochs"
"""In a job's folder: the weights."""


def recorded_epochs(job: Job) -> list[int]:
    """Return the epochs of which weights are kept, counted from 1; the last always, none if off."""
    every, last = job.selection.every, -(-job.trainer.steps // job.trainer.epoch_steps)
    return [e for e in range(1, last + 1) if e % every == 0 or e == last] if every else []


def callbacks(job: Job, folder: Path) -> list[Callback]:
    """Return what keeps the weights while training."""
    epochs = recorded_epochs(job)
    return [KeepEpochs(folder / FOLDER, epochs)] if epochs else []


def judged_devices(job: Job) -> list[str]:
    """Return the devices for which an epoch is chosen: the target, or every other test device."""
    return [job.target] if job.target is not None else [d for d in job.tests if d not in job.seen]


def forget(folder: Path) -> None:
    """Remove the weights of all epochs."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def record_epochs(
    task: DetectionTask,
    fields: Fields,
    folder: Path,
) -> list[dict[str, Any]]:
    """Judge the kept weights of every epoch; those of the last epoch stay in the task.

    The label-free scores come from images alone (`Fields.unlabelled`). Scores on labels of the
    source's validation, and true scores on the test devices, stand beside them.

    Args:
        task: of the finished training.
        fields: what the job reads.
        folder: of the job.

    Returns:
        By epoch what goes into ``result.json``: ``epoch``, ``step``, ``source_validation`` (AP50,
        mean over the devices of the source, or None), ``scores`` (device -> scorer -> value),
        ``tests`` (device -> AP50), and ``pseudo`` where there is a teacher (see
        `pseudo_label_quality`).
    """
    job = fields.job
    paths = {e: epoch_path(folder / FOLDER, e) for e in recorded_epochs(job)}
    records = []
    for epoch, path in paths.items():
        if not path.is_file():  # recording was switched on after this epoch
            continue
        content = torch.load(path, map_location="cpu", weights_only=True)
        task.tested.load_state_dict(content["network"])
        record: dict[str, Any] = {"epoch": epoch, "step": int(content["step"])}
        record |= _judged(task, fields)
        if "thresholds" in content and (found := _pseudo(task, fields, content["thresholds"])):
            record["pseudo"] = found
        records.append(record)
    return records


def kept_records(earlier: Mapping[str, Any], tests: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records of an earlier result, as far as its tests still count."""
    kept = []
    for record in earlier.get("epochs") or []:
        scored = {d: v for d, v in record["tests"].items() if d in tests}
        kept.append({**record, "tests": scored})
    return kept


def judge(task: DetectionTask, fields: Fields, device: str) -> dict[str, float]:
    """Return the label-free scores of the tested network on a device; none without an image."""
    job, batch = fields.job, fields.job.trainer.batch_size
    images = fields.unlabelled(device)
    views = _spread(len(images.windows), job.selection.images)
    if not views:
        return {}
    with prepared_for(task, fields, device):
        seen = (images.searched(views[i : i + batch]) for i in range(0, len(views), batch))
        return label_free_scores(task.tested, seen)


def judge_unlabelled(task: DetectionTask, fields: Fields) -> dict[str, dict[str, float]]:
    """Return the label-free scores on what has no labels to test on.

    That is the target, and of a run without one every such device of the experiment.
    """
    job = fields.job
    wanted = list(job.data.domains) if job.target is None else [job.target]
    blind = [d for d in wanted if job.data.domains[d].labels == "none" and d not in job.tests]
    return {device: found for device in blind if (found := judge(task, fields, device))}


def _judged(task: DetectionTask, fields: Fields) -> dict[str, Any]:
    job, scores, tests = fields.job, {}, {}
    for device in judged_devices(job):
        if found := judge(task, fields, device):
            scores[device] = found
        if device in job.tests:
            tests[device] = _score(predict_domain(task, fields, device), fields, device)
    return {"source_validation": _validated(task, fields), "scores": scores, "tests": tests}


def _validated(task: DetectionTask, fields: Fields) -> float | None:
    """Return the mean AP50 on the sources' validation; None where there is none to look at."""
    job, found = fields.job, []
    for device in [] if job.method.source_free else job.seen:
        if len(fields.part(device, "validation")):
            records = predict_domain(task, fields, device, "validation")
            found.append(_score(records, fields, device))
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def _score(records: Sequence[FieldRecord], fields: Fields, device: str) -> float | None:
    """Return the headline's score: AP50, or the balanced accuracy of single cells."""
    if fields.job.detector.kind == "classifier":
        value = evaluate_domain(records, fields, device)["balanced_accuracy"]
        return None if value is None else float(value)
    scores = detection_metrics(records, fields.space.classes, fields.labelled(device))
    return None if math.isnan(scores.ap50) else scores.ap50


def _spread(length: int, count: int) -> list[int]:
    """Return up to ``count`` numbers below ``length``, evenly spread."""
    steps = np.linspace(0, length - 1, min(count, length)).round().astype(int)
    numbers: list[int] = steps.tolist()
    return numbers


def _pseudo(task: DetectionTask, fields: Fields, thresholds: torch.Tensor) -> dict[str, Any] | None:
    """Compare the teacher's pseudo-labels on some training fields with the hidden labels."""
    job = fields.job
    if job.target is None or job.data.domains[job.target].labels == "none":
        return None
    part = fields.part(job.target, "train")
    data = part.of([part.fields[i] for i in _spread(len(part), job.selection.images)])
    found = task.predict_fields(data.searches(job.trainer.batch_size), data)
    taught = set(fields.source_classes) & set(fields.labelled(job.target))
    quality = pseudo_label_quality(
        found, thresholds.double().numpy(), part.space.classes, sorted(taught)
    )
    if quality is not None and fields.source_cells is not None:
        for name, counts in quality["per_class"].items():
            counts["source"] = fields.source_cells[name]
    return quality
