"""A folder with YOLO labels is read in any of its usual layouts, never with shifted classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, detect_format, list_domains, read_domain
from da_leukemia.errors import DataError
from da_leukemia.labels import WBC, WBC5

ROW = "0 0.5 0.5 0.25 0.5\n"
BOX = [[24, 12, 40, 36]]


def put(root: Path, images: str, labels: str, stem="a", text: str | None = ROW, suffix=".png"):
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (9, 9, len(stem))).save(root / images / f"{stem}{suffix}")
    if text is not None:
        (root / labels / f"{stem}.txt").write_text(text)


def read(root: Path, space=WBC, domain="phone", **kwargs) -> FieldIndex:
    return read_domain(DomainSource(domain, root, **kwargs), "yolo", space)


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings if f.kind != "no_patient"}


@pytest.mark.parametrize(
    ("images", "labels", "splits"),
    [
        ("images/{}", "labels/{}", True),
        ("{}/images", "{}/labels", True),
        ("{}", "{}", True),
        ("Images/{}", "Labels/{}", True),
        ("images/{}", "images/{}", True),
        ("images", "labels", False),
        (".", ".", False),
    ],
)
def test_every_usual_layout_is_read(tmp_path, images, labels, splits):
    root = tmp_path / "data"
    for part in ("train", "val", "test"):
        put(root, images.format(part), labels.format(part), stem=f"x_{part}")
    (root / "data.yaml").write_text("nc: 3\nnames: ['WBC', 'RBC','Platelets']\n")
    (root / "train.txt").write_text("images/train/x_train.png\n")
    index = read(root)
    assert kinds(index) == {}
    assert [f.boxes.tolist() for f in index] == [BOX] * 3
    assert [f.labels.tolist() for f in index] == [[0]] * 3
    assert {f.name for f in index} == {"x_train", "x_val", "x_test"}
    found = {f.name: f.released_split for f in index}
    expected = {"x_train": "train", "x_val": "train", "x_test": "test"}
    assert found == (expected if splits else dict.fromkeys(expected, ""))
    assert list_domains(root, "yolo") == [root.name]
    assert detect_format(root) == "yolo"
    assert detect_format(tmp_path) == "yolo"


def test_validation_is_the_test_where_there_is_no_other(tmp_path):
    put(tmp_path, "train/images", "train/labels", "a")
    put(tmp_path, "valid/images", "valid/labels", "b")
    index = read(tmp_path, classes=("wbc",))
    assert [f.released_split for f in index] == ["train", "test"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "names:\n  0: RBC\n  1: neutrophil\n"),
        ("data.yaml", "names: [RBC, neutrophil]"),
        ("classes.txt", "RBC\nneutrophil\n\n"),
        ("obj.names", "RBC\r\nneutrophil"),
        ("labels/classes.txt", "RBC\nneutrophil\n"),
    ],
)
def test_class_names_are_found(tmp_path, name, text):
    put(tmp_path, "images", "labels", text="1 .5 .5 .1 .1\n0 .5 .5 .2 .2\n")
    (tmp_path / name).write_text(text)
    index = read(tmp_path, WBC5)
    assert index.fields[0].labels.tolist() == [0]
    assert kinds(index) == {"not_in_label_space": 1}


def test_without_class_names_the_message_says_how_to_give_them(tmp_path):
    put(tmp_path, "images", "labels")
    with pytest.raises(DataError, match=r"classes\.txt.*data\.domains\.phone\.classes"):
        read(tmp_path)
    index = read(tmp_path, WBC5, classes=("eosinophil", "basophil"))
    assert index.fields[0].labels.tolist() == [3]
    assert index.fields[0].labelled_classes == (3, 4)
    assert detect_format(tmp_path) == "yolo"
    for note in ("a film of", "0 .5 .5", "0 1.5 .5 .2 .2"):
        (tmp_path / "labels/a.txt").write_text(note)
        assert detect_format(tmp_path) == "images"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classes.txt": "dog\nWBC", "data.yaml": "names: [WBC]"}, "other class names than"),
        ({"data.yaml": "nc: 2\nnames: [WBC]"}, "nc says 2"),
        ({"data.yaml": "names: {0: WBC, 0: RBC}"}, "'0' comes twice"),
        ({"data.yaml": "names: [NO, WBC]"}, "in quotes"),
        ({"data.yaml": "names: [WBC"}, "cannot be read as YAML.*line 1"),
    ],
)
def test_doubtful_class_names_are_refused(tmp_path, files, message):
    put(tmp_path, "images", "labels")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_an_empty_text_file_says_no_cells_and_a_missing_one_says_nothing(tmp_path):
    put(tmp_path, "images", "labels", "a")
    put(tmp_path, "images", "labels", "b", text="")
    put(tmp_path, "images", "labels", "c", text=None)
    put(tmp_path, "images", "labels", "d")
    put(tmp_path, "images", "labels", "A", text=None, suffix=".jpg")
    (tmp_path / "images/d.png").unlink()
    index = read(tmp_path, classes=("wbc",))
    assert [len(f.boxes) for f in index] in ([1, 0], [0, 1])
    assert kinds(index) == {"missing_image": 1, "image_not_in_labels": 2}


def test_rows_that_are_no_box_are_counted_with_their_line(tmp_path):
    rows = ["0 .5 .5 .1", "0 .1 .1 .2 .2 .3 .3", "7 .5 .5 .1 .1", "0 .5 x .1 .1", "0 .5 .5 .1 1_0"]
    rows += ["0 1.2 1.2 .1 .1", "0 3 3 .1 .1"]
    put(tmp_path, "images", "labels", text="\n".join([*rows, ROW]))
    index = read(tmp_path, classes=("wbc",))
    assert index.fields[0].boxes.tolist() == BOX
    assert kinds(index) == {
        "unreadable_record": 4,
        "unknown_class_id": 1,
        "box_outside": 1,
        "box_units": 1,
    }
    examples = next(f.examples for f in index.findings if f.kind == "unreadable_record")
    assert examples[1] == "labels/a.txt: line 2: 7 columns, not 5 (an outline?)"
    assert examples[2].startswith("labels/a.txt: line 4: column 6: 'x'")


def test_every_damaged_file_is_named_at_once(tmp_path):
    put(tmp_path, "images", "labels", "a", text="0 nan .5 .1 .1\n0 .5 .5 .1 .1\n")
    for stem in "bc":
        put(tmp_path, "images", "labels", stem)
        (tmp_path / f"labels/{stem}.txt").write_bytes(b"PK\x03\x04")
    index = read(tmp_path, classes=("wbc",))
    assert [(f.image.stem, bool(f.labelled_classes)) for f in index] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    assert kinds(index) == {"unreadable_label_file": 2, "unreadable_record": 1}
    assert "labels/c.txt: the file is a zip archive" in index.findings[0].examples[1]
    assert index.findings[1].examples[0].startswith("labels/a.txt: line 1: column 3: 'nan'")


def test_a_class_that_nobody_knows_is_an_error_with_its_first_place(tmp_path):
    put(tmp_path, "images", "labels", text=ROW * 3)
    (tmp_path / "data.yaml").write_text("names: [Neutrofil]")
    index = read(tmp_path)
    assert index.fields[0].labels.tolist() == [-1]
    said = "labels/a.txt: line 1: unknown class 'Neutrofil'; did you mean 'neutrophil'?"
    assert index.findings[0].examples == (said,)
    assert (index.findings[0].severity, kinds(index)["unknown_class_name"]) == ("error", 3)


def test_images_without_any_label_can_be_adapted_to(tmp_path):
    put(tmp_path, "images", "images", text=None)
    (tmp_path / "labels.zip").write_bytes(b"PK\x03\x04")
    index = read(tmp_path)
    assert (len(index), index.fields[0].labelled_classes) == (1, ())
    assert kinds(index) == {"no_labels": 1, "zipped_labels": 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no such folder.*data\.domains\.phone\.root"):
        read(tmp_path / "nowhere")


def test_the_label_folder_can_be_named(tmp_path):
    put(tmp_path, "images", "labels_v2")
    assert read(tmp_path, labels="labels_v2", classes=("wbc",)).fields[0].boxes.tolist() == BOX
    with pytest.raises(DataError, match=r"no such folder of labels.*annotations"):
        read(tmp_path, labels="v3")
