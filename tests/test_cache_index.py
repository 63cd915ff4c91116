"""Labels are parsed once: equal to a fresh reading, noticing every change, never in the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data import cache
from da_leukemia.data.cache import audit_once, cache_folder, read_cached
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers import READERS, DomainSource, read_domain
from da_leukemia.data.splits import Split
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import LEUKEMIAATTRI, WBC


def same_value(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


def assert_equal(a: FieldIndex, b: FieldIndex):
    assert (a.domain, a.findings, len(a)) == (b.domain, b.findings, len(b))
    for one, other in zip(a, b, strict=True):
        for field in dataclasses.fields(FieldOfView):
            assert same_value(getattr(one, field.name), getattr(other, field.name)), field.name


def write_coco(root: Path, images=4, boxes=2, **extra):
    """Write a domain with cells, a repeated box and an image without cells."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for i in range(images):
        name = f"images/{i}.png"
        pixels = np.full((24, 32, 3), i, np.uint8)
        Image.fromarray(pixels).save(root / name)
        entries.append({"id": i, "file_name": name, "width": 32, "height": 24, "patient": f"p{i}"})
        for b in range(0 if i == 0 else boxes):
            box = {"image_id": i, "category_id": 1, "bbox": [b + 0.3, 2, 5, 6.7]}
            annotations.append({"id": len(annotations), **box, "attributes": {"nucleolus": 1}})
    annotations.append({**annotations[-1], "id": 999})
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "wbc"}],
        **extra,
    }
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def device(tmp_path):
    return DomainSource("phone", write_coco(tmp_path / "data" / "phone"))


@pytest.fixture
def reads(monkeypatch):
    """Count how often labels are parsed."""
    calls = []

    def counted(source, fmt, space):
        calls.append(source.domain)
        return read_domain(source, fmt, space)

    monkeypatch.setattr(cache, "read_domain", counted)
    return calls


# --- equal to a fresh reading ------------------------------------------------------------------


def test_a_cached_index_is_a_fresh_one_field_by_field(device, tmp_path, reads):
    fresh = read_domain(device, "coco", WBC)
    assert {f.kind for f in fresh.findings} == {"duplicate_box"}
    for _ in range(2):
        assert_equal(read_cached(device, "coco", WBC, tmp_path / "cache"), fresh)
    assert reads == ["phone"]


def test_every_simulated_device_is_the_same_from_the_cache(smears, tmp_path, reads):
    for domain in ("H_100X_C2", "L_100X_C2"):
        source = DomainSource(domain, smears)
        fresh = read_domain(source, "leukemiaattri", LEUKEMIAATTRI)
        for _ in range(2):
            found = read_cached(source, "leukemiaattri", LEUKEMIAATTRI, tmp_path / "cache")
            assert_equal(found, fresh)
    assert reads == ["H_100X_C2", "L_100X_C2"]


def test_regions_unknown_patients_and_odd_names_come_back(tmp_path):
    field = FieldOfView(
        image=Path("data/b\udce4d - 'name'.png"),  # not UTF-8 on disk
        domain="d",
        patient="",
        name='x"\n',
        width=np.int64(9),
        height=7,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        attributes=np.zeros((0, 7), np.int64),
        labelled_classes=(),
        annotated_regions=((0.1, 1 / 3, 2.0, 3.5), (0.0, 1.0, 2.0, 3.0)),
        released_split="test",
    )
    entry = tmp_path / "entry.npz"
    entry.write_bytes(cache._pack(FieldIndex("d", (field,)), "f", {}))
    found = cache._load(entry, "f")
    expected = dataclasses.replace(field, width=9)
    assert_equal(found, FieldIndex("d", (expected,)))


def test_label_space_format_settings_and_spelling_have_their_own_entries(
    device, tmp_path, reads, monkeypatch
):
    where = tmp_path / "cache"
    for space in (WBC, LEUKEMIAATTRI):
        for source in (device, dataclasses.replace(device, patient_pattern="(?P<patient>.)")):
            for _ in range(2):
                fresh = read_domain(source, "coco", space)
                assert_equal(read_cached(source, "coco", space, where), fresh)
    assert len(reads) == 4
    monkeypatch.chdir(tmp_path)
    near = dataclasses.replace(device, root=Path("data/phone"))
    for _ in range(2):
        assert read_cached(near, "coco", WBC, where).fields[0].image == Path(
            "data/phone/images/0.png"
        )
    assert len(reads) == 5


