"""Calibrations of an experiment's devices: from which images, kept how, and what a job does."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from da_leukemia.adaptation.settings import Method
from da_leukemia.calibration import Calibration as Measured
from da_leukemia.calibration import Quantity, save
from da_leukemia.config import Calibration, Domain, save_job
from da_leukemia.data import devices
from da_leukemia.data.devices import measure_devices
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.preparation import preparations
from da_leukemia.errors import DataError
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep import worker

H, L_ = "H_100X_C2", "L_100X_C2"
KNOWN = Measured(
    fields=7,
    size=(640, 640),
    px_per_um_x=Quantity(4.5, 4.0, 5.0),
    px_per_um_y=Quantity(8.0, 7.5, 8.5),
    background=(Quantity(220, 215, 225),) * 3,
    red_cell_colour=(Quantity(190, 185, 195), Quantity(160, 155, 165), Quantity(170, 165, 175)),
)


@pytest.fixture
def measured(monkeypatch):
    """Count what is measured; every device is `KNOWN`."""
    calls = []

    def calibrate(paths, most):
        calls.append((list(paths), most))
        return KNOWN

    monkeypatch.setattr(devices, "calibrate_images", calibrate)
    return calls


@pytest.fixture
def data(make_job, tmp_path):
    settings = {"calibration": Calibration(scale=True), "cache_dir": str(tmp_path / "cache")}
    return make_job(Method(), data=settings).data


def test_cells_that_were_cut_out_are_measured_by_their_photographs(data, measured):
    """Those of the training cells, and no picture of a single cell."""
    for domain in data.domains.values():
        domain.crop = 0.1
    data.calibration = Calibration(colour=True)
    indexes, split = read_experiment_data(data)
    assert all("crops" in f.image.parts for i in indexes.values() for f in i)
    assert measure_devices(data, indexes, split) == {H: KNOWN, L_: KNOWN}
    whole = dataclasses.replace(data, domains={n: Domain("leukemiaattri") for n in (H, L_)})
    fields = read_experiment_data(whole)[0][H]
    of_field = {(f.patient, f.name): f.image for f in fields}
    parts = {"train": set(), "test": set()}
    for cell in indexes[H]:
        image = of_field[cell.patient, cell.name.rpartition("#")[0]]
        parts.setdefault(split.part_of(cell), set()).add(image)
    taken = set(measured[0][0])
    assert taken == parts["train"]
    assert not taken & parts["test"]


def test_only_training_images_are_measured(data, measured):
    indexes, split = read_experiment_data(data)
    found = measure_devices(data, indexes, split)
    assert found == {H: KNOWN, L_: KNOWN}
    parts = [split.part_of(f) for i in indexes.values() for f in i if f.image in measured[0][0]]
    assert parts
    assert set(parts) == {"train"}
    assert len(measured[0][0]) < len(indexes[H])


def test_nothing_is_measured_where_nothing_is_calibrated(data, measured):
    data.calibration.scale = False
    assert measure_devices(data, *read_experiment_data(data)) == {}
    assert measured == []


def test_what_was_measured_is_kept_until_an_image_changes(data, measured, smears, tmp_path):
    indexes, split = read_experiment_data(data)
    first = measure_devices(data, indexes, split)
    assert measure_devices(data, indexes, split) == first
    assert len(measured) == 2
    data.calibration.images = 5
    measure_devices(data, indexes, split)
    assert [most for _, most in measured[2:]] == [5, 5]
    image = measured[0][0][0]
    image.touch()
    data.calibration.images = 50
    measure_devices(data, indexes, split)
    assert len(measured) == 5  # one device again
    for entry in (tmp_path / "cache" / "calibration").iterdir():
        entry.write_text(entry.read_text()[:50])  # cut off
    assert measure_devices(data, indexes, split) == first


def test_a_file_of_the_command_is_taken_instead(data, measured, tmp_path):
    save(Measured(fields=3, size=(9, 9)), tmp_path / "phone.json")
    data.domains[H].calibration = str(tmp_path / "phone.json")
    found = measure_devices(data, *read_experiment_data(data))
    assert (found[H].fields, found[L_].fields) == (3, 7)
    data.domains[H].calibration = "none.json"
    with pytest.raises(DataError, match=r"none\.json"):
        measure_devices(data, *read_experiment_data(data))


def test_a_device_that_cannot_be_measured_is_named(data, monkeypatch):
    def fail(paths, most):
        raise DataError("none of the images can be read")

    monkeypatch.setattr(devices, "calibrate_images", fail)
    with pytest.raises(DataError, match="H_100X_C2: none of the images"):
        measure_devices(data, *read_experiment_data(data))


@pytest.mark.parametrize("method", [Method(), Method(components=[{"name": "adversarial"}])])
def test_a_calibrated_job_looks_through_windows_and_answers_in_the_images_own_pixels(
    make_job, measured, tmp_path, method
):
    settings = Calibration(scale=True, illumination=True, colour=True, view_um=24.0)
    job = make_job(method, data={"calibration": settings, "cache_dir": str(tmp_path / "cache")})
    job.detector.score_threshold = 0.0
    folder = tmp_path / "job"
    folder.mkdir()
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    result = worker.read_result(folder)
    told = result["data"]["calibration"]
    assert set(told) == {H, L_}
    assert told[H] == json.loads(json.dumps(KNOWN.to_dict()))
    for device in (H, L_):
        records = load_records(folder / "records" / f"{device}.npz")
        assert len({r.key for r in records}) == len(records)
        boxes = np.concatenate([r.boxes for r in records])
        assert boxes.min() >= 0
        assert boxes.max() <= 640
        # 96 px see 24 um: 4 px/um, so x shrinks to 8/9 and y to 1/2; windows reach the far corner.
        assert boxes[:, 0].max() > 500
        assert boxes[:, 1].max() > 500
        assert max(len(r.boxes) for r in records) <= job.detector.max_detections


def test_another_calibration_is_another_training(make_job, measured, tmp_path, monkeypatch, capsys):
    job = make_job(Method(), target=None, data={"calibration": Calibration(scale=True)})
    job.data.cache_dir = ""
    folder = tmp_path / "job"
    folder.mkdir()
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    worker.run_job(folder)
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    wider = Measured(
        fields=7, size=(640, 640), px_per_um_x=Quantity(5, 5, 5), px_per_um_y=Quantity(5, 5, 5)
    )
    monkeypatch.setattr(devices, "calibrate_images", lambda paths, most: wider)
    worker.run_job(folder)
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns != before
    assert "calibration; it starts anew" in capsys.readouterr().out


def test_without_the_sources_scale_nobody_is_scaled(data):
    unknown = Measured(fields=7, size=(640, 640), background=KNOWN.background)
    data.calibration.colour = True
    both = preparations(data, {H: unknown, L_: KNOWN}, H)
    assert not both[H].scaled
    assert not both[L_].scaled
    assert both[L_].colour
    other = preparations(data, {H: unknown, L_: KNOWN}, L_)
    assert (other[H].scaled, other[L_].scaled) == (False, True)


def test_at_a_common_scale_sizes_are_varied_as_the_calibration_says(make_job):
    job = make_job(Method(), data={"calibration": Calibration(scale=True, jitter=[0.9, 1.1])})
    assert worker.build_task(job, scaled=True).augmentation.scale == [0.9, 1.1]
    assert worker.build_task(job).augmentation == job.augmentation
