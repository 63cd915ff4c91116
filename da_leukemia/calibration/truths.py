"""What is known without the calibration: labelled cells, simulated devices, drawn discs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter, label

from da_leukemia.calibration.fields import Field, Pixels, read_field
from da_leukemia.calibration.light import Values

WHITE, RED = 1, 2
"""Categories of the labelled fields."""


def labelled(folder: Path) -> tuple[float, float, float]:
    """Return median width, height and diameter of labelled red cells that no border cuts, px."""
    found = _whole(folder, RED)
    if not len(found):
        return np.nan, np.nan, np.nan
    width, height = np.median(found, axis=0)
    return float(width), float(height), float(np.median(np.sqrt(found.prod(axis=1))))


def white_cells(folder: Path) -> float:
    """Return the median side ``sqrt(w * h)`` of labelled white cells that no border cuts, px."""
    found = _whole(folder, WHITE)
    return float(np.median(np.sqrt(found.prod(axis=1)))) if len(found) else np.nan


def _whole(folder: Path, category: int) -> NDArray[np.float64]:
    """Return width and height ``(N, 2)`` of the labelled cells that no border cuts, px."""
    data = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    found = []
    for mark in data["annotations"]:
        x, y, w, h = mark["bbox"]
        width, height = sizes[mark["image_id"]]
        whole = x > 2 and y > 2 and x + w < width - 2 and y + h < height - 2
        if mark["category_id"] == category and whole:
            found.append((w, h))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def tightened(folder: Path) -> tuple[int, float]:
    """Return of labelled red cells the visible size as a share of the box, and their number.

    Along the middle lines of a box that meets no other, the edge is where green rises most
    steeply outwards. No step of the calibration is used.
    """
    data = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    shares = []
    for image in data["images"]:
        marks = [m for m in data["annotations"] if m["image_id"] == image["id"]]
        boxes = np.array([m["bbox"] for m in marks], dtype=float).reshape(-1, 4)
        path = folder / "images" / Path(image["file_name"]).name
        green = gaussian_filter(read_field(path).pixels[..., 1].astype(np.float64), 1.0)
        for row, (x, y, w, h) in enumerate(boxes):
            apart = (np.abs(boxes[:, 0] + boxes[:, 2] / 2 - x - w / 2) > (boxes[:, 2] + w) / 2) | (
                np.abs(boxes[:, 1] + boxes[:, 3] / 2 - y - h / 2) > (boxes[:, 3] + h) / 2
            )
            apart[row] = True
            inside = x > 0.1 * w and y > 0.1 * h
            inside &= x + 1.1 * w < image["width"] and y + 1.1 * h < image["height"]
            if marks[row]["category_id"] != RED or not apart.all() or not inside:
                continue
            across = _steepest(green[round(y + h / 2)], x + w / 2, w / 2)
            down = _steepest(green[:, round(x + w / 2)], y + h / 2, h / 2)
            shares.append(np.sqrt(across / w * down / h))
    return len(shares), float(np.median(shares)) if shares else np.nan


def _steepest(line: Values, centre: float, half: float) -> float:
    reach = np.arange(0.65 * half, 1.15 * half, 0.25)
    out = 0.0
    for side in (-1, 1):
        profile = np.interp(centre - 0.5 + side * reach, np.arange(len(line)), line)
        out += float(reach[int(np.argmax(np.gradient(profile)))])
    return out


def true_diameter(seed: int, patients: Sequence[int]) -> float:
    """Return the median diameter of simulated red cells, in pixels of the 800 x 448 frame.

    Cells of every shape are drawn alone and their extents at half depth measured.
    """
    from da_leukemia.simulate.patients import make_patient
    from da_leukemia.simulate.red_cells import draw_red_cells
    from da_leukemia.simulate.shapes import HEIGHT, WIDTH, Canvas

    rng = np.random.default_rng(0)
    out = []
    for number in patients:
        patient = make_patient(seed, number)
        for _ in range(3):
            canvas = Canvas()
            cells = []
            for x in range(50, WIDTH - 49, 100):
                for y in range(50, HEIGHT - 49, 87):
                    radius = (
                        patient.red_diameter / 2 * float(np.clip(rng.normal(1, 0.09), 0.7, 1.3))
                    )
                    cells.append((float(x), float(y), radius))
            draw_red_cells(canvas, patient, cells, rng)
            depth = canvas.od[1] / patient.palette.red[1]
            for place in find_objects(label(depth > 0.45)[0]):
                extent = [part.stop - part.start for part in place]
                if min(extent) > 10:  # a burr's loose spike is no cell
                    out.append(float(np.sqrt(extent[0] * extent[1])))
    return float(np.median(out))


def empty_slides(device: str, patients: Sequence[int]) -> list[Pixels]:
    """Return what a simulated device shows of each patient where nothing lies, twice each."""
    from da_leukemia.simulate import DEVICES, photograph, render_field

    out: list[Pixels] = []
    for patient in patients:
        scene = render_field(0, patient, 1)
        scene = replace(scene, transmittance=np.ones_like(scene.transmittance))
        out.extend(
            photograph(scene, DEVICES[device], np.random.default_rng([8, patient, k]))
            for k in (0, 1)
        )
    return out


def photographs(device: str, patients: Sequence[int], fields: int) -> Iterator[Pixels]:
    """Give a simulated device's photographs, so many in all."""
    from da_leukemia.simulate import DEVICES, photograph, render_field

    for number in range(fields):
        patient, field = patients[number % len(patients)], number // len(patients) + 1
        rng = np.random.default_rng([7, number])
        yield photograph(render_field(0, patient, field), DEVICES[device], rng)


