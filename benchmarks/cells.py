"""Single cells: how fast a data set of them is read and hashed, and how fast batches come.

    python benchmarks/cells.py --cells 40000 --folder EMPTY_FOLDER

Written are drawn cells of 288 px as TIF in MLL23's folders (250 kB each; 40,000 need 10 GB). Then,
in one process each: the index (headers of all files), the prints (every file read, hashed and
decoded once), the search for copies; and images per second at the network's size from torchvision's
`ImageFolder` with a resize, which decodes each time, against the caches of this project.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from da_leukemia.data.cells.duplicates import keep_together
from da_leukemia.data.cells.prints import prints_of
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.images import Disk, Memory, PixelFile
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.labels import MLL23

SIDE, BATCH, DRAWN = 288, 64, 500


def write_cells(folder: Path, count: int) -> None:
    """Write cells that all differ: of each drawing, copies whose left half is darker."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = []
    for _ in range(min(DRAWN, count)):
        coarse = rng.integers(170, 235, (9, 9, 3), np.uint8)
        cell = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        inside = np.hypot(x - rng.uniform(120, 168), y - rng.uniform(120, 168)) < rng.uniform(
            40, 95
        )
        drawn.append(np.where(inside[..., None], cell * rng.uniform(0.3, 0.8, 3), cell))
    for number in range(count):
        kind = MLL23.classes[number % len(MLL23.classes)]
        place = folder / kind / kind
        place.mkdir(parents=True, exist_ok=True)
        cell = drawn[number % len(drawn)].copy()
        cell[:, : SIDE // 2] *= 0.99 ** (3 * (number // len(drawn)))
        Image.fromarray(cell.astype(np.uint8)).save(place / f"{number}.tif")


def seconds(do: Callable[[], object]) -> tuple[float, float]:
    """Return wall and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - wall, time.process_time() - cpu


def batches(data: FieldDataset) -> Callable[[], None]:
    def read() -> None:
        for first in range(0, len(data), BATCH):
            data.labelled(range(first, min(first + BATCH, len(data))))

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--size", type=int, default=144)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name) / "MLL23"
        write_cells(folder, arguments.cells)
        print(f"{arguments.cells} cells of {SIDE} px, {len(os.sched_getaffinity(0))} cores")
        source = DomainSource("MLL23", folder)
        index = read_domain(source, "cells", MLL23)
        prints = prints_of(index, None)
        caches = Path(name)
        prints_of(index, caches)
        total = np.zeros(2)
        for what, do, counts in (
            ("index", lambda: read_domain(source, "cells", MLL23), True),
            ("hashes and thumbnails", lambda: prints_of(index, None), True),
            ("the same, kept", lambda: prints_of(index, caches), False),
            ("copies", lambda: keep_together([index], [prints]), True),
        ):
            took = np.array(seconds(do))
            total += took * counts
            print(f"{what:<24} {took[0]:7.1f} s wall {took[1]:7.1f} s processor")
        print(f"{'index, hashes, copies':<24} {total[0]:7.1f} s wall {total[1]:7.1f} s processor")
        compare_reading(folder, index, arguments.size, caches)


def compare_reading(folder: Path, index: object, size: int, caches: Path) -> None:
    """Print images per second of every way to read, and its ratio to ImageFolder."""
    resize = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), antialias=True)])
    reference = DataLoader(ImageFolder(str(folder), resize), batch_size=BATCH)
    fields = list(index)[:2000]  # type: ignore[call-overload]
    how = Preparation(size)
    file = PixelFile(caches / "cells.u8", len(fields), (size, size))
    places = {f.image: (file, n) for n, f in enumerate(fields)}
    memory = FieldDataset(fields, MLL23, how, Memory())
    disk = FieldDataset(fields, MLL23, how, Disk(places, Memory(0)))
    ways: dict[str, Callable[[], object]] = {}

    def image_folder() -> None:
        seen = 0
        for images, _ in reference:
            seen += len(images)
            if seen >= len(fields):
                return

    ways["ImageFolder"] = image_folder
    ways["no cache"] = batches(FieldDataset(fields, MLL23, how, Memory(0)))
    ways["disk, filling"] = batches(disk)
    ways["disk"] = batches(disk)
    ways["memory, filling"] = batches(memory)
    ways["memory"] = batches(memory)
    base = 0.0
    for name, read in ways.items():
        rate = len(fields) / seconds(read)[1]
        base = base or rate
        print(f"{name:<24} {rate:9.0f} images per second of one core, {rate / base:6.1f} x")


if __name__ == "__main__":
    main()
