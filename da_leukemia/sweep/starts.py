"""Where a run's weights come from, if not from its own training, and what is told of them."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from da_leukemia.config import Job
from da_leukemia.config.origin import Origin, best_known, history_of
from da_leukemia.files import replacing
from da_leukemia.models.factory import load_weights
from da_leukemia.sweep.attempt import Busy, insist
from da_leukemia.sweep.card import licence_of
from da_leukemia.sweep.ledger import job_folder, written
from da_leukemia.sweep.plan import source_model
from da_leukemia.sweep.prediction import Fields
from da_leukemia.tasks.detection import DetectionTask

_POLL = 2.0
"""Seconds between looks at a run that another process trains."""


def start_from_checkpoint(job: Job, task: DetectionTask, path: Path) -> None:
    """Give a task the weights of a checkpoint that is its source."""
    load_weights(task.detector, path, f"checkpoints.{job.source}", whole=True)
    if task.ema is not None:
        task.ema.start_from(task.detector)


def keep_as_it_is(task: DetectionTask, folder: Path) -> float:
    """Leave the weights in the job's folder as if they had been trained there. Returns seconds."""
    path = folder / "checkpoints" / "last.ckpt"
    content = {"state_dict": task.state_dict(), "optimizer_states": [], "global_step": 0}
    with written(path), replacing(path) as temporary:
        torch.save(content, temporary)
    return 0.0


def origin_for_others(result: Mapping[str, Any], fields: Fields) -> Origin:
    """Return what the checkpoint of a finished job is to say of itself (see `config.origin`)."""
    job, facts, told = fields.job, fields.facts, history_of(result)
    if fields.origin is not None:
        return dataclasses.replace(fields.origin, history=[*fields.origin.history, told])
    devices = [facts.devices[d].to_dict() for d in job.seen if d in facts.devices]
    domains = result["config"]["data"]["domains"]
    licences = [f"{d}: {licence_of(domains[d], result['config'])}" for d in job.seen]
    return Origin(
        label_space=job.data.label_space,
        image_size=job.data.image_size,
        detector=result["config"]["detector"],
        calibration=result["config"]["data"]["calibration"],
        device=best_known(devices),
        classes=[fields.space.classes[i] for i in fields.source_classes],
        cells=fields.source_cells,
        fields=result["data"]["train_fields"],
        lookup=result["attribute_lookup"],
        licence="; ".join(licences),
        history=[told],
    )


def start_from_source(job: Job, task: DetectionTask, folder: Path) -> None:
    """Give a task the weights of its source-only run, which is trained if need be."""
    if not job.detector.init_from:
        load_weights(task.detector, _source_model(job, folder) / "checkpoints" / "last.ckpt")
    else:  # a backbone alone is a start for training, and none for learning from oneself
        load_weights(task.detector, Path(job.detector.init_from), whole=True)
    if task.ema is not None:
        task.ema.start_from(task.detector)


def _source_model(job: Job, folder: Path) -> Path:
    """Return the folder of a job's source-only run in the same sweep; it is done then."""
    start, sweep = source_model(job), folder.parent.parent
    while True:
        try:
            insist(sweep, start)
            return job_folder(sweep, start.hash)
        except Busy:  # another process trains it
            time.sleep(_POLL)


def take_over(job: Job, folder: Path) -> None:
    """Let the training of the source-only run be this job's own: it would be the same."""
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return
    done = _source_model(job, folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for path in [done / "metrics.csv", *(done / "checkpoints").glob("*.ckpt")]:
        if path.is_file():
            part = folder / f".{path.name}.part"
            shutil.copyfile(path, part)
            part.replace(folder / path.relative_to(done))
