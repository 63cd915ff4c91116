"""A source that is a checkpoint: adapted where nothing of what it learned from is left."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Calibration,
    Checkpoint,
    Data,
    Detector,
    Domain,
    Experiment,
    complete,
    load_experiment,
    load_job,
    load_method,
    save_job,
)
from da_leukemia.config.origin import FORMAT, KEY, Origin, read_origin
from da_leukemia.data.images import Memory
from da_leukemia.data.preflight import preflight
from da_leukemia.data.splits import Split
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.report import gather, write_report
from da_leukemia.report.samples import choose, first_sample
from da_leukemia.sweep import ledger, prediction, worker
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.card import model_card
from da_leukemia.sweep.facts import Facts, read_facts
from da_leukemia.sweep.plan import label, make_plan, trains
from da_leukemia.sweep.prediction import Fields, predict_unlabelled

H, L = "H_100X_C2", "L_100X_C2"
FAIR = Method()
TEACHER = {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011}
FREE = Method(source_free=True, components=[TEACHER], learning_rate_factor=0.1)

ORIGIN = Origin(
    label_space="wbc",
    image_size=320,
    detector=asdict(Detector()),
    calibration=asdict(Calibration()),
    device=None,
    classes=["wbc"],
    cells={"wbc": 10},
    fields=5,
    lookup=None,
    licence="scope: CC0",
    history=["fair_source_only: scope, seed 0 (abc)"],
)


def write(path, origin=ORIGIN, number=0):
    """Write what is no detector, but says that it is one."""
    content = {"state_dict": {"detector.x": torch.tensor(number)}, KEY: origin.to_dict()}
    torch.save(content, path)
    return path


@pytest.fixture
def made(tmp_path):
    """Make a complete experiment of a checkpoint and two devices; arguments replace settings."""

    def make(origin=ORIGIN, data=None, path=None, **settings):
        file = path or write(tmp_path / "lab.ckpt", origin)
        domains = {"phone": Domain(labels="test_only"), "new": Domain(labels="none")}
        given = {
            "checkpoints": {"lab": Checkpoint(str(file))},
            "data": Data(**({"domains": domains} | (data or {}))),
            "methods": ["free"],
            "adaptations": {"free": FREE},
            "runs_dir": str(tmp_path / "runs"),
        }
        experiment = Experiment(**given | settings)
        complete(experiment)
        return experiment

    return make


# --- the plan ----------------------------------------------------------------------------------


def test_it_is_the_source_and_its_twin_is_itself(made):
    plan = make_plan(made())
    assert [label(job) for job in plan] == [
        "fair_source_only lab s0",
        "free lab->phone s0",
        "free lab->new s0",
    ]
    assert [trains(job) for job in plan] == [False, True, True]
    assert {job.seen for job in plan} == {()}


def test_a_labelled_device_is_the_oracle(made):
    domains = {"phone": Domain()}
    assert [label(job) for job in make_plan(made(data={"domains": domains}))] == [
        "fair_source_only lab s0",
        "fair_source_only phone s0",
        "free lab->phone s0",
    ]


def test_beside_a_device_as_source_each_has_its_own_twins(made):
    domains = {"scope": Domain(), "phone": Domain(labels="test_only")}
    experiment = made(data={"domains": domains}, sources=["lab", "scope"], targets=["phone"])
    assert [label(job) for job in make_plan(experiment)] == [
        "source_only scope s0",
        "fair_source_only lab s0",
        "fair_source_only scope s0",
        "longer_source_only:free scope s0",
        "free lab->phone s0",
        "free scope->phone s0",
    ]


def test_the_content_of_the_file_is_its_identity_and_not_the_path(made, tmp_path):
    one = [job.hash for job in make_plan(made())]
    moved = shutil.copy(tmp_path / "lab.ckpt", tmp_path / "other.ckpt")
    assert [job.hash for job in make_plan(made(path=moved))] == one
    retrained = write(tmp_path / "retrained.ckpt", number=1)
    assert not set(one) & {job.hash for job in make_plan(made(path=retrained))}


def test_a_missing_file_stops_a_sweep_before_it_starts(made, tmp_path):
    experiment = made(data={"root": str(tmp_path)} | {"domains": {"new": Domain(labels="none")}})
    (tmp_path / "lab.ckpt").unlink()
    with pytest.raises(DataError, match=r"checkpoints\.lab\.path: .*lab\.ckpt': no such file"):
        preflight(experiment)


def test_another_file_in_its_place_is_noticed_and_a_missing_one_still_reported(made, tmp_path):
    experiment = made()
    before = [job.hash for job in make_plan(experiment)]
    (tmp_path / "lab.ckpt").unlink()
    assert [job.hash for job in make_plan(experiment)] == before
    write(tmp_path / "lab.ckpt", number=2)
    with pytest.raises(ConfigError, match="is not the file that the sweep began with"):
        make_plan(experiment)


# --- what it brings ----------------------------------------------------------------------------


def test_its_settings_are_taken_over_from_a_short_file(tmp_path):
    detector = asdict(Detector(backbone="resnet18", channels=32, init_from="old.ckpt"))
    calibration = asdict(Calibration(scale=True, view_um=80.0))
    origin = replace(ORIGIN, detector=detector, calibration=calibration, image_size=256)
    write(tmp_path / "lab.ckpt", origin)
    file = tmp_path / "ours.yaml"
    file.write_text(
        f"checkpoints: {{lab: {tmp_path}/lab.ckpt}}\nmethods: [recommended_source_free]\n"
        "data: {domains: {phone: {format: images, labels: none}}}\n"
    )
    read = load_experiment(file)
    assert (read.sources, read.tests, read.targets) == (["lab"], [], ["phone"])
    assert (read.data.image_size, read.data.label_space) == (256, "wbc")
    assert (read.detector.backbone, read.detector.init_from) == ("resnet18", None)
    assert (read.data.calibration.used, read.data.calibration.view_um) == (("scale",), 80.0)
    axis = load_experiment(file, ["calibration=[scale]"])
    assert axis.data.calibration.view_um == 80.0
    assert make_plan(axis)[0].hash == make_plan(read)[0].hash
    with pytest.raises(ConfigError, match=r"trained with calibration \['scale'\].*has \[\]"):
        load_experiment(file, ["calibration=[none]"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": {"label_space": "wbc5"}}, "data.label_space wbc, the experiment has wbc5"),
        ({"data": {"image_size": 224}}, "data.image_size 320, the experiment has 224"),
        ({"detector": Detector(channels=32)}, "detector.channels 96, the experiment has 32"),
        ({"detector": Detector(attribute_weight=0.0)}, "detector.attribute_weight 0.2"),
        (
            {"data": {"calibration": Calibration(colour=True)}},
            r"calibration \[\], the experiment has \['colour'\]",
        ),
        ({"data": {"domains": {"lab": Domain()}}}, "'lab' is a device of data.domains, too"),
        ({"sources": ["lab+phone"]}, "a checkpoint cannot be joined with other sources"),
        ({"sources": ["lap"]}, "unknown device 'lap'; did you mean 'lab'"),
        ({"sparse": [0.2]}, "leaves out labels of a source, and 'lab' is a checkpoint"),
    ],
)
def test_what_does_not_fit_is_said(made, settings, said):
    data = {"domains": {"phone": Domain(labels="test_only")}} | settings.pop("data", {})
    with pytest.raises(ConfigError, match=said):
        made(data=data, **settings)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("dann", "trains adversarial beside the source"),
        ("fda", "trains fourier beside the source"),
        ("few_shot", "learns from labels of the target"),
        ("source_only", "is trained on the source"),
        ("stain_jitter", "trains stain_jitter beside"),
    ],
)
def test_methods_that_need_the_source_are_refused_with_a_way_out(made, method, why):
    adaptations = {method: load_method(method)}
    free = "source_free_teacher, recommended_source_free"
    with pytest.raises(ConfigError, match=f"'{method}' {why}.*{free}"):
        made(methods=[method], adaptations=adaptations, targets=["phone"])


@pytest.mark.parametrize(
    "method", ["adabn", "tent", "source_free_teacher", "recommended_source_free"]
)
def test_methods_that_do_not_need_it_are_planned(made, method):
    plan = make_plan(made(methods=[method], adaptations={}))
    assert f"{method} lab->phone s0" in [label(job) for job in plan]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no checkpoint", "no checkpoint of ours"),
        ({"weights": 1}, "no checkpoint of ours"),
        ({"state_dict": {}}, "does not say what detector it is"),
        ({"state_dict": {}, KEY: {"format": FORMAT + 1}}, "written in format 2, expected 1"),
        ({"state_dict": {}, KEY: {"format": FORMAT}}, "other entries than expected"),
    ],
)
def test_files_that_are_no_such_checkpoint(tmp_path, content, said):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=said):
        read_origin(path)
    with pytest.raises(ConfigError, match=r"none\.ckpt"):
        read_origin(tmp_path / "none.ckpt")


# --- from the job to the report ----------------------------------------------------------------


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
