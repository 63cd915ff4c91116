"""Photographs decoded to the network's size, and where they are kept between steps and jobs.

Whatever keeps them, the pixels are the same: a stored image is what `decode` made of the file.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
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
from da_leukemia.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)

GB = 1 << 30

Picture = tuple[Tensor, Tensor]
"""An image ``(3, S, S)`` uint8 and its fill colour ``(3,)`` uint8. Not to be written to."""

_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to ``(H, W, 3)`` uint8; 16-bit grey values keep their upper 8 bits.

    Raises:
        DataError: missing or unreadable, naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are real numbers of unknown range")
            if image.mode.startswith("I"):  # `convert` would clip 16 bits to white
                grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image is missing; run `da-leukemia data check`") from error
    except _UNDECODABLE as error:
        raise DataError(
            f"{path}: the image cannot be decoded ({error}); download it again or remove it"
        ) from error


def fit_scale(width: int, height: int, size: int) -> float:
    """Scale that fits an image into a square of ``size``, aspect kept."""
    return size / max(width, height)


def fit(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fit an image into the top left of a square, the rest filled with its background colour.

    Returns:
        The ``(size, size, 3)`` image and the fill colour ``(3,)``: the median, which on a film is
        the clear background between cells or near it.
    """
    height, width = image.shape[:2]
    scale = fit_scale(width, height, size)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Box + reduce: antialiased and fast; bilinear would alias when a 1440-px photo is shrunk.
    resized = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BILINEAR))
    fill = np.median(resized[::4, ::4].reshape(-1, 3), axis=0).astype(np.uint8)
    out = np.broadcast_to(fill, (size, size, 3)).copy()
    out[: new[1], : new[0]] = resized
    return out, fill


def decode(path: Path, size: int) -> Picture:
    """Read an image file and fit it.

    Raises:
        DataError: missing or unreadable, naming the file.
    """
    array, fill = fit(read_image(path), size)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous(), torch.from_numpy(fill)


# --- where pictures are kept ---------------------------------------------------------------------


class Store(Protocol):
    """Gives pictures, decoding those that it does not have."""

    def picture(self, path: Path, size: int) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""


class Memory:
    """Keeps the first pictures that are asked for, up to a number of bytes; 0 keeps none."""

    def __init__(self, limit: int = 4 * GB) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: dict[tuple[Path, int], Picture] = {}

    def picture(self, path: Path, size: int) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""
        found = self._kept.get((path, size))
        if found is not None:
            return found
        picture = decode(path, size)
        needed = sum(t.nbytes for t in picture)
        if self.bytes + needed <= self.limit:
            self._kept[path, size] = picture
            self.bytes += needed
        return picture


class PixelFile:
    """The pictures of a domain at one size in one file, mapped into memory and filled on demand.

    Layout: one uint64 per picture (0 = not there, else 2^32 + CRC-32 of its row), then the rows:
    ``3 x S x S`` bytes of the image and 3 of the fill colour. A row counts only where its checksum
    is right, so jobs fill the file together without locks, and a job that was killed or a machine
    that lost power leave rows that are decoded again.

    Args:
        path: of the file, made where it is not there.
        count: pictures.
        size: side of a picture.
    """

    def __init__(self, path: Path, count: int, size: int) -> None:
        self.path = path
        self.count = count
        self.size = size
        self._file: int | None = None
        self._bytes: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._checked: set[int] = set()

    @property
    def row(self) -> int:
        """Bytes of a picture."""
        return 3 * self.size * self.size + 3

    @property
    def length(self) -> int:
        """Bytes of the file once it is full; until then it is sparse."""
        return self.count * (8 + self.row)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping behind: a spawned process maps the file itself."""
        return {"path": self.path, "count": self.count, "size": self.size}

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
        image = torch.from_numpy(row[:-3].reshape(3, self.size, self.size))
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

    def picture(self, path: Path, size: int) -> Picture:
        """Return a file's picture; `DataError` where it is missing or unreadable."""
        file, number = self._places.get(path, (None, 0))
        if file is None or file.size != size:
            return self._otherwise.picture(path, size)
        try:
            found = file.get(number)
            if found is not None:
                return found
        except OSError as error:
            return self._give_up(path, size, error)
        picture = decode(path, size)
        try:
            file.put(number, picture)
        except OSError as error:
            return self._give_up(path, size, error)
        return picture

    def _give_up(self, path: Path, size: int, error: OSError) -> Picture:
        """Go on without the disk, and say so once."""
        _LOG.warning("the cache of images on disk is not used any more: %s", error)
        self._places = {}
        return self._otherwise.picture(path, size)


# --- what the settings say -----------------------------------------------------------------------

_make: Callable[[], Store] = Memory


def new_store() -> Store:
    """Return what keeps the pictures of a data set, as `use` was told last."""
    return _make()


def use(data: Data, indexes: Sequence[FieldIndex]) -> None:
    """Keep pictures as ``data.image_cache`` says, in this process and from now on.

    A process works for one experiment; where it does not, only speed depends on this.

    Args:
        data: settings.
        indexes: all fields that will be asked for. Files of other experiments are removed where
            theirs need the room, the ones that were not used for longest first.

    Raises:
        ConfigError: the pictures do not fit into ``data.disk_cache_gb``, or there is no folder.
    """
    global _make
    if data.image_cache == "disk":
        disk = _disk(data, indexes)
        _make = lambda: disk  # noqa: E731
    else:
        memory = data.memory_cache_gb if data.image_cache == "memory" else 0
        _make = functools.partial(Memory, int(memory * GB))


def _disk(data: Data, indexes: Sequence[FieldIndex]) -> Disk:
    caches = cache_folder(data.cache_dir)
    if caches is None:
        raise ConfigError("data.image_cache: disk needs a folder; set data.cache_dir")
    places = {}
    for index in indexes:
        paths = list(dict.fromkeys(f.image for f in index.fields))
        if paths:
            file = _pixel_file(caches / "images", index.domain, paths, data.image_size)
            places.update({path: (file, number) for number, path in enumerate(paths)})
    _make_room(caches / "images", {f.path: f for f, _ in places.values()}, data)
    return Disk(places, Memory(int(data.memory_cache_gb * GB)))


_DECODER = (
    code_version([Path(__file__)]),
    PIL.__version__,
    *(features.version(name) for name in ("libjpeg_turbo", "zlib", "libtiff", "webp")),
)


def _pixel_file(folder: Path, domain: str, paths: Sequence[Path], size: int) -> PixelFile:
    told = repr((_DECODER, size, [(str(Path.cwd() / p), file_state(p)) for p in paths]))
    digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return PixelFile(folder / f"{file_name(domain)}-{size}-{digest}.u8", len(paths), size)


def _make_room(folder: Path, wanted: Mapping[Path, PixelFile], data: Data) -> None:
    limit = int(data.disk_cache_gb * GB)
    needed = sum(f.length for f in wanted.values())
    if needed > limit:
        images = sum(f.count for f in wanted.values())
        raise ConfigError(
            f"data.disk_cache_gb: {images} images of {data.image_size} px need {needed / GB:.1f} "
            f"GB, allowed are {data.disk_cache_gb:g}; raise it, or set data.image_cache=memory"
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
