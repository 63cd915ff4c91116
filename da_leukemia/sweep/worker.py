"""One job from its folder to its `result.json`. Importing this imports torch and lightning."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from da_leukemia.calibration.record import Calibration
from da_leukemia.config import Job, devices_of, load_job
from da_leukemia.config.checkpoints import origin_of
from da_leukemia.config.job import at_test
from da_leukemia.config.origin import Origin, read_origin
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import open_store
from da_leukemia.data.preparation import Preparation, preparations
from da_leukemia.errors import ConfigError, UserError
from da_leukemia.evaluation.records import FieldRecord, save_records
from da_leukemia.labels import get_label_space
from da_leukemia.machine import keep_freed_memory
from da_leukemia.sweep import epochs, outdated
from da_leukemia.sweep.card import NAME as CARD
from da_leukemia.sweep.card import write_card
from da_leukemia.sweep.facts import TRAINED_ON, Facts, read_facts
from da_leukemia.sweep.ledger import RESULT_VERSION, write_json
from da_leukemia.sweep.plan import adapts_after_training, starts_trained, trains
from da_leukemia.sweep.prediction import (
    Fields,
    evaluate_domain,
    no_test_field,
    predict_domain,
    predict_unlabelled,
)
from da_leukemia.sweep.provenance import code_version, device_name, peak_memory, versions
from da_leukemia.sweep.starts import (
    keep_as_it_is,
    origin_for_others,
    start_from_checkpoint,
    start_from_source,
    take_over,
)
from da_leukemia.sweep.training import build_task, slim, train
from da_leukemia.tasks.callbacks import JobLog
from da_leukemia.tasks.detection import DetectionTask
from da_leukemia.tasks.samples import learned_attributes, sample_fields

_LOG = logging.getLogger(__name__)


def run_job(folder: Path) -> None:
    """Train (or go on training) the job in ``folder`` and test it on every device it names.

    Idempotent: a finished training is only tested on devices that are missing.

    Raises:
        UserError: data or settings that cannot be used, or a diverging loss.
    """
    started, code = time.monotonic(), code_version()  # as it is loaded, not as it is at the end
    job = load_job(folder / "config.yaml")
    torch.set_num_threads(job.trainer.threads)
    keep_freed_memory()
    _quiet()
    facts = read_facts(job.data)
    trained_on = facts.trained_on(job)
    _forget_other_data(job, folder, trained_on)
    write_json(folder / "split.json", json.loads(facts.split.to_json()))
    earlier = _kept_tests(job, folder, trained_on, facts)
    kept = earlier or {}
    missing = [d for d in job.tests if d not in kept]
    if earlier is not None and not missing:
        return
    origin = None
    if job.checkpoint is not None:
        origin = origin_of(job.checkpoint, f"checkpoints.{job.source}")
    prepared = _prepared(job, facts, origin)
    store = open_store(job.data, list(facts.indexes.values()), prepared)
    fields = Fields(job, facts, prepared, store, origin)
    task = build_task(
        job,
        scaled=any(prepared[d].scaled for d in devices_of(job.source)),
        source_classes=fields.source_classes,
    )
    if job.checkpoint is not None:
        start_from_checkpoint(job, task, Path(job.checkpoint.path))
    elif starts_trained(job.method):
        start_from_source(job, task, folder)
    elif adapts_after_training(job) and not job.selection.every:  # its epochs are gone by now
        take_over(job, folder)
    tracker = None
    if job.tracking == "wandb":
        from da_leukemia.tracking.wandb_run import start_job

        tracker = start_job(job, folder)
    try:
        if trains(job):
            train_seconds = train(job, task, fields, folder, tracker)
        else:
            train_seconds = keep_as_it_is(task, folder)
        if earlier is not None:  # trained before: nothing but the checkpoint was read now
            train_seconds = float(read_result(folder)["timings"]["train_s"])
        log = JobLog(folder, job.trainer.steps)
        log.say("test", job.trainer.steps)
        begun = time.monotonic()
        tests = kept | test_domains(task, fields, folder, missing)
        unlabelled = epochs.judge_unlabelled(task, fields)
        for domain in unlabelled:  # nobody can score it, but anybody can look
            _write_samples(predict_unlabelled(task, fields, domain), fields, folder, domain)
        tested_seconds = time.monotonic() - begun
        records = epochs.record_epochs(task, fields, folder)
        if kept and not records:  # a new device: the weights are gone, what they were is known
            records = epochs.kept_records(read_result(folder), list(kept))
        space = get_label_space(job.data.label_space)
        result = {
            "version": RESULT_VERSION,
            "job": job.hash,
            "method": job.method_name,
            "source": job.source,
            "target": job.target,
            "seed": job.seed,
            "label_space": job.data.label_space,
            "classes": list(space.classes),
            "tests": tests,
            "label_free": unlabelled,
            "epochs": records,
            "config": dataclasses.asdict(job),
            "versions": versions(),
            "code": code,
            "data": trained_on,
            "attributes_learned": learned_attributes(task.tested, space),
            "attribute_lookup": fields.lookup.to_dict(space) if space.attributes else None,
            "split": facts.split.fingerprint,
            "split_file": "split.json",
            "devices": {name: device.to_dict() for name, device in facts.devices.items()},
            "device": device_name(),
            "memory": peak_memory(),
            "timings": {
                "train_s": round(train_seconds, 2),
                "test_s": round(tested_seconds, 2),
                "epochs_s": round(time.monotonic() - begun - tested_seconds, 2),
                "total_s": round(time.monotonic() - started, 2),
            },
        }
        said = origin_for_others(result, fields)
        if origin is not None:
            result["origin"] = {"history": said.history, "licence": said.licence}
        slim(folder, said, at_test(job.method))
        if tracker is not None:
            from da_leukemia.tracking.wandb_run import finish_job

            finish_job(tracker, result, folder)
            tracker = None
        write_card(folder, result)
        write_json(folder / "result.json", result)
        if not job.selection.keep:
            epochs.forget(folder)
    finally:
        if tracker is not None:
            tracker.finish({})


def _forget_other_data(job: Job, folder: Path, now: Mapping[str, Any]) -> None:
    """Train anew where the data changed under a job; a finished one the runner has let go before.

    The split is made over all devices at once, so a new device may move a patient. A checkpoint
    that was trained on a patient who is tested now must not be used.
    """
    path = folder / TRAINED_ON
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(path.read_text())
    changed = outdated.difference(before, now, job)
    if not changed:
        return
    if any((folder / "checkpoints").glob("*.ckpt")):
        print(f"changed since this job was trained: {changed}; it starts anew")
    kept = [*(folder / "checkpoints").glob("*.ckpt"), folder / "checkpoints" / CARD]
    for stale in [*kept, folder / "result.json"]:
        stale.unlink(missing_ok=True)
    epochs.forget(folder)
    write_json(path, now)


def _kept_tests(
    job: Job, folder: Path, trained_on: Mapping[str, Any], facts: Facts
) -> dict[str, Any] | None:
    """Return the tests of an earlier result on the same data: a new device only adds tests.

    None without such a result.
    """
    try:
        earlier = read_result(folder)
    except (OSError, ValueError):
        return None
    if earlier.get("job") != job.hash or earlier.get("data") != trained_on:
        return None
    tests: dict[str, Any] = earlier["tests"]
    return {
        domain: test
        for domain, test in tests.items()
        if domain in facts.indexes
        and test.get("fingerprint") == facts.tested_on(job, domain)
        and (folder / test["records"]).is_file()
    }


@dataclass(frozen=True)
class Tested:
    """What came out of testing on one device.

    Attributes:
        records: of its test fields.
        fields: the same fields.
        metrics: as in ``result.json``.
    """

    records: Sequence[FieldRecord]
    fields: Sequence[FieldOfView]
    metrics: dict[str, Any]


def evaluate_job(folder: Path, domains: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the metrics of `examine_job` by device, as in ``result.json``."""
    return {domain: tested.metrics for domain, tested in examine_job(folder, domains).items()}


