"""A sweep of single cells is a sweep like any other: jobs, twins, matrix, report."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from cells_jobs_kit import domains, scores_of
from cells_kit import five_types, picture, put
from job_kit import detector_part, same_weights

from da_leukemia.adaptation.settings import COMPONENTS, Method
from da_leukemia.config import (
    Classifier,
    Data,
    Detector,
    Domain,
    Experiment,
    Job,
    Selection,
    Split,
    Trainer,
    complete,
    save_job,
)
from da_leukemia.config.files import load_method
from da_leukemia.data import experiment as experiment_data
from da_leukemia.data.preflight import preflight
from da_leukemia.data.splits import Split as Division
from da_leukemia.errors import ConfigError
from da_leukemia.evaluation.records import load_records
from da_leukemia.report import write_report
from da_leukemia.sweep import training, worker
from da_leukemia.sweep.ledger import collect
from da_leukemia.sweep.plan import make_plan

NOT_FOR_CELLS = {"confmix", "daca", "epm", "few_shot", "harmonious_teacher", "mixstyle"}
FOR_CELLS = (
    *("adabn", "adabn_balanced", "aldi_pp", "cdan", "coral", "dann", "fda", "mean_teacher", "mic"),
    *("mmd", "prototypes", "recommended", "recommended_source_free", "reinhard"),
    *("source_free_teacher", "tent"),
)


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Two devices of the same five types; the phone is darker, and has open-set cells."""
    root = tmp_path_factory.mktemp("cells")
    five_types(root / "lab", cells=12)
    five_types(root / "phone", cells=8, seed=70_000, light=0.7)
    for n in range(20):
        put(root / "phone" / "erythroblast" / f"e_{n}.png", picture(900 + n, (240, 240, 60)))
    return root


@pytest.fixture
def make(devices, tmp_path):
    def make_(method, target=None, seed=0, trainer=None, classifier=None, **rest):
        budget = {"steps": 4, "epoch_steps": 2, "batch_size": 6, "validate_every": 1}
        settings = {"method_name": "m", "source": "lab", "tests": ["lab", "phone"]}
        own = Classifier(**(classifier or {}))
        return Job(
            method=method,
            target=target,
            seed=seed,
            data=Data(
                root=str(devices),
                label_space="wbc5",
                image_size=32,
                cache_dir=str(tmp_path / "cache"),
                domains={n: Domain(format="cells") for n in ("lab", "phone")},
                split=Split(test=0.3, validation=0.2),
            ),
            detector=Detector(kind="classifier", backbone="mobilenetv3_small_050", classifier=own),
            augmentation=Experiment().augmentation,
            trainer=Trainer(**(budget | {"accelerator": "cpu"} | (trainer or {}))),
            **(settings | rest),
        )

    return make_


def same(one, other):
    return same_weights(one, other, detector_part)


