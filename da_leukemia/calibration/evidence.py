"""Measure the calibration against what is known: labelled red cells and simulated devices.

``python -m da_leukemia.calibration.evidence [--smears FOLDER] [--leukemiaattri FOLDER]
[--devices] [--stress] [--fields 12]`` prints the tables of docs/calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from da_leukemia.calibration.fields import Field, Pixels, find_images, read_fields, spread
from da_leukemia.calibration.measure import calibrate
from da_leukemia.calibration.record import Calibration

_SQUEEZE = 0.8, 640 / 448
"""Pixels of the released 640 x 640 frame per pixel of the simulator's 800 x 448 one."""

_HEAD = "| {} | truth, px | estimate, px | error | 90 % interval | holds | aspect, truth | cells |"


def labelled(folder: Path) -> tuple[float, float, float]:
    """Return median width, height and diameter of labelled red cells that no border cuts, px."""
    data = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    boxes = []
    for mark in data["annotations"]:
        x, y, w, h = mark["bbox"]
        width, height = sizes[mark["image_id"]]
        if (
            mark["category_id"] == 2
            and x > 2
            and y > 2
            and x + w < width - 2
            and y + h < height - 2
        ):
            boxes.append((w, h))
    if not boxes:
        return np.nan, np.nan, np.nan
    found = np.array(boxes)
    width, height = np.median(found, axis=0)
    return float(width), float(height), float(np.median(np.sqrt(found.prod(axis=1))))


def true_diameter(seed: int, patients: Sequence[int]) -> float:
    """Return the median diameter of simulated red cells, in pixels of the 800 x 448 frame.

    Cells of every shape are drawn alone and their extents at half depth measured.
    """
    from da_leukemia.simulate.patients import RED_SHAPES, make_patient
    from da_leukemia.simulate.red_cells import _thickness

    rng = np.random.default_rng(0)
    out = []
    for number in patients:
        patient = make_patient(seed, number)
        for _ in range(150):
            shape = RED_SHAPES[int(rng.choice(len(RED_SHAPES), p=patient.red_shapes))]
            radius = patient.red_diameter / 2 * float(np.clip(rng.normal(1, 0.09), 0.7, 1.3))
            drawn = _thickness(shape, radius, patient.pallor, rng) > 0.45
            extent = np.ptp(np.flatnonzero(drawn.any(0))) + 1, np.ptp(np.flatnonzero(drawn.any(1)))
            out.append(float(np.sqrt(extent[0] * (extent[1] + 1))))
    return float(np.median(out))


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