def as_fields(pictures: Sequence[Pixels]) -> list[Field]:
    """Return pictures in memory as fields."""
    return [
        Field(Path(f"{i}.png"), picture, 1.0, (picture.shape[1], picture.shape[0]))
        for i, picture in enumerate(pictures)
    ]


def resized(pictures: Sequence[Pixels], factor: float) -> list[Pixels]:
    """Return pictures at another size."""
    out = []
    for picture in pictures:
        size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        out.append(np.asarray(image))
    return out


def vignetted(picture: Pixels, depth: float) -> Pixels:
    """Return a picture whose corners lose a share of their light, and its left side a third."""
    y, x = np.meshgrid(
        np.linspace(-1, 1, picture.shape[0]), np.linspace(-1, 1, picture.shape[1]), indexing="ij"
    )
    shade = (1 - depth * (x**2 + y**2) / 2) * (1 + depth / 3 * x)
    return np.asarray(np.clip(picture * shade[..., None] / shade.max(), 0, 255), dtype=np.uint8)


def rimmed(picture: Pixels, ellipse: Sequence[float]) -> Pixels:
    """Return a picture as through an eyepiece: dark outside ``x, y, radius_x, radius_y`` (shares).

    The rim's edge is soft, a hundredth of the radius wide.
    """
    x0, y0, across, down = ellipse
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    away = np.hypot((x / width - x0) / across, (y / height - y0) / down)
    lit = np.clip((1 - away) / 0.01 + 0.5, 0.03, 1)
    return np.asarray(picture * lit[..., None] + 0.5, dtype=np.uint8)


def stained(picture: Pixels, factor: float) -> Pixels:
    """Return a picture whose stain is so much stronger: optical density times a factor."""
    clear = np.percentile(picture.reshape(-1, 3), 92, axis=0)
    share = np.clip(picture / clear, 0.02, None) ** factor
    return np.asarray(np.clip(share * clear, 0, 255), dtype=np.uint8)


def blurred(picture: Pixels, sigma: float) -> Pixels:
    """Return a picture out of focus."""
    return np.asarray(gaussian_filter(picture, (sigma, sigma, 0)))


def sized(picture: Pixels, factor: float) -> Pixels:
    """Enlarge or reduce a picture; an enlarged one shows a part of its field."""
    side = round(picture.shape[0] / max(1.0, factor * 0.5))
    return resized([picture[:side, :side]], factor)[0]


def drawn(
    diameter: float,
    *,
    seed: int,
    cover: float = 0.2,
    aspect: float = 1.0,
    blur: float = 0.0,
    noise: float = 1.0,
    size: int = 480,
) -> Pixels:
    """Draw flat discs that may overlap, of about one size, on a clear field.

    Args:
        diameter: geometric mean of their extents, px.
        seed: of their places.
        cover: sum of their areas over the field's.
        aspect: width over height.
        blur: sigma of a point spread, px.
        noise: grey levels.
        size: side of the picture, px.
    """
    rng = np.random.default_rng([seed, 3])
    y, x = np.mgrid[:size, :size] + 0.5
    depth = np.zeros((size, size))
    for _ in range(max(3, round(cover * size**2 / (np.pi / 4 * diameter**2)))):
        across = diameter * float(np.exp(rng.normal(0, 0.06)))
        cx, cy = rng.uniform(0, size, 2)
        away = np.hypot((x - cx) / np.sqrt(aspect), (y - cy) * np.sqrt(aspect))
        depth = np.maximum(depth, np.clip(across / 2 - away + 0.5, 0, 1))
    light = gaussian_filter(1 - 0.4 * depth, blur) if blur else 1 - 0.4 * depth
    noisy = light[..., None] * [200.0, 180.0, 190.0] + rng.normal(0, noise, (size, size, 3))
    return np.asarray(noisy.clip(0, 255) + 0.5, dtype=np.uint8)