def test_a_job_leaves_every_score_of_the_cells(make, run):
    folder = run(make(Method(), selection=Selection(every=1)))
    scores = scores_of(folder)
    for metrics in scores.values():
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "aurc"):
            assert 0 <= metrics[name] <= 1
        confusion = np.array(metrics["confusion"])
        assert confusion.sum() == metrics["boxes"]
        right = np.diag(confusion).sum() / confusion.sum()
        assert metrics["accuracy"] == pytest.approx(right)
        low, high = metrics["intervals"]["balanced_accuracy"]
        assert low <= metrics["balanced_accuracy"] <= high
    assert scores["lab"]["open_set_auroc"] is None
    assert scores["phone"]["open_set_cells"] > 0
    assert 0 <= scores["phone"]["open_set_auroc"] <= 1
    records = load_records(folder / "records" / "phone.npz")
    assert len(records) == scores["phone"]["fields"] > scores["phone"]["boxes"]
    assert records[0].scores.sum() == pytest.approx(1, abs=1e-5)
    epochs = worker.read_result(folder)["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert epochs[-1]["tests"]["phone"] == pytest.approx(scores["phone"]["balanced_accuracy"])
    with (folder / "metrics.csv").open() as file:
        assert "val/balanced_accuracy" in next(csv.reader(file))
    card = (folder / "checkpoints" / "MODEL_CARD.md").read_text()
    assert "Classifier of single white blood cells" in card
    assert f"| phone | {scores['phone']['balanced_accuracy']:.3f} |" in card
    again = worker.evaluate_job(folder)
    assert again["phone"]["confusion"] == scores["phone"]["confusion"]


def test_attributes_that_nobody_labelled_are_neither_learned_nor_answered(make, run):
    job = make(Method(), trainer={"steps": 2})
    job.data.label_space = "pbc8"
    result = worker.read_result(run(job))
    told = result["attributes_learned"]
    assert len(told) == 11
    assert not any(entry["answered"] or any(entry["cells"].values()) for entry in told.values())
    assert result["tests"]["phone"]["metrics"]["attribute_f1_true_boxes"] is None


@pytest.mark.parametrize("name", FOR_CELLS)
def test_every_preset_that_means_something_trains_on_cells(name, make, run):
    method = load_method(name)
    for component in method.components:  # so that the teachers' part begins at once
        if "burn_in" in COMPONENTS[component["name"]].__dataclass_fields__:
            component |= {"burn_in": 0.0, "ramp": 0.0}
        if "threshold" in COMPONENTS[component["name"]].__dataclass_fields__:
            component["threshold"] = 0.05
    adapts = bool(method.components) or method.target_labels > 0
    job = make(method, target="phone" if adapts else None, trainer={"steps": 2})
    assert scores_of(run(job))["phone"]["balanced_accuracy"] is not None


@pytest.mark.parametrize("name", sorted(NOT_FOR_CELLS))
def test_presets_that_mean_nothing_on_cells_are_refused_with_the_reason(name, devices):
    experiment = Experiment(methods=[name], detector=Detector(kind="classifier"))
    experiment.data.domains = {n: Domain(format="cells") for n in ("lab", "phone")}
    with pytest.raises(ConfigError, match=rf"methods: '{name}' cannot run on .*classifier: \w+"):
        complete(experiment)


def test_a_component_of_weight_zero_is_the_source_only_twin_to_the_last_bit(make, run):
    zero = Method(components=[{"name": "adversarial", "weight": 0.0}])
    assert same(run(make(Method()), "a"), run(make(zero, target="phone"), "b"))


@pytest.fixture
def shuffle(monkeypatch):
    """From now on the labels of the phone are others."""

    def shuffle_():
        from da_leukemia.data.readers import read_domain

        def shuffled(source, fmt, space, folder):
            del folder
            index = read_domain(source, fmt, space)
            if source.domain == "phone":
                for n, f in enumerate(index):
                    f.labels[:] = (f.labels + 2 + n % 3) % 5
            return index

        monkeypatch.setattr(experiment_data, "read_cached", shuffled)

    return shuffle_


BLIND = Method(
    components=[
        {"name": "adversarial"},
        {"name": "mmd", "threshold": 0.05},
        {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.05},
    ]
)


def test_the_labels_of_the_target_cannot_be_reached(make, run, shuffle):
    honest = run(make(BLIND, target="phone"), "honest")
    shuffle()
    assert same(honest, run(make(BLIND, target="phone"), "shuffled"))
    assert not same(honest, run(make(BLIND, target="phone", seed=1), "seed"))


def stratified(job, labels="all"):
    job.data.split.stratify = True
    job.data.domains["phone"].labels = labels
    return job


def test_a_stratified_split_reaches_no_label_that_is_for_testing_alone(make, run, shuffle):
    honest = run(stratified(make(BLIND, "phone"), "test_only"), "honest")
    shuffle()
    again = run(stratified(make(BLIND, "phone"), "test_only"), "shuffled")
    assert same(honest, again)
    assert (honest / "split.json").read_bytes() == (again / "split.json").read_bytes()


def test_labels_of_a_target_that_may_be_learned_divide_it_and_teach_nothing(
    make, run, shuffle, monkeypatch
):
    """What a stratified split counts of a device is which image lies in which part, no more."""
    honest = run(stratified(make(BLIND, "phone")), "honest")
    split = Division.from_json((honest / "split.json").read_text())
    shuffle()
    divided = run(stratified(make(BLIND, "phone")), "divided")
    assert (divided / "split.json").read_bytes() != (honest / "split.json").read_bytes()
    monkeypatch.setattr(experiment_data, "make_split", lambda *_, **__: split)
    assert same(honest, run(stratified(make(BLIND, "phone")), "held"))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(make, run, monkeypatch):
    settings = {"sampling": "balanced", "loss": "logit_adjusted", "smoothing": 0.1}
    method = Method(components=[{"name": "mean_teacher", "burn_in": 0.0, "threshold": 0.05}])
    job = make(method, "phone", classifier=settings)
    whole = run(job, "whole")

    def stop(task):
        if task.global_step > 2:
            raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(training.CellClassification, "on_train_epoch_end", stop)
        with pytest.raises(RuntimeError, match="cut off"):
            run(job, "cut")
    assert same(whole, run(job, "cut"))


def test_plan_matrix_and_report_speak_of_cells(devices, tmp_path, make, run):
    experiment = Experiment(
        name="cells",
        runs_dir=str(tmp_path),
        data=make(Method()).data,
        detector=make(Method()).detector,
        trainer=make(Method()).trainer,
        sources=["lab"],
        targets=["phone"],
        methods=["fair_source_only", "dann"],
        twins=["fair", "oracle"],
    )
    complete(experiment)
    results = []
    plan = make_plan(experiment)
    for job in plan:
        folder = tmp_path / "cells" / "jobs" / job.hash
        folder.mkdir(parents=True)
        save_job(job, folder / "config.yaml")
        worker.run_job(folder)
        results.append(json.loads((folder / "result.json").read_text()))
    assert len(results) == 3
    index = write_report(experiment, results, tmp_path / "report")
    text = (tmp_path / "report" / "matrix.md").read_text()
    assert (
        text.index("## Balanced accuracy")
        < text.index("## Accuracy")
        < text.index("## Gap closed (Balanced")
    )
    assert "AP50" not in text
    page = index.read_text()
    assert "classifier of single cells" in page
    assert "Cell type (F1)" in page
    rows = list(csv.DictReader((tmp_path / "report" / "matrix.csv").open()))
    cell = next(
        r
        for r in rows
        if (r["method"], r["metric"], r["test"]) == ("dann", "balanced_accuracy", "phone")
    )
    assert float(cell["low"]) <= float(cell["value"]) <= float(cell["high"])
    assert all(f">{title}</th>" in page for title in ("recall", "precision"))  # behind the cells
    assert "Precision over recall" not in page
    assert any((r["method"], r["test"]) == ("dann", "lab") for r in rows)
    # Read in part, as a large sweep is, there is no other report.
    write_report(experiment, collect(experiment.folder, plan), tmp_path / "parts")
    for name in ("matrix.csv", "matrix.md", "index.html"):
        whole, parts = (tmp_path / folder / name for folder in ("report", "parts"))
        assert parts.read_bytes() == whole.read_bytes()


def test_a_class_that_is_tested_and_absent_from_training_is_warned_of(devices, tmp_path, caplog):
    four = tmp_path / "data" / "four"
    five_types(four, cells=6)
    for path in (four / "basophil").iterdir():
        path.unlink()
    five_types(tmp_path / "data" / "five", cells=6, seed=500)
    data = domains(format="cells")
    data.root, data.cache_dir, data.image_size = str(tmp_path / "data"), str(tmp_path / "c"), 32
    data.domains = {n: Domain(format="cells") for n in ("four", "five")}
    experiment = Experiment(data=data, detector=Detector(kind="classifier"), sources=["four"])
    complete(experiment)
    preflight(experiment)
    said = "four: has no training cell of basophil (2 test cells of five): they can only be named"
    assert f"{said} wrong" in caplog.text


def test_settings_of_the_classifier_decide_its_job_and_no_detectors(make):
    base = make(Method())
    other = make(Method(), classifier={"smoothing": 0.1})
    assert base.hash != other.hash
    base.detector.channels = 7  # of the pyramid, which a classifier has not
    assert base.hash == make(Method()).hash
    base.detector.attributes.loss = "asymmetric"
    assert base.hash != make(Method()).hash
