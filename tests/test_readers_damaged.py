"""A damaged label file is named with the place of the damage, never with a traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.labels import LEUKEMIAATTRI

DOMAIN = "H_100X_C2"
JSON = json.dumps(
    {
        "images": [
            {"id": n, "file_name": f"{n}_1_1000_ALL.png", "width": 64, "height": 48}
            for n in (1, 2, 3)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [n, 2.5, 10, 12], "cell_size": 2}
            for n in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "myeloblast"}, {"id": 14, "name": "none"}],
    },
    indent=1,
).encode()
TEXT = b"1 0.5 0.5 0.1 0.2 2 0 1 1 1 1 0\n0 0.579 0.586 0.114 0.216 2 2 2 2 2 2 2\n3 .2 .2 .1 .1\n"


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Return ``name -> (label file, format, root)`` of one small data set in each format."""
    root = tmp_path_factory.mktemp("layouts")
    found: dict[str, tuple[Path, str, Path]] = {}
    for name, relative, images in (
        ("coco", "annotations.json", "images"),
        ("json", f"{DOMAIN}/json_labels/train.json", f"{DOMAIN}/Images/train"),
        ("text", f"{DOMAIN}/txt_labels/AttriDet/train/1_1_1000_ALL.txt", f"{DOMAIN}/Images/train"),
    ):
        (root / name / images).mkdir(parents=True)
        for n in (1, 2, 3):
            Image.new("RGB", (64, 48)).save(root / name / images / f"{n}_1_1000_ALL.png")
        label_file = root / name / relative
        label_file.parent.mkdir(parents=True, exist_ok=True)
        found[name] = (label_file, "coco" if name == "coco" else "leukemiaattri", root / name)
    return found


def read_bytes(layouts, name: str, content: bytes):
    label_file, fmt, root = layouts[name]
    label_file.write_bytes(content)
    return read_domain(DomainSource(DOMAIN, root), fmt, LEUKEMIAATTRI)


def refusal(layouts, name: str, content: bytes) -> str:
    """Return what is said of a label file that cannot be read; its images are unlabelled."""
    index = read_bytes(layouts, name, content)
    (finding,) = [f for f in index.findings if f.severity == "error"]
    assert (finding.kind, finding.count) == ("unreadable_label_file", 1)
    wanted = 1 if name == "text" else 3
    assert [(len(f.boxes), f.labelled_classes) for f in index] == [(0, ())] * wanted
    assert all(k.kind != "no_labels" for k in index.findings)
    return finding.examples[0]


