from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.calibration import load, scale, store
from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.fields import spread
from da_leukemia.calibration.measure import calibrate, calibrate_folder
from da_leukemia.calibration.record import NAME
from da_leukemia.calibration.truths import as_fields, drawn
from da_leukemia.errors import DataError


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    out = tmp_path_factory.mktemp("device")
    for number in range(8):
        Image.fromarray(drawn(24, seed=number, size=240)).save(out / f"{number}.png")
    return out


@pytest.fixture(scope="module")
def paths(device):
    return sorted(device.iterdir())


def test_the_same_images_in_any_order_give_what_the_command_gives(device, paths):
    found = calibrate_images([*reversed(paths), paths[0]])
    assert found == calibrate_folder(device).calibration
    assert found.red_cell_px.diameter == pytest.approx(24, rel=0.05)


def test_the_choice_is_even_and_moves_with_the_seed(paths):
    names = [Path(f"{i:03d}.png") for i in range(200)]
    for seed in (0, 1, 2):
        numbers = [int(p.stem) for p in spread(names, 20, seed)]
        assert len(set(numbers)) == 20
        assert np.diff(numbers).min() >= 9
        assert np.diff(numbers).max() <= 11
        assert spread(names, 20, seed) == spread(names, 20, seed)
    assert spread(names, 20, 1) != spread(names, 20, 2)
    assert calibrate_images(paths, most=3).fields == 3


def test_unreadable_images_are_skipped_and_noted(paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found = calibrate_images([*paths, broken, tmp_path / "missing.png"])
    assert found.fields == len(paths)
    assert found.red_cell_px is not None
    for name in ("broken.png", "missing.png"):
        assert any(name in note for note in found.notes)
    with pytest.raises(DataError, match=r"broken\.png"):
        calibrate_images([broken])


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        calibrate_images([])


def test_torch_is_not_imported():
    code = "import sys, da_leukemia.calibration.automatic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("factor", [0.38, 0.7, 1.2])
def test_a_wrong_first_idea_of_the_size_is_put_right(factor, monkeypatch):
    made = [drawn(40, seed=seed, cover=0.5) for seed in range(6)]
    monkeypatch.setattr(scale, "rough", lambda light: (40 * factor, 40 * factor))
    red = calibrate(as_fields(made)).calibration.red_cell_px
    assert red.diameter == pytest.approx(40, rel=0.05)


def test_halves_of_a_device_agree():
    made = [drawn(40, seed=seed, cover=0.5) for seed in range(12)]
    halves = [calibrate(as_fields(made[k::2])).calibration.red_cell_px for k in (0, 1)]
    assert halves[0].low < halves[1].diameter < halves[0].high
    assert halves[1].low < halves[0].diameter < halves[1].high


def test_a_calibration_is_stored_beside_its_images(device, tmp_path):
    found = calibrate_images(sorted(device.glob("*.png")), most=2)
    assert store(found, tmp_path) == tmp_path / NAME
    assert load(tmp_path / NAME) == found
    assert store(found, tmp_path, tmp_path / "new" / "x.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"calibration\.json: cannot be written .*--out"):
        store(found, tmp_path / "file")


@pytest.mark.skipif("DA_LEUKEMIA_SMEARS" not in os.environ, reason="needs the real test pack")
@pytest.mark.parametrize(
    ("name", "visible"), [("bccd", 93.0), ("pbc", 73.0), ("aslan", 54.0), ("rpi", 78.0)]
)
@pytest.mark.parametrize("part", [slice(0, None, 2), slice(1, None, 2)])
def test_halves_of_real_devices_agree(name, visible, part):
    paths = sorted((Path(os.environ["DA_LEUKEMIA_SMEARS"]) / name / "images").iterdir())
    red = calibrate_images(paths[part]).red_cell_px
    assert red.diameter == pytest.approx(visible, rel=0.06)
