"""Pascal VOC folders, BCCD among them, are read to the pixel and their defects are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, detect_format, list_domains, read_domain
from da_leukemia.data.readers.m5 import field_name
from da_leukemia.errors import DataError
from da_leukemia.labels import M5, WBC, WBC5


def item(name="WBC", box=(11, 11, 18, 16)) -> str:
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def put(
    root: Path,
    stem="a",
    objects: str | None = None,
    size: tuple[int, int] | None = (64, 48),
    images="JPEGImages",
    labels="Annotations",
    file_name: str | None = None,
):
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (len(stem), 9, 9)).save(root / images / f"{stem}.png")
    told = "" if size is None else f"<width>{size[0]}</width><height>{size[1]}</height>"
    path = root / labels / f"{stem}.xml"
    path.write_text(
        f"<annotation>\n<filename>{file_name or f'{stem}.png'}</filename>\n<size>{told}</size>\n"
        f"{item() if objects is None else objects}\n</annotation>"
    )
    return path


def read(root: Path, space=WBC, fmt="voc", domain="scope", **kwargs) -> FieldIndex:
    return read_domain(DomainSource(domain, root, **kwargs), fmt, space)


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings if f.kind != "no_patient"}


def test_pixels_are_counted_from_one_and_the_last_is_included(tmp_path):
    put(tmp_path, objects=item(box=(1, 1, 64, 48)) + item(box=(11, 11, 18, 16)))
    index = read(tmp_path)
    assert index.fields[0].boxes.tolist() == [[0, 0, 64, 48], [10, 10, 18, 16]]
    assert kinds(index) == {}


def test_a_corner_at_zero_stays_and_is_reported(tmp_path):
    put(tmp_path, objects=item(box=(0, 5, 64, 48)))
    index = read(tmp_path)
    assert index.fields[0].boxes.tolist() == [[0, 4, 64, 48]]
    assert kinds(index) == {"voc_from_zero": 1}


def test_boxes_beyond_the_border_are_cut_or_counted(tmp_path):
    boxes = [(60, 40, 70, 50), (70, 1, 80, 9), (9, 9, 8, 12), (20, 20, 20, 20)]
    put(tmp_path, objects="".join(item(box=b) for b in boxes))
    index = read(tmp_path)
    assert index.fields[0].boxes.tolist() == [[59, 39, 64, 48], [19, 19, 20, 20]]
    assert kinds(index) == {"box_clipped": 1, "box_outside": 1, "empty_box": 1}


@pytest.mark.parametrize(
    ("size", "box", "expected", "found"),
    [
        ((0, 0), (1, 1, 64, 48), (64, 48), {"size_wrong_in_labels": 1}),
        (None, (1, 1, 9, 9), (64, 48), {"size_wrong_in_labels": 1}),
        ((32, 24), (1, 1, 64, 48), (64, 48), {"size_wrong_in_labels": 1}),
        ((32, 24), (1, 1, 30, 20), (32, 24), {}),  # `data check` calls it size_mismatch
        ((128, 96), (1, 1, 90, 20), (128, 96), {}),
    ],
)
def test_a_wrong_size_is_seen(tmp_path, size, box, expected, found):
    put(tmp_path, size=size, objects=item(box=box))
    index = read(tmp_path)
    assert (index.fields[0].width, index.fields[0].height) == expected
    assert kinds(index) == found


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("JPEGImages/{}", "Annotations/{}"),
        ("{}/images", "{}/annotations"),
        ("{}", "{}"),
        ("Images", "Images"),
        (".", "."),
        (".", "Annotations"),
    ],
)
def test_every_usual_layout_is_read(tmp_path, images, labels):
    root = tmp_path / "data"
    for part in ("train", "test"):
        put(root, part + "1", images=images.format(part), labels=labels.format(part))
    index = read(root)
    assert [f.boxes.tolist() for f in index] == [[[10, 10, 18, 16]]] * 2
    assert kinds(index) == {}
    if "{}" in images:
        assert {f.name: f.released_split for f in index} == {"train1": "train", "test1": "test"}
    assert detect_format(root) == "voc"
    assert list_domains(root, "voc") == [root.name]
    assert list_domains(tmp_path, "voc") == [root.name]


def test_image_sets_give_the_released_split(tmp_path):
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for part in ("train", "val", "test"):
        put(tmp_path, part + "1")
        (sets / f"{part}.txt").write_text(f"{part}1\n")
    (sets / "trainval.txt").write_text("train1\nval1\n")
    found = {f.name: f.released_split for f in read(tmp_path)}
    assert found == {"train1": "train", "val1": "train", "test1": "test"}


def test_missing_renamed_and_unlisted_images_are_counted(tmp_path):
    put(tmp_path, "a", file_name="old.jpg")
    put(tmp_path, "b")
    (tmp_path / "JPEGImages/b.png").rename(tmp_path / "JPEGImages/c.png")
    put(tmp_path, "d", file_name="c.png")
    (tmp_path / "JPEGImages/d.png").unlink()
    put(tmp_path, "e")
    (tmp_path / "JPEGImages/e.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages/f.png")
    index = read(tmp_path)
    assert {f.name for f in index} == {"a", "c"}
    assert kinds(index) == {
        "missing_image": 1,
        "image_renamed": 1,
        "unreadable_image": 1,
        "image_not_in_labels": 1,
    }


def test_two_label_files_of_one_image_are_put_together(tmp_path):
    put(tmp_path, "a")
    put(
        tmp_path, "b", file_name="a.png", objects=item("RBC", (1, 1, 4, 4)) + item(box=(1, 1, 9, 9))
    )
    (tmp_path / "JPEGImages/b.png").unlink()
    index = read(tmp_path)
    assert index.fields[0].boxes.tolist() == [[10, 10, 18, 16], [0, 0, 9, 9]]
    assert kinds(index) == {"repeated_image": 1, "not_in_label_space": 1}


@pytest.mark.parametrize(
    "broken",
    [
        "<object><name>WBC</name></object>",
        item("WBC", (1, 1, "x", 9)),
        item(""),
        item().replace("</bndbox>", "<xmin>3</xmin></bndbox>"),
        item().replace("<bndbox>", "<bndbox></bndbox><bndbox>"),
        "<bndbox><xmin>1</xmin></bndbox>",
    ],
)
def test_an_object_that_cannot_be_used_is_counted(tmp_path, broken):
    put(tmp_path, objects=item() + broken)
    index = read(tmp_path)
    assert index.fields[0].boxes.tolist() == [[10, 10, 18, 16]]
    assert kinds(index) == {"unreadable_record": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", r"a\.xml: line 5, column 1: no XML"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "entities"),
    ],
)
def test_a_damaged_file_is_named_with_its_place(tmp_path, old, new, message):
    path = put(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    index = read(tmp_path, WBC5)
    assert [(len(f.boxes), f.labelled_classes) for f in index] == [(0, ())]
    assert re.search(message, index.findings[0].examples[0])
    assert {k for k in kinds(index) if k != "no_patient"} == {"unreadable_label_file"}


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        (">11<", ">NaN<", "unreadable_record", "xmin 'NaN' is no pixel number"),
        (">18<", ">9e9<", "unreadable_record", "xmax '9e9' is no pixel number"),
        ("<name>WBC</name>", "", "unreadable_record", "needs one name"),
        ("WBC", "Neutrofil", "unknown_class_name", "unknown class 'Neutrofil'; did you mean"),
        ("</annotation>", "", "unreadable_label_file", "line 5, column 1: no XML"),
    ],
)
def test_a_fault_is_counted_and_leaves_the_other_files_alone(tmp_path, old, new, kind, said):
    path = put(tmp_path)
    put(tmp_path, "b")
    path.write_text(path.read_text().replace(old, new, 1))
    index = read(tmp_path, WBC5)
    (finding,) = (f for f in index.findings if f.severity == "error")
    assert (finding.kind, finding.count) == (kind, 1)
    file = f"{path}: " if kind == "unreadable_label_file" else "Annotations/a.xml: object 1: "
    assert finding.examples[0].startswith(file + said)
    assert len(index.fields[-1].boxes) == 1
    assert "image_not_in_labels" not in kinds(index)


def test_the_image_of_a_broken_file_is_unlabelled(tmp_path):
    path = put(tmp_path)
    put(tmp_path, "b")
    path.write_text(path.read_text()[:-5])
    assert [f.labelled_classes for f in read(tmp_path)] == [(), (0,)]


def test_the_labels_can_be_named_or_are_asked_for(tmp_path):
    put(tmp_path, labels="boxes/second")
    assert len(read(tmp_path, labels="boxes/second")) == 1
    with pytest.raises(DataError, match=r"no xml files.*annotations"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such folder of labels"):
        read(tmp_path, labels="boxes/third")
    assert detect_format(tmp_path) == "images"


def test_white_cells_of_bccd_can_come_from_the_name_of_the_patient(tmp_path):
    put(tmp_path, "K7_1")
    index = read(tmp_path, patient_pattern=r"^(?P<patient>K\d+)_")
    assert (index.fields[0].patient, index.findings) == ("K7", ())


def put_m5(root: Path, stems=("12_3",), annotations=False):
    for scope in ("HCM", "LCM"):
        for power in ("1000x", "400x", "100x"):
            for stem in stems:
                inner = f"{scope}/{power}/train"
                place = f"Images/{inner}"
                labels = f"Annotations/{inner}" if annotations else place
                put(root, stem, item("Ring"), images=place, labels=labels)


@pytest.mark.parametrize("annotations", [False, True])
def test_m5_is_six_devices_that_saw_the_same_fields(tmp_path, annotations):
    put_m5(tmp_path, annotations=annotations)
    names = ["HCM_1000x", "HCM_100x", "HCM_400x", "LCM_1000x", "LCM_100x", "LCM_400x"]
    assert list_domains(tmp_path, "m5") == names
    assert detect_format(tmp_path) == "m5"
    keys = set()
    for name in names:
        index = read(tmp_path, M5, "m5", name)
        (f,) = index.fields
        assert f.labels.tolist() == [3]
        assert f.attributes.shape == (1, 0)
        assert (f.domain, f.released_split) == (name, "train")
        assert kinds(index) == {"patient_is_field": 1}
        keys.add((f.patient, f.name, f.group))
    assert keys == {("12_3", "12_3", "patient:12_3")}
    assert read(tmp_path, WBC, "m5", "HCM_1000x").fields[0].labelled_classes == ()


def test_a_patient_in_m5_file_names_goes_before_the_field(tmp_path):
    put_m5(tmp_path, ("12_3", "12_4"))
    index = read(tmp_path, M5, "m5", "LCM_400x", patient_pattern=r"^(?P<patient>\d+)_")
    assert [(f.patient, f.name) for f in index] == [("12", "12_3"), ("12", "12_4")]
    assert kinds(index) == {}
    with pytest.raises(DataError, match="did you mean 'HCM_400x'"):
        read(tmp_path, M5, "m5", "HCM_40x")


def test_a_device_of_m5_without_labels_can_be_adapted_to(tmp_path):
    put_m5(tmp_path, ("12_3", "12_4"))
    for path in (tmp_path / "Images/LCM/100x").rglob("*.xml"):
        path.unlink()
    (tmp_path / "Images/LCM/100x/train/12_4.png").write_text("no image")
    index = read(tmp_path, M5, "m5", "LCM_100x")
    assert [(f.name, f.labelled_classes) for f in index] == [("12_3", ())]
    assert kinds(index) == {"no_labels": 1, "patient_is_field": 1, "unreadable_image": 1}


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("P3_17", "P3_17"),
        ("P3_17_HCM_1000x", "P3_17"),
        ("lcm-400X-0007", "0007"),
        ("1000x", "1000x"),
        ("1000xyz", "1000xyz"),
    ],
)
def test_words_for_the_device_are_no_part_of_a_field_s_name(stem, expected):
    assert field_name(stem) == expected
