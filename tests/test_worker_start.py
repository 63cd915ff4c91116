"""What a job starts from and runs on: the weights of another, its data, a precision, a trainer."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from job_kit import L_, H, weights
from worker_kit import ADAPTED, FAIR

from da_leukemia.errors import ConfigError, DataError
from da_leukemia.sweep import worker


def test_a_job_can_start_from_the_tested_weights_of_another(make_job, run):
    first = run(make_job(FAIR), "first")
    given = weights(first)
    job = make_job(FAIR, detector={"init_from": str(first / "checkpoints" / "last.ckpt")})
    task = worker.build_task(job)
    for name, value in task.detector.state_dict().items():
        assert torch.equal(value, given[f"ema.model.{name}"]), name
    assert torch.equal(task.ema.network.head.score.weight, task.detector.head.score.weight)
    run(job, "second")


def test_start_weights_of_another_label_space_fit_but_for_the_last_layer(make_job, run):
    path = run(make_job(FAIR), "first") / "checkpoints" / "last.ckpt"
    job = make_job(FAIR, detector={"init_from": str(path)}, data={"label_space": "lineage"})
    task = worker.build_task(job)
    given = weights(path.parent.parent)
    own = task.detector.state_dict()
    assert own["head.score.weight"].shape[0] == 4
    key = "backbone.body.conv_stem.weight"
    assert torch.equal(own[key], given[f"ema.model.{key}"])


def test_start_weights_that_cannot_be_used_are_refused(make_job, tmp_path):
    cases = {"none.ckpt": "no such file", "text.ckpt": "no checkpoint of ours"}
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    cases["other.pt"] = "no checkpoint of ours"
    torch.save({"state_dict": {"model.fc": torch.zeros(3)}}, tmp_path / "foreign.ckpt")
    cases["foreign.ckpt"] = "none of its weights fit"
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=rf"detector\.init_from.*{name}: {message}"):
            worker.build_task(make_job(FAIR, detector={"init_from": str(tmp_path / name)}))


def test_bf16_trains(make_job, run):
    job = make_job(ADAPTED, trainer={"precision": "bf16-mixed", "steps": 2})
    folder = run(job)
    state = weights(folder)
    assert all(v.dtype != torch.bfloat16 and v.isfinite().all() for v in state.values())
    assert job.hash == make_job(ADAPTED, trainer={"steps": 2}).hash  # where, not what


def test_a_job_without_the_target_in_its_data_is_refused_before_training(make_job, run):
    with pytest.raises(DataError, match=r"no such folder"):
        run(make_job(FAIR, data={"root": "/nonexistent"}), "nowhere")


def test_jobs_with_a_gpu_setting_run_where_there_is_none(make_job, run):
    job = make_job(FAIR, trainer={"accelerator": "auto", "precision": "auto", "steps": 2})
    assert worker.read_result(run(job))["device"]


def test_the_modules_work_with_a_plain_trainer(make_job, tmp_path):
    """What the guide promises to people who bring their own loop."""
    from da_leukemia.data.datamodules import AdaptationDataModule
    from da_leukemia.data.experiment import read_experiment_data
    from da_leukemia.labels import WBC

    job = make_job(ADAPTED)
    indexes, split = read_experiment_data(job.data)
    data = AdaptationDataModule(
        indexes[H], target=indexes[L_], split=split, space=WBC, how=96, trainer=job.trainer
    )
    trainer = L.Trainer(
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(worker.build_task(job), datamodule=data)
    assert trainer.global_step == 2
    assert np.isfinite(float(trainer.callback_metrics["train/loss"]))