def test_nothing_is_kept_where_caches_are_off(device, tmp_path, reads):
    for _ in range(2):
        read_cached(device, "coco", WBC, cache_folder(""))
    assert len(reads) == 2


def test_errors_are_raised_every_time(device, tmp_path):
    (device.root / "annotations.json").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"annotations\.json"):
            read_cached(device, "coco", WBC, tmp_path / "cache")
    with pytest.raises(ConfigError, match="cocco"):
        read_cached(device, "cocco", WBC, tmp_path / "cache")
    missing = DomainSource("m", tmp_path / "nowhere")
    for fmt in READERS:
        with pytest.raises(DataError, match=r"no (such )?folder"):
            read_cached(missing, fmt, WBC, tmp_path / "cache")


# --- changes -----------------------------------------------------------------------------------


def change_labels(root):
    path = root / "annotations.json"
    path.write_text(path.read_text().replace('"p1"', '"q1"'))  # same size


def restore_times(root):
    path = root / "annotations.json"
    before = path.stat()
    change_labels(root)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_image(root):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "images" / "2.png")


def move_images(root):
    (root / "images").rename(root / "elsewhere")


CHANGES = {
    "labels changed": change_labels,
    "labels changed, times restored": restore_times,
    "image changed": change_image,
    "image added": lambda root: shutil.copy(root / "images" / "1.png", root / "images" / "9.png"),
    "image removed": lambda root: (root / "images" / "3.png").unlink(),
    "second label file": lambda root: (root / "_annotations.coco.json").write_text("{}"),
    "folder added": lambda root: (root / "more").mkdir(),
    "images moved": move_images,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_noticed(device, tmp_path, reads, change):
    where = tmp_path / "cache"
    read_cached(device, "coco", WBC, where)
    time.sleep(0.02)  # longer than the clock of the file system ticks
    change(device.root)
    assert_equal(read_cached(device, "coco", WBC, where), read_domain(device, "coco", WBC))
    assert len(reads) == 2
    assert len(list((where / "index").iterdir())) == 1  # in the place of the old one


def test_a_change_in_one_domain_leaves_the_others(smears, tmp_path, reads):
    root = tmp_path / "copy"
    shutil.copytree(smears, root)
    where = tmp_path / "cache"
    for _ in range(2):
        for domain in ("H_100X_C2", "L_100X_C2"):
            read_cached(DomainSource(domain, root), "leukemiaattri", WBC, where)
        (next((root / "L_100X_C2" / "Images" / "train").iterdir())).touch()
    assert reads == ["H_100X_C2", "L_100X_C2", "L_100X_C2"]


def test_images_behind_a_link_or_outside_the_folder_are_watched(tmp_path, reads):
    far = write_coco(tmp_path / "far")
    root, where = tmp_path / "near", tmp_path / "cache"
    root.mkdir()
    content = json.loads((far / "annotations.json").read_text())
    for image in content["images"][:2]:
        image["file_name"] = f"../far/{image['file_name']}"
    (root / "annotations.json").write_text(json.dumps(content))
    (root / "images").symlink_to(far / "images")
    (far / "images" / "loop").symlink_to(root)
    source = DomainSource("near", root)
    assert len(read_cached(source, "coco", WBC, where)) == 4
    for number, expected in ((0, 2), (3, 3)):
        read_cached(source, "coco", WBC, where)
        time.sleep(0.02)
        (far / "images" / f"{number}.png").touch()
        read_cached(source, "coco", WBC, where)
        assert len(reads) == expected


def test_an_image_that_is_missing_outside_is_looked_for_again(tmp_path):
    root = write_coco(tmp_path / "near", images=3)
    content = json.loads((root / "annotations.json").read_text())
    far = tmp_path / "far"
    far.mkdir()
    for image in content["images"][:2]:
        image["file_name"] = f"../far/{Path(image['file_name']).name}"
    (root / "annotations.json").write_text(json.dumps(content))
    shutil.copy(root / "images" / "0.png", far)
    source = DomainSource("near", root)
    assert len(read_cached(source, "coco", WBC, tmp_path / "cache")) == 2
    shutil.copy(root / "images" / "1.png", far)
    assert len(read_cached(source, "coco", WBC, tmp_path / "cache")) == 3


def test_labels_that_lie_elsewhere_are_read_each_time(device, tmp_path, reads):
    far = tmp_path / "far"
    shutil.copytree(device.root, far)
    for labels in (str(far / "annotations.json"), "../../far/annotations.json"):
        source = dataclasses.replace(device, labels=labels)
        for _ in range(2):
            assert len(read_cached(source, "coco", WBC, tmp_path / "cache")) == 4
    assert len(reads) == 4
    inside = dataclasses.replace(device, labels="annotations.json")
    for _ in range(2):
        assert len(read_cached(inside, "coco", WBC, tmp_path / "cache")) == 4
    assert len(reads) == 5


def test_another_version_of_the_readers_reads_anew(device, tmp_path, reads, monkeypatch):
    read_cached(device, "coco", WBC, tmp_path / "cache")
    monkeypatch.setattr(cache, "_READERS", "other")
    read_cached(device, "coco", WBC, tmp_path / "cache")
    assert len(reads) == 2


def test_a_cache_beside_the_data_is_no_part_of_them(device, reads):
    for _ in range(2):
        read_cached(device, "coco", WBC, device.root / "cache")
    assert len(reads) == 1


# --- never in the way --------------------------------------------------------------------------


def damage(entry, kind):
    whole = entry.read_bytes()
    if kind == "cut":
        entry.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        entry.write_bytes(b"")
    elif kind == "flipped":
        middle = len(whole) // 3
        entry.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    elif kind == "text":
        entry.write_text("no archive")
    else:
        np.savez(entry, text=np.array([{"a": 1}], dtype=object))  # only pickle can read it


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "text", "pickle"])
def test_a_damaged_entry_is_read_again_and_mended(device, tmp_path, reads, caplog, kind):
    where = tmp_path / "cache"
    fresh = read_cached(device, "coco", WBC, where)
    (entry,) = (where / "index").iterdir()
    damage(entry, kind)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_equal(read_cached(device, "coco", WBC, where), fresh)
    assert len(reads) == 2
    assert [r.message for r in caplog.records if str(entry) in r.message] != []
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_written_is_said_once(device, tmp_path, caplog):
    where = tmp_path / "cache"
    where.write_text("a file, so there can be no folder")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(read_cached(device, "coco", WBC, where)) == 4
    assert len(caplog.records) == 1
    assert "data.cache_dir" in caplog.text


