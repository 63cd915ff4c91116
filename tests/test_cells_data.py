"""Cells cut out of fields, and cells that are there twice: one group, never two parts."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from cells_kit import five_types, picture, put
from PIL import Image

from da_leukemia.config import Data, Domain, Split
from da_leukemia.data.cells.crops import cut, cut_cells, square
from da_leukemia.data.cells.duplicates import TOLERANCE, keep_together, near
from da_leukemia.data.cells.prints import prints_of, take_prints
from da_leukemia.data.cells.sampling import BalancedSampler, known_cells
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.errors import ConfigError
from da_leukemia.labels import OPEN_SET, WBC5


def read(root, domain="cells"):
    return read_domain(DomainSource(domain, root), "cells", WBC5)


def grouped(*indexes):
    return keep_together(indexes, [take_prints([f.image for f in i]) for i in indexes])


def by_name(index):
    return {f.name: f for f in index}


# --- crops ---------------------------------------------------------------------------------------


def test_a_crop_is_the_square_around_its_box():
    assert square(np.array([10, 20, 30, 30], np.float32), 0.0) == (10, 15, 20)
    left, top, side = square(np.array([10, 20, 30, 30], np.float32), 0.25)
    assert (left, top, side) == (5, 10, 30)


def test_beyond_the_edge_the_last_pixels_go_on_and_nothing_is_resampled():
    image = np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    found = cut(image, -3, 8, 6)
    expected = np.pad(image, ((0, 2), (3, 0), (0, 0)), mode="edge")[8:14, :6]
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def fields(smears):
    source = DomainSource("H_100X_C2", smears)
    return read_domain(source, "leukemiaattri", WBC5)


def test_every_true_box_becomes_a_cell_with_its_own_label(fields, tmp_path):
    cells = cut_cells(fields, 0.1, tmp_path)
    assert len(cells) == sum(len(f.boxes) for f in fields)
    field = next(f for f in fields if len(f.boxes))
    mine = [c for c in cells if c.name.startswith(f"{field.name}#") and c.patient == field.patient]
    assert [int(c.labels[0]) for c in mine] == field.labels.tolist()
    pixels = np.asarray(Image.open(field.image).convert("RGB"))
    for cell, box in zip(mine, field.boxes, strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(cell.image)), cut(pixels, *square(box, 0.1))
        )
        assert (cell.width, cell.group) == (square(box, 0.1)[2], field.group)
    first = {c.image: c.image.stat().st_mtime_ns for c in cells}
    again = cut_cells(fields, 0.1, tmp_path)
    assert {c.image: c.image.stat().st_mtime_ns for c in again} == first
    assert cut_cells(fields, 0.3, tmp_path).fields[0].image != cells.fields[0].image


def test_cells_of_a_field_without_a_patient_stay_together(fields, tmp_path):
    unknown = FieldIndex("H", tuple(replace(f, patient="") for f in fields))
    cells = cut_cells(unknown, 0.1, tmp_path)
    groups = {c.name.split("#")[0]: set() for c in cells}
    for cell in cells:
        groups[cell.name.split("#")[0]].add(cell.group)
    assert all(len(g) == 1 for g in groups.values())


def test_crops_need_a_folder(fields):
    with pytest.raises(ConfigError, match=r"data\.domains\.H_100X_C2\.crop: .* data\.cache_dir"):
        cut_cells(fields, 0.1, None)


# --- copies --------------------------------------------------------------------------------------


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return Image.open(io.BytesIO(file.getvalue()))


def test_exact_and_perceptual_copies_are_one_group_and_other_cells_are_not(tmp_path):
    root = five_types(tmp_path / "a", cells=5, side=200)
    original = root / "basophil" / "ba_0.png"
    (root / "basophil" / "copy.png").write_bytes(original.read_bytes())
    image = Image.open(original).convert("RGB")
    put(root / "basophil" / "converted.tif", image)
    put(root / "basophil" / "lossy.jpg", saved(image, "JPEG", quality=75), quality=90)
    put(root / "basophil" / "double.png", image.resize((400, 400), Image.Resampling.BICUBIC))
    (index,) = grouped(read(root))
    groups = {f.group for f in index}
    assert len(groups) == 25
    same = {f.name for f in index if f.group == by_name(index)["basophil/ba_0"].group}
    assert same == {f"basophil/{n}" for n in ("ba_0", "copy", "converted", "lossy", "double")}
    (finding,) = (f for f in index.findings if f.kind == "duplicate_cell")
    assert finding.count == 4


def test_the_search_misses_no_pair_that_comparing_all_would_find():
    draw = np.random.default_rng(0)
    base = draw.integers(0, 255, (60, 768), dtype=np.uint8)
    shaken = base[:30].astype(int) + draw.normal(0, np.linspace(0.5, 5, 30)[:, None], (30, 768))
    every = np.concatenate([base, shaken.clip(0, 255).round().astype(np.uint8)])
    apart = np.sqrt(((every[:, None].astype(float) - every[None]) ** 2).mean(-1))
    expected = {(i, j) for i, j in np.argwhere(apart < TOLERANCE).tolist() if i < j}
    assert 5 < len(expected) < 30
    found = {
        tuple(sorted(p)) for p in zip(*(x.tolist() for x in near(every, TOLERANCE)), strict=True)
    }
    assert found == expected


def test_conflicting_labels_are_kept_own_first_and_listed(tmp_path):
    root = five_types(tmp_path, cells=2)
    content = (root / "basophil" / "ba_0.png").read_bytes()
    (root / "monocyte" / "border.png").write_bytes(content)
    (root / "monocyte" / "border2.png").write_bytes(content)
    (index,) = grouped(read(root))
    cells = by_name(index)
    assert cells["basophil/ba_0"].labels.tolist() == [4, 2]
    assert cells["monocyte/border"].labels.tolist() == [2, 4]
    assert cells["monocyte/border"].boxes.shape == (2, 4)
    assert cells["basophil/ba_1"].labels.tolist() == [4]
    (finding,) = (f for f in index.findings if f.kind == "cell_in_several_folders")
    assert finding.count == 1
    assert "basophil/ba_0" in finding.examples[0]


def test_copies_on_two_devices_share_a_group_but_never_a_label(tmp_path):
    one, two = five_types(tmp_path / "a", cells=2), five_types(tmp_path / "b", cells=2, seed=70)
    (two / "monocyte" / "x.png").write_bytes((one / "basophil" / "ba_0.png").read_bytes())
    a, b = grouped(read(one, "a"), read(two, "b"))
    assert by_name(a)["basophil/ba_0"].group == by_name(b)["monocyte/x"].group
    assert by_name(a)["basophil/ba_0"].labels.tolist() == [4]
    assert by_name(b)["monocyte/x"].labels.tolist() == [2]
    assert not any(f.kind == "duplicate_cell" for f in (*a.findings, *b.findings))


def test_patients_who_share_a_picture_become_one_group(tmp_path):
    root = five_types(tmp_path, cells=3)
    (root / "basophil" / "ba_9.png").write_bytes((root / "basophil" / "ba_0.png").read_bytes())
    index = read_domain(
        DomainSource("c", root, patient_pattern=r"_(?P<patient>\d+)\."), "cells", WBC5
    )
    (found,) = grouped(index)
    groups = {f.patient: f.group for f in found}
    assert groups["0"] == groups["9"] != groups["1"] == "patient:1"


@pytest.mark.parametrize("seed", range(3))
def test_no_group_crosses_a_split(tmp_path, seed):
    for name, light in (("a", 1.0), ("b", 0.8)):
        root = five_types(tmp_path / name, cells=4, light=light)
        for n in range(4):
            source = tmp_path / "a" / "basophil" / f"ba_{n}.png"
            (root / "monocyte" / f"copy_{n}.png").write_bytes(source.read_bytes())
    data = Data(
        root=str(tmp_path),
        label_space="wbc5",
        cache_dir=str(tmp_path / "cache"),
        domains={name: Domain(format="cells") for name in ("a", "b")},
        split=Split(test=0.4, validation=0.2, seed=seed),
    )
    indexes, split = read_experiment_data(data)
    parts: dict[bytes, set[str]] = {}
    for index in indexes.values():
        for f in index:
            parts.setdefault(f.image.read_bytes(), set()).add(split.part_of(f))
    assert sum(len(p) > 1 for p in parts.values()) == 0
    assert {p for found in parts.values() for p in found} == {"train", "validation", "test"}


def test_prints_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    index = read(five_types(tmp_path / "a", cells=1))
    seen = []
    monkeypatch.setattr(
        "da_leukemia.data.cells.prints.print_of",
        lambda path: seen.append(path) or (bytes(16), np.zeros(768, np.uint8)),
    )
    for _ in range(2):
        prints_of(index, tmp_path / "cache")
    assert len(seen) == 5
    put(index.fields[0].image, picture(99))
    prints_of(index, tmp_path / "cache")
    assert len(seen) == 10


# --- what a step sees ----------------------------------------------------------------------------


def test_cells_of_the_open_set_are_not_learned_from(tmp_path):
    root = five_types(tmp_path, cells=1)
    put(root / "erythroblast" / "e.png", picture(70))
    index = read(root)
    assert [int(f.labels[0]) for f in index].count(OPEN_SET) == 1
    assert len(known_cells(index)) == 5


def test_balanced_batches_show_every_class_equally_often_and_go_on_where_they_stopped():
    labels = [0] * 50 + [1] * 3 + [2] * 7
    epochs = [list(BalancedSampler(labels, 8, 6, 3, e, steps=15)) for e in range(3)]
    assert [len(e) for e in epochs] == [6, 6, 3]
    stream = np.concatenate([np.concatenate(e) for e in epochs])
    counts = np.bincount(np.array(labels)[stream])
    assert counts.max() - counts.min() <= 1
    common = stream[np.array(labels)[stream] == 0]
    assert len(set(common.tolist())) == len(common)  # none of 50 again before all were there
    rare = stream[np.array(labels)[stream] == 1]
    assert set(np.bincount(rare, minlength=53)[50:].tolist()) <= {13, 14}
    whole = list(BalancedSampler(labels, 8, 15, 3, 0, steps=15))
    assert np.concatenate(whole).tolist() == stream.tolist()
    assert list(BalancedSampler(labels, 8, 6, 4, 0, steps=15)) != epochs[0]