def examine_job(folder: Path, domains: Sequence[str] = ()) -> dict[str, Tested]:
    """Test a finished job's checkpoint again.

    Args:
        folder: of the job.
        domains: devices to test on; by default those of the job, or the one it adapted to.

    Returns:
        What came out, by device. Nothing is written.

    Raises:
        UserError: no checkpoint in the folder, no or an unknown device, or data that are divided
            otherwise than when the job was trained.
    """
    job = load_job(folder / "config.yaml")
    torch.set_num_threads(job.trainer.threads)
    _quiet()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no checkpoint; the job has not been trained yet")
    wanted = list(domains) or job.tests or ([job.target] if job.target else [])
    if not wanted:
        raise UserError(f"{folder}: the job is tested on no device; say which: --domain NAME")
    unknown = [d for d in wanted if d not in job.data.domains]
    if unknown:
        raise UserError(f"unknown device {unknown[0]!r}; known: {', '.join(job.data.domains)}")
    facts = read_facts(job.data)
    try:
        before = json.loads((folder / TRAINED_ON).read_text())
    except (OSError, ValueError):
        before = {}
    changed = outdated.difference(before, facts.trained_on(job), job)
    if changed:
        raise UserError(
            f"{folder}: changed since this job was trained: {changed}. It could be tested on its "
            "own training patients; run the sweep again to train it anew"
        )
    task = build_task(job)
    content = torch.load(checkpoint, weights_only=True)
    task.load_state_dict(content["state_dict"])
    if trains(job) and content["global_step"] < job.trainer.steps:
        _LOG.warning(
            "%s: its training has not ended: step %d of %d",
            folder,
            content["global_step"],
            job.trainer.steps,
        )
    origin = None if job.checkpoint is None else read_origin(checkpoint)  # as it inherited it
    prepared = _prepared(job, facts, origin)
    store = open_store(job.data, [facts.indexes[d] for d in wanted], prepared)
    fields = Fields(job, facts, prepared, store, origin)
    tested = {}
    for domain in wanted:  # all of them, before any is looked at
        if not len(fields.part(domain, "test")):
            raise UserError(no_test_field(domain))
    for domain in wanted:
        records = predict_domain(task, fields, domain)
        metrics = evaluate_domain(records, fields, domain)
        tested[domain] = Tested(records, fields.part(domain, "test").fields, metrics)
    return tested


