"""Jobs whose source is a checkpoint, from their folders to the report."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Calibration,
    load_experiment,
    load_job,
    save_job,
)
from da_leukemia.config.origin import KEY, read_origin
from da_leukemia.data.images import Memory
from da_leukemia.data.splits import Split
from da_leukemia.errors import ConfigError, UserError
from da_leukemia.report import gather, write_report
from da_leukemia.report.samples import choose, first_sample
from da_leukemia.report.tables import render_text
from da_leukemia.sweep import ledger, prediction, worker
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.card import model_card
from da_leukemia.sweep.facts import Facts, read_facts
from da_leukemia.sweep.plan import label, make_plan
from da_leukemia.sweep.prediction import Fields, predict_unlabelled
from da_leukemia.sweep.results import Result

H, L = "H_100X_C2", "L_100X_C2"
FAIR = Method()
TEACHER = {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011}
FREE = Method(source_free=True, components=[TEACHER], learning_rate_factor=0.1)


def run(job, sweep):
    folder = ledger.job_folder(sweep, job.hash)
    folder.mkdir(parents=True, exist_ok=True)
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    return folder


@pytest.fixture(scope="module")
def lab(make_job, tmp_path_factory):
    """A checkpoint with the scale of its source, and nothing beside it."""
    calibrated = Calibration(scale=True, images=4)
    job = make_job(FAIR, target=None, tests=[H], data={"calibration": calibrated})
    home = tmp_path_factory.mktemp("lab")
    folder = run(job, home / "sweep")
    path = shutil.copy(folder / "checkpoints" / "last.ckpt", home / "lab.ckpt")
    weights = torch.load(path, weights_only=True)["state_dict"]
    result = json.loads((folder / "result.json").read_text())
    shutil.rmtree(home / "sweep")
    return path, weights, result


@pytest.fixture(scope="module")
def sweep(lab, smears, tmp_path_factory):
    """Run the plan on the target's images alone: one device has test labels, its copy none."""
    home = tmp_path_factory.mktemp("clinic")
    root = home / "images"
    shutil.copytree(smears / L, root / L)
    for path in (smears / L).rglob("*.png"):
        place = root / "blind" / path.name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
    file = home / "ours.yaml"
    file.write_text(
        f"name: ours\nruns_dir: {home}/runs\ncheckpoints: {{lab: {lab[0]}}}\n"
        "methods: [free, adabn]\n"
        "adaptations: {free: {source_free: true, learning_rate_factor: 0.1, components: "
        "[{name: mean_teacher, burn_in: 0.0, ramp: 0.0, threshold: 0.011}]}}\n"
        f"data: {{root: {root}, image_cache: none, calibration: {{images: 4}}, domains: "
        f"{{{L}: {{format: leukemiaattri, labels: test_only}}, "
        "blind: {format: images, labels: none}}}\n"
        "trainer: {steps: 4, epoch_steps: 2, batch_size: 2, validate_every: 0, accelerator: cpu}\n"
        "selection: {images: 2}\n"
    )
    experiment = load_experiment(file)
    folders = {label(job): run(job, experiment.folder) for job in make_plan(experiment)}
    results = {name: worker.read_result(folder) for name, folder in folders.items()}
    return experiment, folders, results


FREE_L, FREE_BLIND = "free+scale lab->L_100X_C2 s0", "free+scale lab->blind s0"
AS_IS = "fair_source_only+scale lab s0"


def test_only_the_checkpoint_and_the_images_are_there(sweep, lab):
    experiment, _, results = sweep
    assert set(results) == {
        *(AS_IS, FREE_L, FREE_BLIND),
        *("adabn+scale lab->L_100X_C2 s0", "adabn+scale lab->blind s0"),
    }
    assert H not in experiment.data.domains
    for result in results.values():
        assert result["data"]["fingerprint"] == experiment.checkpoints["lab"].sha256[:16]


def test_the_unadapted_twin_is_the_checkpoint_to_the_last_bit(sweep, lab):
    _, folders, results = sweep
    kept = torch.load(folders[AS_IS] / "checkpoints" / "last.ckpt", weights_only=True)
    given = {k: v for k, v in lab[1].items() if k.startswith("ema.model.")}
    assert given
    assert all(torch.equal(kept["state_dict"][k], v) for k, v in given.items())
    assert results[AS_IS]["timings"]["train_s"] == 0
    assert set(results[AS_IS]["tests"]) == {L}


