"""Photographs decoded and prepared, and where they are kept between steps and jobs.

Whatever keeps them, the pixels are the same: a stored image is what `decode` made of the file.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from da_leukemia.config import Data
from da_leukemia.data.cache import cache_folder, code_version, file_name, file_state
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.pixels import rgb_of
from da_leukemia.data.preparation import Preparation
from da_leukemia.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)

GB = 1 << 30

_PACKAGE = Path(__file__).resolve().parent.parent

Picture = tuple[Tensor, Tensor]
"""An image ``(3, H, W)`` uint8, at least as large as the network's input, and its fill colour
``(3,)`` uint8. Not to be written to."""

_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to ``(H, W, 3)`` uint8, see `rgb_of`.

    Raises:
        DataError: missing or unreadable, naming the file.
    """
    try:
        with Image.open(path) as image:
            return rgb_of(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image is missing; run `da-leukemia data check`") from error
    except _UNDECODABLE as error:
        raise DataError(
            f"{path}: the image cannot be decoded ({error}); download it again or remove it"
        ) from error


def prepare(image: NDArray[np.uint8], how: Preparation) -> tuple[NDArray[np.uint8], ...]:
    """Make an image's picture: scaled, corrected, the rest filled with its background colour.

    Args:
        image: ``(H, W, 3)`` in its own pixels.
        how: of its device.

    Returns:
        The picture, at least ``(size, size, 3)``, with the image at its top left, and the fill
        colour ``(3,)``: the device's background where it is known, else the image's median, which
        on a film is the clear background between cells or near it.
    """
    height, width = image.shape[:2]
    place = how.placement(width, height)
    across, down = how.canvas(width, height)
    # Box + reduce: antialiased and fast; bilinear would alias when a 1440-px photo is shrunk.
    small = Image.fromarray(image).resize((place.width, place.height), Image.Resampling.BILINEAR)
    resized = how.correct(np.asarray(small))
    fill = how.fill
    if fill is None:
        fill = np.median(resized[::4, ::4].reshape(-1, 3), axis=0).astype(np.uint8)
    out = np.broadcast_to(fill, (down, across, 3)).copy()
    out[: place.height, : place.width] = resized
    return out, fill


def decode(path: Path, how: Preparation) -> Picture:
    """Read an image file and prepare it.

    Raises:
        DataError: missing or unreadable, naming the file.
    """
    array, fill = prepare(read_image(path), how)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous(), torch.from_numpy(fill)


# --- where pictures are kept ---------------------------------------------------------------------


class Store(Protocol):
    """Gives pictures, decoding those that it does not have."""

    def picture(self, path: Path, how: Preparation) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""


class Memory:
    """Keeps the first pictures that are asked for, up to a number of bytes, and the last one.

    The windows of a field are asked for one after the other: without the last one, its image would
    be decoded for each.
    """

    def __init__(self, limit: int = 4 * GB) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: dict[tuple[Path, str], Picture] = {}
        self._last: tuple[tuple[Path, str], Picture] | None = None

    def picture(self, path: Path, how: Preparation) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""
        key = (path, how.key)
        found = self._kept.get(key)
        if found is not None:
            return found
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        picture = decode(path, how)
        needed = sum(t.nbytes for t in picture)
        if self.bytes + needed <= self.limit:
            self._kept[key] = picture
            self.bytes += needed
        else:
            self._last = key, picture
        return picture


class PixelFile:
    """The pictures of a domain at one size in one file, mapped into memory and filled on demand.

    Layout: one uint64 per picture (0 = not there, else 2^32 + CRC-32 of its row), then the rows:
    ``3 x H x W`` bytes of the image and 3 of the fill colour. A row counts only where its checksum
    is right, so jobs fill the file together without locks, and a job that was killed or a machine
    that lost power leave rows that are decoded again.

    Args:
        path: of the file, made where it is not there.
        count: pictures.
        shape: ``H, W`` of every picture.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int]) -> None:
        self.path = path
        self.count = count
        self.shape = shape
        self._file: int | None = None
        self._bytes: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._checked: set[int] = set()

    @property
    def row(self) -> int:
        """Bytes of a picture."""
        return 3 * self.shape[0] * self.shape[1] + 3

    @property
    def length(self) -> int:
        """Bytes of the file once it is full; until then it is sparse."""
        return self.count * (8 + self.row)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping behind: a spawned process maps the file itself."""
        return {"path": self.path, "count": self.count, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self) -> None:
        """Map the file.

        Raises:
            OSError: it cannot be made or mapped.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(file).st_size != self.length:
                os.ftruncate(file, self.length)  # by whoever comes first; again is harmless
            mapped = mmap.mmap(file, self.length)
        except BaseException:
            os.close(file)
            raise
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._file = file
        os.utime(self.path)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    def get(self, number: int) -> Picture | None:
        """Return a picture without copying it, None where it is not there.

        Raises:
            OSError: the file cannot be made or mapped.
        """
        if self._file is None:
            self.open()
        row = self._bytes[self._at(number) :][: self.row]
        if number not in self._checked:
            told = self._bytes[8 * number : 8 * number + 8].tobytes()
            if int.from_bytes(told, "little") != _checksum(row):
                return None
            self._checked.add(number)
        image = torch.from_numpy(row[:-3].reshape(3, *self.shape))
        return image, torch.from_numpy(row[-3:])

    def put(self, number: int, picture: Picture) -> None:
        """Store a picture.

        Raises:
            OSError: the disk is full.
        """
        assert self._file is not None
        row = np.concatenate([picture[0].numpy().reshape(-1), picture[1].numpy()])
        # Not through the mapping: with a full disk that ends the process.
        if os.pwrite(self._file, row.data, self._at(number)) == self.row:
            os.pwrite(self._file, _checksum(row).to_bytes(8, "little"), 8 * number)

    def _at(self, number: int) -> int:
        return 8 * self.count + number * self.row


def _checksum(row: NDArray[np.uint8]) -> int:
    return zlib.crc32(row.data) | 1 << 32


class Disk:
    """Keeps pictures in files that jobs share; what has no place there is kept in memory.

    Args:
        places: pixel file and number of every image file that has a place.
        otherwise: gives the other pictures, and all of them once the disk cannot be used.
    """

    def __init__(self, places: Mapping[Path, tuple[PixelFile, int]], otherwise: Store) -> None:
        self._places = dict(places)
        self._otherwise = otherwise

    def picture(self, path: Path, how: Preparation) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""
        file, number = self._places.get(path, (None, 0))
        if file is None:
            return self._otherwise.picture(path, how)
        try:
            found = file.get(number)
            if found is not None:
                return found
        except OSError as error:
            return self._give_up(path, how, error)
        picture = decode(path, how)
        if picture[0].shape[1:] != file.shape:  # its header said otherwise than its labels
            return picture
        try:
            file.put(number, picture)
        except OSError as error:
            return self._give_up(path, how, error)
        return picture

    def _give_up(self, path: Path, how: Preparation, error: OSError) -> Picture:
        """Go on without the disk, and say so once."""
        _LOG.warning("the cache of images on disk is not used any more: %s", error)
        self._places = {}
        return self._otherwise.picture(path, how)


# --- what the settings say -----------------------------------------------------------------------


def open_store(
    data: Data, indexes: Sequence[FieldIndex], prepared: Mapping[str, Preparation]
) -> Store:
    """Return what keeps the pictures of an experiment, as ``data.image_cache`` says.

    Args:
        data: settings.
        indexes: all fields that will be asked for. Files of other experiments are removed where
            theirs need the room, the ones that were not used for longest first.
        prepared: how each device's images are prepared.

    Raises:
        ConfigError: the pictures do not fit into ``data.disk_cache_gb``, or there is no folder.
    """
    memory = Memory(int(data.memory_cache_gb * GB) if data.image_cache != "none" else 0)
    if data.image_cache != "disk":
        return memory
    caches = cache_folder(data.cache_dir)
    if caches is None:
        raise ConfigError("data.image_cache: disk needs a folder; set data.cache_dir")
    places = {}
    for index in indexes:
        how = prepared[index.domain]
        by_shape: dict[tuple[int, int], dict[Path, None]] = defaultdict(dict)
        for field in index.fields:
            by_shape[how.canvas(field.width, field.height)[::-1]][field.image] = None
        for shape, paths in by_shape.items():
            file = _pixel_file(caches / "images", index.domain, list(paths), how, shape)
            places.update({path: (file, number) for number, path in enumerate(paths)})
    _make_room(caches / "images", {f.path: f for f, _ in places.values()}, data)
    return Disk(places, memory)


_DECODER = (
    code_version(
        [
            Path(__file__),
            _PACKAGE / "data" / "pixels.py",
            _PACKAGE / "data" / "preparation.py",
            _PACKAGE / "calibration" / "apply.py",
        ]
    ),
    PIL.__version__,
    *(features.version(name) for name in ("libjpeg_turbo", "zlib", "libtiff", "webp")),
)


def _pixel_file(
    folder: Path, domain: str, paths: Sequence[Path], how: Preparation, shape: tuple[int, int]
) -> PixelFile:
    told = repr((_DECODER, how.key, shape, [(str(Path.cwd() / p), file_state(p)) for p in paths]))
    digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return PixelFile(folder / f"{file_name(domain)}-{how.size}-{digest}.u8", len(paths), shape)


def _make_room(folder: Path, wanted: Mapping[Path, PixelFile], data: Data) -> None:
    limit = int(data.disk_cache_gb * GB)
    needed = sum(f.length for f in wanted.values())
    if needed > limit:
        images = sum(f.count for f in wanted.values())
        raise ConfigError(
            f"data.disk_cache_gb: {images} images for an input of {data.image_size} px need "
            f"{needed / GB:.1f} GB, allowed are {data.disk_cache_gb:g}; raise it, or set "
            "data.image_cache=memory"
        )
    others = []
    for path in folder.glob("*.u8"):
        try:
            found = path.stat()
        except OSError:  # removed by another job
            continue
        if path not in wanted:
            others.append((found.st_mtime, found.st_size, path))
    taken = needed + sum(length for _, length, _ in others)
    for _, length, path in sorted(others):
        if taken <= limit:
            return
        # A job that has it mapped keeps its pictures until it ends.
        path.unlink(missing_ok=True)
        taken -= length
