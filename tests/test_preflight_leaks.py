"""A sweep whose parts share patients or images does not start, unless it is told to."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from da_leukemia.config import Data, Detector, Domain, Experiment, Split
from da_leukemia.data import cache, splits
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.preflight import preflight
from da_leukemia.errors import DataError


def put(root, device, released, shade):
    """Write a device with a field of each patient, released as train or test."""
    folder = root / device
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, (patient, part) in enumerate(released.items()):
        pixels = np.full((48, 64, 3), (shade, number, 200), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        size = {"width": 64, "height": 48}
        entry = {"id": number, "file_name": f"{number}.png", "patient": patient, "split": part}
        images.append(entry | size)
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [4, 6, 10, 14]}
        )
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "wbc"}]
    (folder / "annotations.json").write_text(json.dumps(content))


PARTS = {f"p{n}": "test" if n > 7 else "train" for n in range(12)}


@pytest.fixture
def experiment(tmp_path):
    """Two devices of the same patients, split the same way in both."""
    put(tmp_path / "data", "lab", PARTS, 10)
    put(tmp_path / "data", "phone", PARTS, 20)
    devices = ["lab", "phone"]
    return Experiment(
        name="sweep",
        runs_dir=str(tmp_path / "runs"),
        data=Data(
            root=str(tmp_path / "data"),
            domains={d: Domain() for d in devices},
            cache_dir=str(tmp_path / "cache"),
            split=Split(test=0.3, validation=0.1),
        ),
        detector=Detector(backbone="mobilenetv3_small_050"),
        sources=devices,
        tests=devices,
        targets=devices,
    )


@pytest.fixture
def leaking(experiment, tmp_path):
    """Release patient 3 as train in one device and as test in the other."""
    shutil.rmtree(tmp_path / "data" / "phone")
    put(tmp_path / "data", "phone", PARTS | {"p3": "test"}, 20)
    experiment.data.split.kind = "released"
    return experiment


def test_a_split_by_patient_passes_and_is_written_once_per_sweep(experiment):
    preflight(experiment)
    assert not experiment.folder.exists()  # nobody runs a sweep here
    experiment.folder.mkdir(parents=True)
    preflight(experiment)
    _, split = read_experiment_data(experiment.data)
    assert splits.Split.from_json((experiment.folder / "split.json").read_text()) == split


def test_a_released_split_without_leaks_passes(experiment):
    experiment.data.split.kind = "released"
    preflight(experiment)


def test_a_released_split_that_leaks_is_refused_with_its_patients(leaking):
    leaking.folder.mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        preflight(leaking)
    text = str(caught.value)
    assert "patient p3: train in lab; test in phone" in text
    assert "patient:p3 is in test (phone/p3/3) and train (lab/p3/3)" in text
    assert "data.split.allow_leaks=true" in text
    assert not (leaking.folder / "split.json").exists()


def test_leaks_that_are_allowed_are_said_and_run(leaking, caplog):
    leaking.data.split.allow_leaks = True
    leaking.folder.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        preflight(leaking)
    (record,) = caplog.records
    assert "data.split.allow_leaks" in record.message
    assert "patient p3: train in lab; test in phone" in record.message
    assert (leaking.folder / "split.json").exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_the_same_image_of_two_patients_is_found(experiment, tmp_path, caplog, allowed):
    _, split = read_experiment_data(experiment.data)
    one = next(n for n in range(12) if split.parts[f"patient:p{n}"] == "train")
    other = next(n for n in range(12) if split.parts[f"patient:p{n}"] == "test")
    for device in ("lab", "phone"):
        shutil.copyfile(
            tmp_path / "data" / "lab" / f"{one}.png", tmp_path / "data" / device / f"{other}.png"
        )
    experiment.data.split.allow_leaks = allowed
    if allowed:
        preflight(experiment)
        assert "the same image is in" in caplog.text
    else:
        with pytest.raises(DataError, match=r"the same image is in test.*and train"):
            preflight(experiment)


@pytest.mark.parametrize("leak", [False, True])
def test_files_are_compared_once(experiment, leaking, monkeypatch, leak):
    calls = []
    real = splits.audit

    def counted(split, indexes):
        calls.append(1)
        real(split, indexes)

    monkeypatch.setattr(cache, "audit", counted)
    experiment.data.split.kind = "released" if leak else "patient"
    for _ in range(2):
        if leak:
            with pytest.raises(DataError, match="p3"):
                preflight(experiment)
        else:
            preflight(experiment)
    assert len(calls) == 1
    experiment.data.cache_dir = ""
    experiment.data.split.kind = "patient"
    preflight(experiment)
    assert len(calls) == 2


def test_caches_and_the_audit_are_no_part_of_a_job(make_job, tmp_path):
    from da_leukemia.adaptation.settings import Method

    plain = make_job(Method())
    changed = {
        "cache_dir": str(tmp_path),
        "image_cache": "disk",
        "memory_cache_gb": 1.0,
        "disk_cache_gb": 2.0,
    }
    for name, value in changed.items():
        assert make_job(Method(), data={name: value}).hash == plain.hash, name
    allowed = dataclasses.replace(plain.data, split=Split(allow_leaks=True))
    assert dataclasses.replace(plain, data=allowed).hash == plain.hash
    assert dataclasses.asdict(dataclasses.replace(plain, data=allowed))["data"]["split"][
        "allow_leaks"
    ]  # `result.json` carries the job's settings
    seeded = dataclasses.replace(plain.data, split=Split(seed=1))
    assert dataclasses.replace(plain, data=seeded).hash != plain.hash
