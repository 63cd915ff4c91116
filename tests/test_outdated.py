"""Finished jobs whose data changed: tests are redone, trainings wait for permission."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from da_leukemia.config import Data, Domain, Experiment, Trainer
from da_leukemia.errors import DataError, UserError
from da_leukemia.sweep import conduct, ledger
from da_leukemia.sweep.facts import TRAINED_ON, fingerprint, read_facts
from da_leukemia.sweep.plan import make_plan

FIELDS = 12


def write_device(folder, seed, boxes=3):
    """Write a COCO device of noise with cells of known places."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(FIELDS):
        name = f"{i}.png"
        pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": i, "file_name": name, "width": 64, "height": 64})
        annotations += [
            {"id": i * 10 + k, "image_id": i, "category_id": 1, "bbox": [5 + 15 * k, 5, 12, 12]}
            for k in range(boxes)
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "wbc"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def change(folder, image, bbox):
    """Move the first box of an image."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    found = next(a for a in content["annotations"] if a["image_id"] == image)
    found["bbox"] = bbox
    path.write_text(json.dumps(content))


@pytest.fixture
def lab(tmp_path):
    for seed, name in enumerate(("scope", "phone")):
        write_device(tmp_path / "data" / name, seed)
    return tmp_path


@pytest.fixture
def experiment(lab):
    return Experiment(
        name="trial",
        runs_dir=str(lab / "runs"),
        data=Data(
            root=str(lab / "data"),
            domains={"scope": Domain(), "phone": Domain()},
            cache_dir=str(lab / "cache"),
        ),
        trainer=Trainer(steps=1),
    )


def finish(experiment):
    """Leave behind what a worker would for every job."""
    jobs = make_plan(experiment)
    facts = read_facts(experiment.data)
    for job in jobs:
        folder = ledger.job_folder(experiment.folder, job.hash)
        tests = {
            d: {"metrics": {"ap50": 0.5}, "fingerprint": facts.tested_on(job, d)} for d in job.tests
        }
        content = {"job": job.hash, "data": facts.trained_on(job), "tests": tests}
        ledger.write_json(folder / "result.json", content)
        ledger.write_json(folder / TRAINED_ON, content["data"])
    return jobs


def states(experiment, jobs):
    return [ledger.examine(experiment.folder, job).state.value for job in jobs]


def part_of(experiment, device, image):
    facts = read_facts(experiment.data)
    (field,) = [f for f in facts.indexes[device].fields if f.image.name == f"{image}.png"]
    return facts.split.part_of(field)


def first_of(experiment, device, part):
    return next(i for i in range(FIELDS) if part_of(experiment, device, i) == part)


def test_unchanged_data_leave_everything_done(experiment, capsys):
    jobs = finish(experiment)
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "done"]
    assert capsys.readouterr().err == ""


def test_a_copy_elsewhere_is_the_same_data(experiment, lab):
    jobs = finish(experiment)
    shutil.copytree(lab / "data", lab / "copy")  # times of change are new
    experiment.data.root = str(lab / "copy")
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "done"]


def test_a_changed_test_label_has_every_job_tested_again_there(experiment, lab, capsys):
    jobs = finish(experiment)
    change(lab / "data" / "phone", first_of(experiment, "phone", "test"), [20, 20, 30, 30])
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["waiting", "waiting"]
    for job in jobs:
        folder = ledger.job_folder(experiment.folder, job.hash)
        assert list(json.loads((folder / "result.json").read_text())["tests"]) == ["scope"]
    assert "2 tested again on phone" in capsys.readouterr().err


def test_a_changed_training_label_stops_the_sweep_and_loses_nothing(experiment, lab):
    jobs = finish(experiment)
    change(lab / "data" / "phone", first_of(experiment, "phone", "train"), [20, 20, 30, 30])
    with pytest.raises(
        UserError, match=r"1 finished job was trained on other data:\n  .*phone s0: training"
    ):
        conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "done"]


def test_a_job_that_lacks_a_test_is_not_trained_again_without_permission(experiment, lab):
    jobs = finish(experiment)
    for job in jobs:
        path = ledger.job_folder(experiment.folder, job.hash) / "result.json"
        content = json.loads(path.read_text())
        del content["tests"]["scope"]
        path.write_text(json.dumps(content))
    assert states(experiment, jobs) == ["waiting", "waiting"]
    change(lab / "data" / "phone", first_of(experiment, "phone", "train"), [20, 20, 30, 30])
    with pytest.raises(UserError, match="phone s0: training data of phone"):
        conduct.check_data(experiment, jobs)


def test_start_weights_that_are_another_file_are_noticed(experiment, lab):
    start = lab / "start.ckpt"
    start.write_bytes(b"first")
    experiment.detector.init_from = str(start)
    jobs = finish(experiment)
    conduct.check_data(experiment, jobs)
    start.write_bytes(b"other")
    with pytest.raises(UserError, match=r"scope s0: detector\.init_from \(.*is another file"):
        conduct.check_data(experiment, jobs)
    start.unlink()  # what was made of it still counts
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "done"]


def test_with_permission_only_the_job_of_that_device_is_trained_again(experiment, lab, capsys):
    jobs = finish(experiment)
    change(lab / "data" / "phone", first_of(experiment, "phone", "train"), [20, 20, 30, 30])
    experiment.changed_data = "retrain"
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "waiting"]
    folder = ledger.job_folder(experiment.folder, jobs[1].hash)
    assert json.loads((folder / "result.outdated.json").read_text())["job"] == jobs[1].hash
    assert "1 trained again" in capsys.readouterr().err


def test_a_job_that_adapted_to_changed_images_is_trained_again(experiment, lab):
    experiment.methods = ["fda"]
    jobs = finish(experiment)  # scope to phone and back
    image = first_of(experiment, "phone", "train")
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(lab / "data" / "phone" / "images" / f"{image}.png")
    with pytest.raises(UserError) as caught:
        conduct.check_data(experiment, jobs)
    assert "fda scope->phone s0: images of phone" in str(caught.value)
    assert "fda phone->scope s0: training data of phone" in str(caught.value)


def test_labels_of_a_target_are_not_what_was_adapted_to(experiment, lab):
    experiment.methods, experiment.twins = ["fda"], []
    experiment.sources, experiment.tests = ["scope"], ["scope"]
    experiment.targets = ["phone"]
    jobs = finish(experiment)
    change(lab / "data" / "phone", first_of(experiment, "phone", "train"), [20, 20, 30, 30])
    conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done"]


def test_another_split_is_other_data(experiment):
    jobs = finish(experiment)
    facts = [read_facts(experiment.data).trained_on(jobs[0])["fingerprint"]]
    experiment.data.split.seed = 1
    facts.append(read_facts(experiment.data).trained_on(jobs[0])["fingerprint"])
    assert facts[0] != facts[1]


def test_a_lost_folder_and_a_lost_image_are_said_though_everything_is_done(experiment, lab):
    jobs = finish(experiment)
    (lab / "data" / "phone" / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png"):
        conduct.check_data(experiment, jobs)
    experiment.data.root = str(lab / "nowhere")
    with pytest.raises(DataError, match="no such folder"):
        conduct.check_data(experiment, jobs)
    assert states(experiment, jobs) == ["done", "done"]


def test_a_sweep_whose_jobs_are_done_looks_at_its_data(experiment, lab, monkeypatch):
    finish(experiment)
    monkeypatch.setattr(conduct, "report", lambda experiment: None)
    assert conduct.run_sweep(experiment) == 0
    experiment.data.root = str(lab / "nowhere")
    with pytest.raises(DataError, match="no such folder"):
        conduct.run_sweep(experiment)


def test_fingerprints_tell_labels_from_images(experiment, lab):
    before = read_facts(experiment.data).indexes["phone"]
    change(lab / "data" / "phone", 0, [20, 20, 30, 30])
    after = read_facts(experiment.data).indexes["phone"]
    assert fingerprint(before) != fingerprint(after)
    assert fingerprint(before, labels=False) == fingerprint(after, labels=False)
