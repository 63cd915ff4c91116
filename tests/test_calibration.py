from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from da_leukemia.calibration import Calibration, load, save
from da_leukemia.calibration.fields import read_field
from da_leukemia.calibration.light import GRID, fit_light, flatten, render, tiles, zoomed
from da_leukemia.calibration.measure import calibrate, calibrate_folder
from da_leukemia.calibration.record import Quantity, Surface
from da_leukemia.calibration.text import conclusion, table
from da_leukemia.calibration.truths import as_fields, drawn, photographs, true_diameter, vignetted
from da_leukemia.cli import main
from da_leukemia.errors import DataError

FIELDS = 4


@pytest.fixture(scope="module")
def pictures():
    return list(photographs("H_100X_C2", (4, 5, 6), FIELDS))


@pytest.fixture(scope="module")
def truth():
    return true_diameter(0, (4, 5, 6))


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("device")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(out / f"{number}.png")
    return out


def smear(diameter, *, seed, size=400, count=40):
    """Draw flat discs on a clear field: red cells without anything else."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    light = np.ones((size, size))
    placed = []
    for _ in range(count * 20):
        cx, cy = rng.uniform(0, size, 2)
        if all(np.hypot(cx - a, cy - b) > 1.15 * diameter for a, b in placed):
            placed.append((cx, cy))
            light -= 0.4 * np.clip(diameter / 2 - np.hypot(x - cx, y - cy) + 0.5, 0, 1)
        if len(placed) == count:
            break
    noisy = light[..., None] * [200.0, 180.0, 190.0] + rng.normal(0, 1, (size, size, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def found(pictures):
    return calibrate(as_fields(pictures)).calibration


def test_the_size_and_the_squeeze_of_red_cells_are_found(found, truth):
    red = found.red_cell_px
    assert red.width == pytest.approx(0.8 * truth, rel=0.08)
    assert red.height == pytest.approx(640 / 448 * truth, rel=0.08)
    assert red.low < np.sqrt(0.8 * 640 / 448) * truth < red.high
    assert found.aspect.value == pytest.approx(0.56, rel=0.1)
    assert found.px_per_um_x.value == pytest.approx(red.width / 7.5)
    assert found.valid is None


def test_a_vignette_is_measured_and_does_not_change_the_size(pictures, truth):
    dark = [vignetted(picture, 0.6) for picture in pictures]
    found = calibrate(as_fields(dark)).calibration
    assert found.red_cell_px.width == pytest.approx(0.8 * truth, rel=0.08)
    assert 0.4 < found.illumination_fall.value < 0.75


@pytest.mark.parametrize("diameter", [8, 24, 60])
def test_discs_of_known_size_are_measured(diameter):
    made = [smear(diameter, seed=seed, count=30) for seed in range(8)]
    red = calibrate(as_fields(made)).calibration.red_cell_px
    assert red.width == pytest.approx(diameter, rel=0.05)
    assert red.height == pytest.approx(diameter, rel=0.05)


def test_background_and_stain_are_the_colours_that_were_drawn():
    found = calibrate(as_fields([smear(24, seed=s) for s in range(6)])).calibration
    assert [q.value for q in found.background] == pytest.approx([200, 180, 190], abs=3)
    assert [q.value for q in found.red_cell_colour] == pytest.approx([120, 108, 114], abs=4)
    assert found.nucleus_colour is None
    assert found.noise.value == pytest.approx(1.04, abs=0.15)


@pytest.mark.parametrize(("alike", "level"), [(False, 5), (True, 5), (False, 10)])
def test_noise_is_measured_also_where_it_is_strong_or_neighbours_are_alike(alike, level):
    def noisy(seed):
        flat = np.repeat(gaussian_filter(smear(24, seed=seed)[..., :1], (2, 2, 0)), 3, axis=2)
        noise = np.random.default_rng(seed).normal(0, 1, (400, 400))
        if alike:
            noise = gaussian_filter(noise, 1.5)
        return (flat + level * (noise / noise.std())[..., None]).clip(0, 255).astype(np.uint8)

    found = calibrate(as_fields([noisy(seed) for seed in range(4)])).calibration
    assert found.noise.value == pytest.approx(level, rel=0.12)


@pytest.mark.parametrize("zoom", [0.37, 1.0, 1.7])
def test_a_part_of_a_frame_is_the_same_as_in_the_whole(zoom):
    pixels = np.random.default_rng(0).integers(0, 255, (208, 315, 3)).astype(np.uint8)
    field = as_fields([pixels])[0]
    height, width = zoomed(field, zoom)
    surface = Surface(((0, 0), (1, 0)), ((0.0, -0.3),) * 3)
    part = slice(height // 4, height // 4 + 40), slice(width // 5, width // 5 + 60)
    whole = flatten(field, surface, zoom)[part]
    assert np.abs(flatten(field, surface, zoom, part) - whole).max() < 1.5  # a grey level of 255


@pytest.mark.parametrize("sigma", [2, 4])
def test_blur_does_not_make_cells_larger(sigma):
    made = [drawn(40, seed=seed, blur=sigma) for seed in range(6)]
    assert calibrate(as_fields(made)).calibration.red_cell_px.diameter == pytest.approx(
        40, rel=0.05
    )


@pytest.mark.parametrize("sigma", [2, 4])
def test_blur_that_makes_cells_larger_makes_the_interval_wider(sigma):
    made = [drawn(12, seed=seed, blur=sigma) for seed in range(12)]
    red = calibrate(as_fields(made)).calibration.red_cell_px
    assert red.diameter > 12.5
    assert red.low < 12 < red.high


def test_the_error_of_the_lamp_is_stated_and_grows_where_photographs_disagree():
    def lit(seed, depth):
        return vignetted(smear(24, seed=seed), depth)

    same = calibrate(as_fields([lit(s, 0.4) for s in range(8)])).calibration
    apart = calibrate(as_fields([lit(s, 0.7 * (s % 2)) for s in range(8)])).calibration
    assert same.illumination_error < 0.1
    assert apart.illumination_error > 1.5 * same.illumination_error
    assert calibrate(as_fields([lit(0, 0.4)])).calibration.illumination_error is None


def test_a_strong_vignette_is_followed_into_the_corners():
    levels = np.stack(
        [tiles(vignetted(np.full((400, 400, 3), v, np.uint8), 0.6)) for v in (180, 220)]
    )
    surface = fit_light(levels, np.zeros((GRID, GRID), dtype=bool))[0]
    light = render(surface, 400, 400)[..., 1]
    truth = vignetted(np.full((400, 400, 3), 220, np.uint8), 0.6)[..., 1] / 220
    assert (light / truth).std() < 0.02


def test_a_dark_rim_is_left_out():
    y, x = np.mgrid[:400, :400]
    lit = np.hypot(x - 200, y - 200) < 170
    made = [np.where(lit[..., None], smear(20, seed=s, count=90), 4).astype(np.uint8)
            for s in range(6)]  # fmt: skip
    found = calibrate(as_fields(made)).calibration
    for part, truth in zip(found.valid, (0.5, 0.5, 0.425, 0.425), strict=True):
        assert part.value == pytest.approx(truth, abs=0.03)
        assert part.low < truth < part.high
    assert Calibration.from_dict(found.to_dict()) == found
    assert found.red_cell_px.width == pytest.approx(20, rel=0.08)


NOTHING = {
    "blank": np.full((120, 120, 3), 200, np.uint8),
    "black": np.zeros((120, 120, 3), np.uint8),
    "noise": np.random.default_rng(0).integers(0, 255, (120, 120, 3)).astype(np.uint8),
}


@pytest.mark.parametrize("kind", sorted(NOTHING))
def test_images_without_red_cells_are_unknown(kind):
    found = calibrate(as_fields([NOTHING[kind]] * 4)).calibration
    assert found.red_cell_px is None
    assert any("red cells: unknown" in note for note in found.notes)
    assert found.to_dict()["px_per_um_x"] is None


def test_single_cell_crops_are_unknown():
    def crop(seed):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:120, :120]
        away = np.hypot(x - 60 - rng.normal(), y - 60 - rng.normal())
        light = 200 - 60 * (away < 48) - 80 * (away < 34)
        return np.repeat(light[..., None], 3, axis=2).astype(np.uint8)

    assert calibrate(as_fields([crop(s) for s in range(30)])).calibration.red_cell_px is None


def test_two_devices_in_a_folder_are_told_apart():
    made = [smear(d, seed=s, count=30) for s in range(4) for d in (14, 50)]
    found = calibrate(as_fields(made)).calibration
    assert found.red_cell_px is None
    assert any("more than one device" in note for note in found.notes)
    assert found.illumination is None  # a mean of two lamps is the lamp of neither
    assert found.background is None
    assert not found.noise.known
    assert not found.illumination_fall.known


def test_pages_of_text_are_unknown():
    def page(seed):
        image = Image.new("RGB", (300, 400), (250, 250, 245))
        words = ["".join(word) for word in np.random.default_rng(seed).choice(
            list("abcdefghiklmnopqrstuvwxyz"), (90, 6))]  # fmt: skip
        for row in range(18):
            line = " ".join(words[row * 5 : row * 5 + 5])
            ImageDraw.Draw(image).text((20, 15 + 20 * row), line, (20, 20, 25))
        return np.asarray(image)

    found = calibrate(as_fields([page(seed) for seed in range(6)])).calibration
    assert found.red_cell_px is None
    assert any("red cells: unknown" in note for note in found.notes)


def as_sixteen_bits(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


KINDS = {"grey": lambda i: i.convert("L"), "16 bits": as_sixteen_bits,
         "alpha": lambda i: i.convert("RGBA")}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_kinds_of_image_give_the_same_size(kind, tmp_path):
    for seed in range(4):
        KINDS[kind](Image.fromarray(smear(24, seed=seed))).save(tmp_path / f"{seed}.png")
    found = calibrate_folder(tmp_path).calibration
    assert found.red_cell_px.diameter == pytest.approx(24, rel=0.03)
    assert any("grey-scale" in note for note in found.notes) == (kind != "alpha")


def test_images_that_ask_to_be_turned_are_measured_as_stored(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for seed in range(4):
        image = Image.fromarray(drawn(30, seed=seed, aspect=0.6, size=300)[:240])
        image.save(tmp_path / f"{seed}.jpg", exif=turned, quality=95)
    found = calibrate_folder(tmp_path).calibration
    assert found.size == (300, 240)
    assert found.aspect.value == pytest.approx(0.6, rel=0.05)
    assert any("EXIF" in note for note in found.notes)


def test_a_calibration_survives_its_file(found, tmp_path):
    save(found, tmp_path / "device.json")
    assert load(tmp_path / "device.json") == found
    nothing = Calibration(fields=1, size=(4, 3))
    assert Calibration.from_dict(json.loads(json.dumps(nothing.to_dict()))) == nothing


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 2}'])
def test_a_file_that_is_no_calibration_is_named(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"bad\.json"):
        load(path)


def test_the_command_prints_stores_and_draws(folder, tmp_path, capsys):
    out, picture = tmp_path / "a" / "device.json", tmp_path / "a" / "device.png"
    assert main(["calibrate", str(folder), "--json", "--out", str(out),
                 "--picture", str(picture)]) == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["red_cell_px"]) == {"width", "height", "low", "high"}
    assert json.loads(out.read_text()) == printed
    assert Image.open(picture).width > 500
    assert "px/um" in table(load(out))


def known(cells=200, fields=20, squeeze=1.0):
    """A calibration of a scale of 3 px/um; pixels are ``squeeze`` times as wide as high."""
    wide, aspect = (Quantity(v, 0.9 * v, 1.1 * v) for v in (3 * squeeze, squeeze))
    return Calibration(
        *(fields, (640, 480)),
        px_per_um_x=wide,
        px_per_um_y=Quantity(3.0, 2.7, 3.3),
        aspect=aspect,
        cells=cells,
    )


def test_the_last_line_is_the_verdict_of_what_was_measured(folder, tmp_path, capsys):
    assert "(2.70 to 3.30 px per um)" in conclusion(known())
    assert "(2.70 to 3.37 px per um)" in conclusion(known(squeeze=1.02))  # round all the same
    assert "5.40 to 6.60 px per um across, 2.70 to 3.30 px per um down" in conclusion(
        known(squeeze=2.0)
    )
    sure, few, one = (conclusion(c) for c in (known(), known(cells=49), known(fields=1)))
    assert "rests on" not in sure
    assert few.startswith(sure.split("(")[0])
    assert "49 red cells in 20 images" in few
    assert "200 red cells in 1 image;" in one
    # Unknown, and why: nothing there, too little, something else, several devices.
    bare = [Calibration(20, (640, 480), cells=n) for n in (0, 14, 300)]
    told = [conclusion(c) for c in bare] + [conclusion(bare[2], mixed=True)]
    assert all("cannot be brought to a common scale" in line for line in told)
    assert len(set(told)) == 4
    assert "14 in 20 images" in told[1]
    assert main(["calibrate", str(folder), "--out", str(tmp_path / "device.json")]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == conclusion(load(tmp_path / "device.json"))
    assert last.startswith("Scale known (")
    assert f"in {FIELDS} images" in last


def test_a_folder_of_anything_else_has_no_scale(tmp_path, capsys):
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
    assert main(["calibrate", str(tmp_path)]) == 0
    assert "cannot be brought to a common scale" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_without_images_is_refused(kind, tmp_path, capsys):
    path = tmp_path / "missing" if kind == "missing" else tmp_path
    assert main(["calibrate", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_an_unreadable_image_is_named_and_the_rest_measured(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = calibrate_folder(tmp_path).calibration
    assert found.red_cell_px is not None
    assert any("broken.png" in note for note in found.notes)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        calibrate_folder(tmp_path / "alone")


def test_every_kind_of_image_is_read(tmp_path):
    flat = smear(20, seed=0, size=100, count=8)
    grey16 = (flat[..., 1].astype(np.uint16) << 8) + 77
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    Image.fromarray(flat).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(flat).convert("RGBA").save(tmp_path / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(flat[:60]).save(tmp_path / "turned.jpg", exif=turned)
    deep, grey = read_field(tmp_path / "deep.png"), read_field(tmp_path / "grey.png")
    assert (deep.pixels[..., 0] == flat[..., 1]).all()
    assert deep.grey
    assert grey.grey
    assert (read_field(tmp_path / "alpha.png").pixels == flat).all()
    sideways = read_field(tmp_path / "turned.jpg")
    assert sideways.turned
    assert sideways.size == (100, 60)


def test_a_hundred_megapixels_are_reduced_and_more_than_170_refused(tmp_path):
    Image.new("L", (10000, 10000), 200).save(tmp_path / "large.png")
    large = read_field(tmp_path / "large.png")
    assert large.pixels.shape == (1600, 1600, 3)
    assert large.reduced == 6.25
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"huge\.png.*million"):
        read_field(tmp_path / "huge.png")
    Image.new("L", (20, 20)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"tiny\.png"):
        read_field(tmp_path / "tiny.png")


def test_torch_is_not_imported():
    code = (
        "import sys, da_leukemia.calibration.measure, da_leukemia.calibration.picture; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif("DA_LEUKEMIA_SMEARS" not in os.environ, reason="needs the real test pack")
@pytest.mark.parametrize("name", ["bccd", "pbc", "aslan"])
def test_labelled_red_cells_are_within_a_tenth(name):
    from da_leukemia.calibration.truths import labelled

    folder = Path(os.environ["DA_LEUKEMIA_SMEARS"]) / name
    red = calibrate_folder(folder / "images").calibration.red_cell_px
    assert red.diameter == pytest.approx(labelled(folder)[2], rel=0.1)
