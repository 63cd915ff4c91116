"""What every reader promises, asked of all of them with the same words."""

from __future__ import annotations

import os
import subprocess
import sys
import typing

import numpy as np
import pytest
from test_readers_support import BOXES, CODES, NAMES, SAMPLES, SIZE, STAGES, make

from da_leukemia.config import Domain
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import READERS, detect_format, list_domains
from da_leukemia.data.readers.findings import KINDS
from da_leukemia.labels import UNKNOWN, LabelSpace, translate

EXPECTED_NOTES = {"no_patient", "patient_is_field", "patch_order", "class_by_id"}


@pytest.fixture(params=(*SAMPLES, "images"))
def sample(request, tmp_path):
    return make(request.param, tmp_path / "data")


@pytest.fixture(params=SAMPLES)
def labelled(request, tmp_path):
    return make(request.param, tmp_path / "data")


def keep_the_contract(index: FieldIndex, domain: str, space: LabelSpace) -> None:
    """Assert what holds for every index of every reader."""
    assert index.domain == domain
    assert len({f.key for f in index}) == len(index)
    assert len({f.image for f in index}) == len(index)
    for f in index:
        n = len(f.labels)
        assert f.image.is_file()
        assert (f.domain, bool(f.name)) == (domain, True)
        assert f.released_split in ("", "train", "test")
        assert (f.boxes.dtype, f.labels.dtype, f.attributes.dtype) == (
            np.float32,
            np.int64,
            np.int64,
        )
        assert f.boxes.shape == (n, 4)
        assert f.attributes.shape == (n, len(space.attributes))
        assert np.isfinite(f.boxes).all()
        assert (f.boxes[:, 2:] > f.boxes[:, :2]).all()
        assert (f.boxes >= 0).all()
        assert (f.boxes <= [f.width, f.height] * 2).all()
        assert f.labels.min(initial=UNKNOWN) >= UNKNOWN
        assert f.labels.max(initial=UNKNOWN) < len(space.classes)
        assert set(f.labels[f.labels >= 0].tolist()) <= set(f.labelled_classes)
        assert set(f.labelled_classes) <= set(range(len(space.classes)))
        assert (f.attributes >= -1).all()
        assert (f.attributes < np.array(space.attribute_sizes, dtype=int)).all()
        for x1, y1, x2, y2 in f.annotated_regions or ():
            assert 0 <= x1 < x2 <= f.width
            assert 0 <= y1 < y2 <= f.height
    # Changing one field must not change another.
    arrays = [a for f in index for a in (f.boxes, f.labels, f.attributes) if a.size]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])
    for finding in index.findings:
        assert finding.kind in KINDS
        assert (finding.severity, finding.message) == KINDS[finding.kind]
        assert finding.count >= 1
        assert all(e.isprintable() or "\n" not in e for e in finding.examples)


def same(a: FieldIndex, b: FieldIndex) -> bool:
    for f, g in zip(a, b, strict=True):
        if any(
            not np.array_equal(getattr(f, n), getattr(g, n))
            for n in ("boxes", "labels", "attributes")
        ):
            return False
        rest = ("image", "domain", "patient", "name", "width", "height", "labelled_classes")
        if any(getattr(f, n) != getattr(g, n) for n in (*rest, "annotated_regions")):
            return False
    return a.findings == b.findings


def test_a_clean_data_set_is_read_exactly(sample):
    index = sample.read()
    keep_the_contract(index, sample.domain, sample.space)
    names = {"m5": STAGES, "images": ()}.get(sample.fmt, NAMES)
    assert [f.image for f in index] == list(sample.images)
    assert tuple(f.patient for f in index) == sample.patients
    for f in index:
        assert (f.width, f.height) == SIZE
        np.testing.assert_allclose(f.boxes, np.reshape(BOXES, (-1, 4))[: len(names)], atol=1e-4)
        assert f.labels.tolist() == [translate(n, sample.space) for n in names]
        if sample.fmt in ("coco", "leukemiaattri", "sparse"):
            assert f.attributes.tolist() == [list(CODES)] * 3
        assert bool(f.labelled_classes) == bool(names)
    unlabelled = {"no_labels"} if sample.fmt == "images" else set()
    assert unlabelled <= {f.kind for f in index.findings} <= EXPECTED_NOTES | unlabelled


def test_reading_twice_gives_the_same_in_the_same_order(sample):
    assert same(sample.read(), sample.read())


def test_a_missing_image_is_counted_and_its_field_left_out(labelled):
    labelled.images[1].unlink()
    index = labelled.read()
    keep_the_contract(index, labelled.domain, labelled.space)
    assert [f.image for f in index] == [labelled.images[0], labelled.images[2]]
    assert {f.kind: f.count for f in index.findings}["missing_image"] == 1


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", "half", "header"])
def test_a_broken_image_is_counted_or_read_by_its_header(sample, content):
    path = sample.images[0]
    whole = path.read_bytes()
    cut = {"half": whole[: len(whole) // 2], "header": whole[:40]}
    path.write_bytes(content if isinstance(content, bytes) else cut[content])
    index = sample.read()
    keep_the_contract(index, sample.domain, sample.space)
    counted = {f.kind: f.count for f in index.findings}.get("unreadable_image", 0)
    assert len(index) + counted == 3


def test_the_setting_classes_decides_what_is_labelled(labelled):
    name = (STAGES if labelled.fmt == "m5" else NAMES)[0]
    labelled.settings["classes"] = (name,)
    index = labelled.read()
    keep_the_contract(index, labelled.domain, labelled.space)
    wanted = translate(name, labelled.space)
    assert all(f.labelled_classes == (wanted,) for f in index)


def test_the_format_and_its_domains_are_recognised(sample):
    assert detect_format(sample.root) == sample.fmt
    found = list_domains(sample.root, sample.fmt)
    assert found in ([sample.domain], [sample.root.name])


def test_every_reader_is_asked_and_every_reader_is_a_setting():
    # Folders of cells have no label file that could be damaged: see test_readers_cells.
    assert {s.split("_")[0] for s in SAMPLES} | {"images", "cells"} == set(READERS)
    choices = next(f for f in Domain.__dataclass_fields__.values() if f.name == "format").metadata
    assert set(typing.cast(dict, choices)["choices"]) == set(READERS)


def test_reading_does_not_load_torch():
    code = "import sys, da_leukemia.data.readers; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert run.returncode == 0
