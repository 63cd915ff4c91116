"""Sparse labels: one patch of each training field is annotated, and its rows say where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from da_leukemia.errors import ConfigError
from da_leukemia.simulate import simulate
from da_leukemia.simulate.labelfiles import draw_patch, sparse_rows

DOMAIN = "H_40X_C2"
SETTINGS = {"domains": [DOMAIN], "patients": 4, "fields_per_patient": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("sim") / "a", **SETTINGS)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("sim") / "a", sparse=0.2, **SETTINGS)


def _rows(root: Path, split: str) -> Iterator[tuple[str, list[list[str]]]]:
    for file in sorted((root / DOMAIN / "txt_labels/AttriDet" / split).glob("*.txt")):
        yield file.stem, [line.split() for line in file.read_text().splitlines()]


def _patches(root: Path) -> dict[str, list[int]]:
    return json.loads((root / "simulation.json").read_text())["truth"]["patches"]


def _inside(row: list[str], patch: list[int]) -> bool:
    x, y = float(row[1]) * 640, float(row[2]) * 640
    return patch[0] <= x < patch[2] and patch[1] <= y < patch[3]


def test_training_rows_are_those_of_the_patch_and_carry_it(whole: Path, sparse: Path):
    full = dict(_rows(whole, "train"))
    patches = _patches(sparse)
    assert len(patches) == len(full)
    left_out = 0
    for stem, rows in _rows(sparse, "train"):
        patch = patches["_".join(stem.split("_")[:2])]
        assert rows, "the patch is only known where a box is inside"
        assert {len(row) for row in rows} == {16}
        assert {tuple(row[5:9]) for row in rows} == {tuple(map(str, patch))}
        twelve = [row[:5] + row[9:] for row in rows]
        assert twelve == [row for row in full[stem] if _inside(row, patch)]
        left_out += len(full[stem]) - len(rows)
        area = (patch[2] - patch[0]) * (patch[3] - patch[1]) / 640**2
        assert area == pytest.approx(0.2, abs=0.002)
        assert min(patch) >= 0
        assert max(patch) <= 640
    assert left_out > 0


def test_test_fields_are_whole_and_their_patch_means_nothing(whole: Path, sparse: Path):
    full = dict(_rows(whole, "test"))
    outside = 0
    for stem, rows in _rows(sparse, "test"):
        assert [row[:5] + row[9:] for row in rows] == full[stem]
        outside += sum(not _inside(row, [int(v) for v in row[5:9]]) for row in rows)
    assert outside > 0
    assert "3_1" not in _patches(sparse)


def test_there_are_no_labels_that_hide_the_patch(sparse: Path):
    assert not (sparse / DOMAIN / "json_labels").exists()
    assert not (sparse / DOMAIN / "txt_labels/WBC_Detection").exists()


def test_the_images_are_those_of_the_whole_fields(whole: Path, sparse: Path):
    for image in whole.rglob("*.png"):
        assert image.read_bytes() == (sparse / image.relative_to(whole)).read_bytes()


def test_the_order_of_the_readme_exchanges_two_columns(sparse: Path, tmp_path: Path):
    other = simulate(tmp_path / "a", sparse=0.2, patch_order="x1x2y1y2", **SETTINGS)
    assert _patches(other) == _patches(sparse)
    for (_, ours), (_, theirs) in zip(_rows(sparse, "train"), _rows(other, "train"), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert [a[5], a[7], a[6], a[8]] == b[5:9]


def test_a_patch_holds_a_box_wherever_the_boxes_are():
    rng = np.random.default_rng(0)
    for _ in range(300):
        x, y = rng.uniform(0, 1, 2)
        row = f"1 {x:.3f} {y:.3f} 0.1 0.1 0 0 0 0 0 0 0"
        for share in (0.01, 0.2, 1.0):
            patch = draw_patch([row], share, rng)
            if max(x, y) < 0.999:
                assert len(sparse_rows([row], patch, "x1y1x2y2", whole=False)) == 1
            assert 0 <= patch[0] < patch[2] <= 640
            assert 0 <= patch[1] < patch[3] <= 640


def test_a_field_without_boxes_still_has_a_patch():
    x1, y1, x2, y2 = draw_patch([], 0.2, np.random.default_rng(0))
    assert (x2 - x1) * (y2 - y1) == pytest.approx(0.2 * 640**2, rel=0.01)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sparse": 0.0}, "above 0"),
        ({"sparse": float("nan")}, "above 0"),
        ({"sparse": 20.0}, "up to 1"),
        ({"sparse": 0.2, "patch_order": "x1y2x2y1"}, "did you mean 'x1y1x2y2'"),
        ({"patch_order": "x1x2y1y2"}, "only with sparse"),
    ],
)
def test_wrong_settings_of_the_patch_are_refused(tmp_path: Path, changed: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        simulate(tmp_path / "a", **(SETTINGS | changed))


def test_sparse_and_whole_simulations_are_told_apart(sparse: Path):
    simulate(sparse, sparse=0.2, **SETTINGS)
    with pytest.raises(ConfigError, match="other settings"):
        simulate(sparse, sparse=0.3, **SETTINGS)
