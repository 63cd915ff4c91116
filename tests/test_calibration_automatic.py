from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.calibration import load, store
from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.evidence import as_fields, drawn
from da_leukemia.calibration.fields import spread
from da_leukemia.calibration.measure import calibrate, calibrate_folder
from da_leukemia.calibration.record import NAME
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


def rings(diameter, seed, size=480):
    """Draw cells whose wide pale middle lies almost at the background's level, and specks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    depth = np.zeros((size, size))
    for _ in range(16):
        away = np.hypot(x - rng.uniform(0, size), y - rng.uniform(0, size)) / (diameter / 2)
        rim = np.clip((1 - away) * diameter / 2 + 0.5, 0, 1)
        depth = np.maximum(depth, rim * (1 - 0.85 * np.exp(-((away / 0.6) ** 4))))
    for _ in range(60):
        away = np.hypot(x - rng.uniform(0, size), y - rng.uniform(0, size))
        depth = np.maximum(depth, 0.7 * np.clip(rng.uniform(2, 5) - away, 0, 1))
    light = (1 - 0.4 * depth)[..., None] * [200.0, 180.0, 190.0]
    return (light + rng.normal(0, 1, light.shape)).clip(0, 255).astype(np.uint8)


def test_specks_are_not_taken_for_ring_shaped_cells():
    made = [rings(90, seed) for seed in range(12)]
    red = calibrate(as_fields(made)).calibration.red_cell_px
    assert red is None or red.diameter == pytest.approx(90, rel=0.1)


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
