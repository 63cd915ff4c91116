"""No patient is learned from in one place and tested on in another."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.splits import (
    PARTS,
    Split,
    audit,
    coverage,
    leaks,
    make_split,
    released_split,
)
from da_leukemia.errors import ConfigError, DataError


def field(domain: str, patient: str, name: str, released="", image=Path("x.png")) -> FieldOfView:
    return FieldOfView(
        image=image,
        domain=domain,
        patient=patient,
        name=name,
        width=64,
        height=64,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        attributes=np.zeros((0, 7), np.int64),
        labelled_classes=(0,),
        released_split=released,
    )


def device(domain: str, fields_of: dict[str, int], released: dict[str, str] | None = None):
    released = released or {}
    return FieldIndex(
        domain,
        tuple(
            field(domain, p, str(n), released.get(p, ""))
            for p, k in fields_of.items()
            for n in range(k)
        ),
    )


def uneven(seed: int, patients=48) -> dict[str, int]:
    draw = random.Random(seed)
    return {str(p): draw.randrange(5, 120) for p in range(1, patients + 1)}


def shares(split: Split, index: FieldIndex) -> list[float]:
    return [len(split.select(index, p)) / len(index) for p in PARTS]


@pytest.mark.parametrize("seed", range(5))
def test_every_device_gets_its_shares_and_no_patient_is_divided(seed):
    devices = [device(f"d{i}", uneven(i, 48 - 4 * i)) for i in range(6)]
    split = make_split(devices, test=0.2, validation=0.1, seed=seed)
    for d in devices:
        np.testing.assert_allclose(shares(split, d), [0.7, 0.1, 0.2], atol=0.04)
    parts = {}
    for d in devices:
        for part in PARTS:
            for f in split.select(d, part):
                assert parts.setdefault(f.patient, part) == part
    assert coverage(split, devices) == []


def test_the_order_of_files_and_devices_does_not_matter():
    devices = [device(f"d{i}", uneven(i)) for i in range(3)]
    split = make_split(devices, test=0.2, validation=0.1, seed=3)
    mixed = [
        FieldIndex(d.domain, tuple(random.Random(1).sample(d.fields, len(d)))) for d in devices
    ]
    again = make_split(mixed[::-1], test=0.2, validation=0.1, seed=3)
    assert again == split
    assert again.fingerprint == split.fingerprint


def test_seeds_give_different_splits():
    devices = [device("d", uneven(0))]
    found = {make_split(devices, test=0.2, validation=0.1, seed=s).fingerprint for s in range(8)}
    assert len(found) == 8


def test_every_patient_is_tested_under_some_seed():
    devices = [device("d", uneven(0, 10))]
    tested = set()
    for seed in range(40):
        split = make_split(devices, test=0.3, validation=0.1, seed=seed)
        tested |= {g for g, p in split.parts.items() if p == "test"}
    assert len(tested) >= 8


@pytest.mark.parametrize("seed", range(10))
def test_three_patients_suffice_for_all_parts(seed):
    devices = [
        device("many", uneven(1, 20)),
        device("few", {"1": 200, "2": 1, "3": 1}),
        device("other", {"18": 1, "19": 50, "20": 3}),
    ]
    split = make_split(devices, test=0.2, validation=0.1, seed=seed)
    assert coverage(split, devices) == []


def test_two_patients_give_train_and_test_and_one_gives_train():
    two, one = device("two", {"1": 5, "2": 5}), device("one", {"9": 3})
    split = make_split([two, one], test=0.2, validation=0.1, seed=0)
    assert sorted(split.parts[f"patient:{p}"] for p in (1, 2)) == ["test", "train"]
    assert split.parts["patient:9"] == "train"
    assert [f.kind for f in coverage(split, [two, one])] == ["split_empty_part"]


def test_fields_without_patients_are_divided_one_by_one():
    index = FieldIndex("phone", tuple(field("phone", "", str(n)) for n in range(100)))
    split = make_split([index], test=0.25, validation=0.15, seed=0)
    assert [len(split.select(index, p)) for p in PARTS] == [60, 15, 25]


def test_a_share_of_zero_leaves_the_part_empty():
    index = device("d", uneven(0))
    split = make_split([index], test=0.0, validation=0.0, seed=0)
    assert set(split.parts.values()) == {"train"}


@pytest.mark.parametrize(("test", "validation"), [(0.6, 0.4), (-0.1, 0.2), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(test, validation):
    with pytest.raises(ConfigError, match="sum below 1"):
        make_split([device("d", {"1": 1})], test=test, validation=validation, seed=0)


def test_nothing_to_split_is_refused():
    with pytest.raises(DataError, match="every domain is empty"):
        make_split([FieldIndex("d", ())], test=0.2, validation=0.1, seed=0)


def test_a_split_survives_json_pickle_and_copies():
    split = make_split([device("d", uneven(0))], test=0.2, validation=0.1, seed=0)
    for again in (
        Split.from_json(split.to_json()),
        pickle.loads(pickle.dumps(split)),
        copy.deepcopy(split),
    ):
        assert again == split
        assert again.fingerprint == split.fingerprint


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"parts": 3, "unit": "group"}', '{"parts": {"a": "b"}, "unit": "group"}'],
)
def test_what_is_no_split_file_is_refused(text):
    with pytest.raises(DataError):
        Split.from_json(text)


def test_a_split_file_changed_by_hand_is_refused():
    text = Split({"patient:1": "train"}).to_json().replace('"train"', '"test"')
    with pytest.raises(DataError, match="changed"):
        Split.from_json(text)


def test_new_data_is_not_silently_left_out():
    split = make_split([device("d", {"1": 2, "2": 2, "3": 2})], test=0.3, validation=0.3, seed=0)
    with pytest.raises(DataError, match="d/4/0: not in the split"):
        split.select(device("d", {"4": 1}), "train")
    with pytest.raises(ConfigError, match="did you mean 'validation'"):
        split.select(device("d", {"1": 1}), "validaton")


def test_the_released_split_is_kept_and_validation_is_carved_by_patient():
    released = {str(p): "test" if p % 4 == 0 else "train" for p in range(1, 41)}
    index = device("H", dict.fromkeys(released, 5), released)
    split = released_split([index], validation=0.2, seed=0)
    test = split.select(index, "test")
    assert {f.patient for f in test} == {p for p, part in released.items() if part == "test"}
    validation = {f.patient for f in split.select(index, "validation")}
    assert len(validation) == 6
    assert not validation & {f.patient for f in split.select(index, "train")}


def test_the_leak_of_the_release_is_named_and_refused(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    a = FieldIndex(
        "H", (field("H", "4", "1", "train", image), field("H", "5", "1", "train", image))
    )
    b = FieldIndex("L", (field("L", "4", "1", "test", image),))
    (finding,) = leaks([a, b])
    assert (finding.kind, finding.count) == ("patient_leak", 1)
    assert finding.examples == ("patient 4: train in H; test in L",)
    split = released_split([a, b], validation=0.0)
    assert len(split.select(b, "test")) == 1
    with pytest.raises(DataError, match=r"patient:4 is in test \(L/4/1\) and train \(H/4/1\)"):
        audit(split, [a, b])
    assert leaks([a]) == []


def test_fields_without_a_released_split_are_refused():
    with pytest.raises(DataError, match="2 fields have no released split"):
        released_split([device("d", {"1": 2})])


def test_the_same_image_in_two_parts_is_refused(tmp_path):
    paths = [tmp_path / n for n in ("a.png", "b.png", "c.png")]
    for path, content in zip(paths, (b"same", b"same", b"else"), strict=True):
        path.write_bytes(content)
    index = FieldIndex("d", tuple(field("d", str(i), "1", image=p) for i, p in enumerate(paths)))
    parts = {"patient:0": "train", "patient:1": "test", "patient:2": "test"}
    with pytest.raises(DataError, match=r"the same image is in test \(d/1/1\) and train \(d/0/1\)"):
        audit(Split(parts), [index])
    audit(Split(parts | {"patient:0": "test"}), [index])
    paths[0].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        audit(Split(parts), [index])


def test_a_domain_that_cannot_have_all_parts_is_reported():
    # Exhaustive search finds no division of these twelve patients that serves all six devices.
    patients = [(0, 1, 5), (8, 1, 0), (1, 6, 9), (8, 0, 10, 7), (10, 11, 6), (9, 5, 6)]
    devices = [
        device(f"d{i}", dict.fromkeys(map(str, found), 9)) for i, found in enumerate(patients)
    ]
    split = make_split(devices, test=0.2, validation=0.1, seed=0)
    (finding,) = coverage(split, devices)
    assert (finding.kind, finding.count) == ("split_empty_part", 1)
