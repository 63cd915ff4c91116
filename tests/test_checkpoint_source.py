"""A source that is a checkpoint: adapted where nothing of what it learned from is left."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace

import pytest
import torch

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
    load_method,
)
from da_leukemia.config.origin import FORMAT, KEY, Origin, read_origin
from da_leukemia.data.preflight import preflight
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.sweep.plan import label, make_plan, trains

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
