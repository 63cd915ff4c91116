"""LeukemiaAttri is read as it lies on disk, and everything odd in it is reported."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers import DomainSource, list_domains, read_domain
from da_leukemia.data.readers.leukemiaattri import parse_name
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import LEUKEMIAATTRI, LINEAGE, WBC, WBC5, WBCATT

DOMAIN = "H_100X_C2"
CATEGORIES = [
    {"id": i, "name": n}
    for i, n in enumerate([*LEUKEMIAATTRI.classes[1:], LEUKEMIAATTRI.classes[0]], start=1)
]
KEYS = (
    "cell_size",
    "nuclear_chromatio",
    "nuclear_shape",
    "nucleolus",
    "cytoplasm",
    "cytoplasmic_basophilia",
    "cytoplasmic_vacuoles",
)


def put_image(
    root: Path, name: str, split="train", domain=DOMAIN, size=(64, 48), folder="Images"
) -> Path:
    path = root / domain / folder / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 180, len(name))).save(path)
    return path


def put_json(root: Path, images, annotations, split="train", categories=CATEGORIES, domain=DOMAIN):
    path = root / domain / "json_labels" / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": i, **a} for i, a in enumerate(annotations, start=1)]
    path.write_text(
        json.dumps({"images": images, "annotations": numbered, "categories": categories})
    )
    return path


def put_text(root: Path, stem: str, text: str, kind="AttriDet", split="train", domain=DOMAIN):
    path = root / domain / "txt_labels" / kind / split / f"{stem}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def image(number: int, name: str, width=64, height=48):
    return {"id": number, "file_name": name, "width": width, "height": height}


def cell(image_id=1, category=1, box=(10, 10, 8, 6), codes=(2, 0, 1, 1, 1, 0, 0)):
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        **dict(zip(KEYS, codes, strict=True)),
    }


def read(root: Path, space=LEUKEMIAATTRI, domain=DOMAIN, **kwargs) -> FieldIndex:
    return read_domain(DomainSource(domain, root, **kwargs), "leukemiaattri", space)


def only(index: FieldIndex) -> FieldOfView:
    assert len(index) == 1
    return index.fields[0]


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings}


def test_a_clean_domain_is_read_exactly_and_without_findings(tmp_path):
    path = put_image(tmp_path, "4_12_1000_ALL.png")
    put_json(
        tmp_path,
        [image(1, path.name)],
        [cell(), cell(category=14, box=(1, 2, 3, 4), codes=[4] * 7)],
    )
    index = read(tmp_path)
    assert index.findings == ()
    f = only(index)
    assert (f.image, f.domain, f.patient, f.name) == (path, DOMAIN, "4", "12")
    assert (f.width, f.height, f.released_split) == (64, 48, "train")
    np.testing.assert_array_equal(f.boxes, [[10, 10, 18, 16], [1, 2, 4, 6]])
    assert f.boxes.dtype == np.float32
    np.testing.assert_array_equal(f.labels, [1, 0])
    np.testing.assert_array_equal(f.attributes, [[2, 0, 1, 1, 1, 0, 0], [-1] * 7])
    assert f.labelled_classes == tuple(range(14))


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("4_12_1000_ALL", ("4", "12", 1000, "ALL")),
        ("4_12_3_400_ALL", ("4", "12_3", 400, "ALL")),
        ("48_7_1000", ("48", "7", 1000, "")),
        ("04_7_1000_aml", ("4", "7", 1000, "AML")),
    ],
)
def test_file_names_tell_patient_field_and_diagnosis(stem, expected):
    film = parse_name(stem)
    assert film is not None
    assert (film.patient, film.field, film.magnification, film.diagnosis) == expected


def test_a_name_of_another_form_is_not_parsed():
    assert parse_name("blood_12") is None
    assert parse_name("12") is None


def test_rows_of_the_release_are_read_from_text_files(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png", size=(1000, 1000))
    put_text(
        tmp_path,
        "4_1_1000_ALL",
        "6 0.118 0.3 0.123 0.222 2 0 1 1 1 1 0\n0 0.579 0.586 0.114 0.216 2 2 2 2 2 2 2\n",
    )
    index = read(tmp_path)
    f = only(index)
    np.testing.assert_allclose(f.boxes, [[56.5, 189, 179.5, 411], [522, 478, 636, 694]], atol=1e-3)
    np.testing.assert_array_equal(f.labels, [6, 0])
    np.testing.assert_array_equal(f.attributes, [[2, 0, 1, 1, 1, 1, 0], [-1] * 7])
    assert kinds(index) == {"class_by_id": 2}


def test_eleven_columns_lack_the_cell_size_and_five_all_attributes(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_text(tmp_path, "4_1_1000_ALL", "1 .5 .5 .1 .1 0 1 1 1 0 0\n1 .2 .2 .1 .1\n")
    f = only(read(tmp_path))
    np.testing.assert_array_equal(f.attributes, [[-1, 0, 1, 1, 1, 0, 0], [-1] * 7])


def test_rows_of_other_widths_are_reported_and_left_out(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_text(
        tmp_path,
        "4_1_1000_ALL",
        "1 .5 .5 .1\n1 .2 .2 .1 .1 1 2 3 4 2 0 1 1 1 1 0\n99 .5 .5 .1 .1\n3 .5 .5 .1 .1\nx y\n",
    )
    index = read(tmp_path)
    np.testing.assert_array_equal(only(index).labels, [3])
    assert kinds(index)["unreadable_record"] == 3
    assert kinds(index)["unknown_class_id"] == 1
    finding = next(f for f in index.findings if f.kind == "unreadable_record")
    assert finding.severity == "error"
    assert "line 1: 4 columns" in finding.examples[0]
    assert "sparse" in finding.examples[1]


def test_json_is_preferred_and_text_stands_in_for_a_missing_split(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_image(tmp_path, "5_1_1000_ALL.png", split="test")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [cell(category=2)])
    put_text(tmp_path, "4_1_1000_ALL", "5 .5 .5 .1 .1\n")
    put_text(tmp_path, "5_1_1000_ALL", "5 .5 .5 .1 .1\n", kind="WBC_Detection", split="test")
    index = read(tmp_path)
    assert [(f.released_split, f.labels.tolist()) for f in index] == [("train", [2]), ("test", [5])]


def test_the_setting_labels_forces_the_text_files(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [cell(category=2)])
    put_text(tmp_path, "4_1_1000_ALL", "5 .5 .5 .1 .1\n")
    assert only(read(tmp_path, labels="txt_labels/AttriDet")).labels.tolist() == [5]
    with pytest.raises(DataError, match="no such folder of labels"):
        read(tmp_path, labels="txt_labels/Missing")


def test_folder_names_match_without_regard_to_case(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png", folder="images")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.PNG")], [cell()])
    index = read(tmp_path, domain="h_100x_c2")
    assert len(only(index).boxes) == 1
    assert kinds(index) == {"image_renamed": 1}


def test_repeated_image_entries_are_one_image(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    entries = [image(i, "train/4_1_1000_ALL.png") for i in (1, 2, 3)]
    boxes = [cell(i, box=(i, 1, 9, 9)) for i in (1, 2, 3)]
    put_json(tmp_path, entries, [*boxes, cell(3, box=(3, 1, 9, 9))])
    index = read(tmp_path)
    assert only(index).boxes[:, 0].tolist() == [1, 2, 3]
    assert kinds(index) == {"repeated_image": 2, "duplicate_box": 1}


def test_an_id_that_stands_for_two_files_moves_no_box(tmp_path):
    for name in ("4_1_1000_ALL.png", "4_2_1000_ALL.png"):
        put_image(tmp_path, name)
    put_json(
        tmp_path, [image(1, "4_1_1000_ALL.png"), image(1, "4_2_1000_ALL.png")], [cell(), cell(7)]
    )
    index = read(tmp_path)
    assert sum(len(f.boxes) for f in index) == 0
    found = {f.kind: (f.severity, f.count) for f in index.findings}
    assert found["image_id_conflict"] == ("error", 1)
    assert found["annotation_without_image"] == ("error", 1)


@pytest.mark.parametrize(
    "name", ["Atypical Lymphocyte", "atypicallymphocyte", "ATYPICAL-lymphocyte"]
)
def test_classes_are_matched_by_name_whatever_their_id(tmp_path, name):
    put_image(tmp_path, "4_1_1000_ALL.png")
    categories = [{"id": 11, "name": name}, {"id": 4, "name": "Unidentified"}]
    put_json(
        tmp_path,
        [image(1, "4_1_1000_ALL.png")],
        [cell(category=11), cell(category=4, box=(1, 1, 5, 5), codes=[4] * 7)],
        categories=categories,
    )
    assert only(read(tmp_path)).labels.tolist() == [4, 0]


def test_without_names_ids_are_used_and_that_is_said(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    boxes = [cell(category=c, box=(c, 1, 5, 5)) for c in (14, 3, 15)]
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], boxes, categories=[])
    index = read(tmp_path)
    assert only(index).labels.tolist() == [0, 3]
    assert kinds(index)["class_by_id"] == 2
    assert kinds(index)["unknown_class_id"] == 1


@pytest.mark.parametrize("damaged", [None, 3, [{"name": "basophil"}], [{"id": 1, "name": 5}]])
def test_ids_are_not_trusted_where_the_names_were_lost(tmp_path, damaged):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [cell(), cell()], categories=damaged)
    index = read(tmp_path)
    assert len(only(index).boxes) == 0
    assert kinds(index)["unknown_class_id"] == 2
    assert "class_by_id" not in kinds(index)


def test_an_id_missing_among_named_categories_is_not_guessed(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_json(
        tmp_path, [image(1, "4_1_1000_ALL.png")], [cell(category=5)], categories=CATEGORIES[:3]
    )
    index = read(tmp_path)
    assert only(index).labels.tolist() == []
    assert kinds(index)["unknown_class_id"] == 1


def test_an_unknown_class_name_is_an_error_with_a_suggestion(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_json(
        tmp_path,
        [image(1, "4_1_1000_ALL.png")],
        [cell()],
        categories=[{"id": 1, "name": "Myeloblost"}],
    )
    index = read(tmp_path)
    assert only(index).labels.tolist() == [-1]
    (finding,) = (f for f in index.findings if f.severity == "error")
    assert finding.kind == "unknown_class_name"
    said = "annotation 1: unknown class 'Myeloblost'; did you mean 'myeloblast'?"
    assert finding.examples[0].endswith(said)


def test_a_broken_label_file_of_one_split_does_not_hide_the_other(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_image(tmp_path, "5_1_1000_ALL.png", split="test")
    path = put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [])
    put_json(tmp_path, [image(1, "5_1_1000_ALL.png")], [cell(category=77)], "test")
    path.write_text("{")
    index = read(tmp_path)
    assert [(f.released_split, bool(f.labelled_classes)) for f in index] == [
        ("train", False),
        ("test", True),
    ]
    assert kinds(index) == {"unreadable_label_file": 1, "unknown_class_id": 1}
    assert str(path) in index.findings[0].examples[0]


def test_a_text_file_that_is_none_costs_its_image_only(tmp_path):
    for stem in ("4_1_1000_ALL", "5_1_1000_ALL"):
        put_image(tmp_path, f"{stem}.png")
        put_text(tmp_path, stem, "1 .5 .5 .1 .1\n")
    broken = next(tmp_path.rglob("4_1_1000_ALL.txt"))
    broken.write_bytes(b"\xff\xfe")
    index = read(tmp_path)
    assert [(f.patient, len(f.boxes), bool(f.labelled_classes)) for f in index] == [
        ("4", 0, False),
        ("5", 1, True),
    ]
    assert kinds(index)["unreadable_label_file"] == 1


def test_attributes_out_of_range_are_missing_one_by_one(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    odd = cell(codes=(3, 2, 1, "irregular", "Abundant", 4, None))
    del odd["nuclear_shape"]
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [odd])
    index = read(tmp_path)
    assert only(index).attributes.tolist() == [[-1, -1, -1, -1, 1, -1, -1]]
    assert kinds(index) == {"attribute_out_of_range": 3, "attribute_missing": 1}


def test_attribute_keys_have_aliases(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    box |= {"Cell Size": "large", "nuclear_chromatin": "1", "Nucleus": 1, "Nuclear Shape": 0.0}
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [box])
    assert only(read(tmp_path)).attributes.tolist() == [[2, 1, 0, 1, -1, -1, -1]]


def test_odd_boxes_are_kept_repaired_or_counted(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    boxes = [
        cell(box=(10, 10, 0, 5)),  # zero width
        cell(box=(-4, 40, 10, 20)),  # cut at two edges
        cell(box=(100, 10, 5, 5)),  # outside
        cell(category=1, box=(20, 20, 5, 5)),
        cell(category=2, box=(20, 20, 5, 5)),  # the same with another class
        cell(category=1, box=(20, 20, 5, 5)),  # the same again
    ]
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], boxes)
    index = read(tmp_path)
    f = only(index)
    np.testing.assert_array_equal(f.boxes, [[0, 40, 6, 48], [20, 20, 25, 25], [20, 20, 25, 25]])
    assert f.labels.tolist() == [1, 1, 2]
    assert kinds(index) == {
        "box_outside": 1,
        "duplicate_box": 1,
        "box_with_two_classes": 1,
        "empty_box": 1,
        "box_clipped": 1,
    }
    assert [f.severity for f in index.findings][:2] == ["error", "warning"]


def test_one_box_of_two_classes_is_one_white_cell(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], [cell(category=1), cell(category=2)])
    assert only(read(tmp_path, space=WBC)).labels.tolist() == [0]


def test_missing_images_and_unlabelled_images_are_counted(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_image(tmp_path, "4_9_1000_ALL.png")
    names = ["4_1_1000_ALL.png", *(f"4_{n}_1000_ALL.png" for n in range(10, 20))]
    put_json(tmp_path, [image(i, n) for i, n in enumerate(names)], [])
    index = read(tmp_path)
    assert len(index) == 1
    missing = next(f for f in index.findings if f.kind == "missing_image")
    assert (missing.severity, missing.count, len(missing.examples)) == ("error", 10, 5)
    assert "4_10_1000_ALL.png" in missing.examples[0]
    assert kinds(index)["image_not_in_labels"] == 1


def test_a_missing_diagnosis_and_a_missing_patient_are_reported(tmp_path):
    put_image(tmp_path, "4_1_1000.png")
    put_image(tmp_path, "blood.png")
    put_json(tmp_path, [image(1, "4_1_1000.png"), image(2, "blood.png")], [])
    index = read(tmp_path)
    assert kinds(index) == {"patient_unknown": 1, "diagnosis_missing": 1}
    assert [f.patient for f in index] == ["4", ""]
    named = read(tmp_path, patient_pattern=r"^(?P<patient>[a-z]+|\d+)")
    assert [f.patient for f in named] == ["4", "blood"]


def test_one_field_twice_keeps_two_identities(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    put_image(tmp_path, "4_1_1000.png")
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png"), image(2, "4_1_1000.png")], [])
    index = read(tmp_path)
    assert len({f.key for f in index}) == 2
    assert kinds(index)["field_name_repeated"] == 1


def test_zipped_labels_leave_the_images_unlabelled_and_are_an_error(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    with zipfile.ZipFile(tmp_path / DOMAIN / "labels.zip", "w") as archive:
        archive.writestr("json_labels/train.json", "{}")
    index = read(tmp_path)
    assert only(index).labelled_classes == ()
    finding = next(f for f in index.findings if f.kind == "zipped_labels")
    assert finding.severity == "error"
    assert "labels.zip" in finding.examples[0]


def test_images_without_any_labels_are_an_unlabelled_domain(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    index = read(tmp_path)
    assert only(index).labelled_classes == ()
    assert kinds(index) == {"no_labels": 1}


def test_the_empty_domain_of_the_release_is_empty_not_fatal(tmp_path):
    (tmp_path / "L_10X_C1").mkdir()
    index = read(tmp_path, domain="L_10X_C1")
    assert len(index) == 0
    assert kinds(index) == {"empty_domain": 1}


def test_a_misspelt_domain_gets_a_suggestion(tmp_path):
    (tmp_path / DOMAIN).mkdir()
    with pytest.raises(DataError, match="did you mean 'H_100X_C2'"):
        read(tmp_path, domain="H_100_C2")


def test_domains_are_listed_and_other_folders_not(tmp_path):
    for name in ("L_10X_C1", DOMAIN, "H_20X_C1", "docs"):
        (tmp_path / name).mkdir()
    assert list_domains(tmp_path, "leukemiaattri") == [DOMAIN, "L_10X_C1"]
    assert list_domains(tmp_path / "nowhere", "leukemiaattri") == []


def test_other_label_spaces_read_the_same_boxes(tmp_path):
    put_image(tmp_path, "4_1_1000_ALL.png")
    boxes = [cell(category=c, box=(c, c, 9, 9)) for c in (1, 3, 14)]
    put_json(tmp_path, [image(1, "4_1_1000_ALL.png")], boxes)
    assert only(read(tmp_path, space=WBC)).labels.tolist() == [0, 0]
    assert only(read(tmp_path, space=LINEAGE)).labels.tolist() == [0, 2]
    coarse = read(tmp_path, space=WBC5)
    assert only(coarse).labels.tolist() == [-1, 0]
    assert kinds(coarse)["unknown_cell_type"] == 1
    assert kinds(coarse)["not_in_label_space"] == 1


def test_unknown_formats_and_patterns_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        read_domain(DomainSource("a", tmp_path), "cocco", WBC)
    put_image(tmp_path, "4_1_1000_ALL.png")
    with pytest.raises(ConfigError, match="a group named patient"):
        read(tmp_path, patient_pattern="x")
    with pytest.raises(ConfigError, match="is no pattern"):
        read(tmp_path, patient_pattern="(")


def test_a_simulated_data_set_is_read_back_without_an_error(tmp_path):
    simulate = pytest.importorskip("da_leukemia.simulate").simulate
    root = tmp_path / "sim"
    simulate(root, domains=["H_100X_C2", "L_40X_C1"], patients=3, fields_per_patient=2, seed=0)
    assert list_domains(root, "leukemiaattri") == ["H_100X_C2", "L_40X_C1"]
    for domain in list_domains(root, "leukemiaattri"):
        by_json = read(root, domain=domain)
        by_text = read(root, domain=domain, labels="txt_labels/AttriDet")
        assert len(by_json) == len(by_text) == 6
        assert by_json.findings == ()
        assert not [f for f in by_text.findings if f.severity == "error"]
        text = {f.key: f for f in by_text}
        for f in by_json:
            g = text[f.key]
            np.testing.assert_array_equal(f.labels, g.labels)
            np.testing.assert_array_equal(f.attributes, g.attributes)
            # Three decimals of 640 px: half a unit for the centre and half of that for the side.
            np.testing.assert_allclose(f.boxes, g.boxes, atol=0.5)


def test_a_label_space_that_grades_cell_size_otherwise_takes_no_sizes(tmp_path):
    put_image(tmp_path, "4_12_1000_ALL.png")
    put_image(tmp_path, "4_13_1000_ALL.png", "test")
    put_json(tmp_path, [image(1, "4_12_1000_ALL.png")], [cell()])
    put_text(tmp_path, "4_13_1000_ALL", "3 .5 .5 .2 .2 1 0 1 1 1 0 0\n", split="test")
    index = read(tmp_path, WBCATT)
    assert [f.attributes.tolist() for f in index] == [[[-1] * 11]] * 2


def test_classes_that_are_not_declared_are_cells_of_unknown_type(tmp_path):
    put_image(tmp_path, "4_12_1000_ALL.png")
    boxes = [cell(), cell(category=3, box=(30, 10, 8, 6))]
    put_json(tmp_path, [image(1, "4_12_1000_ALL.png")], boxes)
    index = read(tmp_path, classes=("neutrophil",))
    assert only(index).labels.tolist() == [-1, 3]
    assert kinds(index) == {"class_not_declared": 1}
