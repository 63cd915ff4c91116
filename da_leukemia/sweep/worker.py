"""One job from its folder to its `result.json`. Importing this imports torch and lightning."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from da_leukemia.adaptation.build import build_components
from da_leukemia.calibration.record import Calibration
from da_leukemia.config import Job, Trainer, devices_of, load_job
from da_leukemia.config.checkpoints import origin_of
from da_leukemia.config.origin import KEY, Origin, best_known, history_of, read_origin
from da_leukemia.data.cells.sampling import known_cells
from da_leukemia.data.datamodules import AdaptationDataModule, DomainDataModule
from da_leukemia.data.few import few_labelled
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import open_store
from da_leukemia.data.preparation import Preparation, preparations
from da_leukemia.errors import ConfigError, UserError
from da_leukemia.evaluation.records import FieldRecord, save_records
from da_leukemia.files import replacing
from da_leukemia.labels import get_label_space
from da_leukemia.models.factory import build_detector, load_weights
from da_leukemia.sweep import epochs, outdated
from da_leukemia.sweep.attempt import Busy, insist
from da_leukemia.sweep.card import NAME as CARD
from da_leukemia.sweep.card import licence_of, write_card
from da_leukemia.sweep.facts import TRAINED_ON, Facts, read_facts
from da_leukemia.sweep.ledger import RESULT_VERSION, job_folder, write_json, written
from da_leukemia.sweep.plan import adapts_after_training, source_model, starts_trained, trains
from da_leukemia.sweep.prediction import Fields, evaluate_domain, predict_domain, predict_unlabelled
from da_leukemia.sweep.provenance import code_version, device_name, peak_memory, versions
from da_leukemia.tasks.callbacks import JobLog
from da_leukemia.tasks.classification import CellClassification
from da_leukemia.tasks.detection import DetectionTask
from da_leukemia.tasks.samples import learned_attributes, sample_fields

if TYPE_CHECKING:
    from da_leukemia.tracking.wandb_run import TrackedRun

_POLL = 2.0
"""Seconds between looks at a run that another process trains."""


def run_job(folder: Path) -> None:
    """Train (or go on training) the job in ``folder`` and test it on every device it names.

    Idempotent: a finished training is only tested on devices that are missing.

    Raises:
        UserError: data or settings that cannot be used, or a diverging loss.
    """
    started, code = time.monotonic(), code_version()  # as it is loaded, not as it is at the end
    job = load_job(folder / "config.yaml")
    torch.set_num_threads(job.trainer.threads)
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
        _start_from_checkpoint(job, task, Path(job.checkpoint.path))
    elif starts_trained(job.method):
        _start_from_source(job, task, folder)
    elif adapts_after_training(job) and not job.selection.every:  # its epochs are gone by now
        _take_over(job, folder)
    tracker = None
    if job.tracking == "wandb":
        from da_leukemia.tracking.wandb_run import start_job

        tracker = start_job(job, folder)
    try:
        if trains(job):
            train_seconds = _train(job, task, fields, folder, tracker)
        else:
            train_seconds = _keep_as_it_is(task, folder)
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
        said = _origin_for_others(result, fields)
        if origin is not None:
            result["origin"] = {"history": said.history, "licence": said.licence}
        slim(folder, said)
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
        domains: devices to test on; those of the job by default.

    Returns:
        What came out, by device. Nothing is written.

    Raises:
        UserError: no checkpoint in the folder, an unknown device, or data that are divided
            otherwise than when the job was trained.
    """
    job = load_job(folder / "config.yaml")
    torch.set_num_threads(job.trainer.threads)
    _quiet()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no checkpoint; the job has not been trained yet")
    wanted = list(domains) or job.tests
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
    task.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    origin = None if job.checkpoint is None else read_origin(checkpoint)  # as it inherited it
    prepared = _prepared(job, facts, origin)
    store = open_store(job.data, [facts.indexes[d] for d in wanted], prepared)
    fields = Fields(job, facts, prepared, store, origin)
    tested = {}
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


def _start_from_checkpoint(job: Job, task: DetectionTask, path: Path) -> None:
    load_weights(task.detector, path, f"checkpoints.{job.source}", whole=True)
    if task.ema is not None:
        task.ema.start_from(task.detector)


def _keep_as_it_is(task: DetectionTask, folder: Path) -> float:
    """Leave the weights in the job's folder as if they had been trained there. Returns seconds."""
    path = folder / "checkpoints" / "last.ckpt"
    content = {"state_dict": task.state_dict(), "optimizer_states": [], "global_step": 0}
    with written(path), replacing(path) as temporary:
        torch.save(content, temporary)
    return 0.0


def _origin_for_others(result: Mapping[str, Any], fields: Fields) -> Origin:
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


def _start_from_source(job: Job, task: DetectionTask, folder: Path) -> None:
    """Give a task the weights of its source-only run, which is trained if need be."""
    if not job.detector.init_from:
        load_weights(task.detector, _source_model(job, folder) / "checkpoints" / "last.ckpt")
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


def _take_over(job: Job, folder: Path) -> None:
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


