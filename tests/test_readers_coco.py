"""A folder of images with an annotations.json is all a new device needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, detect_format, list_domains, read_domain
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import LEUKEMIAATTRI, WBC, WBC5

CATEGORIES = [{"id": 1, "name": "WBC"}, {"id": 2, "name": "RBC"}, {"id": 3, "name": "PLT"}]


def put(
    root: Path, images, annotations, categories=CATEGORIES, name="annotations.json", size=(64, 48)
):
    for entry in images:
        path = root / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10, 20, entry["id"])).save(path)
    label_file = root / name
    label_file.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": i, **a} for i, a in enumerate(annotations, start=1)]
    content = {"images": images, "annotations": numbered, "categories": categories}
    label_file.write_text(json.dumps(content))
    return label_file


def image(number=1, **extra):
    return {"id": number, "file_name": f"images/{number}.png", "width": 64, "height": 48, **extra}


def box(category=1, place=(10, 10, 8, 6), image_id=1, **extra):
    return {"image_id": image_id, "category_id": category, "bbox": list(place), **extra}


def read(root: Path, space=WBC, **kwargs) -> FieldIndex:
    return read_domain(DomainSource("phone", root, **kwargs), "coco", space)


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings}


def test_white_cells_are_read_and_other_blood_is_background(tmp_path):
    put(tmp_path, [image(patient="p1")], [box(), box(2, (1, 1, 5, 5)), box(3, (9, 9, 5, 5))])
    index = read(tmp_path)
    f = index.fields[0]
    np.testing.assert_array_equal(f.boxes, [[10, 10, 18, 16]])
    assert (f.labels.tolist(), f.labelled_classes) == ([0], (0,))
    assert (f.domain, f.patient, f.name, f.width, f.height) == ("phone", "p1", "1", 64, 48)
    assert kinds(index) == {"not_in_label_space": 2}


def test_the_finer_type_of_a_white_cell_is_its_class(tmp_path):
    boxes = [box(wbc_type="Neutrophil"), box(place=(1, 1, 4, 4))]
    put(tmp_path, [image(slide=30)], boxes)
    index = read(tmp_path, WBC5)
    f = index.fields[0]
    assert f.labels.tolist() == [0, -1]
    assert f.labelled_classes == (0,)
    assert f.patient == "30"
    assert kinds(index) == {"unknown_cell_type": 1}
    assert read(tmp_path, LEUKEMIAATTRI).fields[0].labels.tolist() == [3, -1]


def test_untyped_white_cells_label_no_class_of_a_typed_space(tmp_path):
    put(tmp_path, [image(patient=1)], [box()])
    f = read(tmp_path, WBC5).fields[0]
    assert (f.labels.tolist(), f.labelled_classes) == ([-1], ())


def test_a_listed_class_without_boxes_counts_as_labelled_only_when_declared(tmp_path):
    names = ("neutrophil", "basophil")
    categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    put(tmp_path, [image(patient=1)], [box(0)], categories)
    index = read(tmp_path, WBC5)
    assert index.fields[0].labelled_classes == (0,)
    assert kinds(index) == {"class_without_boxes": 1}
    index = read(tmp_path, WBC5, classes=names)
    assert index.fields[0].labelled_classes == (0, 4)
    assert index.findings == ()


def test_classes_that_are_not_declared_are_cells_of_unknown_type(tmp_path):
    put(tmp_path, [image(patient=1)], [box(wbc_type="neutrophil"), box(wbc_type="monocyte")])
    index = read(tmp_path, WBC5, classes=("neutrophil",))
    assert index.fields[0].labels.tolist() == [0, -1]
    assert kinds(index)["class_not_declared"] == 1
    with pytest.raises(ConfigError, match="did you mean 'neutrophil'"):
        read(tmp_path, WBC5, classes=("neutrofil",))


def test_films_checked_to_hold_no_white_cell_are_declared_so(tmp_path):
    put(tmp_path, [image(patient=1)], [], categories=[])
    assert kinds(read(tmp_path)) == {"no_labels": 1}
    index = read(tmp_path, classes=("wbc",))
    assert (index.fields[0].labelled_classes, index.findings) == ((0,), ())


def test_attributes_are_read_by_value_name_or_code(tmp_path):
    found = {"Nucleus": "prominent", "cytoplasm": 1, "vacuoles": None, "granularity": "yes"}
    found |= {"nuclear_shape": 5}
    put(tmp_path, [image(patient=1)], [box(attributes=found)])
    index = read(tmp_path)
    assert index.fields[0].attributes.tolist() == [[-1, -1, -1, 1, 1, -1, -1]]
    assert kinds(index) == {"attribute_out_of_range": 1, "attribute_unknown": 1}


def test_an_attribute_graded_on_another_scale_is_missing_as_a_whole(tmp_path):
    sizes = ["small", "small", "big"]
    boxes = [box(place=(i, 1, 9, 9), attributes={"cell_size": s}) for i, s in enumerate(sizes)]
    put(tmp_path, [image(patient=1)], boxes)
    index = read(tmp_path)
    assert (index.fields[0].attributes == -1).all()
    assert kinds(index) == {"attribute_other_scale": 1}
    assert "'big' (1)" in index.findings[0].examples[0]


@pytest.mark.parametrize(
    ("extra", "categories", "message"),
    [
        (
            {},
            [{"id": 1, "name": "Neutrofil"}],
            "annotation 1: unknown class 'Neutrofil'.*neutrophil",
        ),
        ({"wbc_type": "monocite"}, CATEGORIES, "annotation 1: unknown class 'monocite'.*monocyte"),
        ({"category_id": 9}, CATEGORIES, "annotation 1: category_id 9 has no name"),
    ],
)
def test_a_class_nobody_knows_is_named_with_its_annotation(tmp_path, extra, categories, message):
    put(tmp_path, [image(patient=1)], [box(**extra), box(place=(1, 1, 9, 9), **extra)], categories)
    (finding,) = (f for f in read(tmp_path).findings if f.severity == "error")
    assert finding.count == 2
    assert re.match(rf"annotations\.json: {message}", finding.examples[0])


def test_every_unknown_name_has_its_example_however_often_it_comes(tmp_path):
    rows = [box(place=(n, 1, 9, 9), wbc_type=f"cell {n // 7}") for n in range(21)]
    put(tmp_path, [image(patient=1)], [*rows, box(wbc_type="monocyte")])
    index = read(tmp_path, WBC5)
    assert index.fields[0].labels.tolist() == [-1] * 21 + [2]
    finding = index.findings[0]
    assert (finding.kind, finding.severity, finding.count) == ("unknown_class_name", "error", 21)
    assert [e.split(";")[0] for e in finding.examples] == [
        f"annotations.json: annotation {7 * n + 1}: unknown class 'cell {n}'" for n in range(3)
    ]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    rows = [
        box(),
        box(9),
        box(place=(1, 1, 5, 5), wbc_type="monocite"),
        box(image_id=7),
        box(place=(1, 2, "x", 4)),
        {"image_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    put(tmp_path, [image(patient=1)], rows)
    index = read(tmp_path)
    assert index.fields[0].labels.tolist() == [0, -1]
    assert kinds(index) == {
        "unreadable_record": 1,
        "annotation_without_image": 1,
        "unknown_class_id": 2,
        "unknown_class_name": 1,
    }
    assert {f.severity for f in index.findings} == {"error"}


def test_an_unknown_category_that_no_box_uses_does_no_harm(tmp_path):
    categories = [*CATEGORIES, {"id": 0, "name": "cells-kx3f"}]
    put(tmp_path, [image(patient=1)], [box()], categories)
    assert read(tmp_path).findings == ()


def test_the_patient_can_come_from_the_file_name(tmp_path):
    put(tmp_path, [{**image(), "file_name": "images/K07_3.png"}], [box()])
    assert kinds(read(tmp_path)) == {"no_patient": 1}
    index = read(tmp_path, patient_pattern=r"^(?P<patient>K\d+)_")
    assert (index.fields[0].patient, index.findings) == ("K07", ())


def test_a_rotation_mark_turns_neither_size_nor_boxes(tmp_path):
    entry = image(patient=1, file_name="images/1.jpg")
    put(tmp_path, [entry], [box()])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "images/1.jpg", exif=exif)
    assert (read(tmp_path).fields[0].width, read(tmp_path).fields[0].height) == (64, 48)
    del entry["width"]
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"] = [entry]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert (read(tmp_path).fields[0].width, read(tmp_path).fields[0].height) == (64, 48)


def test_crowds_are_of_unknown_type(tmp_path):
    put(tmp_path, [image(patient=1)], [box(iscrowd=1)])
    assert read(tmp_path).fields[0].labels.tolist() == [-1]


def test_missing_and_unlisted_images_are_reported(tmp_path):
    put(tmp_path, [image(1), image(2)], [])
    (tmp_path / "images/1.png").rename(tmp_path / "images/Other.png")
    index = read(tmp_path)
    assert len(index) == 1
    assert kinds(index)["missing_image"] == 1
    (finding,) = (f for f in index.findings if f.kind == "image_not_in_labels")
    assert finding.examples == ("images/Other.png",)


def test_an_id_may_be_a_number_in_one_list_and_text_in_the_other(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images/1.png")
    content = {
        "images": [{**image(patient="p"), "id": "1"}],
        "annotations": [box(category="1"), {**box(), "image_id": 1}],
        "categories": CATEGORIES,
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    index = read(tmp_path)
    assert [len(f.boxes) for f in index] == [1]  # the same box twice
    assert kinds(index) == {"duplicate_box": 1}


@pytest.mark.parametrize("place", ["/home/me/photos/a.png", "C:\\photos\\A.png"])
def test_an_image_is_found_by_its_name_where_the_path_is_of_another_machine(tmp_path, place):
    put(tmp_path, [{**image(), "file_name": "images/a.png"}, image(2)], [box()])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"][0]["file_name"] = place
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    index = read(tmp_path)
    assert [(f.name, len(f.boxes)) for f in index] == [("a", 1), ("2", 0)]
    assert kinds(index) == {"image_renamed": 1, "no_patient": 2}


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("/home/me/train/a.png", "masks/a.png"),
        ("images/a.png", "masks/a.png"),
        ("train/a.png", "images/a.png"),
    ],
)
def test_a_file_of_another_folder_is_not_taken_for_a_missing_image(tmp_path, listed, there):
    put(tmp_path, [{**image(), "file_name": there}], [box()])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"][0]["file_name"] = listed
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    index = read(tmp_path)
    assert not len(index)
    assert kinds(index)["missing_image"] == 1


def test_a_listed_image_that_cannot_be_opened_is_not_called_unlisted(tmp_path):
    put(tmp_path, [{"id": 1, "file_name": "images/1.png", "patient": "p"}], [])
    (tmp_path / "images/1.png").write_bytes(b"odd")
    found = kinds(read(tmp_path))
    assert found["unreadable_image"] == 1
    assert "image_not_in_labels" not in found


def test_a_name_that_two_images_have_stands_for_none(tmp_path):
    put(tmp_path, [image(), image(2)], [])
    content = json.loads((tmp_path / "annotations.json").read_text())
    for entry, folder in zip(content["images"], ("/a", "/b"), strict=True):
        entry["file_name"] = f"{folder}/1.png"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert kinds(read(tmp_path))["missing_image"] == 2


@pytest.mark.parametrize("odd", [[], [(10, 10, 64.4, 48.2)], [(10, 10, 5, 5)]])
def test_boxes_written_as_corners_are_an_error_and_no_cell_is_learned_from_them(tmp_path, odd):
    corners = [(10, 10, 18, 16), (30, 20, 50, 44), *((2, n % 9, 20, 47) for n in range(48)), *odd]
    put(tmp_path, [image(), image(2)], [box(place=c) for c in corners])
    index = read(tmp_path)
    assert all(not len(f.boxes) and not f.labelled_classes for f in index)
    (told,) = (f for f in index.findings if f.kind == "unreadable_label_file")
    assert "every box reads as corners x1, y1, x2, y2" in told.examples[0]


@pytest.mark.parametrize(
    "places",
    [
        [(0, 0, 64, 48)],  # a single cell that fills its picture
        [(30, 20, 20, 20), (2, 2, 62, 46)],
        [(1, 1, 20, 20), (50, 30, 30, 30)],  # cut by the edge
    ],
)
def test_large_and_clipped_boxes_are_no_corners(tmp_path, places):
    put(tmp_path, [image()], [box(place=p) for p in places])
    assert len(read(tmp_path).fields[0].boxes) == len(places)


def test_a_box_of_negative_size_is_an_error(tmp_path):
    put(tmp_path, [image(patient="p")], [box(place=(30, 20, -8, 6)), box()])
    index = read(tmp_path)
    assert len(index.fields[0].boxes) == 1
    assert {f.kind: f.severity for f in index.findings} == {"box_inverted": "error"}


def test_the_label_file_is_found_or_asked_for(tmp_path):
    tmp_path = tmp_path / "phone"
    put(tmp_path, [image(patient=1)], [box()], name="annotations/instances.json")
    assert len(read(tmp_path)) == 1
    assert list_domains(tmp_path, "coco") == [tmp_path.name]
    (tmp_path / "second.json").write_text("{}")
    assert len(read(tmp_path)) == 1
    put(tmp_path, [image(2)], [], name="second.json")
    assert list_domains(tmp_path.parent, "coco") == [tmp_path.name]
    with pytest.raises(DataError, match=r"several label files.*data\.domains\.phone\.annotations"):
        read(tmp_path)
    assert len(read(tmp_path, labels="annotations/instances.json")) == 1
    with pytest.raises(DataError, match="no such label file"):
        read(tmp_path, labels="x.json")
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no annotations\.json"):
        read(tmp_path / "empty")


def test_domains_are_folders_with_a_label_file(tmp_path):
    put(tmp_path / "a", [image()], [])
    put(tmp_path / "b", [image()], [])
    assert list_domains(tmp_path, "coco") == ["a", "b"]
    assert list_domains(tmp_path / "a", "coco") == ["a"]
    assert detect_format(tmp_path) == "coco"
    assert detect_format(tmp_path / "a" / "images") == "images"
    assert len(read_domain(DomainSource("a", tmp_path), "coco", WBC)) == 1


PACK = os.environ.get("DA_LEUKEMIA_SMEARS", "")


@pytest.mark.skipif(not PACK, reason="DA_LEUKEMIA_SMEARS does not point to the real pack")
@pytest.mark.parametrize("domain", ["bccd", "pbc", "aslan", "pig", "rpi"])
def test_the_real_pack_is_read_whole(domain):
    root = Path(PACK) / domain
    content = json.loads((root / "annotations.json").read_text())
    white = [a for a in content["annotations"] if a["category_id"] == 1]
    source = DomainSource(domain, root)
    for space in (WBC, WBC5, LEUKEMIAATTRI):
        index = read_domain(source, "coco", space)
        assert len(index) == len(content["images"])
        assert sum(len(f.labels) for f in index) == len(white)
        assert not [f for f in index.findings if f.severity == "error"]
    typed = sum(int((f.labels >= 0).sum()) for f in read_domain(source, "coco", WBC5))
    assert typed == sum(bool(a.get("wbc_type")) for a in white)
    assert all(f.labelled_classes == (0,) for f in read_domain(source, "coco", WBC))
