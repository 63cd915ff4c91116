"""Source-free: from the finished source-only run, on the target's images alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from job_kit import run_in, same_weights, weights
from lightning import Trainer

from da_leukemia.adaptation.base import NoSource
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Domain, Experiment
from da_leukemia.errors import ConfigError
from da_leukemia.sweep import ledger, worker
from da_leukemia.sweep.plan import adapts_after_training, make_plan, source_model
from da_leukemia.sweep.training import build_task

H, L = "H_100X_C2", "L_100X_C2"
TEACHER = {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011}
FREE = Method(source_free=True, components=[TEACHER], learning_rate_factor=0.1)


@pytest.fixture
def run(tmp_path):
    def run_(job, sweep="sweep"):
        return run_in(ledger.job_folder(tmp_path / sweep, job.hash), job)

    return run_


def test_it_starts_from_the_tested_weights_of_its_source_model(
    make_job, run, tmp_path, monkeypatch
):
    job = make_job(FREE)
    seen = {}
    train = worker.train

    def look(job, task, *rest):
        if job.method.source_free:
            seen["student"] = {k: v.clone() for k, v in task.detector.state_dict().items()}
            seen["teacher"] = {k: v.clone() for k, v in task.ema.network.state_dict().items()}
            seen["decay"] = task.ema.decay_at(task.ema._count)
        return train(job, task, *rest)

    monkeypatch.setattr(worker, "train", look)
    folder = run(job)
    start = ledger.job_folder(tmp_path / "sweep", source_model(job).hash)
    result, why = ledger.read_result(start, source_model(job).hash, job.tests)
    assert result is not None, why
    assert result["target"] is None
    given = {k[10:]: v for k, v in weights(start).items() if k.startswith("ema.model.")}
    for part in ("student", "teacher"):
        assert all(torch.equal(v, seen[part][k]) for k, v in given.items())
    assert seen["decay"] == job.trainer.ema
    # And it learns something.
    after = {k[9:]: v for k, v in weights(folder).items() if k.startswith("detector.")}
    assert any(not torch.equal(v, seen["student"][k]) for k, v in after.items())


def test_the_source_model_is_the_fair_twin_of_the_sweep(make_job):
    assert source_model(make_job(FREE)).hash == make_job(Method(), target=None).hash


def test_a_source_model_that_is_there_is_taken(make_job, run, monkeypatch):
    job = make_job(FREE)
    run(make_job(Method(), target=None))
    fits = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a, **k: (fits.append(1), fit(self, *a, **k)))
    run(job)
    assert len(fits) == 1  # its own alone


def test_no_image_of_the_source_is_opened_and_no_label_of_the_target_matters(
    make_job, run, smears, tmp_path
):
    whole = run(make_job(FREE, tests=[L]), "whole")
    root = tmp_path / "bare"
    shutil.copytree(smears, root)
    for path in (root / H).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:64])  # its size can still be told, its pixels not
    for path in (root / L / "json_labels").rglob("*.json"):
        content = json.loads(path.read_text())
        content["annotations"] = []
        path.write_text(json.dumps(content))
    for path in (root / L).rglob("*.txt"):
        path.unlink()
    job = make_job(FREE, tests=[L], data={"root": str(root)})
    start = ledger.job_folder(tmp_path / "bare_sweep", source_model(job).hash)
    shutil.copytree(ledger.job_folder(tmp_path / "whole", source_model(job).hash), start)
    given = replace(
        job, detector=replace(job.detector, init_from=str(start / "checkpoints/last.ckpt"))
    )
    assert same_weights(whole, run(given, "bare_sweep"))


def test_asking_for_the_source_is_an_error():
    with pytest.raises(RuntimeError, match="no source to take 'features' from"):
        _ = NoSource().features


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"components": [TEACHER, {"name": "adversarial"}]},
            "adversarial needs images of the source",
        ),
        ({"components": [{"name": "adabn"}]}, "needs mean_teacher or distillation"),
        ({"components": [{"name": "mean_teacher"}]}, "mean_teacher.burn_in: expected 0"),
        ({"patch_mosaics": 0.5}, "sees no field of the source"),
        ({"target_labels": 3}, "learns from no label"),
        ({"learning_rate_factor": 0.0}, "learning_rate_factor: expected a number above 0"),
    ],
)
def test_what_cannot_be_is_said(settings, said):
    domains = {"scope": Domain(), "phone": Domain()}
    made = Experiment(
        data=Data(domains=domains),
        methods=["free"],
        adaptations={"free": replace(FREE, **settings)},
    )
    with pytest.raises(ConfigError, match=said):
        make_plan(made)


def test_the_learning_rate_is_a_share_of_the_trainers(make_job):
    task = worker.build_task(make_job(FREE))
    optimizer = task.configure_optimizers()["optimizer"]
    assert optimizer.defaults["lr"] == pytest.approx(0.1 * make_job(FREE).trainer.learning_rate)


# --- what is done after training ---------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["adabn"], ["stain_jitter", "adabn"]])
def test_what_adapts_after_training_trains_nothing_of_its_own(make_job, run, monkeypatch, kinds):
    components = [{"name": kind} for kind in kinds]
    job = make_job(Method(components=components), tests=[H, L])
    alone = make_job(
        Method(components=[c for c in components if c["name"] != "adabn"]), target=None
    )
    assert adapts_after_training(job)
    assert source_model(job).hash == alone.hash
    # Trained on its own, it would be the same to the last bit.
    with monkeypatch.context() as patch:
        patch.setattr(worker, "adapts_after_training", lambda job: False)
        own = run(job, "own")
    taken = run(job, "taken")
    assert same_weights(own, taken)
    results = [worker.read_result(folder)["tests"] for folder in (own, taken)]
    assert results[0] == results[1]
    steps = []
    step = worker.DetectionTask.training_step
    monkeypatch.setattr(
        worker.DetectionTask, "training_step", lambda *a: (steps.append(1), step(*a))[1]
    )
    (taken / "result.json").unlink()
    shutil.rmtree(taken / "checkpoints")
    run(job, "taken")
    assert not steps


def test_what_learns_in_training_is_no_such_method(make_job):
    both = Method(components=[{"name": "adabn"}, {"name": "adversarial"}])
    few = Method(target_labels=2, components=[{"name": "adabn"}])
    assert not adapts_after_training(make_job(both))
    assert not adapts_after_training(make_job(few))
    assert not adapts_after_training(make_job(FREE))
    assert not adapts_after_training(make_job(Method(), target=None))


def test_weights_of_which_a_part_fits_are_no_start(make_job, run, tmp_path):
    """A backbone alone would learn from what a random head finds."""
    path = tmp_path / "backbone.ckpt"
    state = build_task(make_job(FREE)).detector.backbone.state_dict()
    torch.save({"state_dict": {f"detector.backbone.{k}": v for k, v in state.items()}}, path)
    job = make_job(FREE, detector={"init_from": str(path)})
    with pytest.raises(ConfigError, match=r"init_from: .*backbone\.ckpt: \d+ weights of this"):
        run(job)