@dataclass
class Row:
    """An estimate beside the truth: sizes are ``width, height`` in px."""

    name: str
    truth: tuple[float, float]
    result: Calibration

    @property
    def error(self) -> float:
        """Relative error of the diameter, NaN where it is unknown."""
        red = self.result.red_cell_px
        true = float(np.sqrt(self.truth[0] * self.truth[1]))
        return np.nan if red is None else red.diameter / true - 1

    @property
    def holds(self) -> bool:
        """Whether the truth lies in the interval."""
        red = self.result.red_cell_px
        true = float(np.sqrt(self.truth[0] * self.truth[1]))
        return red is not None and red.low <= true <= red.high

    def line(self) -> str:
        """Return the row in markdown."""
        red, (width, height) = self.result.red_cell_px, self.truth
        true = f"{width:.1f} x {height:.1f}" if np.isfinite(width) else "-"
        if red is None:
            why = next((n for n in self.result.notes if n.startswith("red cells")), "")
            return f"| {self.name} | {true} | unknown: {why.split(', ', 1)[-1]} | | | | | |"
        error = f"{self.error:+.1%}" if np.isfinite(width) else "-"
        holds = ("yes" if self.holds else "no") if np.isfinite(width) else "-"
        ratio = f"{width / height:.2f}" if np.isfinite(width) else "-"
        return (
            f"| {self.name} | {true} | {red.width:.1f} x {red.height:.1f} | {error} | "
            f"{red.low:.1f}-{red.high:.1f} | {holds} | "
            f"{self.result.aspect.value:.2f}, {ratio} | {self.result.cells} |"
        )


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table and, where truth is known, its summary."""
    print(f"\n{_HEAD.format(title)}\n|{'---|' * 8}")
    for row in rows:
        print(row.line())
    errors = np.array([abs(row.error) for row in rows])
    seen = np.isfinite(errors)
    holds = [row.holds for row in rows if np.isfinite(row.error)]
    if seen.sum() >= 3:
        print(
            f"\n{title}: {seen.sum()} of {len(rows)} known; absolute error median "
            f"{np.median(errors[seen]):.1%}, 95th percentile {np.percentile(errors[seen], 95):.1%};"
            f" the interval holds the truth in {np.mean(holds):.0%}"
        )
    sys.stdout.flush()


def _real(folder: Path, name: str, truth: tuple[float, float]) -> Row:
    fields, _ = read_fields(spread(find_images(folder)))
    return Row(name, truth, calibrate(fields).calibration)


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


def stained(picture: Pixels, factor: float) -> Pixels:
    """Return a picture whose stain is so much stronger: optical density times a factor."""
    clear = np.percentile(picture.reshape(-1, 3), 92, axis=0)
    share = np.clip(picture / clear, 0.02, None) ** factor
    return np.asarray(np.clip(share * clear, 0, 255), dtype=np.uint8)


def blurred(picture: Pixels, sigma: float) -> Pixels:
    """Return a picture out of focus."""
    return np.asarray(gaussian_filter(picture, (sigma, sigma, 0)))


def _stress() -> dict[str, tuple[float, Callable[[Pixels], Pixels]]]:
    """Return what is done to a picture, by name, and how much larger its cells become."""
    out: dict[str, tuple[float, Callable[[Pixels], Pixels]]] = {}
    for size in (5, 8, 11, 20, 80, 120, 150):
        factor = size / 39.0
        out[f"{size} px"] = (factor, partial(_sized, factor=factor))
    for depth in (0.4, 0.7):
        out[f"vignette {depth:.0%}"] = (1.0, partial(vignetted, depth=depth))
    for strength in (0.5, 0.7, 1.3):
        out[f"stain x {strength}"] = (1.0, partial(stained, factor=strength))
    for sigma in (2.0, 4.0):
        out[f"blur {sigma:.0f} px"] = (1.0, partial(blurred, sigma=sigma))
    return out


def _sized(picture: Pixels, factor: float) -> Pixels:
    """Enlarge or reduce a picture; an enlarged one shows a part of its field."""
    side = round(picture.shape[0] / max(1.0, factor * 0.5))
    return resized([picture[:side, :side]], factor)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m da_leukemia.calibration.evidence")
    parser.add_argument("--smears", type=Path, help="folder of the real test pack")
    parser.add_argument("--leukemiaattri", type=Path, help="folder of the real sample fields")
    parser.add_argument("--devices", action="store_true", help="the twelve simulated devices")
    parser.add_argument("--stress", action="store_true", help="size, vignette, stain and blur")
    parser.add_argument("--fields", type=int, default=12, help="fields of a simulated device")
    given = parser.parse_args(argv)
    rows = []
    if given.smears is not None:
        for name in ("bccd", "pbc", "aslan", "pig", "rpi", "neg"):
            width, height, _ = labelled(given.smears / name)
            rows.append(_real(given.smears / name / "images", name, (width, height)))
    if given.leukemiaattri is not None:
        rows.append(_real(given.leukemiaattri, "LeukemiaAttri", (31.0, 56.0)))
    if rows:
        show("real device", rows)
    patients = (1, 2, 3, 4, 5, 6)
    if given.devices:
        from da_leukemia.simulate import DEVICES

        rows = []
        for name in DEVICES:
            for part in (patients[:3], patients[3:]):
                true = true_diameter(0, part)
                pictures = list(photographs(name, part, given.fields))
                found = calibrate(as_fields(pictures)).calibration
                title = f"{name}, patients {part[0]}-{part[-1]}"
                rows.append(Row(title, (true * _SQUEEZE[0], true * _SQUEEZE[1]), found))
        show("simulated device", rows)
    if given.stress:
        true = true_diameter(0, patients)
        rows = []
        for device in ("H_100X_C2", "L_40X_C1"):
            pictures = list(photographs(device, patients, given.fields))
            for name, (factor, change) in _stress().items():
                found = calibrate(as_fields([change(p) for p in pictures])).calibration
                size = true * _SQUEEZE[0] * factor, true * _SQUEEZE[1] * factor
                rows.append(Row(f"{device}, {name}", size, found))
        show("stress", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