def test_what_learns_has_other_weights_and_scores(sweep, lab):
    _, folders, results = sweep
    after = torch.load(folders[FREE_L] / "checkpoints" / "last.ckpt", weights_only=True)
    before = {k[10:]: v for k, v in lab[1].items() if k.startswith("ema.model.")}
    now = {k[9:]: v for k, v in after["state_dict"].items() if k.startswith("detector.")}
    assert any(not torch.equal(v, now[k]) for k, v in before.items())
    assert results[FREE_L]["tests"][L]["metrics"]["fields"] > 0
    card = (folders[FREE_L] / "checkpoints" / "MODEL_CARD.md").read_text()
    assert "from a checkpoint, lab (sha256" in card
    assert f"method: {H}, seed 0" in card


def test_without_labels_there_are_weights_and_label_free_scores_alone(sweep):
    _, folders, results = sweep
    assert results[FREE_BLIND]["tests"].keys() == {L}
    for name in (AS_IS, FREE_BLIND, "adabn+scale lab->blind s0"):
        scores = results[name]["label_free"]["blind"]
        assert set(scores) == {"agreement", "flatness", "confidence", "separation"}
        assert all(0 <= value <= 1 for value in scores.values())
    assert (folders[FREE_BLIND] / "checkpoints" / "last.ckpt").is_file()
    assert results[FREE_L]["label_free"] == {}
    for name in (AS_IS, FREE_BLIND):  # what nobody can score can be looked at
        sampled = json.loads((folders[name] / "samples" / "blind.json").read_text())
        assert [s["truths"] for s in sampled] == [[]] * len(sampled)
        assert sampled


def test_what_is_looked_at_has_no_labels_and_need_not_be_a_test_field(make_job, monkeypatch):
    """A device with labels may be called unlabelled, and a split may leave it no test field."""

    class Looks:
        def predict_fields(self, batches, data):
            return data.fields

    monkeypatch.setattr(prediction, "prepared_for", lambda *a: contextlib.nullcontext())
    job = make_job(FAIR, target=None, tests=[H])
    facts = read_facts(job.data)
    assert sum(len(f.labels) for f in facts.indexes[L]) > 0
    alone = Split({f.group: "train" for index in facts.indexes.values() for f in index})
    for split, part in ((facts.split, "test"), (alone, "train")):
        fields = Fields(job, Facts(facts.indexes, split, {}), dict.fromkeys((H, L), 96), Memory())
        seen = predict_unlabelled(Looks(), fields, L)
        assert {f.key for f in seen} == {f.key for f in split.select(facts.indexes[L], part)}
        assert [len(f.labels) + len(f.boxes) for f in seen] == [0] * len(seen) != []


def test_what_is_said_of_the_source_goes_on_to_the_next(sweep, lab):
    _, folders, _ = sweep
    first = read_origin(lab[0])
    assert first.device == lab[2]["devices"][H]
    assert first.used == ("scale",)
    then = read_origin(folders[FREE_BLIND] / "checkpoints" / "last.ckpt")
    assert len(then.history) == 2
    assert replace(then, history=first.history) == first


def test_a_checkpoint_of_an_earlier_version_is_told_by_its_result(lab, tmp_path):
    new, path = read_origin(lab[0]), tmp_path / "job" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    content = torch.load(lab[0], weights_only=True)
    del content[KEY]
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"needs the job's result\.json in the folder above"):
        read_origin(path)
    (tmp_path / "job" / "result.json").write_text(json.dumps(lab[2]))
    assert read_origin(path) == replace(new, cells=None, licence=f"{H}: ?")
    assert new.classes == ["wbc"]
    assert new.cells["wbc"] > 0


def test_the_scale_of_the_source_decides_what_is_seen(sweep, lab):
    _, folders, _ = sweep
    job = load_job(folders[FREE_L] / "config.yaml")
    facts = worker.read_facts(job.data)
    known = worker._prepared(job, facts, read_origin(lab[0]))
    device = lab[2]["devices"][H]
    assert known["lab"].scaled == (device["px_per_um_x"] is not None)
    unknown = replace(read_origin(lab[0]), device={**device, "px_per_um_x": None})
    assert not any(p.scaled for p in worker._prepared(job, facts, unknown).values())


