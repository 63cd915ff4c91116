"""What a picture of a cell is recognised by: its bytes, and a thumbnail of it.

Made once for every file and kept beside the other caches. Free of torch.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from da_leukemia.data import pixels
from da_leukemia.data.cache import code_version, file_name, file_state, store
from da_leukemia.data.fields import FieldIndex
from da_leukemia.machine import cpus

SIDE = 16
"""Pixels of a thumbnail's side."""

Progress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)
_CODE = code_version([Path(__file__), Path(pixels.__file__)])
_SPOKEN = 5000
"""Pictures from which the work is long enough to be told of."""


@dataclass(frozen=True)
class Prints:
    """Of all cells of a device, in the order of its index.

    Attributes:
        digest: ``(N,)`` 16 bytes each, a hash of the file.
        thumbnail: ``(N, SIDE * SIDE * 3)`` uint8, the picture's mean colours on a grid.
        sound: ``(N,)`` bool, False where the file could not be decoded.
    """

    digest: NDArray[np.void]
    thumbnail: NDArray[np.uint8]
    sound: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.digest)


def print_of(path: Path) -> tuple[bytes, NDArray[np.uint8] | None]:
    """Return hash and thumbnail of one file; no thumbnail where it cannot be decoded."""
    try:
        content = path.read_bytes()
    except OSError:
        return bytes(16), None
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Of the whole picture: decoding a JPEG at a fraction of its size moves the grid.
            whole = Image.fromarray(pixels.rgb_of(image))
            small = whole.resize((SIDE, SIDE), Image.Resampling.BOX)
            return digest, np.asarray(small).reshape(-1)
    except Exception:  # Pillow's plugins raise far more than OSError on damaged files
        return digest, None


def take_prints(paths: Sequence[Path], progress: Progress | None = None) -> Prints:
    """Read every file once, as many at a time as there are cores.

    Args:
        paths: the files.
        progress: called with (files read, files) now and then.
    """
    digest = np.zeros(len(paths), "V16")
    thumbnail = np.zeros((len(paths), SIDE * SIDE * 3), np.uint8)
    sound = np.zeros(len(paths), bool)
    with ThreadPoolExecutor(cpus()) as pool:  # Pillow decodes without lock
        for number, (told, small) in enumerate(pool.map(print_of, paths, chunksize=1)):
            digest[number] = told
            if small is not None:
                thumbnail[number], sound[number] = small, True
            if progress is not None and (number + 1) % 1000 == 0:
                progress(number + 1, len(paths))
    return Prints(digest, thumbnail, sound)


def prints_of(index: FieldIndex, caches: Path | None, progress: Progress | None = None) -> Prints:
    """Return the prints of a device's cells, from the cache where no file has changed.

    Args:
        index: single cells.
        caches: folder of the caches, None for none.
        progress: see `take_prints`; by default long work is logged.
    """
    paths = [f.image for f in index]
    told = [f"{Path.cwd() / p}\0{file_state(p)}" for p in paths]
    digest = hashlib.sha256("\n".join([_CODE, *told]).encode("utf-8", "surrogateescape"))
    entry = None
    if caches is not None:
        entry = caches / "prints" / f"{file_name(index.domain)}-{digest.hexdigest()[:24]}.npz"
        try:
            with np.load(entry, allow_pickle=False) as kept:
                found = Prints(kept["digest"], kept["thumbnail"], kept["sound"])
            if len(found) == len(paths):
                return found
        except FileNotFoundError:
            pass
        except Exception as error:  # zip, zlib and numpy each have their own for damage
            _LOG.warning("%s: cannot be read (%s); its pictures are read again", entry, error)
    if progress is None and len(paths) >= _SPOKEN:
        progress = _tell(index.domain)
    found = take_prints(paths, progress)
    if entry is not None:
        file = io.BytesIO()
        np.savez(file, digest=found.digest, thumbnail=found.thumbnail, sound=found.sound)
        store(entry, file.getvalue())
    return found


def _tell(domain: str) -> Progress:
    def tell(done: int, total: int) -> None:
        if done % _SPOKEN == 0:
            _LOG.warning("%s: %d of %d pictures of cells compared", domain, done, total)

    return tell
