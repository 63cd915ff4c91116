"""A file that broke off is found without decoding it; a whole one is not accused."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.integrity import look, whole
from da_leukemia.data.readers.findings import FindingLog

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 121, 3), dtype=np.uint8))


def encoded(fmt: str, **options) -> bytes:
    image = NOISE.convert(options.pop("mode", "RGB"))
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def with_preview() -> bytes:
    """Return a JPEG file whose header holds another one, end mark included."""
    small = io.BytesIO()
    NOISE.resize((16, 16)).save(small, "JPEG")
    picture = encoded("JPEG")
    content = b"Exif\0\0" + small.getvalue()
    segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    return picture[:2] + segment + picture[2:]


FILES = {
    "png": encoded("PNG"),
    "grey.png": encoded("PNG", mode="L"),
    "jpg": encoded("JPEG"),
    "progressive.jpg": encoded("JPEG", progressive=True, quality=95),
    "preview.jpg": with_preview(),
    "bmp": encoded("BMP"),
    "1bit.bmp": encoded("BMP", mode="1"),
    "tif": encoded("TIFF"),
    "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP", lossless=True),
}


@pytest.fixture(params=FILES)
def file(request, tmp_path) -> tuple[Path, bytes]:
    path = tmp_path / f"a.{request.param}"
    path.write_bytes(FILES[request.param])
    return path, FILES[request.param]


def test_a_whole_file_is_not_accused(file):
    path, content = file
    outside = look(path)
    assert (outside.size, outside.rotation, outside.fault) == ((121, 90), 1, "")
    Image.open(path).load()
    for more in (b"\0" * 4096, b"\r\n", b"trailing notes" * 400):
        path.write_bytes(content + more)
        assert look(path).fault == "", more[:3]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 0.97])
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
def test_a_file_that_broke_off_is_found(file, share):
    path, content = file
    path.write_bytes(content[: int(share * len(content))])
    assert look(path).fault


@pytest.mark.filterwarnings("ignore")
def test_the_last_bytes_count(file):
    path, content = file
    # Pillow rounds a TIFF file up to an even length.
    for cut in range(2, 40):
        path.write_bytes(content[:-cut])
        assert look(path).fault, cut


@pytest.mark.parametrize("name", ["png", "grey.png", "jpg", "progressive.jpg", "preview.jpg"])
def test_a_download_that_reserved_its_space_is_found(tmp_path, name):
    path = tmp_path / f"a.{name}"
    content = FILES[name]
    path.write_bytes(content[: 2 * len(content) // 3].ljust(len(content), b"\0"))
    assert "truncated" in look(path).fault


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(FILES["jpg"])
    assert look(path).fault == ""
    path.write_bytes(FILES["jpg"][:-900])
    assert look(path).fault == "truncated: no end mark"
    path.write_bytes(b"a film")
    assert look(path).fault == "no image format is recognised"
    path.write_bytes(b"")
    assert look(path).fault == "holds 0 bytes"
    assert look(tmp_path / "none.png").fault


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
def test_random_bytes_raise_nothing(tmp_path):
    draw = np.random.default_rng(1)
    for name, content in FILES.items():
        path = tmp_path / f"a.{name}"
        for _ in range(25):
            damaged = bytearray(content[: int(draw.integers(1, len(content)))])
            for at in draw.integers(0, min(len(damaged), 80), 3):
                damaged[at] = int(draw.integers(0, 256))
            path.write_bytes(damaged)
            look(path)


def field(path: Path) -> FieldOfView:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
    return FieldOfView(path, "phone", "", path.stem, 121, 90, *none, ())


def test_all_broken_files_are_counted_and_the_first_named_in_little_time(tmp_path):
    paths = []
    for number in range(2000):
        content = FILES["jpg" if number % 2 else "png"]
        paths.append(tmp_path / f"{number:04}.png")
        paths[-1].write_bytes(content if number % 10 else content[:-50])
    log = FindingLog()
    started = time.process_time()
    kept = whole([field(p) for p in paths], log)
    assert time.process_time() - started < 2.0  # of the processor; ten times what it takes
    (finding,) = log.findings()
    assert (finding.kind, finding.severity, finding.count) == ("unreadable_image", "error", 200)
    assert finding.examples[0].startswith("phone/0000.png: truncated: ")
    assert [f.name for f, _ in kept] == [p.stem for n, p in enumerate(paths) if n % 10]
