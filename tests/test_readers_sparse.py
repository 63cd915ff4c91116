"""Sparse-LeukemiaAttri: the annotated patch is read in the order that the boxes prove."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, detect_format, list_domains, read_domain
from da_leukemia.errors import ConfigError, DataError
from da_leukemia.labels import LEUKEMIAATTRI, M5, WBC

DOMAIN = "H_40X_C2"
CODES = "2 0 1 1 1 1 0"


def row(cls=6, centre=(0.5, 0.5), size=(0.125, 0.25), patch=(16, 12, 60, 40), codes=CODES) -> str:
    return " ".join(map(str, (cls, *centre, *size, *patch, codes)))


def put(root: Path, stem: str, *rows: str, part="train", yolo=False) -> Path:
    images = root / DOMAIN / "Images" / part
    labels = root / DOMAIN / ("labels" if yolo else "txt_labels/AttriDet") / part
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (5, len(stem), 5)).save(images / f"{stem}.png")
    path = labels / f"{stem}.txt"
    path.write_text("\n".join(rows))
    return path


def read(root: Path, space=LEUKEMIAATTRI, **kwargs) -> FieldIndex:
    return read_domain(DomainSource(DOMAIN, root, **kwargs), "sparse", space)


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings if f.kind != "class_by_id"}


def told(index: FieldIndex) -> str:
    return next(f.examples[0] for f in index.findings if f.kind == "patch_order")


@pytest.mark.parametrize("yolo", [False, True])
def test_a_patch_is_the_annotated_region_and_attributes_are_not_shifted(tmp_path, yolo):
    put(tmp_path, "4_12_1_400_ALL", row(), row(0, (0.6, 0.6), codes="2 2 2 2 2 2 2"), yolo=yolo)
    put(tmp_path, "5_1_1_400_AML", row(3, codes="0 1 1 1 1 0"), yolo=yolo)
    index = read(tmp_path)
    f, g = index.fields
    assert f.annotated_regions == ((16, 12, 60, 40),)
    assert f.labels.tolist() == [6, 0]
    assert f.boxes[0].tolist() == [28, 18, 36, 30]
    assert f.attributes.tolist() == [[2, 0, 1, 1, 1, 1, 0], [-1] * 7]
    assert g.attributes.tolist() == [[-1, 0, 1, 1, 1, 1, 0]]
    assert (f.patient, f.name, f.released_split) == ("4", "12_1", "train")
    assert f.labelled_classes == tuple(range(14))
    assert kinds(index) == {"patch_order": 1, "attribute_missing": 1}
    assert "x1y1x2y2 (x1y1x2y2 fits 3 of 3 rows, x1x2y1y2 fits 0 of 3 rows)" in told(index)


def test_the_other_order_is_found_from_the_boxes(tmp_path):
    put(tmp_path, "4_12_1_400_ALL", row(patch=(16, 60, 12, 40)))
    index = read(tmp_path)
    assert index.fields[0].annotated_regions == ((16, 12, 60, 40),)
    assert ": x1x2y1y2 (" in told(index)


def test_the_order_is_one_for_the_data_set_and_can_be_forced(tmp_path):
    both = (10, 20, 40, 44)  # ordered either way
    put(tmp_path, "1_1_1_400_ALL", row(patch=(16, 12, 60, 40)))
    put(tmp_path, "2_1_1_400_ALL", row(centre=(0.3, 0.5), patch=both))
    index = read(tmp_path)
    assert [f.annotated_regions for f in index] == [((16, 12, 60, 40),), (both,)]
    index = read(tmp_path, patch_order="x1x2y1y2")
    assert [f.annotated_regions for f in index] == [((10, 40, 20, 44),)]
    assert kinds(index)["patch_unusable"] == 1
    assert "forced" in told(index)
    with pytest.raises(ConfigError, match=r"H_40X_C2\.patch_order.*did you mean 'x1y1x2y2'"):
        read(tmp_path, patch_order="x1y1x2")


def test_an_order_that_cannot_be_found_is_asked_for(tmp_path):
    put(tmp_path, "1_1_1_400_ALL", row(patch=(0, 0, 0, 0)))
    with pytest.raises(DataError, match=r"cannot be found.*fits 0 of 1.*H_40X_C2\.patch_order"):
        read(tmp_path)


def test_boxes_in_pixels_are_counted_and_tell_no_order(tmp_path):
    put(tmp_path, "1_1_1_400_ALL", row(centre=(32, 24), size=(8, 9)), row(centre=(40, 24)))
    index = read(tmp_path)
    assert [(f.annotated_regions, len(f.boxes)) for f in index] == [(((16, 12, 60, 40),), 0)]
    assert kinds(index)["box_units"] == 2
    assert "patch_order" not in kinds(index)


@pytest.mark.parametrize("order", ["auto", "x1x2y1y2"])
def test_a_patch_in_shares_of_the_image_is_said_and_left_out(tmp_path, order):
    shares = (0.25, 0.3, 0.9, 1.0)
    put(tmp_path, "1_1_1_400_ALL", row(patch=shares), row(0, (0.6, 0.6), patch=shares))
    index = read(tmp_path, patch_order=order)
    (finding,) = (f for f in index.findings if f.severity == "error")
    assert (finding.kind, finding.count, len(index)) == ("patch_units", 2, 0)
    assert "shares of the image (0 to 1); pixels expected" in finding.message
    assert finding.examples[0].endswith(
        "train/1_1_1_400_ALL.txt: line 1: columns 6 to 9: 0.25, 0.3, 0.9, 1 in 64 x 48"
    )
    assert "box_outside_patch" not in kinds(index)
    # One such file among sound ones neither hides nor decides how the others are read.
    put(tmp_path, "2_1_1_400_ALL", row(patch=(16, 60, 12, 40)))
    index = read(tmp_path)
    assert [f.annotated_regions for f in index] == [((16, 12, 60, 40),)]
    assert "x1x2y1y2 fits 1 of 1 row" in told(index)


def test_patch_columns_of_test_images_mean_nothing(tmp_path):
    put(tmp_path, "1_1_1_400_ALL", row(patch=(9, 9, 1, 1)), row(patch=(0, 0, 0, 0)), part="test")
    put(tmp_path, "2_1_1_400_ALL", part="test")
    index = read(tmp_path)
    assert [f.annotated_regions for f in index] == [None, None]
    assert [len(f.boxes) for f in index] == [1, 0]
    assert kinds(index) == {"duplicate_box": 1}


def test_what_is_wrong_with_patches_is_counted(tmp_path):
    for n in range(4):
        put(tmp_path, f"{n}_1_1_400_ALL", row())
    put(tmp_path, "5_1_1_400_ALL", row(patch=(100, 100, 120, 120)), row(patch=(100, 100, 120, 120)))
    put(tmp_path, "6_1_1_400_ALL", row(patch=(16, 12, 90, 40)))
    put(
        tmp_path,
        "7_1_1_400_ALL",
        row(),
        row(centre=(0.1, 0.1), size=(0.1, 0.1)),
        row(patch=(0, 0, 9, 9)),
    )
    put(tmp_path, "8_1_1_400_ALL")
    put(tmp_path, "9_1_1_400_ALL", row(patch=(32, 12, 32.4, 40)))  # less than a pixel wide
    index = read(tmp_path)
    assert {f.patient for f in index} == {"0", "1", "2", "3", "6", "7"}
    assert {f.patient: f.annotated_regions for f in index}["6"] == ((16, 12, 64, 40),)
    assert kinds(index) == {
        "patch_order": 1,
        "patch_unusable": 3,
        "several_patches": 1,
        "patch_clipped": 1,
        "patch_missing": 1,
        "box_outside_patch": 1,
        "duplicate_box": 1,
    }


def test_rows_of_other_kinds_are_counted(tmp_path):
    put(tmp_path, "1_1_1_400_ALL", row(), "6 .5 .5 .1 .1 2 0 1 1 1 1 0", row(77), row(6.5))
    index = read(tmp_path)
    assert len(index.fields[0].boxes) == 1
    assert kinds(index) == {"patch_order": 1, "unreadable_record": 1, "unknown_class_id": 2}


def test_names_and_other_label_spaces(tmp_path):
    put(tmp_path, "4_12_1_400", row(), row(0, (0.6, 0.6)))
    put(tmp_path, "film", row())
    index = read(tmp_path, WBC)
    assert [f.labels.tolist() for f in index] == [[0], [0]]
    found = kinds(index)
    assert (found["patient_unknown"], found["diagnosis_missing"]) == (1, 1)
    assert read(tmp_path, M5).fields[0].labelled_classes == ()
    full = read_domain(DomainSource(DOMAIN, tmp_path), "leukemiaattri", M5)
    assert full.fields[0].labelled_classes == ()


def test_the_format_is_recognised_by_its_columns(tmp_path):
    path = put(tmp_path, "1_1_1_400_ALL", row())
    assert list_domains(tmp_path, "sparse") == [DOMAIN]
    assert detect_format(tmp_path) == "sparse"
    path.write_text("6 .5 .5 .1 .1 2 0 1 1 1 1 0")
    assert list_domains(tmp_path, "sparse") == []
    assert detect_format(tmp_path) == "leukemiaattri"


def test_missing_folders_and_archives_are_told(tmp_path):
    put(tmp_path, "1_1_1_400_ALL", row()).unlink()
    (tmp_path / DOMAIN / "txt_labels.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack the archive"):
        read(tmp_path)
    put(tmp_path, "2_1_1_400_ALL", "6 nan .5 .1 .1 1 1 1 1 1 1 1 1 1 1 1")
    index = read(tmp_path)
    (finding,) = (f for f in index.findings if f.severity == "error")
    assert finding.kind == "unreadable_record"
    assert finding.examples[0].endswith("ALL.txt: line 1: column 3: 'nan' is no coordinate or code")
