"""2,000 damaged label files: named with the place, or every row read exactly or counted."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest
from test_readers_contract import keep_the_contract
from test_readers_support import SAMPLES, SIZE, Sample, make

from da_leukemia.data.fields import FieldIndex
from da_leukemia.labels import UNKNOWN, translate

MUTATIONS = 2000

SPICE = (
    b"NaN", b"Infinity", b"-inf", b"1e400", b"-1e308", b"9" * 30, b"null", b"true", b"{}", b"[]",
    b'""', b'"\\ud800"', b"\x00", b"-1", b"1e-320", b"1.5", b"\xef\xbb\xbf", b"\r\n", b"\xff\xfe",
    b" 7 7", b"0x1", b"1_0", "\u0663".encode(), "\u00b2".encode(), b"<b/>", b"&amp;", b"&x;",
    b"Neutrofil", b'"WBC"', b"RBC", b"\xe9", b"-0.0", b"+3", b"12", b"0", b"9" * 5000, b"[[1]]",
    b'"\\u0000"', b'"a/../../b.png"', b'"' + b"x" * 5000 + b'"', b"320",
)  # fmt: skip

# Kinds of finding of which each count is one row that was left out.
LEFT_OUT = (
    "unreadable_record",
    "annotation_without_image",
    "image_id_conflict",
    "unknown_class_id",
    "box_outside",
    "box_units",
    "empty_box",
    "box_inverted",
    "duplicate_box",
    "not_in_label_space",
    "patch_unusable",
)
# Kinds that leave out an image with all its rows.
WITHOUT_FIELD = ("missing_image", "unreadable_image")


def mutate(content: bytes, draw: random.Random) -> bytes:
    how = draw.randrange(12)
    at = draw.randrange(len(content))
    to = min(len(content), at + draw.randrange(1, 30))
    lines = content.split(b"\n")
    some = draw.randrange(len(lines))
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + draw.randbytes(draw.randrange(1, 12)) + content[to:]
    if how == 2:
        return content[:at] + content[to:]
    if how == 3:
        return b"\xef\xbb\xbf" + content.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n")))
    if how == 4:
        return content[:at] + draw.choice(SPICE) + content[to:]
    if how == 5:  # a row, key or element twice
        return b"\n".join([*lines[: some + 1], lines[some], *lines[some + 1 :]])
    if how == 6:  # a column more or less
        words = lines[some].split(b" ")
        words[draw.randrange(len(words))] += draw.choice((b" 1", b" 0.25", b""))
        lines[some] = b" ".join(words[draw.randrange(2) :])
        return b"\n".join(lines)
    if how == 7:
        text = content.decode() + "\u00e9"
        return text.encode(draw.choice(("utf-16", "latin-1", "utf-16-le")))
    if how == 8:
        return b"PK\x03\x04" + draw.randbytes(60)
    # Something odd in the place of a value: the file stays well-formed.
    tokens = list(re.finditer(rb'"[^"]*"|(?<=>)[^<\s]+(?=<)|-?\d*\.?\d+', content))
    for token in sorted(draw.sample(tokens, draw.randrange(1, 3)), key=lambda m: -m.start()):
        odd = draw.choice(SPICE)
        if token.group().startswith(b'"') and draw.random() < 0.7:
            # Often the key or value of another place: a key twice, another class, another image.
            odd = draw.choice([t.group() for t in tokens if t.group().startswith(b'"')])
        content = content[: token.start()] + odd + content[token.end() :]
    return content


def clipped(box) -> tuple[float, ...]:
    limits = (*SIZE, *SIZE)
    return tuple(round(min(max(v, 0.0), m), 2) for v, m in zip(box, limits, strict=True))


def labels_of(name: str | None, sample: Sample) -> set[int | None]:
    try:
        return {UNKNOWN} if name is None else {translate(name, sample.space), UNKNOWN}
    except KeyError:
        return {UNKNOWN}


def account(sample: Sample, index: FieldIndex, content: bytes, clean: int) -> None:
    """Assert that every row is read with its box and class, or counted in a finding."""
    try:
        rows = sample.rows(content)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        pytest.fail(f"read without a word: {content[:300]!r}")
    counts = {f.kind: f.count for f in index.findings}
    inside = of_one_image(sample)
    fields = [f for f in index if not inside or f.image == sample.images[-1]]
    read = [
        (tuple(round(float(v), 2) for v in box), int(label))
        for f in fields
        for box, label in zip(f.boxes, f.labels, strict=True)
    ]
    left_out = sum(counts.get(kind, 0) for kind in LEFT_OUT)
    if not any(counts.get(kind) for kind in WITHOUT_FIELD):
        assert len(read) + left_out >= len(rows), (content, counts)
    # Each box that was read is a row of the file, with that row's class; none serves twice.
    wanted = Counter((clipped(r[0]), r[1]) for r in rows if r is not None)
    for box, label in read:
        match = next(
            (
                key
                for key, n in wanted.items()
                if n and np.allclose(key[0], box, atol=0.02) and label in labels_of(key[1], sample)
            ),
            None,
        )
        assert match is not None, (box, label, content)
        wanted[match] -= 1
    # The other files of the data set are read as if nothing had happened.
    if inside:
        assert sum(len(f.boxes) for f in index) - len(read) == clean


def of_one_image(sample: Sample) -> bool:
    return sample.fmt != "coco" and "json" not in sample.labels.parent.name


def fuzz(name: str, folder, number: int) -> None:
    sample = make(name, folder)
    base = sample.labels.read_bytes()
    kept = list(sample.read())[:-1] if of_one_image(sample) else []
    clean = sum(len(f.boxes) for f in kept)
    draw = random.Random(f"damage {name}")
    refused = []
    for _ in range(number):
        content = mutate(base, draw)
        sample.labels.write_bytes(content)
        index = sample.read()
        keep_the_contract(index, sample.domain, sample.space)
        unread = [f for f in index.findings if f.kind == "unreadable_label_file"]
        if unread:
            refused += unread[0].examples
            # The other files are whole; the images of this one stay, as unlabelled.
            assert [f.image for f in index] == list(sample.images)
            assert sum(len(f.boxes) for f in index) == clean
            assert [len(f.boxes) for f in index if not f.labelled_classes] == [0] * (3 - len(kept))
        else:
            account(sample, index, content, clean)
        "".join(e for x in index.findings for e in x.examples).encode()
    assert number / 20 < len(refused) < number
    assert all(sample.labels.name in message for message in refused)
    assert max(map(len, refused)) < 1500
    for message in refused:
        message.encode()


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_label_files_lose_or_shift_nothing_in_silence(name, tmp_path):
    fuzz(name, tmp_path, MUTATIONS // len(SAMPLES))


def test_the_naive_readers_of_this_test_know_a_clean_file(tmp_path):
    for name in SAMPLES:
        sample = make(name, tmp_path / name)
        content = sample.labels.read_bytes()
        rows = sample.rows(content)
        assert len(rows) == (9 if b'"annotations"' in content else 3)
        assert None not in rows
        if sample.labels.suffix == ".json":
            json.loads(content)
        if sample.labels.suffix == ".xml":
            ElementTree.fromstring(content)
