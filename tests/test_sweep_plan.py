from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Augmentation,
    Data,
    Detector,
    Domain,
    Experiment,
    Job,
    Trainer,
    TwoStage,
    complete,
    load_job,
)
from da_leukemia.errors import ConfigError, UserError
from da_leukemia.sweep import ledger
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.plan import label, make_plan, unique
from da_leukemia.sweep.status import as_json, plan_text, status_text

DANN = Method(components=[{"name": "adversarial"}])
FAIR = Method()


def experiment(tmp_path: Path, **settings: object) -> Experiment:
    made = Experiment(
        name="trial",
        runs_dir=str(tmp_path),
        data=Data(domains={name: Domain() for name in ("scope", "cheap", "phone")}),
        methods=["dann", "fair"],
        twins=[],
        adaptations={"dann": DANN, "fair": FAIR},
    )
    return replace(made, **settings)  # type: ignore[arg-type]


def names(made: Experiment) -> list[str]:
    return [label(job) for job in make_plan(made)]


def result(job_hash: str, tests: list[str]) -> dict[str, object]:
    return {"job": job_hash, "tests": {name: {"metrics": {"ap50": 0.5}} for name in tests}}


def test_source_only_is_trained_once_per_source_and_adapted_methods_once_per_pair(tmp_path):
    made = experiment(tmp_path, sources=["scope", "phone"], seeds=[0, 1])
    assert names(made)[:4] == ["fair scope s0", "fair scope s1", "fair phone s0", "fair phone s1"]
    assert names(made)[4:] == [
        f"dann {s}->{t} s{seed}"
        for s, t in [
            ("scope", "cheap"),
            ("scope", "phone"),
            ("phone", "scope"),
            ("phone", "cheap"),
        ]
        for seed in (0, 1)
    ]
    assert all(job.tests == ["scope", "cheap", "phone"] for job in make_plan(made))


def test_a_component_of_no_strength_makes_a_method_source_only(tmp_path):
    off = Method(components=[{"name": "adversarial", "weight": 0.0}])
    made = experiment(tmp_path, adaptations={"dann": off, "fair": FAIR}, sources=["scope"])
    assert names(made) == ["dann scope s0", "fair scope s0"]


def test_twins_are_two_entries_and_one_training(tmp_path):
    off = Method(components=[{"name": "adversarial", "weight": 0.0}])
    made = experiment(tmp_path, adaptations={"dann": off, "fair": FAIR}, sources=["scope"])
    jobs = make_plan(made)
    assert len(jobs) == 2
    (job_hash,) = unique(jobs)
    ledger.write_json(
        ledger.job_folder(made.folder, job_hash) / "result.json",
        {**result(job_hash, jobs[0].tests), "method": "dann"},
    )
    assert [r["method"] for r in ledger.collect(made.folder, jobs)] == ["dann", "fair"]
    assert "same training as dann" in plan_text(made)


def test_repeated_names_and_seeds_are_one(tmp_path):
    made = experiment(tmp_path, methods=["fair", "fair"], seeds=[0, 0], sources=["scope", "scope"])
    assert names(made) == ["fair scope s0"]


def test_a_plan_changes_nothing_in_the_experiment(tmp_path):
    made = experiment(tmp_path)
    make_plan(made)
    assert made.sources is None


def test_an_adapted_method_without_any_target_is_refused(tmp_path):
    made = experiment(tmp_path, sources=["scope"], targets=["scope"])
    with pytest.raises(ConfigError, match=r"dann.*leave none"):
        make_plan(made)


def test_no_labelled_device_is_refused(tmp_path):
    data = Data(domains={"phone": Domain(labels="test_only")})
    with pytest.raises(ConfigError, match="no device has labels"):
        make_plan(experiment(tmp_path, data=data))


def test_a_job_from_before_there_was_a_second_detector_keeps_its_hash():
    settings = {
        "method_name": "m",
        "method": Method(),
        "source": "a",
        "target": None,
        "seed": 0,
        "tests": ["a"],
        "data": Data(domains={"a": Domain()}),
        "augmentation": Augmentation(),
        "trainer": Trainer(),
    }
    kinds = [
        Detector(),
        Detector(kind="faster_rcnn"),
        Detector(kind="faster_rcnn", two_stage=TwoStage(hidden=64)),
    ]
    first, *others = [Job(detector=d, **settings).hash for d in kinds]
    assert first == "1b009562e2e3"
    assert len({first, *others}) == 3


def test_a_job_from_before_types_were_weighted_or_targets_thinned_keeps_its_hash():
    def hash_of(component, **recipe):
        method = Method(components=[component], **recipe)
        data = Data(domains={"a": Domain(), "b": Domain()})
        settings = {"augmentation": Augmentation(), "trainer": Trainer(), "detector": Detector()}
        return Job(
            "m", method, source="a", target="b", seed=0, tests=["a"], data=data, **settings
        ).hash

    assert hash_of({"name": "adabn"}) == "a49e8a50fe38"
    assert hash_of({"name": "adabn", "rounds": 2}) != "a49e8a50fe38"
    assert hash_of({"name": "adabn"}, target_images=0.5) != "a49e8a50fe38"
    for before, name, later in (
        ("4876de356dcb", "adversarial", {"burn_in": 0.2}),
        ("e0b1f3b1df5a", "instance_adversarial", {"burn_in": 0.2}),
        ("f546badaa4cd", "prototypes", {"features": "attributes"}),
    ):
        assert hash_of({"name": name}) == before
        assert hash_of({"name": name, **later}) != before
    # Of which no part is left is a method without it.
    nothing = {"name": "distillation", "class_weight": 0.0, "box_weight": 0.0}
    assert hash_of(nothing) == hash_of({"name": "distillation", "weight": 0.0})
    assert hash_of(nothing) != hash_of(nothing | {"box_weight": 1.0})


