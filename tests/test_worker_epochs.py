"""Epochs of a job are recorded without touching its training, and judged without a label."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from job_kit import L_, H, Stop, metrics, relabel, rows, same_weights, weights

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Selection, load_experiment, save_job
from da_leukemia.errors import ConfigError
from da_leukemia.evaluation.label_free import SCORERS
from da_leukemia.sweep import epochs, worker

TEACHER = Method(
    components=[{"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011}]
)
ON = Selection(every=1, images=3)
LABEL_FREE = ("epoch", "step", "source_validation", "scores")


def recorded(folder):
    return worker.read_result(folder)["epochs"]


def test_recording_is_no_part_of_a_jobs_identity_and_off_by_default(make_job, run):
    plain, on = make_job(Method()), make_job(Method(), selection=ON)
    assert plain.hash == on.hash
    folder = run(plain)
    assert recorded(folder) == []
    assert not (folder / "epochs").exists()
    assert epochs.callbacks(plain, folder) == []


def test_training_is_the_same_with_and_without_recording(make_job, run):
    off = run(make_job(TEACHER), "off")
    on = run(make_job(TEACHER, selection=ON), "on")
    assert same_weights(off, on)
    assert rows(off) == rows(on)
    assert metrics(off) == metrics(on)


def test_every_recorded_epoch_is_judged_and_the_last_is_the_tested_one(make_job, run):
    budget = {"steps": 7, "epoch_steps": 2}
    folder = run(make_job(TEACHER, trainer=budget, selection=Selection(every=2, images=3)))
    found = recorded(folder)
    assert [(r["epoch"], r["step"]) for r in found] == [(2, 4), (4, 7)]
    for record in found:
        assert record["scores"].keys() == record["tests"].keys() == {L_}
        assert record["scores"][L_].keys() == set(SCORERS)
        assert all(0 <= v <= 1 for v in record["scores"][L_].values())
        assert 0 <= record["source_validation"] <= 1
    assert found[0]["scores"] != found[1]["scores"]
    assert found[-1]["tests"][L_] == metrics(folder)[L_]["ap50"]
    assert not (folder / "epochs").exists()


def test_source_only_is_judged_on_every_other_device(make_job, run):
    (first, last) = recorded(run(make_job(Method(), target=None, selection=ON)))
    assert first["tests"].keys() == last["tests"].keys() == {L_}
    assert "pseudo" not in first


def test_weights_are_kept_where_that_is_wanted(make_job, run):
    folder = run(make_job(Method(), selection=Selection(every=1, images=2, keep=True)))
    assert [p.name for p in sorted((folder / "epochs").iterdir())] == ["00001.pt", "00002.pt"]
    kept = torch.load(folder / "epochs" / "00002.pt", weights_only=True)
    state, name = weights(folder), "ema.model."
    average = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
    assert kept["step"] == 4
    assert kept["network"].keys() == average.keys()
    assert all(torch.equal(kept["network"][k], v) for k, v in average.items())


def test_a_run_that_was_killed_has_the_records_of_one_that_was_not(
    make_job, run, tmp_path, monkeypatch
):
    job = make_job(TEACHER, trainer={"steps": 6}, selection=ON)
    whole = run(job, "whole")
    parts = tmp_path / "parts"
    parts.mkdir()
    save_job(job, parts / "config.yaml")
    original = worker.DetectionTask.training_step

    def step(self, *arguments):
        if self.global_step == 3:
            raise Stop
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(worker.DetectionTask, "training_step", step)
        with pytest.raises(Stop):
            worker.run_job(parts)
    assert [p.name for p in (parts / "epochs").iterdir()] == ["00001.pt"]
    with monkeypatch.context() as patched:  # then while the epochs are judged
        patched.setattr(epochs, "label_free_scores", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker.run_job(parts)
    run(job, "parts")
    assert recorded(parts) == recorded(whole)
    assert len(recorded(whole)) == 3
    assert same_weights(whole, parts)


@pytest.mark.parametrize("target", [L_, None], ids=["adapted", "source_only"])
def test_scores_are_the_same_when_the_devices_labels_are_shuffled_or_deleted(
    make_job, run, smears, tmp_path, target
):
    method = Method() if target is None else TEACHER
    found = {"as_it_is": recorded(run(make_job(method, target=target, selection=ON), "as_it_is"))}
    for name in ("shuffled", "deleted"):
        root = tmp_path / f"{name}_data"
        shutil.copytree(smears, root)
        relabel(root, L_, drop=name == "deleted")
        job = make_job(method, target=target, data={"root": str(root)}, selection=ON)
        found[name] = recorded(run(job, name))
        assert [{k: r[k] for k in LABEL_FREE} for r in found[name]] == [
            {k: r[k] for k in LABEL_FREE} for r in found["as_it_is"]
        ]
    assert all(r["tests"][L_] is None for r in found["deleted"])
    if target is not None:  # the hidden labels reach the diagnostic, and only there
        assert "pseudo" not in found["deleted"][0]
        assert found["as_it_is"][0]["pseudo"] != found["shuffled"][0]["pseudo"]


def test_scorers_are_given_fields_without_labels(make_job, run, monkeypatch):
    seen = []
    original = worker.Fields.unlabelled

    def watched(self, device):
        data = original(self, device)
        seen.append((device, data))
        assert any(len(f.labels) for f in self.part(device, "train").fields)
        return data

    monkeypatch.setattr(worker.Fields, "unlabelled", watched)
    run(make_job(Method(), target=None, selection=ON))
    assert {device for device, _ in seen} == {L_}
    for _, data in seen:
        for field in data.fields:
            assert len(field.boxes) == len(field.labels) == len(field.attributes) == 0
            assert field.labelled_classes == ()


def test_pseudo_labels_are_compared_with_hidden_labels(make_job, run):
    (_, last) = recorded(run(make_job(TEACHER, selection=ON)))
    told = last["pseudo"]
    (counts,) = told["per_class"].values()
    assert told["threshold"] == pytest.approx(0.011, abs=1e-6)
    assert counts["true"] > 0
    assert counts["source"] > counts["true"]  # three fields of the target, all of the source
    assert told["recall"] == pytest.approx(counts["right"] / counts["true"])
    assert told["boxes_per_image"] == pytest.approx(counts["pseudo"] / 3)


def test_a_new_test_device_does_not_cost_the_records(make_job, run):
    first = make_job(Method(), target=None, tests=[L_], selection=ON)
    folder = run(first)
    before = recorded(folder)
    run(make_job(Method(), target=None, tests=[L_, H], selection=ON))
    assert worker.read_result(folder)["tests"].keys() == {L_, H}
    assert recorded(folder) == before != []


def test_other_data_forget_the_weights_of_epochs(make_job, run, smears, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(smears, root)
    keep = Selection(every=1, images=2, keep=True)
    folder = run(make_job(Method(), data={"root": str(root)}, selection=keep))
    stale = folder / "epochs" / "00009.pt"
    stale.write_bytes(b"")
    relabel(root, H)
    run(make_job(Method(), data={"root": str(root)}, selection=keep), folder.name)
    assert not stale.exists()
    assert len(recorded(folder)) == 2


def test_thresholds_of_pseudo_labels_follow_the_adaptive_ones(make_job):
    from da_leukemia.tasks.epochs import teacher_thresholds

    adaptive = {"name": "mean_teacher", "adaptive": True, "threshold": 0.4}
    task = worker.build_task(make_job(Method(components=[adaptive])))
    task.components[0].thresholds.values.fill_(0.3)
    assert teacher_thresholds(task).tolist() == [pytest.approx(0.3)]
    plain = worker.build_task(make_job(Method(components=[{"name": "distillation"}])))
    assert teacher_thresholds(plain).tolist() == [pytest.approx(0.3)]  # `positive`
    masked = {"name": "masked_consistency", "threshold": 0.6}
    both = worker.build_task(make_job(Method(components=[{"name": "distillation"}, masked])))
    assert teacher_thresholds(both).tolist() == [pytest.approx(0.6)]
    for method in (Method(), Method(components=TEACHER.components, ema=False)):
        assert teacher_thresholds(worker.build_task(make_job(method))) is None


def test_wrong_settings_are_refused():
    path = "experiments/quickstart.yaml"
    with pytest.raises(ConfigError, match=r"selection\.every"):
        load_experiment(path, ["selection.every=-1"])
    with pytest.raises(ConfigError, match=r"selection\.images"):
        load_experiment(path, ["selection.images=0"])
    with pytest.raises(ConfigError, match=r"selection\.evry: unknown key; did you mean 'every'"):
        load_experiment(path, ["selection.evry=1"])
    assert np.isfinite(load_experiment(path, ["selection.every=5"]).selection.every)
