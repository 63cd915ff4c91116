"""Reading a device's photographs, whatever a camera or a microscope's program wrote."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from da_leukemia.data.pixels import DARK, rgb_of
from da_leukemia.errors import ARCHIVES, DataError, no_such_folder

Pixels = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

MOST_FIELDS = 50
"""Images that are read of a larger folder, spread evenly over it."""

LONG_SIDE = 1600
"""Larger images are reduced to this, so that a folder of phone photographs fits in memory."""

MOST_PIXELS = 170_000_000
"""An image above this is refused: decoded it would take half a gigabyte or more."""

_SMALLEST = 48
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Field:
    """One photograph.

    Attributes:
        path: its file.
        pixels: ``(H, W, 3)`` RGB, reduced where it was larger than `LONG_SIDE`.
        reduced: original pixels per pixel of ``pixels``, at least 1.
        size: ``width, height`` of the original.
        grey: it has no colour.
        turned: its EXIF asks viewers to turn it. It is not turned here, nor when training reads
            it: the lamp and the lens belong to the sensor's frame.
    """

    path: Path
    pixels: Pixels
    reduced: float
    size: tuple[int, int]
    grey: bool = False
    turned: bool = False


def find_images(folder: Path) -> list[Path]:
    """Return a folder's images in order, those of its subfolders included.

    Raises:
        DataError: no such folder, or there is no image in it.
    """
    if not folder.is_dir():
        raise DataError(no_such_folder(folder))
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DataError(f"{folder}: no image in it ({', '.join(SUFFIXES)}){_instead(folder)}")
    return found


_CONVERTED = (
    *(".heic", ".heif", ".avif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw"),
    *(".czi", ".nd2", ".lif", ".vsi", ".svs", ".ndpi", ".mrxs", ".dcm"),
    *(".avi", ".mov", ".mp4"),
)
"""Kinds of image and film that microscopes and phones write and that are not read here."""


def _instead(folder: Path) -> str:
    """Say what is in a folder without an image, where that can be made into images."""
    kinds = Counter(p.suffix.lower() for p in folder.rglob("*") if p.is_file())
    for known, hint in ((ARCHIVES, "unpack"), (_CONVERTED, "convert them to PNG or TIFF")):
        there = {kind: kinds[kind] for kind in known if kinds[kind]}
        if there:
            told = ", ".join(f"{n} {kind}" for kind, n in there.items())
            return f"; there are {told}: {hint}"
    return ""


def spread(paths: Sequence[Path], most: int = MOST_FIELDS, seed: int = 0) -> list[Path]:
    """Return at most so many paths, evenly spread; a seed other than 0 shifts the choice."""
    if most < 1:
        raise ValueError(f"most must be at least 1, not {most}")
    if len(paths) <= most:
        return list(paths)
    if seed == 0:
        return [paths[int(i)] for i in np.linspace(0, len(paths) - 1, most).round()]
    phase = float(np.random.default_rng(seed).uniform())
    return [paths[int((i + phase) * len(paths) / most)] for i in range(most)]


def read_field(path: Path) -> Field:
    """Read one photograph.

    Read as in training, see `rgb_of`; alpha is dropped.

    Raises:
        DataError: missing, unreadable, far too large or too small; names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                if min(width, height) < _SMALLEST:
                    raise DataError(f"{path}: {width} x {height} pixels show no field of view")
                turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
                image.draft("RGB", (LONG_SIDE, LONG_SIDE))
                rgb = Image.fromarray(rgb_of(image))
                grey = image.mode in ("L", "LA", "1") or image.mode.startswith("I")
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: more than {MOST_PIXELS // 10**6} million pixels; cut it into fields of view"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); remove it") from error
    factor = max(width, height) / LONG_SIDE
    if factor > 1:
        new = (max(1, round(width / factor)), max(1, round(height / factor)))
        rgb = rgb.resize(new, Image.Resampling.BOX)
    pixels = np.asarray(rgb)
    grey = grey or bool(np.ptp(pixels[::7, ::7].astype(np.int16), axis=2).max() <= 2)
    return Field(path, pixels, max(1.0, factor), (width, height), grey, turned)


def read_fields(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Field], list[str]]:
    """Read photographs; return them and why others could not be read.

    Raises:
        DataError: none of them can be read; names every one.
    """
    fields, problems = [], []
    for done, path in enumerate(paths, start=1):
        try:
            fields.append(read_field(path))
        except DataError as error:
            problems.append(str(error))
        if progress is not None:
            progress(done, len(paths))
    if not fields:
        raise DataError(problems)
    if max(int(f.pixels.max()) for f in fields) < DARK:
        raise DataError(
            f"{fields[0].path.parent}: the images are nearly black. Files of 16 bits whose camera "
            "has 10, 12 or 14 look so: write them with 8 bits, stretched alike for all images"
        )
    return fields, problems