def test_a_job_has_the_same_hash_alone_as_in_its_plan(tmp_path):
    made = experiment(
        tmp_path,
        detectors={"one": Detector(), "two": Detector(kind="faster_rcnn")},
        calibration=["none", "default", "scale"],
        sparse=[0.2, 1.0],
        sources=["scope", "cheap+phone"],
    )
    jobs = make_plan(made)
    assert len({job.hash for job in jobs}) == len(jobs) == 2 * 3 * 2 * (2 + 3)
    for job in jobs:
        alone = deepcopy(job)
        alone.seed = job.seed  # a job that was changed is hashed anew
        assert alone.hash == job.hash


def test_the_hash_ignores_paths_devices_workers_and_names(tmp_path):
    made = experiment(tmp_path)
    before = set(unique(make_plan(made)))
    elsewhere = experiment(
        tmp_path / "else",
        name="other",
        tracking="wandb",
        processes=7,
        trainer=Trainer(threads=3, workers=2, accelerator="cpu", precision="32-true"),
        data=Data(
            root="/mnt/elsewhere",
            domains={n: Domain(root=f"x/{n}") for n in ("scope", "cheap", "phone")},
        ),
        methods=["gradient_reversal", "fair"],
        adaptations={"gradient_reversal": DANN, "fair": FAIR},
    )
    assert set(unique(make_plan(elsewhere))) == before


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": Trainer(steps=7)},
        {"seeds": [5]},
        {"adaptations": {"dann": DANN, "fair": Method(ema=False)}, "methods": ["fair"]},
    ],
)
def test_the_hash_follows_what_changes_the_result(tmp_path, change):
    before = set(unique(make_plan(experiment(tmp_path))))
    assert not before & set(unique(make_plan(experiment(tmp_path, **change))))


def test_a_new_seed_or_device_only_adds_jobs(tmp_path):
    made = experiment(tmp_path)
    before = set(unique(make_plan(made)))
    domains = {**made.data.domains, "tablet": Domain()}
    more = experiment(tmp_path, data=Data(domains=domains), seeds=[0, 1])
    assert before < set(unique(make_plan(more)))


# --- the ledger ------------------------------------------------------------------------------


def test_states_are_read_from_the_folders(tmp_path):
    made = experiment(tmp_path, methods=["fair"])
    done, failed, running = make_plan(made)
    folders = [ledger.job_folder(made.folder, job.hash) for job in (done, failed, running)]
    assert ledger.examine(made.folder, done).state is State.WAITING
    ledger.write_json(folders[0] / "result.json", result(done.hash, done.tests))
    ledger.write_failure(folders[1], "loss is not finite")
    with ledger.hold(folders[2]) as held:
        assert held
        ledger.write_json(folders[2] / "progress.json", {"phase": "train", "step": 9, "steps": 20})
        with ledger.hold(folders[2], patience=0.05) as twice:
            assert not twice
        text = status_text(made, "again")
        counts = as_json(made)["counts"]
    assert counts == {"done": 1, "running": 1, "failed": 1, "waiting": 0}
    assert "fair phone s0  45%" in text
    assert "| loss is not finite" in text
    assert str(folders[1] / "log.txt") in text
    assert "to go on: again" in text
    assert ledger.examine(made.folder, running).state is State.WAITING


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"job": "ab', "half-written"),
        ("[]", "half-written"),
        ("", "half-written"),
        ('{"job": "0123", "tests": {}}', "of job 0123"),
    ],
)
def test_a_result_that_is_not_whole_does_not_count(tmp_path, content, reason):
    made = experiment(tmp_path, methods=["fair"])
    job = make_plan(made)[0]
    folder = ledger.job_folder(made.folder, job.hash)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content)
    standing = ledger.examine(made.folder, job)
    assert standing.state is State.WAITING
    assert reason in standing.note
    assert reason in status_text(made, "again")


def test_a_new_test_device_leaves_only_its_test_to_do(tmp_path):
    made = experiment(tmp_path, methods=["fair"], tests=["scope"])
    job = make_plan(made)[0]
    content = result(job.hash, ["scope"])
    ledger.write_json(ledger.job_folder(made.folder, job.hash) / "result.json", content)
    assert ledger.examine(made.folder, job).state is State.DONE
    more = make_plan(replace(made, tests=["scope", "phone"]))[0]
    assert more.hash == job.hash
    assert ledger.examine(made.folder, more).note == "still to be tested on phone"


def test_a_job_and_a_plan_come_back_from_their_files(tmp_path):
    made = experiment(tmp_path)
    complete(made)
    jobs = make_plan(made)
    ledger.write_job(tmp_path / "job", jobs[-1])
    assert load_job(tmp_path / "job" / "config.yaml") == jobs[-1]
    ledger.write_plan(made, [(job, job.hash) for job in jobs])
    plan = json.loads((made.folder / "plan.json").read_text())
    assert [e["job"] for e in plan["entries"]] == [job.hash for job in jobs]
    assert plan["experiment"]["name"] == "trial"


def test_a_full_disk_is_said_and_the_old_file_kept(tmp_path, monkeypatch):
    ledger.write_json(tmp_path / "a.json", 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="disk full"):
        ledger.write_json(tmp_path / "a.json", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_a_file_in_place_of_the_runs_folder_is_said(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        ledger.write_json(tmp_path / "runs" / "trial" / "plan.json", {})