def build_task(job: Job, scaled: bool = False, source_classes: Sequence[int] = ()) -> DetectionTask:
    """Build detector, components and task; the random weights depend on the seed only.

    Args:
        job: what to build it for.
        scaled: the source is seen at a common scale, so that sizes need to be varied less.
        source_classes: classes that the source labels.
    """
    L.seed_everything(job.seed, verbose=False)
    if job.trainer.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every fresh tensor with NaN is for finding bugs, and costs a seventh of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    space = get_label_space(job.data.label_space)
    settings = job.detector
    if job.checkpoint is not None:  # which brings all weights
        settings = dataclasses.replace(settings, pretrained=False, init_from=None)
    detector = build_detector(settings, space, job.data.image_size)
    if job.trainer.compile:
        detector.compile()
    augmentation = job.augmentation
    if scaled:
        augmentation = dataclasses.replace(augmentation, scale=job.data.calibration.jitter)
    task_of = CellClassification if job.detector.kind == "classifier" else DetectionTask
    return task_of(
        detector.to(memory_format=torch.channels_last),
        build_components(job.method, detector),
        trainer=job.trainer,
        augmentation=augmentation,
        strong=job.method.augmentation == "strong",
        ema=job.method.ema,
        seed=job.seed,
        source_classes=source_classes,
        learning_rate_factor=job.method.learning_rate_factor,
        outside_is_ground=job.method.outside == "background",
    )


def _train(
    job: Job, task: DetectionTask, fields: Fields, folder: Path, tracker: TrackedRun | None
) -> float:
    """Fit to the last step, from the last checkpoint if there is one. Returns seconds."""
    begun = time.monotonic()
    indexes = fields.facts.indexes
    common: dict[str, Any] = {
        "split": fields.facts.split,
        "space": get_label_space(job.data.label_space),
        "how": fields.prepared,
        "trainer": job.trainer,
        "seed": job.seed,
        "store": fields.store,
        "mosaics": job.method.patch_mosaics,
    }
    source = [fields.facts.learned(job, name) for name in job.seen if not job.method.source_free]
    if isinstance(task, CellClassification):
        source = [known_cells(index) for index in source]
        common["balanced"] = job.detector.classifier.sampling == "balanced"
    if job.target is not None and job.method.target_labels:
        split, count = fields.facts.split, job.method.target_labels
        common["few"] = few_labelled(indexes[job.target], split, count, job.seed)
        common["few_share"] = job.method.target_share
    needs_target = job.target is not None and len(task.components) > 0
    data: DomainDataModule
    if needs_target and job.target is not None:
        data = AdaptationDataModule(
            source,
            target=indexes[job.target],
            **common,
        )
    else:
        data = DomainDataModule(source, **common)
    task.validation = data.parts["validation"]
    if isinstance(task, CellClassification) and not job.method.source_free:
        task.know(data.parts["train"].fields)
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    length = -(-job.trainer.steps // job.trainer.epoch_steps)
    callback = ModelCheckpoint(
        dirpath=checkpoints,
        filename="last",
        save_top_k=1,
        monitor=None,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    validates = len(data.parts["validation"]) > 0 and job.trainer.validate_every > 0
    trainer = L.Trainer(
        max_epochs=length,
        limit_val_batches=1.0 if validates else 0,
        check_val_every_n_epoch=job.trainer.validate_every if validates else 1,
        num_sanity_val_steps=0,
        gradient_clip_val=job.trainer.clip or None,
        callbacks=[
            callback,
            JobLog(folder, job.trainer.steps, tracker.log if tracker else None),
            *epochs.callbacks(job, folder),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator=job.trainer.accelerator,
        devices=1,
        precision=_precision(job.trainer),  # type: ignore[arg-type]
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        plugins=[LightningEnvironment()],
    )
    trainer.fit(task, datamodule=data, ckpt_path=str(last) if _readable(last) else None)
    return time.monotonic() - begun


def slim(folder: Path, origin: Origin) -> None:
    """Leave out of a finished job's checkpoint what only further training needs.

    The moments of the optimiser are over a quarter of the file. All else stays, so that Lightning
    still loads it: a new test device, or a method that begins where this training ended, changes
    no weight. It says of itself what it is, so that it can be adapted where nothing else is.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return
    content = torch.load(path, map_location="cpu", weights_only=True)
    said = origin.to_dict()
    moments = any(optimiser["state"] for optimiser in content["optimizer_states"])
    if not moments and content.get(KEY) == said:
        return
    content[KEY] = said
    for optimiser in content["optimizer_states"]:
        optimiser["state"] = {}
    with written(path), replacing(path) as temporary:
        torch.save(content, temporary)


def _readable(checkpoint: Path) -> bool:
    """Whether training can go on from a checkpoint; one that was cut off is thrown away.

    Lightning moves it into place from the temporary folder, which is a copy, and can be
    interrupted, where that is another file system.
    """
    if not checkpoint.is_file():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and operating system all mean the same here
        print(f"{checkpoint}: cannot be read ({error}): the training starts anew")
        checkpoint.unlink()
        return False
    return True


def _precision(trainer: Trainer) -> str:
    if trainer.precision != "auto":
        return trainer.precision
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


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
