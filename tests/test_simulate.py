"""Simulated smears: reproducible, honestly labelled, and written as the release lies on disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import scipy
from PIL import Image

from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI, LINEAGE, translate
from da_leukemia.simulate import (
    DEVICES,
    DOMAINS,
    SIMULATOR_VERSION,
    photograph,
    render_field,
    simulate,
)
from da_leukemia.simulate.writer import file_stem, split_of

TWO = ("H_100X_C2", "L_40X_C1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(
        tmp_path_factory.mktemp("sim") / "smears", domains=TWO, patients=6, fields_per_patient=2
    )


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_numbers_give_the_same_field_and_others_do_not():
    first, again, other = render_field(3, 1, 2), render_field(3, 1, 2), render_field(4, 1, 2)
    np.testing.assert_array_equal(first.transmittance, again.transmittance)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.transmittance, other.transmittance)
    device = DEVICES["L_10X_C1"]
    shots = [photograph(first, device, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*shots)


def _digest(files: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(files)).hexdigest()[:16]


def test_a_version_of_the_simulator_always_renders_the_same(tmp_path: Path):
    # Published numbers rest on these pixels: a change here needs a new SIMULATOR_VERSION.
    assert SIMULATOR_VERSION == 5
    domains = ["H_100X_C1", "H_100X_C2", "L_100X_C2"]
    out = simulate(tmp_path / "a", domains=domains, patients=1, fields_per_patient=1)
    labels = [p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".txt", ".json")]
    assert _digest(labels) == "e41f462eb3689ebc"
    libraries = [".".join(m.__version__.split(".")[:2]) for m in (np, scipy, PIL)]
    if libraries != ["2.4", "1.17", "13.0"]:
        pytest.skip(f"pixels were recorded with other libraries than {libraries}")
    pixels = [np.asarray(Image.open(p)).tobytes() for p in sorted(out.rglob("*.png"))]
    assert _digest(pixels) == "ef065596a6e22cc6"


def test_rendering_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    render_field(0, 1, 1)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_number_of_workers_does_not_show(tree: Path, tmp_path: Path):
    twin = simulate(tmp_path / "twin", domains=TWO, patients=6, fields_per_patient=2, workers=2)
    assert _contents(twin) == _contents(tree)


def test_every_device_photographs_every_field_at_640(tree: Path):
    scene = render_field(0, 1, 1)
    shots = {
        name: photograph(scene, device, np.random.default_rng(0))
        for name, device in DEVICES.items()
    }
    assert tuple(sorted(shots)) == tuple(sorted(DOMAINS))
    assert {shot.shape for shot in shots.values()} == {(640, 640, 3)}
    assert {shot.dtype.name for shot in shots.values()} == {"uint8"}


def test_low_cost_microscopes_and_low_objectives_are_blurrier():
    scene = render_field(0, 1, 1)

    def sharpness(name: str) -> float:
        grey = photograph(scene, DEVICES[name], np.random.default_rng(0)).mean(axis=2)
        return float(np.abs(np.diff(grey[::4], axis=1)).max(axis=1).mean())

    assert sharpness("H_100X_C2") > sharpness("H_40X_C2") > sharpness("H_10X_C2")
    assert sharpness("H_100X_C2") > 1.3 * sharpness("L_100X_C2")


def test_the_same_field_has_the_same_boxes_in_all_domains(tree: Path):
    per_domain = []
    for domain in TWO:
        found = json.loads((tree / domain / "json_labels/train.json").read_text())
        per_domain.append(
            [(a["image_id"], a["category_id"], a["bbox"]) for a in found["annotations"]]
        )
    assert per_domain[0] == per_domain[1]


def test_the_tree_is_that_of_the_release(tree: Path):
    for domain in TWO:
        for patient in range(1, 7):
            split = split_of(patient, 6)
            for field in (1, 2):
                stem = file_stem(domain, patient, field)
                with Image.open(tree / domain / "Images" / split / f"{stem}.png") as image:
                    assert (image.size, image.mode) == ((640, 640), "RGB")
    assert file_stem("H_100X_C2", 2, 5) == "2_5_1000_AML"
    assert file_stem("H_40X_C1", 2, 5) == "2_5_1_400_AML"


def test_json_and_both_text_files_say_the_same(tree: Path):
    seen_none = False
    for split in ("train", "test"):
        base = tree / "H_100X_C2"
        found = json.loads((base / f"json_labels/{split}.json").read_text())
        assert found["categories"][13] == {"id": 14, "name": "none"}
        for image in found["images"]:
            stem = Path(image["file_name"]).stem
            rows = [a for a in found["annotations"] if a["image_id"] == image["id"]]
            twelve = (base / f"txt_labels/AttriDet/{split}/{stem}.txt").read_text().splitlines()
            five = (base / f"txt_labels/WBC_Detection/{split}/{stem}.txt").read_text().splitlines()
            assert len(rows) == len(twelve) == len(five)
            for row, line, short in zip(rows, twelve, five, strict=True):
                words = line.split()
                assert len(words) == 12
                assert words[:5] == short.split()
                assert int(words[0]) == row["category_id"] % 14
                x, y, w, h = row["bbox"]
                expected = np.array([x + w / 2, y + h / 2, w, h]) / 640
                np.testing.assert_allclose([float(v) for v in words[1:5]], expected, atol=6e-4)
                codes = list(row.values())[-7:]
                assert "nuclear_chromatio" in row
                if row["category_id"] == 14:
                    seen_none = True
                    assert codes == [4] * 7
                    assert words[5:] == ["2"] * 7
                else:
                    assert words[5:] == [str(c) for c in codes]
    assert seen_none


@pytest.mark.parametrize("seed", [0, 1])
def test_six_patients_show_every_lineage_in_train_and_in_test(seed: int):
    seen: dict[str, set[int]] = {"train": set(), "test": set()}
    for patient in range(1, 7):
        for field in (1, 2):
            for label in render_field(seed, patient, field).labels:
                if label:
                    lineage = translate(LEUKEMIAATTRI.classes[label], LINEAGE)
                    seen[split_of(patient, 6)].add(lineage)
    assert seen == {"train": {0, 1, 2, 3}, "test": {0, 1, 2, 3}}


def test_a_second_run_changes_nothing(tree: Path):
    before = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
    simulate(tree, domains=TWO[::-1], patients=6, fields_per_patient=2)
    assert before == {p: p.stat().st_mtime_ns for p in tree.rglob("*")}


def test_a_folder_with_other_settings_is_refused(tree: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="other settings"):
        simulate(tree, domains=TWO, patients=6, fields_per_patient=2, seed=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        simulate(tmp_path, domains=TWO, patients=1, fields_per_patient=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_breaks_leaves_nothing_behind(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a", domains=TWO, patients=1, fields_per_patient=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_make_the_same_folder_at_once(tmp_path: Path):
    settings = {"domains": TWO[:1], "patients": 1, "fields_per_patient": 1}
    out = tmp_path / "a"

    def overtake(done: int, total: int) -> None:
        simulate(out, **settings)

    assert simulate(out, progress=overtake, **settings) == out
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_wrong_settings_are_all_named_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'H_100X_C2'") as caught:
        simulate(tmp_path / "a", domains=["H_100_C2"], patients=0, fields_per_patient=-1)
    assert len(caught.value.problems) == 3


def test_importing_the_simulator_is_light():
    code = "import sys, da_leukemia.simulate as s; s.DOMAINS; print('scipy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
