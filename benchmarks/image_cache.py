"""Images per second from each cache of decoded images, against plain Pillow decoding and resizing.

What is compared, in one process and one thread, in batches as training asks for them:

- Pillow: open, decode, resize to the network's size, to a tensor; nothing else,
- none: `FieldDataset` without a cache (adds the square and its background colour),
- disk, filling: the first pass of a first job, which decodes and writes,
- disk, new job: the first pass of a job that finds the file full, and checks every checksum,
- disk: later passes of it,
- memory: passes after the first.

The photographs are smooth, noisy pictures of the size of a film. Files stay
in the page cache of the system, so the disk itself is not measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import Disk, Memory, PixelFile, Store
from da_leukemia.labels import WBC

BATCH = 8


def write_films(folder: Path, count: int, width: int, height: int, suffix: str) -> list[Path]:
    """Write photographs with the smooth shading and the noise of a film."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = rng.integers(170, 235, (height // 30, width // 30, 3), np.uint8)
        film = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 3, (height, width, 1))
        pixels = (np.asarray(film) + noise).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}{suffix}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def fields_of(paths: Sequence[Path], width: int, height: int) -> list[FieldOfView]:
    """Return fields without cells."""
    return [
        FieldOfView(
            image=path,
            domain="d",
            patient="",
            name=path.stem,
            width=width,
            height=height,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            attributes=np.zeros((0, len(WBC.attributes)), np.int64),
            labelled_classes=(0,),
        )
        for path in paths
    ]


def pillow(paths: Sequence[Path], size: int) -> Callable[[list[int]], object]:
    def batch(indices: list[int]) -> object:
        pictures = []
        for index in indices:
            with Image.open(paths[index]) as image:
                scale = size / max(image.size)
                new = (round(image.width * scale), round(image.height * scale))
                small = image.convert("RGB").resize(new, Image.Resampling.BILINEAR)
            pictures.append(torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1))
        return torch.stack(pictures)

    return batch


def speed(batch: Callable[[list[int]], object], count: int, passes: int = 1) -> float:
    """Return images per second over whole passes in a random order."""
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    for _ in range(passes):
        order = rng.permutation(count).tolist()
        for first in range(0, count, BATCH):
            batch(order[first : first + BATCH])
    return count * passes / (time.perf_counter() - begun)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the comparison, print it, and return images per second by name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_cache",
        description="Time the caches of decoded images against plain Pillow decoding.",
    )
    parser.add_argument("--images", type=int, default=100, help="photographs")
    parser.add_argument("--size", type=int, default=640, help="side of the network input")
    parser.add_argument("--width", type=int, default=1440, help="of a photograph")
    parser.add_argument("--height", type=int, default=900, help="of a photograph")
    parser.add_argument("--format", default=".jpg", choices=(".jpg", ".png"), help="of the files")
    parser.add_argument("--passes", type=int, default=5, help="timed passes of a full cache")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_films(folder, given.images, given.width, given.height, given.format)
        fields = fields_of(paths, given.width, given.height)

        def batches(store: Store) -> Callable[[list[int]], object]:
            return FieldDataset(fields, WBC, given.size, store).unlabelled

        def disk() -> Disk:
            file = PixelFile(folder / "pixels.u8", len(paths), (given.size, given.size))
            return Disk({path: (file, n) for n, path in enumerate(paths)}, Memory())

        found["Pillow"] = speed(pillow(paths, given.size), given.images)
        found["none"] = speed(batches(Memory(0)), given.images)
        found["disk, filling"] = speed(batches(disk()), given.images)
        new_job = batches(disk())
        found["disk, new job"] = speed(new_job, given.images)
        found["disk"] = speed(new_job, given.images, given.passes)
        memory = batches(Memory())
        speed(memory, given.images)
        found["memory"] = speed(memory, given.images, given.passes)

    print(f"{platform.machine()} CPU, {os.cpu_count()} cores, Pillow {PIL.__version__}, one thread")
    print(
        f"{given.images} films of {given.width} x {given.height} px ({given.format}) "
        f"at {given.size} px, batches of {BATCH}"
    )
    print(f"{'':16}{'images/s':>10}{'ratio':>8}")
    for name, value in found.items():
        print(f"{name:16}{value:10.1f}{value / found['Pillow']:8.1f}")
    return found


if __name__ == "__main__":
    main()