def _read_often(source, where, answer):
    sizes = {len(read_cached(source, "coco", WBC, where)) for _ in range(20)}
    answer.put(sizes)


def test_jobs_may_write_at_the_same_time(device, tmp_path, caplog):
    where = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    jobs = [
        context.Process(target=_read_often, args=(device, where, answer), daemon=True)
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for _ in range(20):
        shutil.rmtree(where / "index", ignore_errors=True)
        time.sleep(0.005)
    found = [answer.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    assert found == [{4}] * 3
    read_cached(device, "coco", WBC, where)
    assert [p.suffix for p in (where / "index").iterdir()] == [".npz"]


def test_the_cache_does_not_grow_for_ever(device, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_ENTRIES", 3)
    where = tmp_path / "cache"
    for number in range(6):
        read_cached(dataclasses.replace(device, domain=f"d{number}"), "coco", WBC, where)
        time.sleep(0.02)
    assert sorted(p.name[:2] for p in (where / "index").iterdir()) == ["d3", "d4", "d5"]


def test_the_folder_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("auto") == tmp_path / ".cache" / "da_leukemia"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("auto") == tmp_path / ".cache" / "da_leukemia"
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/disk")
    assert cache_folder("auto") == Path("/big/disk/da_leukemia")
    assert cache_folder("~/here") == tmp_path / "here"
    assert cache_folder("") is None


# --- the leak audit ----------------------------------------------------------------------------


def test_an_audit_is_made_once_for_the_same_files_and_split(device, tmp_path, monkeypatch):
    calls = []
    real = cache.audit

    def counted(split, indexes):
        calls.append(1)
        real(split, indexes)

    monkeypatch.setattr(cache, "audit", counted)
    where = tmp_path / "cache"
    index = read_domain(device, "coco", WBC)
    good = Split({f"patient:p{i}": "train" if i < 2 else "test" for i in range(4)})
    for _ in range(2):
        assert audit_once(good, [index], where) == []
    assert len(calls) == 1
    shutil.copyfile(device.root / "images" / "0.png", device.root / "images" / "3.png")
    for _ in range(2):
        (problem,) = audit_once(good, [index], where)
        assert "the same image is in test (phone/p3/3) and train (phone/p0/0)" in problem
    assert len(calls) == 2
    other = Split({f"patient:p{i}": "test" for i in range(4)})
    assert audit_once(other, [index], where) == []
    assert len(calls) == 3
    (device.root / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png.*missing"):
        audit_once(good, [index], where)
