"""Source-only of equal length for methods that start from a finished source-only run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_matrix_support as support
import torch
from job_kit import run_in, weights

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Domain, Experiment, load_method
from da_leukemia.errors import ConfigError
from da_leukemia.report import gather, write_report
from da_leukemia.sweep import ledger, worker
from da_leukemia.sweep.names import longer_of
from da_leukemia.sweep.plan import (
    adapts_after_training,
    label,
    longer_twin,
    make_plan,
    source_model,
)

TEACHER = {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011}
FREE = Method(source_free=True, components=[TEACHER], learning_rate_factor=0.1)
DANN = Method(components=[{"name": "adversarial"}])


def experiment(**settings):
    given = {
        "data": Data(domains={name: Domain() for name in ("scope", "cheap", "phone")}),
        "methods": ["free"],
        "adaptations": {"free": FREE},
        "sources": ["scope"],
        "targets": ["phone"],
    }
    return Experiment(**given | settings)


def names(made):
    return [label(job) for job in make_plan(made)]


# --- the plan ----------------------------------------------------------------------------------


def test_a_method_that_starts_trained_brings_a_twin_of_equal_length():
    assert names(experiment()) == [
        "source_only scope s0",
        "fair_source_only scope s0",
        "longer_source_only:free scope s0",
        "fair_source_only phone s0",
        "free scope->phone s0",
    ]
    twin = make_plan(experiment())[2]
    assert twin.method == Method(continued=True, learning_rate_factor=0.1)
    assert twin.target is None
    assert source_model(twin).hash == make_plan(experiment())[1].hash


def test_one_that_starts_from_nothing_brings_none():
    made = experiment(methods=["dann"], adaptations={"dann": DANN})
    assert not [n for n in names(made) if n.startswith("longer")]


def test_one_that_goes_on_with_the_source_beside_the_target_brings_it_too():
    going_on = replace(DANN, continued=True)
    made = experiment(methods=["dann"], adaptations={"dann": going_on})
    assert "longer_source_only:dann scope s0" in names(made)
    assert longer_twin("dann", going_on)[1].components == []


def test_the_recommended_method_without_strength_is_this_twin():
    recommended = load_method("recommended")
    made = experiment(methods=["it"], adaptations={"it": recommended}, twins=["fair", "longer"])
    (twin,) = [job for job in make_plan(made) if job.method_name.startswith("longer")]
    for given in recommended.components:
        given["weight"] = 0.0
    off = experiment(methods=["it"], adaptations={"it": recommended}, targets=["scope"])
    assert [job.hash for job in make_plan(off) if job.method_name == "it"] == [twin.hash]


def test_methods_of_one_recipe_share_the_training():
    made = experiment(methods=["free", "other"], adaptations={"free": FREE, "other": FREE})
    twins = [job for job in make_plan(made) if job.method_name.startswith("longer")]
    assert len(twins) == 2
    assert len({job.hash for job in twins}) == 1


def test_it_can_be_left_out_and_changes_no_other_job():
    without = experiment(twins=["plain", "fair", "oracle"])
    assert not [n for n in names(without) if n.startswith("longer")]
    hashes = {label(job): job.hash for job in make_plan(experiment())}
    assert {label(job): job.hash for job in make_plan(without)}.items() <= hashes.items()


def test_its_name_has_what_the_method_was_run_with():
    made = experiment(calibration=["none", "default"], sparse=[0.2])
    methods = {job.method_name for job in make_plan(made)}
    assert longer_of("free~20%+calibrated", methods) == "longer_source_only:free~20%+calibrated"
    assert longer_of("free~20%", methods) == "longer_source_only:free~20%"
    assert longer_of("fair_source_only~20%", methods) is None


def test_a_source_free_method_cannot_be_continued_as_well():
    both = replace(FREE, continued=True)
    with pytest.raises(ConfigError, match=r"free\.continued: a source_free method has no source"):
        make_plan(experiment(adaptations={"free": both}))


def test_one_that_goes_on_and_then_estimates_statistics_trains(make_job):
    going_on = Method(continued=True, components=[{"name": "adabn"}])
    assert not adapts_after_training(make_job(going_on))


# --- training ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    def run_(job):
        return run_in(ledger.job_folder(tmp_path / "sweep", job.hash), job)

    return run_


def test_it_differs_from_its_method_in_what_it_sees_alone(make_job, run, tmp_path, monkeypatch):
    free = make_job(FREE)
    twin = replace(free, target=None, method=longer_twin("free", FREE)[1], method_name="twin")
    starts, steps = {}, {}
    train, step = worker.train, worker.DetectionTask.training_step

    def look(job, task, *rest):
        kind = job.method_name if job.hash in (free.hash, twin.hash) else "source"
        networks = {k: v for k, v in task.state_dict().items() if not k.startswith("components.")}
        starts[kind] = {k: v.clone() for k, v in networks.items()}
        steps[kind] = []
        task.kind = kind
        return train(job, task, *rest)

    def count(task, batch, number):
        rate = task.optimizers().param_groups[0]["lr"]
        steps[task.kind].append((sorted(batch), round(rate, 9)))
        return step(task, batch, number)

    monkeypatch.setattr(worker, "train", look)
    monkeypatch.setattr(worker.DetectionTask, "training_step", count)
    run(free)
    folder = run(twin)
    mine, its = starts["twin"], starts["method"]
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[k], its[k]) for k in mine)
    assert any(not torch.equal(mine[k], starts["source"][k]) for k in mine)
    assert [rate for _, rate in steps["twin"]] == [rate for _, rate in steps["method"]]
    assert {tuple(seen) for seen, _ in steps["twin"]} == {("source",)}
    assert {tuple(seen) for seen, _ in steps["method"]} == {("target",)}
    after = weights(folder)
    assert any(not torch.equal(mine[k], after[k]) for k in mine if k.startswith("detector."))


# --- the report --------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    quality = {"free": 0.68, "longer_source_only:free": 0.55}
    for name, value in quality.items():
        monkeypatch.setitem(support.QUALITY, name, value)
    made = support.make_experiment(tmp_path, methods=["fair_source_only"], seeds=(0,))
    made.methods, made.adaptations = ["free"], {"free": FREE}
    return made, [support.make_result(made, job, records=False) for job in make_plan(made)]


def test_the_report_gives_both_gains(sweep, tmp_path):
    contents = gather(*sweep)
    gains = {(g.source, g.target): g.gain for g in contents.gap.gaps}
    equal = {(g.source, g.target): g.gain for g in contents.equal.gaps}
    assert equal.keys() == gains.keys()
    assert {round(gain, 6) for gain in gains.values()} == {0.23}
    assert {round(gain, 6) for gain in equal.values()} == {0.13}
    # The gap is between the shorter runs, 0.45 and 0.9: else little gaps would make large shares.
    assert {round(g.closed, 6) for g in contents.equal.gaps} == {round(0.13 / (0.9 - 0.45), 6)}
    (equal,) = contents.equal.summaries
    assert equal.ratio_of_means == pytest.approx(0.13 / (0.9 - 0.45))
    assert contents.gap.notes == ()
    folder = write_report(*sweep, tmp_path / "report").parent
    for name in ("matrix.md", "index.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "Against source-only of equal length" in text
        assert "longer source-only" in text


def test_a_missing_twin_of_equal_length_is_said(sweep):
    made, results = sweep
    rest = [r for r in results if not r["method"].startswith("longer")]
    contents = gather(made, rest)
    assert contents.equal is None
    assert "free starts from a finished run and took more steps" in contents.gap.notes[0]
    assert "no longer_source_only beside it" in contents.gap.notes[0]
