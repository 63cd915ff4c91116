"""Look at simulated fields and measure them, alone or beside real ones.

``python -m da_leukemia.simulate.contact_sheet OUT.jpg [--real FOLDER]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from da_leukemia.simulate.devices import DEVICES, photograph
from da_leukemia.simulate.realism import Photo, tables
from da_leukemia.simulate.scene import render_field

ROWS = ("H_100X_C2", "H_100X_C1", "H_10X_C2", "L_100X_C2", "L_100X_C1", "L_40X_C1")
COLUMNS = ((1, 3), (2, 2), (3, 2), (5, 4), (9, 5))
"""Patient and field of each column: ALL, AML, CML, APML, CLL."""


def take(device: str, patient: int, field: int, seed: int = 0) -> Photo:
    """Render one field and photograph it through a named device."""
    rng = np.random.default_rng([seed, patient, field, *device.encode()])
    return photograph(render_field(seed, patient, field), DEVICES[device], rng)


def draw_sheet(rows: Sequence[tuple[str, Sequence[Photo]]], tile: int = 200) -> Image.Image:
    """Return a picture of named rows of fields, each field as the detector sees it."""
    width = tile * max(len(photos) for _, photos in rows)
    sheet = Image.new("RGB", (width, (tile + 14) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, photos) in enumerate(rows):
        pen.text((4, i * (tile + 14) + 1), name, fill="black")
        for j, photo in enumerate(photos):
            small = Image.fromarray(photo).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(small, (j * tile, i * (tile + 14) + 14))
    return sheet


def _read(folder: Path) -> list[Photo]:
    photos = []
    for file in sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".png", ".jpg")):
        with Image.open(file) as image:
            photos.append(np.asarray(image.convert("RGB").resize((640, 640))))
    return photos


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet and print the statistics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--real", type=Path, help="folder of real fields to put beside")
    parser.add_argument("--fields", type=int, default=24, help="fields measured per device")
    options = parser.parse_args(arguments)
    rows = [(name, [take(name, p, f) for p, f in COLUMNS]) for name in ROWS]
    real = _read(options.real) if options.real else []
    if options.real and not real:
        sys.exit(f"--real: no .png or .jpg under {options.real}")
    if real:
        step = max(1, len(real) // len(COLUMNS))
        rows.insert(1, ("real", real[::step][: len(COLUMNS)]))

    def measured() -> Iterator[tuple[str, list[Photo]]]:
        if real:
            yield "real", real
        for name in DEVICES if options.fields else ():
            yield name, [take(name, 1 + i, 1 + i % 5) for i in range(options.fields)]

    print(tables(measured()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows).save(options.out, quality=80)


if __name__ == "__main__":
    main()
