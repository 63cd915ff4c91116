"""A damaged label file is refused with the place of the damage, never with a traceback."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.errors import DataError
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


SPICE = (
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e308", b"9" * 30, b"9" * 5000, b"null",
    b"true", b"{}", b"[]", b'""', b'"\\ud800"', b'"\\u0000"', b"-1", b"1e-320", b"1.5", b"[[1]]",
    b"\xef\xbb\xbf", b"\r\n", b"\xff\xfe", b"\x00", b" 7 7", b"nan", b"inf", b"0x1", b"1_0",
    "\u0663".encode(), "\u00b2".encode(), b'"a/../../b.png"', b'"' + b"x" * 5000 + b'"',
)  # fmt: skip


def mutate(content: bytes, draw: random.Random) -> bytes:
    how = draw.randrange(8)
    at = draw.randrange(len(content))
    to = min(len(content), at + draw.randrange(1, 30))
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + draw.randbytes(draw.randrange(1, 12)) + content[to:]
    if how == 2:
        return content[:at] + content[to:]
    if how == 3:
        return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    if how == 4:
        return content[:at] + draw.choice(SPICE) + content[to:]
    # Put something odd in the place of one value or column: the file stays well-formed.
    tokens = list(re.finditer(rb'"[^"]*"|-?\d*\.?\d+', content))
    for token in sorted(draw.sample(tokens, draw.randrange(1, 3)), key=lambda m: -m.start()):
        content = content[: token.start()] + draw.choice(SPICE) + content[token.end() :]
    return content


@pytest.mark.parametrize("name", ["coco", "json", "text"])
def test_300_mutations_raise_nothing_but_data_errors(layouts, name):
    draw = random.Random(f"mutations {name}")
    base = TEXT if name == "text" else JSON
    refused: list[str] = []
    for _ in range(300):
        content = mutate(base, draw)
        try:
            index = read_bytes(layouts, name, content)
        except DataError as e:
            refused.append(str(e))
            continue
        for f in index:
            n = len(f.labels)
            assert f.boxes.shape == (n, 4)
            assert f.attributes.shape == (n, 7)
            assert np.isfinite(f.boxes).all()
            assert (f.boxes[:, 2:] > f.boxes[:, :2]).all()
            assert (f.boxes >= 0).all()
            assert (f.boxes <= [f.width, f.height] * 2).all()
            assert f.labels.min(initial=0) >= -1
            assert f.labels.max(initial=0) < 14
            assert (f.attributes < (3, 2, 2, 2, 2, 2, 2)).all()
        "".join(e for x in index.findings for e in x.examples).encode()
    assert 20 < len(refused) < 290
    assert all(layouts[name][0].name in message for message in refused)
    assert max(map(len, refused)) < 1500


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
        with pytest.raises(DataError, match=message) as e:
            read_bytes(layouts, name, content)
        assert str(layouts[name][0]) in str(e.value)


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
    with pytest.raises(DataError, match="zip archive; unpack"):
        read_bytes(layouts, name, b"PK\x03\x04" + b"\x14" * 40)


@pytest.mark.parametrize("name", ["coco", "json"])
def test_a_key_that_comes_twice_loses_no_label_silently(layouts, name):
    twice = JSON.replace(b'"image_id": 2', b'"bbox": [1, 1, 2, 2], "image_id": 2')
    with pytest.raises(DataError, match="key 'bbox' comes twice"):
        read_bytes(layouts, name, twice)
