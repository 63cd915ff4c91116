"""A folder of photographs alone is a device that can be adapted to."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.readers import DomainSource, find_domains, list_domains, read_domain
from da_leukemia.errors import DataError
from da_leukemia.labels import WBC


def put(root: Path, *names: str):
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (n, 2, 3)).save(path)


def read(root: Path, **settings):
    return read_domain(DomainSource("phone", root, **settings), "images", WBC)


def test_every_image_at_any_depth_is_a_field_without_labels(tmp_path):
    put(tmp_path, "b.png", "images/a.JPG", "slide 2/x/a.tif", ".trash/c.png", "._d.png")
    (tmp_path / "readme.txt").write_text("0 .5 .5 .1 .1")
    index = read(tmp_path, classes=("wbc",))
    assert [f.name for f in index] == ["b", "a", "slide 2/x/a"]
    assert all(f.labelled_classes == () and not len(f.boxes) for f in index)
    assert {f.kind: f.count for f in index.findings} == {"no_patient": 3, "no_labels": 1}
    assert f"{tmp_path}: 3 images and no label file such as annot" in index.findings[1].examples[0]


def test_an_image_that_cannot_be_read_is_an_error(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes(b"")
    index = read(tmp_path)
    assert len(index) == 1
    assert [(f.kind, f.examples) for f in index.findings if f.severity == "error"] == [
        ("unreadable_image", ("b.png: holds 0 bytes",))
    ]


def test_parts_and_patients_come_from_the_names(tmp_path):
    put(tmp_path, "train/K1_1.png", "Test/K2_1.png", "other/K3_1.png")
    index = read(tmp_path, patient_pattern=r"^(?P<patient>K\d)_")
    assert {f.patient: f.released_split for f in index} == {"K1": "train", "K2": "test", "K3": ""}
    assert [f.released_split for f in read(tmp_path / "other")] == ["train"]


def test_a_device_is_found_by_its_images(tmp_path):
    put(tmp_path, "phone/images/a.png", "scope/film 1/a.png", ".hidden/a.png")
    (tmp_path / "empty").mkdir()
    assert list_domains(tmp_path, "images") == ["phone", "scope"]
    assert list_domains(tmp_path / "phone", "images") == ["phone"]
    assert list_domains(tmp_path / "scope/film 1", "images") == ["film 1"]
    assert find_domains(tmp_path) == {"phone": "images", "scope": "images"}
    assert find_domains(tmp_path / "empty") == {}
    with pytest.raises(DataError, match=r"no such folder.*data\.domains\.phone\.root"):
        read(tmp_path / "nowhere")