def _prepared(job: Job, facts: Facts, origin: Origin | None) -> dict[str, Preparation]:
    """Return how each device is prepared; of a checkpoint's source there is the record alone."""
    devices = dict(facts.devices)
    if origin is not None and job.data.calibration.used:
        if origin.device is None:
            raise ConfigError(
                f"checkpoints.{job.source}: was trained with calibrated images, but holds no "
                "calibration of its source"
            )
        devices[job.source] = Calibration.from_dict(origin.device)
    return preparations(job.data, devices, job.source)


def test_domains(
    task: DetectionTask, fields: Fields, folder: Path, domains: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Test on each device; write the records and some sample fields beside the result."""
    job = fields.job
    (folder / "records").mkdir(exist_ok=True)
    tests = {}
    for domain in domains:
        records = predict_domain(task, fields, domain)
        path = Path("records") / f"{domain}.npz"
        save_records(folder / path, records)
        _write_samples(records, fields, folder, domain)
        metrics = evaluate_domain(records, fields, domain)
        tests[domain] = {
            "metrics": metrics,
            "records": str(path),
            "fingerprint": fields.facts.tested_on(job, domain),
        }
    return tests


def _write_samples(
    records: Sequence[FieldRecord], fields: Fields, folder: Path, domain: str
) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    by_key = {f.key: f for f in fields.facts.indexes[domain].fields}
    single = fields.job.detector.kind == "classifier"
    samples = sample_fields(records, by_key, fields.space, single)
    write_json(folder / "samples" / f"{domain}.json", samples)


def _quiet() -> None:
    """Keep Lightning's advice out of the log; what is wrong is raised, not hinted."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def read_result(folder: Path) -> dict[str, Any]:
    """Read a job's result."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result