def test_it_is_done_once_and_can_be_tested_again(sweep, monkeypatch, capsys):
    _, folders, results = sweep
    monkeypatch.setattr(worker, "build_task", None)
    for folder in folders.values():
        worker.run_job(folder)
    monkeypatch.undo()
    assert cli.main(["evaluate", str(folders[FREE_L]), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again[L]["ap50"] == results[FREE_L]["tests"][L]["metrics"]["ap50"]


def test_a_job_with_nothing_to_test_on_is_done_all_the_same(sweep, tmp_path):
    _, folders, results = sweep
    name = "adabn+scale lab->blind s0"
    job = replace(load_job(folders[name] / "config.yaml"), tests=[])
    folder = run(job, tmp_path)
    result, why = ledger.read_result(folder, job.hash, [])
    assert result is not None, why
    assert result["tests"] == {}
    assert result["label_free"] == results[name]["label_free"]
    before = (folder / "result.json").stat().st_mtime_ns
    worker.run_job(folder)
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_job_that_tests_nothing_is_tested_on_what_it_adapted_to(sweep, tmp_path):
    _, folders, results = sweep
    job = replace(load_job(folders[FREE_L] / "config.yaml"), tests=[])
    again = worker.evaluate_job(run(job, tmp_path))
    assert again.keys() == {L}
    assert again[L]["ap50"] == results[FREE_L]["tests"][L]["metrics"]["ap50"]


def test_no_device_is_looked_at_before_all_can_be(sweep, monkeypatch):
    _, folders, _ = sweep
    part = Fields.part

    def without(self, device, name):
        found = part(self, device, name)
        return found.of([]) if device == "blind" else found

    monkeypatch.setattr(Fields, "part", without)
    monkeypatch.setattr(worker, "predict_domain", None)
    with pytest.raises(UserError, match="blind: no field to test on"):
        worker.examine_job(folders[FREE_L], [L, "blind"])


def test_a_changed_checkpoint_is_not_gone_on_with(sweep, lab, tmp_path):
    _, folders, _ = sweep
    job = load_job(folders[FREE_L] / "config.yaml")
    other = shutil.copy(lab[0], tmp_path / "lab.ckpt")
    Path(other).write_bytes(Path(other).read_bytes() + b" ")
    job.checkpoint = replace(job.checkpoint, path=str(other))
    with pytest.raises(ConfigError, match=r"checkpoints\.lab: .* is not the file"):
        run(job, tmp_path / "sweep")


def test_the_report_says_no_test_labels(sweep, tmp_path):
    experiment, _, results = sweep
    contents = gather(experiment, list(results.values()))
    view = contents.matrix.view("free+scale")
    assert view.tests == (L, "blind")
    assert ("lab", "blind") in view.unscored
    assert ("lab", "blind") not in view.cells
    # Where nothing at all is scored, the kind of detector says what the matrix would be of.
    blind = [replace(r, content=r.content | {"tests": {}}) for r in contents.results]
    assert build_matrix(blind).metrics == ("ap50",)
    for result in blind:
        detector = {"detector": {"kind": "classifier"}}
        result.content.update(config={**result.content["config"], **detector})
    assert build_matrix(blind).metrics == ("balanced_accuracy",)
    gap = contents.gap.gaps
    assert {(g.method, g.fair is None) for g in gap} >= {("free+scale", False)}
    folder = write_report(experiment, list(results.values()), tmp_path / "report").parent
    for name in ("index.html", "matrix.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "no test labels" in text
        assert "Devices without test labels" in text
    page = (folder / "index.html").read_text(encoding="utf-8")
    for method in ("fair_source_only+scale", "free+scale"):
        assert {test for test, runs in choose(contents, first_sample) if method in names(runs)} == {
            L,
            "blind",
        }
    assert page.count("data:image/jpeg") >= 4
    assert "blind" not in (folder / "matrix.csv").read_text().replace("lab,blind,L_100X_C2", "")


def names(runs):
    return [result.run.method for result, _ in runs]


def test_source_only_alone_on_a_device_without_labels_is_a_result(sweep):
    _, _, results = sweep
    matrix = build_matrix([Result({**results[AS_IS], "tests": {}}, None)])
    assert [(u.method, u.device) for u in matrix.unscored] == [("fair_source_only+scale", "blind")]
    assert "no test labels" in render_text(matrix)


def test_the_card_of_a_run_without_test_labels_gives_no_table(sweep):
    _, _, results = sweep
    card = model_card({**results[FREE_BLIND], "tests": {}}, {})
    assert "no score is known" in card
    assert "- blind: agreement 0." in card
    assert "| tested on |" not in card
    assert "| tested on |" in model_card(results[FREE_BLIND], {})


def test_no_label_at_all_makes_a_report_too(sweep, tmp_path):
    experiment, _, results = sweep
    bare = [{**r, "tests": {}} for r in results.values()]
    contents = gather(experiment, bare)
    assert contents.matrix.metrics == ("ap50",)
    folder = write_report(experiment, bare, tmp_path / "report").parent
    assert "no test labels" in (folder / "matrix.md").read_text(encoding="utf-8")
    assert "No device has labels to test on" in (folder / "index.html").read_text("utf-8")
