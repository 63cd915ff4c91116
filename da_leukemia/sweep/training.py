"""From a job's settings to a task, and through its training to a checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from da_leukemia.adaptation.build import build_components
from da_leukemia.config import Job, Trainer
from da_leukemia.config.origin import AT_TEST, KEY, Origin
from da_leukemia.data.cells.sampling import known_cells
from da_leukemia.data.datamodules import AdaptationDataModule, DomainDataModule
from da_leukemia.data.few import few_labelled
from da_leukemia.files import replacing
from da_leukemia.labels import get_label_space
from da_leukemia.models.factory import build_detector
from da_leukemia.sweep import epochs
from da_leukemia.sweep.ledger import written
from da_leukemia.sweep.prediction import Fields
from da_leukemia.tasks.callbacks import JobLog
from da_leukemia.tasks.classification import CellClassification
from da_leukemia.tasks.detection import DetectionTask

if TYPE_CHECKING:
    from da_leukemia.tracking.wandb_run import TrackedRun


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


def train(
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
            target_images=job.method.target_images,
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


def slim(folder: Path, origin: Origin, at_test: Sequence[str] = ()) -> None:
    """Leave out of a finished job's checkpoint what only further training needs.

    The moments of the optimiser are over a quarter of the file. All else stays, so that Lightning
    still loads it: a new test device, or a method that begins where this training ended, changes
    no weight. It says of itself what it is, so that it can be adapted where nothing else is.

    Args:
        folder: of the job.
        origin: what it says.
        at_test: components that change the detector at every test.
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
    if at_test:
        content[AT_TEST] = list(at_test)
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
