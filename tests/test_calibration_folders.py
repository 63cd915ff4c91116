"""Folders of photographs that hold several devices, or one in several sub-folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_calibration import smear

from da_leukemia import cli
from da_leukemia.calibration.fields import find_images
from da_leukemia.calibration.folders import Parts
from da_leukemia.data.check import check
from da_leukemia.errors import DataError


def blank(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 180, 190)).save(path)


def test_devices_of_different_cameras_are_refused_before_anything_is_measured(tmp_path, capsys):
    for k in range(2):
        blank(tmp_path / "our scope" / "images" / f"{k}.png")
        blank(tmp_path / "phone" / f"{k}.png", (48, 100))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["calibrate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "2 sub-folders that are several devices" in said
    assert "our scope 64 x 48, phone 100 x 48" in said
    assert f"da-leukemia calibrate '{tmp_path / 'our scope'}'" in said
    assert f"da-leukemia calibrate {tmp_path / 'phone'}" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photos.zip", "there are 1 .zip: unpack"),
        ("IMG_1.HEIC", "there are 1 .heic: convert them to PNG or TIFF"),
        ("notes.txt", r"no image in it \(.*\)$"),
    ],
)
def test_a_folder_without_images_is_told_by_what_is_there(tmp_path, name, said):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=said):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("a.zip", "is an archive; unpack it"), ("a.png", "is a file; expected a")]
)
def test_a_file_is_not_called_a_missing_folder(tmp_path, name, said):
    (tmp_path / name).touch()
    for look in (find_images, check):
        with pytest.raises(DataError, match=said):
            look(tmp_path / name)


def test_patients_of_one_device_and_cut_outs_are_left_alone(tmp_path):
    draw = np.random.default_rng(0)
    for patient in ("p1", "p2"):
        for k in range(3):
            blank(tmp_path / "device" / "images" / patient / f"{k}.png")
            blank(tmp_path / "device" / "images" / patient / f"{k}_turned.png", (48, 64))
            side = int(draw.integers(50, 5000))
            blank(tmp_path / "cells" / patient / f"{k}.png", (side, 50))
    for name in ("device", "cells"):
        parts = Parts.of(tmp_path / name)
        assert [p.name for p in parts.images] == ["p1", "p2"]
        parts.refuse_different_cameras()
    blank(tmp_path / "device" / "images" / "beside.png")
    assert not Parts.of(tmp_path / "device").several
    with pytest.raises(DataError, match="no such folder"):
        Parts.of(tmp_path / "nowhere")


@pytest.mark.parametrize(("other", "code"), [(24, 0), (48, 2)])
def test_one_camera_behind_two_objectives_is_told_by_its_cells(tmp_path, capsys, other, code):
    for part, size in (("a", 24), ("b", other)):
        (tmp_path / part).mkdir()
        for seed in range(4):
            Image.fromarray(smear(size, seed=seed)).save(tmp_path / part / f"{seed}.png")
    assert cli.main(["calibrate", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert ("measured as one device" in said) == (code == 0)
    assert ("their red cells differ in size" in said) == (code == 2)
    assert f"da-leukemia calibrate {tmp_path / 'b'}" in said
    assert (tmp_path / "calibration.json").exists() == (code == 0)
