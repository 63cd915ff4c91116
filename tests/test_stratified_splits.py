"""With `data.split.stratify` no type is missing in a part by chance, and nothing else suffers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cells_kit import five_types

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Augmentation,
    Data,
    Detector,
    Domain,
    Experiment,
    Job,
    Sparse,
    Split,
    Trainer,
    complete,
)
from da_leukemia.data import splits
from da_leukemia.data.experiment import classes_of
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.preflight import preflight
from da_leukemia.data.splits import PARTS, make_split, missing_classes, released_split
from da_leukemia.errors import ConfigError

SHARES = {"test": 0.2, "validation": 0.1}
WANTED = (0.7, 0.1, 0.2)


def cells(field: FieldOfView) -> list[int]:
    return [int(k) for k in field.labels]


def field(domain: str, patient: str, name: str, labels=(), **rest) -> FieldOfView:
    return FieldOfView(
        image=Path("x.png"),
        domain=domain,
        patient=patient,
        name=name,
        width=64,
        height=64,
        boxes=np.tile(np.array([[8, 8, 16, 16]], np.float32), (len(labels), 1)),
        labels=np.array(labels, np.int64),
        attributes=np.zeros((len(labels), 0), np.int64),
        labelled_classes=tuple(range(20)),
        **rest,
    )


def singles(domain: str, counts: list[int]) -> FieldIndex:
    """Single cells without patients, so many of each class."""
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    return FieldIndex(domain, tuple(field(domain, "", str(n), [k]) for n, k in enumerate(labels)))


def films(domain: str, patients, seed: int, kinds=8, fields=6) -> FieldIndex:
    """Fields of patients who hold four of the types each, the later types more seldom."""
    draw = random.Random(seed)
    found = []
    for patient in patients:
        own = draw.choices(range(kinds), [1 / (k + 1) for k in range(kinds)], k=4)
        for n in range(draw.randint(1, fields)):
            labels = draw.choices(own, k=draw.randint(0, 5))
            found.append(field(domain, str(patient), str(n), labels))
    return FieldIndex(domain, tuple(found))


def tally(split, index: FieldIndex) -> dict[int, list[int]]:
    """Count the cells of each class in train, validation and test."""
    found = {p: Counter(k for f in split.select(index, p) for k in cells(f)) for p in PARTS}
    return {k: [found[p][k] for p in PARTS] for k in sorted({k for c in found.values() for k in c})}


def off(split, index: FieldIndex) -> float:
    """Return by how much a share of the fields of a device misses what was wanted, at most."""
    got = [len(split.select(index, p)) / len(index) for p in PARTS]
    return max(abs(a - b) for a, b in zip(got, WANTED, strict=True))


# --- the split ---------------------------------------------------------------------------------


def test_a_class_of_three_cells_is_in_every_part_and_was_not_by_chance():
    index = singles("d", [60, 30, 3])
    assert 0 in tally(make_split([index], **SHARES, seed=0), index)[2]
    for seed in range(5):
        split = make_split([index], **SHARES, seed=seed, classes_of=cells)
        assert tally(split, index)[2] == [1, 1, 1]
        assert missing_classes(split, index, cells) == {}


def test_every_class_gets_its_shares_and_the_device_too():
    counts = [400, 170, 90, 61, 33, 10, 7]
    index = singles("d", counts)
    split = make_split([index], **SHARES, seed=1, classes_of=cells)
    for k, parts in tally(split, index).items():
        np.testing.assert_allclose(parts, np.array(WANTED) * counts[k], atol=1.0)
    assert off(split, index) * len(index) <= 2
    by_chance = tally(make_split([index], **SHARES, seed=1), index)
    assert any(abs(by_chance[k][2] - 0.2 * counts[k]) > 2 for k in by_chance)


def test_a_class_of_too_few_groups_is_learned_first_then_tested():
    index = singles("d", [40, 1, 2])
    split = make_split([index], **SHARES, seed=0, classes_of=cells)
    assert tally(split, index) | {0: []} == {0: [], 1: [1, 0, 0], 2: [1, 0, 1]}
    assert missing_classes(split, index, cells) == {1: (("test",), 1)}


def test_cells_count_where_a_group_is_a_patient_and_patients_stay_together():
    devices = [films("H", range(40), 0), films("L", range(10, 50), 1)]
    split = make_split(devices, **SHARES, seed=0, classes_of=cells)
    parts: dict[str, set[str]] = {}
    for index in devices:
        for part in PARTS:
            for f in split.select(index, part):
                parts.setdefault(f.patient, set()).add(part)
        assert missing_classes(split, index, cells) == {}
        assert off(split, index) < 0.06
    assert {len(p) for p in parts.values()} == {1}
    by_chance = make_split(devices, **SHARES, seed=0)
    assert any(missing_classes(by_chance, index, cells) for index in devices)


def error(split, devices) -> float:
    """Return the chi-square of parts against classes, a cell."""
    total = 0.0
    for index in devices:
        for parts in tally(split, index).values():
            n = sum(parts)
            total += sum(n * (c / n - w) ** 2 for c, w in zip(parts, WANTED, strict=True))
    return total / sum(len(cells(f)) for index in devices for f in index)


def test_common_classes_come_nearer_to_their_shares_of_cells():
    devices = [films("H", range(60), 3, kinds=5), films("L", range(60), 4, kinds=5)]
    split = make_split(devices, **SHARES, seed=0, classes_of=cells)
    assert error(split, devices) < 0.5 * error(make_split(devices, **SHARES, seed=0), devices)


@pytest.mark.parametrize("seed", range(3))
def test_many_rare_classes_do_not_cost_a_device_its_shares(seed):
    devices = [films(f"d{i}", range(24), 10 * seed + i, kinds=14) for i in range(4)]
    split = make_split(devices, **SHARES, seed=seed, classes_of=cells)
    assert max(off(split, index) for index in devices) < 0.13
    by_chance = make_split(devices, **SHARES, seed=seed)
    ours, theirs = (
        sum(len(missing_classes(s, index, cells)) for index in devices) for s in (split, by_chance)
    )
    assert ours < theirs


def test_other_orders_are_tried_where_one_leaves_a_class_out(monkeypatch):
    devices = [films(f"d{i}", range(14), 220 + i, kinds=6) for i in range(3)]

    def missing():
        split = make_split(devices, **SHARES, seed=0, classes_of=cells)
        return sum(len(missing_classes(split, index, cells)) for index in devices)

    assert missing() == 0
    monkeypatch.setattr(splits, "_ATTEMPTS", 1)
    assert missing() > 0


def test_the_order_of_files_and_devices_does_not_matter_to_strata():
    devices = [films(f"d{i}", range(20), i) for i in range(3)] + [singles("cells", [50, 9, 3])]
    split = make_split(devices, **SHARES, seed=3, classes_of=cells)
    mixed = [
        FieldIndex(d.domain, tuple(random.Random(1).sample(d.fields, len(d)))) for d in devices
    ]
    assert make_split(mixed[::-1], **SHARES, seed=3, classes_of=cells) == split
    assert make_split(devices, **SHARES, seed=4, classes_of=cells) != split


def test_a_device_without_labels_is_divided_by_fields():
    index = FieldIndex("phone", tuple(field("phone", "", str(n)) for n in range(100)))
    stratified = make_split([index], **SHARES, seed=0, classes_of=cells)
    assert stratified == make_split([index], **SHARES, seed=0)


def test_splits_that_are_not_stratified_are_those_of_before():
    """Else every finished sweep would be trained again."""
    devices = [films(f"d{i}", range(3 * i, 40), i) for i in range(4)]
    assert make_split(devices, **SHARES, seed=5).fingerprint == "c7cf00744150d63d"
    few = [films("a", range(7), 0), films("b", range(4, 9), 1)]
    assert make_split(few, test=0.3, validation=0.1, seed=0).fingerprint == "5f6066014ceb8023"


def test_validation_is_carved_out_of_a_release_by_class():
    released = tuple(
        replace(f, released_split="test" if n % 4 == 0 else "train")
        for n, f in enumerate(singles("d", [120, 40, 8]))
    )
    index = FieldIndex("d", released)
    split = released_split([index], validation=0.25, seed=0, classes_of=cells)
    assert {f.key for f in split.select(index, "test")} == {
        f.key for f in released if f.released_split == "test"
    }
    for train, validation, _ in tally(split, index).values():
        assert abs(validation - 0.25 * (train + validation)) < 1


# --- what it may read --------------------------------------------------------------------------


def test_labels_of_devices_that_are_only_tested_on_are_not_counted():
    data = Data(
        domains={
            "lab": Domain(),
            "phone": Domain(labels="test_only"),
            "blind": Domain(labels="none"),
        },
        split=Split(stratify=True),
    )
    counted = classes_of(data)
    assert counted is not None
    found = [counted(field(d, "1", "a", [3, 3, 5])) for d in data.domains]
    assert found == [[3, 3, 5], [], []]
    assert classes_of(Data(domains=data.domains)) is None


def test_a_cell_counts_once_and_fields_where_they_are_annotated():
    data = Data(
        domains={"cells": Domain(format="cells"), "cut": Domain(crop=0.1), "fields": Domain()},
        split=Split(stratify=True),
    )
    counted = classes_of(data)
    assert counted is not None
    assert counted(field("cells", "", "a", [4, 2])) == [4]  # a copy of it has another label
    assert counted(field("cut", "", "a", [4])) == [4]
    patch = field("fields", "", "a", [1, 2], annotated_regions=((0.0, 0.0, 20.0, 20.0),))
    patch.boxes[1] += 40
    assert counted(patch) == [1]


# --- settings ----------------------------------------------------------------------------------


def job(**split) -> Job:
    return Job(
        method_name="m",
        method=Method(),
        source="a",
        target=None,
        seed=0,
        tests=["a"],
        data=Data(domains={"a": Domain()}, split=Split(**split)),
        detector=Detector(),
        augmentation=Augmentation(),
        trainer=Trainer(),
    )


def test_only_stratified_jobs_have_a_new_identity():
    assert job().hash == job(stratify=False).hash == "1b009562e2e3"  # of before there was a choice
    assert job(stratify=True).hash != job().hash


@pytest.mark.parametrize("sparse", [{"sparse": [1.0, 0.2]}, {"area": 0.2}])
def test_cells_that_sparse_annotation_forgets_are_not_counted(sparse):
    data = Data(domains={"a": Domain(), "b": Domain()}, split=Split(stratify=True))
    if "area" in sparse:
        data.sparse = Sparse(area=sparse.pop("area"))
    with pytest.raises(ConfigError, match=r"data\.split\.stratify: counts every cell, also those"):
        complete(Experiment(data=data, **sparse))
    data.split.stratify = False
    complete(Experiment(data=data, **sparse))


# --- what is said ------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    """Two devices of five types, of which the first has one basophil."""
    for n, name in enumerate(("lab", "phone")):
        five_types(tmp_path / "data" / name, cells=8, seed=10_000 * n)
    for path in sorted((tmp_path / "data" / "lab" / "basophil").iterdir())[1:]:
        path.unlink()
    made = Experiment(
        data=Data(
            root=str(tmp_path / "data"),
            label_space="wbc5",
            image_size=32,
            cache_dir=str(tmp_path / "cache"),
            domains={n: Domain(format="cells") for n in ("lab", "phone")},
            split=Split(test=0.3, validation=0.1, stratify=True),
        ),
        detector=Detector(kind="classifier"),
        sources=["lab"],
    )
    complete(made)
    return made


def test_a_class_that_cannot_be_in_every_part_is_said_with_the_reason(experiment, caplog):
    indexes, split = preflight(experiment)
    said = "lab: basophil (1 group, none in test): too few or too large groups for data.split"
    assert said in caplog.text
    assert "phone: " not in caplog.text
    counts = tally(split, indexes["phone"])
    assert len(counts) == 5
    assert all(min(parts) > 0 for parts in counts.values())
    caplog.clear()
    experiment.data.split.stratify = False
    preflight(experiment)
    assert "stratify" not in caplog.text


def test_of_a_release_it_is_said_that_the_release_divides_it(experiment, caplog):
    root = Path(experiment.data.root)
    for name in ("lab", "phone"):
        for n, part in enumerate(("train", "test")):
            five_types(root / name / part, cells=4, seed=50_000 + 10_000 * n + len(name))
        for kind in ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"):
            for path in (root / name / kind).iterdir():
                path.unlink()
            (root / name / kind).rmdir()
    for path in (root / "lab" / "train" / "basophil").iterdir():
        path.unlink()
    experiment.data.split.kind = "released"
    experiment.data.split.allow_leaks = True
    preflight(experiment)
    assert "lab: basophil (4 groups, none in train): the release divides them so" in caplog.text
