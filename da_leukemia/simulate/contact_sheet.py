"""Look at simulated fields and measure them, alone or beside real ones.

``python -m da_leukemia.simulate.contact_sheet OUT.jpg [--real FOLDER]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import laplace, uniform_filter

from da_leukemia.simulate.devices import DEVICES, photograph
from da_leukemia.simulate.scene import render_field

Photo = NDArray[np.uint8]

ROWS = ("H_100X_C2", "H_100X_C1", "H_10X_C2", "L_100X_C2", "L_100X_C1", "L_40X_C1")
COLUMNS = ((1, 3), (2, 2), (3, 2), (5, 4), (9, 5))
"""Patient and field of each column: ALL, AML, CML, APML, CLL."""

MEASURES = ("background", "red cell", "nucleus", "Laplacian", "red share", "noise")


def measure(photo: Photo) -> dict[str, NDArray[np.float64]]:
    """Measure a field of view as docs/simulator.md reports it.

    Args:
        photo: ``(640, 640, 3)`` RGB.

    Returns:
        For each of ``MEASURES`` an array: median RGB of background, red cells and nuclei (NaN
        where there are none), variance of the Laplacian of the grey image, share of the field
        that red cells cover, and noise (sigma, grey levels) in the empty background.
    """
    image = photo.astype(np.float64)
    grey = image @ [0.299, 0.587, 0.114]
    counts = np.bincount(np.round(grey).astype(int).ravel(), minlength=256)
    # The lamp is the brightest common level; a smear is never all cells.
    mode = int(np.argmax(np.convolve(counts, np.ones(5), "same") * (np.arange(256) > 90)))
    clear = np.abs(grey - mode) < 8
    background = np.median(image[clear], axis=0)
    green = image[..., 1] / background[1]
    blood = (green > 0.46) & (green < 0.86)
    nuclei = green < 0.42

    def colour(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        found = image[mask]
        return np.median(found, axis=0) if len(found) > 200 else np.full(3, np.nan)

    # Second differences cancel shading; flat neighbourhoods are those far from any cell.
    flat = uniform_filter(clear.astype(float), 15) > 0.97
    second = image[:, 1:-1, 1] - 0.5 * (image[:, 2:, 1] + image[:, :-2, 1])
    rest = second[flat[:, 1:-1]]
    # Dust too small to leave the background is cut off with the tails.
    rest = rest[np.abs(rest) < 4]
    noise = rest.std() / np.sqrt(1.5) if len(rest) > 500 else np.nan
    values = (
        background,
        colour(blood),
        colour(nuclei),
        laplace(grey).var(),
        blood.mean(),
        noise,
    )
    return dict(zip(MEASURES, (np.atleast_1d(v) for v in values), strict=True))


def summarise(photos: Iterable[Photo]) -> str:
    """Return one table row: the 10th, 50th and 90th percentile of each measure over fields."""
    found = [measure(photo) for photo in photos]
    cells = []
    for name in MEASURES:
        low, mid, high = np.nanpercentile(np.stack([m[name] for m in found]), [10, 50, 90], axis=0)
        places = 0 if len(mid) == 3 or name == "Laplacian" else 2
        text = [",".join(f"{v:.{places}f}" for v in part) for part in (low, mid, high)]
        cells.append(f"{text[1]} ({text[0]} - {text[2]})")
    return " | ".join(cells)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet and print the statistics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--real", type=Path, help="folder of real fields to put beside")
    parser.add_argument("--fields", type=int, default=24, help="fields measured per device")
    options = parser.parse_args(arguments)
    rows = [(name, [take(name, p, f) for p, f in COLUMNS]) for name in ROWS]
    print("fields | " + " | ".join(MEASURES))
    print(" | ".join(["---"] * (len(MEASURES) + 1)))
    if options.real:
        files = sorted(f for f in options.real.rglob("*") if f.suffix.lower() in (".png", ".jpg"))
        real = []
        for file in files:
            with Image.open(file) as image:
                real.append(np.asarray(image.convert("RGB").resize((640, 640))))
        if not real:
            sys.exit(f"--real: no .png or .jpg under {options.real}")
        step = max(1, len(real) // len(COLUMNS))
        rows.insert(1, ("real", real[::step][: len(COLUMNS)]))
        print(f"real ({len(real)}) | {summarise(real)}")
    for name in DEVICES if options.fields else ():
        photos = [take(name, 1 + i, 1 + i % 5) for i in range(options.fields)]
        print(f"{name} ({len(photos)}) | {summarise(photos)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows).save(options.out, quality=80)


if __name__ == "__main__":
    main()
