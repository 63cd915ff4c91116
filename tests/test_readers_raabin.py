"""Raabin-WBC: one JSON file per image, two microscopes, one folder per film."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource, detect_format, list_domains, read_domain
from da_leukemia.errors import DataError
from da_leukemia.labels import WBC, WBC5


def cell(label="Neutrophil", box=(10, 20, 8, 18), **extra):
    x1, x2, y1, y2 = box
    return {
        "x1": str(x1),
        "x2": str(x2),
        "y1": y1,
        "y2": y2,
        "Label1": "?",
        "Label2": label,
    } | extra


def put(root: Path, content, image="zeiss/film_7/a.jpg", labels: str | None = None) -> Path:
    path = root / (labels or str(Path(image).with_suffix(".json")))
    for place in (root / image, path):
        place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (1, 2, len(image))).save(root / image)
    cells = (
        content if isinstance(content, dict) else {f"Cell_{i}": c for i, c in enumerate(content)}
    )
    path.write_text(json.dumps(cells))
    return path


def read(root: Path, space=WBC5, domain="zeiss") -> FieldIndex:
    return read_domain(DomainSource(domain, root), "raabin", space)


def kinds(index: FieldIndex) -> dict[str, int]:
    return {f.kind: f.count for f in index.findings}


def test_both_microscopes_are_domains_and_films_are_held_together(tmp_path):
    put(tmp_path, {"Cell Numbers": "2", "Cell_0": cell(), "Cell_1": cell("Small Lymph")})
    put(tmp_path, [cell("Eosinophil")], "olympus/film_2/images/b.png", "olympus/film_2/json/b.json")
    assert list_domains(tmp_path, "raabin") == ["olympus", "zeiss"]
    assert detect_format(tmp_path) == "raabin"
    index = read(tmp_path)
    (f,) = index.fields
    assert f.boxes.tolist() == [[10, 8, 20, 18]] * 2
    assert f.labels.tolist() == [0, 1]
    assert (f.patient, f.name, f.width, f.height) == ("film_7", "a", 64, 48)
    assert kinds(index) == {"box_with_two_classes": 1}
    index = read(tmp_path, domain="olympus")
    assert (index.fields[0].patient, index.findings) == ("film_2", ())
    assert list_domains(tmp_path / "zeiss/film_7", "raabin") == ["film_7"]


def test_cells_whose_type_is_not_told_or_not_known_are_of_unknown_type(tmp_path):
    boxes = [(i, i + 5, 1, 9) for i in (1, 11, 21, 31)]
    names = ["Burst", None, "Smudgeoid", "Monocyte"]
    put(tmp_path, [cell(n, b) for n, b in zip(names, boxes, strict=True)])
    for space, labels in ((WBC5, [-1, -1, 2]), (WBC, [-1, -1, 0])):
        index = read(tmp_path, space)
        assert index.fields[0].labels.tolist() == labels
        assert kinds(index) == {
            "unknown_class_name": 1,
            "not_in_label_space": 1,
            "unknown_cell_type": 1,
        }


def test_records_that_are_no_cell_are_counted(tmp_path):
    content = {"Cell Numbers": 9, "Cell_0": cell(), "Cell_1": [], "Cel_2": cell(), "date": "x"}
    content["Cell_3"] = {"x1": "3O", "x2": 4, "y1": 1, "y2": 2}
    put(tmp_path, content)
    index = read(tmp_path)
    assert len(index.fields[0].boxes) == 1
    assert kinds(index) == {"unreadable_record": 3, "cell_count_differs": 1}


def test_missing_and_unlisted_images_are_counted(tmp_path):
    put(tmp_path, [cell()], "zeiss/f/a.png")
    put(tmp_path, [cell()], "zeiss/f/b.png")
    (tmp_path / "zeiss/f/b.png").rename(tmp_path / "zeiss/f/c.png")
    put(tmp_path, [cell()], "zeiss/f/d.png").with_suffix(".png").write_text("")
    index = read(tmp_path)
    assert [f.name for f in index] == ["a"]
    assert kinds(index) == {"missing_image": 1, "unreadable_image": 1, "image_not_in_labels": 1}


def test_released_parts_are_no_films(tmp_path):
    put(tmp_path, [cell()], "zeiss/train/f1/a.png")
    put(tmp_path, [cell()], "zeiss/test/a.png")
    index = read(tmp_path)
    assert [(f.patient, f.released_split) for f in index] == [("", "test"), ("f1", "train")]
    assert kinds(index) == {"no_patient": 1}


def test_a_damaged_file_is_named_with_its_place(tmp_path):
    path = put(tmp_path, [])
    path.write_text('{"Cell_0": {')
    index = read(tmp_path)
    assert [(len(f.boxes), f.labelled_classes) for f in index] == [(0, ())]
    assert kinds(index) == {"unreadable_label_file": 1}
    said = index.findings[0].examples[0]
    assert said.startswith(f"{path}: line 1")
    assert said.endswith("the file ends too early; copy it again")


def test_cells_of_one_name_are_all_counted_as_left_out(tmp_path):
    path = put(tmp_path, [cell(), cell(), cell()])
    path.write_text(path.read_text().replace("Cell_1", "Cell_0"))
    index = read(tmp_path)
    assert len(index.fields[0].boxes) == 1
    assert kinds(index) == {"unreadable_record": 2}
    path.write_text(path.read_text().replace('"x1"', '"y2": 3, "x1"'))
    assert kinds(read(tmp_path))["unreadable_record"] == 3


def test_faults_of_cells_and_files_are_counted_together(tmp_path):
    odd = [cell(), cell(), cell("Neutrofil"), cell(), cell()]
    odd[0]["x1"] = 1e9
    odd[1]["y2"] = "nan"
    odd[3] = 3
    put(tmp_path, odd)
    put(tmp_path, [], "zeiss/film_7/b.png").write_text('{"Cell_0": {')
    index = read(tmp_path)
    assert [f.labels.tolist() for f in index] == [[-1, 0], []]
    errors = {f.kind: f for f in index.findings if f.severity == "error"}
    assert {k: f.count for k, f in errors.items()} == {
        "unreadable_label_file": 1,
        "unreadable_record": 3,
        "unknown_class_name": 1,
    }
    assert errors["unreadable_record"].examples == (
        "film_7/a.json: Cell_0: x1 '1000000000.0' is no pixel number",
        "film_7/a.json: Cell_1: y2 'nan' is no pixel number",
        "film_7/a.json: Cell_3: not an object",
    )


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="no JSON files"):
        read(tmp_path)
    assert list_domains(tmp_path / "x", "raabin") == []