@pytest.mark.parametrize("name", ["coco", "json", "text"])
def test_byte_order_marks_and_foreign_line_ends_are_read(layouts, name):
    base = TEXT if name == "text" else JSON
    plain = read_bytes(layouts, name, base)
    for content in (b"\xef\xbb\xbf" + base.replace(b"\n", b"\r\n"), base.replace(b"\n", b"\r")):
        again = read_bytes(layouts, name, content)
        assert [f.boxes.tolist() for f in again] == [f.boxes.tolist() for f in plain]
        assert sum(len(f.boxes) for f in again) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (JSON[: len(JSON) // 2], r"line \d+, column \d+: .*ends too early"),
        (JSON.replace(b"ALL", b"\xff\xfe", 1), r"line 5, column \d+: not UTF-8"),
        (JSON.decode().encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"[]", "expected a JSON object"),
        (b"{}", "the entry 'images' is missing"),
        (b'{"images": 3}', "the entry 'images' is int, not a list"),
        (b"", "line 1, column 1"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_the_message_says_where_and_what_to_do(layouts, content, message):
    for name in ("coco", "json"):
        said = refusal(layouts, name, content)
        assert said.startswith(f"{layouts[name][0]}: ")
        assert re.search(message, said)


@pytest.mark.parametrize("name", ["coco", "json", "text"])
@pytest.mark.parametrize("odd", ["NaN", "1e999", "7e9"])
def test_a_number_that_is_no_pixel_costs_its_record_only_and_is_an_error(layouts, name, odd):
    if name == "text":
        content = f"1 .5 .5 .1 .1\n1 {odd} .5 .1 .1\n".encode()
        place, kept = rf"1_1_1000_ALL\.txt: line 2: column 3: '{odd}'", 1
    else:
        content = JSON.replace(b"2.5", odd.encode(), 1)
        place, kept = r"(annotations|train)\.json: annotation 1: bbox \[1, (nan|inf|7)", 2
    index = read_bytes(layouts, name, content)
    (finding,) = [f for f in index.findings if f.kind == "unreadable_record"]
    assert (finding.severity, finding.count) == ("error", 1)
    assert re.match(place, finding.examples[0])
    assert sum(len(f.boxes) for f in index) == kept


def test_an_impossible_size_of_an_image_is_an_error(layouts):
    index = read_bytes(layouts, "coco", JSON.replace(b"64", b"7e9", 1))
    (finding,) = [f for f in index.findings if f.kind == "unreadable_record"]
    assert finding.examples == (
        "annotations.json: image 1: width 7000000000.0 is no number of pixels",
    )
    assert [f.width for f in index] == [64] * 3


@pytest.mark.parametrize("odd", [b"NaN", b"1e400", b"-1e999"])
def test_an_attribute_that_is_no_number_is_counted_and_missing(layouts, odd):
    index = read_bytes(layouts, "json", JSON.replace(b'"cell_size": 2', b'"cell_size": ' + odd, 1))
    assert [f.attributes[0, 0] for f in index] == [-1, 2, 2]
    assert {f.kind: f.count for f in index.findings}["attribute_out_of_range"] == 1


@pytest.mark.parametrize("name", ["coco", "json", "text"])
def test_an_archive_in_the_place_of_a_label_file_is_called_so(layouts, name):
    assert "zip archive; unpack" in refusal(layouts, name, b"PK\x03\x04" + b"\x14" * 40)


@pytest.mark.parametrize("name", ["coco", "json"])
@pytest.mark.parametrize(
    ("old", "new", "said", "kept"),
    [
        ('"image_id": 2', '"bbox": [1, 1, 2, 2], "image_id": 2', "annotation 2: the key 'bbox'", 2),
        ('"image_id": 2', '"id": 3, "image_id": 2', "annotation at position 1: the key 'id'", 2),
        ('"id": 14', '"id": 1, "id": 14', "category at position 1: the key 'id'", 3),
        ('"file_name": "2', '"file_name": "3", "file_name": "2', "image 2: the key 'file_name'", 2),
    ],
)
def test_a_key_that_comes_twice_costs_its_record_only(layouts, name, old, new, said, kept):
    index = read_bytes(layouts, name, JSON.replace(old.encode(), new.encode(), 1))
    (finding,) = [f for f in index.findings if f.kind == "unreadable_record"]
    assert (finding.severity, finding.count) == ("error", 1)
    assert finding.examples[0].endswith(f".json: {said} comes twice")
    assert sum(len(f.boxes) for f in index) == kept
    lost = {f.kind: f.count for f in index.findings}.get("annotation_without_image", 0)
    assert lost == ("image 2" in said)


@pytest.mark.parametrize("name", ["coco", "json"])
def test_a_list_that_comes_twice_is_a_fault_of_the_file(layouts, name):
    twice = JSON.replace(b'"annotations"', b'"images": [], "annotations"')
    assert "the key 'images' comes twice" in refusal(layouts, name, twice)


@pytest.mark.parametrize("name", ["coco", "json", "text"])
def test_boxes_in_other_units_are_counted_one_by_one(layouts, name):
    if name == "text":
        content = b"1 0.5 0.5 0.1 0.2\n1 32 24 6 9\n1 3 2 6 9\n"
        place = r"1_1_1000_ALL\.txt: line 2: box 1856, "
    else:
        content = json.loads(JSON)
        content["annotations"][0]["bbox"] = [0.2, 0.3, 0.1, 0.5]
        content["annotations"][1]["bbox"] = [0.2, 0.3, 0.8, 0.7]
        content = json.dumps(content).encode()
        place = r"(annotations|train)\.json: annotation 1: box 0\.2, 0\.3, 0\.3, 0\.8 in 64 x 48"
    index = read_bytes(layouts, name, content)
    (finding,) = [f for f in index.findings if f.severity == "error"]
    assert (finding.kind, finding.count) == ("box_units", 2)
    assert re.match(place, finding.examples[0])
    assert sum(len(f.boxes) for f in index) == 1


@pytest.mark.parametrize("name", ["coco", "json", "text"])
def test_a_box_of_every_plausible_size_and_place_is_in_pixels(layouts, name):
    """A box that holds the whole image, touches its corner, or sticks far out is no other unit."""
    for x1, y1, x2, y2 in ((0, 0, 64, 48), (0, 0, 2, 2), (-30, -20, 4, 4), (60, 40, 120, 90)):
        share = [(x1 + x2) / 128, (y1 + y2) / 96, (x2 - x1) / 64, (y2 - y1) / 48]
        row = " ".join(f"{v:.9g}" for v in share).encode()
        box = f"[{x1}, {y1}, {x2 - x1}, {y2 - y1}]".encode()
        as_json = re.sub(rb"\[\s+1,\s+2\.5,\s+10,\s+12\s+\]", box, JSON)
        index = read_bytes(layouts, name, b"1 " + row if name == "text" else as_json)
        assert {f.kind for f in index.findings if f.severity == "error"} == set()
        assert len(index.fields[0].boxes) == 1
