"""`predict` finds on a folder of photographs what a test of the same device finds."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cells_kit import five_types
from job_kit import L_, H, run_in
from PIL import Image

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.calibration.record import Calibration, save
from da_leukemia.config import Calibration as Use
from da_leukemia.config import Domain
from da_leukemia.config.origin import KEY
from da_leukemia.errors import UserError
from da_leukemia.predict import predict
from da_leukemia.report import samples as report_samples
from da_leukemia.sweep import worker

SCALED = {"calibration": Use(scale=True, colour=True, images=4)}
FOUND = {"score_threshold": 0.001}


@pytest.fixture(scope="module")
def job(make_job, tmp_path_factory):
    """A finished job that was tested on both devices with a common scale."""
    made = make_job(Method(), target=None, tests=[H, L_], data=SCALED, detector=FOUND)
    return run_in(tmp_path_factory.mktemp("job"), made)


def by_image(records, fields):
    return {f.image.name: r for r, f in zip(records, fields, strict=True)}


def test_it_finds_what_the_test_finds(job, smears, tmp_path):
    tested = worker.examine_job(job, [L_])[L_]
    wanted = by_image(tested.records, tested.fields)
    device = Calibration.from_dict(worker.read_result(job)["devices"][L_])
    assert device.px_per_um_x.known
    shutil.copy(job / "checkpoints" / "last.ckpt", tmp_path / "lab.ckpt")
    for checkpoint in (job, tmp_path / "lab.ckpt"):
        found = predict(checkpoint, smears / L_, device)
        got = by_image(found.records, found.fields)
        assert len(got) == 12
        assert found.device == L_
        for name, record in wanted.items():
            assert len(record.scores)
            np.testing.assert_allclose(got[name].boxes, record.boxes, atol=1e-3)
            np.testing.assert_allclose(got[name].scores, record.scores, atol=1e-5)
            np.testing.assert_array_equal(got[name].labels, record.labels)
            assert not len(got[name].true_boxes)


def test_the_device_is_measured_where_no_calibration_is_given(job, smears):
    measured = predict(job, smears / L_)
    assert not any("--calibration" in note for note in measured.notes)
    unknown = predict(job, smears / L_, Calibration(fields=1, size=(640, 480)))
    assert "--calibration FILE" in unknown.notes[0]
    fitted = by_image(unknown.records, unknown.fields)
    scaled = by_image(measured.records, measured.fields)
    assert any(
        fitted[n].boxes.shape != scaled[n].boxes.shape
        or not np.allclose(fitted[n].boxes, scaled[n].boxes)
        for n in fitted
    )


def test_the_command_writes_and_draws_everything(job, smears, tmp_path, capsys, monkeypatch):
    samples = []
    draw = report_samples.draw
    monkeypatch.setattr(
        report_samples, "draw", lambda s, **rest: (samples.append(s), draw(s, **rest))[1]
    )
    photos = tmp_path / "camera"
    shutil.copytree(smears / L_, photos)
    broken = next(photos.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:1000])
    save(Calibration.from_dict(worker.read_result(job)["devices"][L_]), tmp_path / "l.json")
    out = tmp_path / "found.csv"
    given = ["predict", str(job), str(photos), "--min-score", "0.001", "--detections", str(out)]
    given += ["--calibration", str(tmp_path / "l.json"), "--pictures", str(tmp_path / "drawn")]
    assert cli.main(given) == 0
    said = capsys.readouterr()
    assert "camera: " in said.out
    assert "on 11 photographs" in said.out
    assert broken.name in said.err
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert f"{len(rows)} cell" in said.out
    assert {row["device"] for row in rows} <= {"camera"}
    assert sum(len(s.findings) for s in samples) == len(rows) > 0
    drawn = sorted((tmp_path / "drawn").rglob("*.jpg"))
    assert len(drawn) == 11
    assert Image.open(drawn[0]).size[0] == 720
    everything = [*given[:3], "--detections", str(tmp_path / "found.json")]
    assert cli.main([*everything, "--min-score", "1"]) == 0
    said = capsys.readouterr()
    assert "0 cells on 11 photographs" in said.out
    assert "and 6 more" in said.out
    assert "the surest find has" in said.err
    devices = json.loads((tmp_path / "found.json").read_text())["devices"]
    fields = devices["camera"]["fields"]
    assert [f["detections"] for f in fields] == [[]] * 11
    assert all(slide["true"] is None for slide in devices["camera"]["slides"])


def test_one_photograph_is_enough(job, smears):
    photo = next((smears / L_).rglob("*.png"))
    device = Calibration.from_dict(worker.read_result(job)["devices"][L_])
    one = predict(job, photo, device)
    assert [f.image.name for f in one.fields] == [photo.name]
    whole = predict(job, smears / L_, device)
    same = by_image(whole.records, whole.fields)[photo.name]
    np.testing.assert_allclose(one.records[0].scores, same.scores, atol=1e-5)


def test_a_classifier_names_the_pictures_of_cells(make_job, run, tmp_path):
    root = tmp_path / "cells"
    five_types(root / "lab", cells=6)
    data = {"root": str(root), "label_space": "wbc5", "image_size": 32}
    data |= {"domains": {"lab": Domain(format="cells")}}
    made = make_job(
        Method(),
        target=None,
        source="lab",
        tests=["lab"],
        data=data,
        detector={"kind": "classifier"},
    )
    folder = run(made)
    tested = worker.examine_job(folder)["lab"]
    found = predict(folder, root / "lab")
    got = by_image(found.records, found.fields)
    assert found.single_cells
    assert len(got) == 30
    for name, record in by_image(tested.records, tested.fields).items():
        np.testing.assert_allclose(got[name].scores, record.scores, atol=1e-5)


@pytest.mark.parametrize(
    ("checkpoint", "photos", "said"),
    [
        ("nothing", "photos", "nothing: no such file"),
        ("photos", "photos", r"no checkpoints/last\.ckpt in this folder"),
        ("odd.ckpt", "photos", "no checkpoint of ours"),
        ("lab.ckpt", "nowhere", "nowhere: no such folder"),
        ("lab.ckpt", "empty", "no image in it"),
        ("lab.ckpt", "broken", r"no photograph that can be read; .*a\.png"),
    ],
)
def test_what_cannot_be_is_said(job, tmp_path, checkpoint, photos, said):
    for name in ("photos", "empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "odd.ckpt").write_bytes(b"odd")
    (tmp_path / "broken" / "a.png").write_bytes(b"odd")
    shutil.copy(job / "checkpoints" / "last.ckpt", tmp_path / "lab.ckpt")
    with pytest.raises(UserError, match=said):
        predict(tmp_path / checkpoint, tmp_path / photos)


def test_what_a_method_does_at_every_test_is_not_left_out_in_silence(
    make_job, run, smears, tmp_path
):
    adabn = Method(components=[{"name": "adabn"}])
    folder = run(make_job(adabn, target=L_, tests=[L_], trainer={"steps": 2}))
    alone = shutil.copy(folder / "checkpoints" / "last.ckpt", tmp_path / "lab.ckpt")
    for checkpoint in (folder, Path(alone)):
        with pytest.raises(UserError, match=r"adabn changes the detector at every test.*evaluate"):
            predict(checkpoint, smears / L_)


@pytest.mark.parametrize("place", ["photos", "photos/drawn", "file"])
def test_drawings_never_lie_among_the_photographs(tmp_path, capsys, place):
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").touch()
    given = ["predict", "lab.ckpt", str(tmp_path / "photos"), "--pictures", str(tmp_path / place)]
    assert cli.main(given) == 2
    assert "--pictures" in capsys.readouterr().err


def test_a_photograph_damaged_in_the_middle_is_left_out(job, smears, tmp_path):
    photos = sorted((smears / L_).rglob("*.png"))[:2]
    for photo in photos:
        shutil.copy(photo, tmp_path)
    Image.fromarray(np.zeros((64, 64), np.float32)).save(tmp_path / "real.tif")
    (tmp_path / ".thumbnails").mkdir()
    shutil.copy(photos[0], tmp_path / ".thumbnails")
    device = Calibration.from_dict(worker.read_result(job)["devices"][L_])
    found = predict(job, tmp_path, device)
    assert [f.image.name for f in found.fields] == [p.name for p in photos]
    assert "real.tif" in found.notes[0]


def test_a_classifier_of_calibrated_cells_wants_the_calibration_of_their_photographs(
    make_job, run, tmp_path, smears
):
    folder = run(make_job(Method(), target=None, tests=[], data=SCALED))
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content[KEY]["detector"]["kind"] = "classifier"
    torch.save(content, path)
    with pytest.raises(UserError, match="nothing can be measured on single cells"):
        predict(path, smears / L_)
