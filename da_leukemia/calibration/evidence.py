"""Measure the calibration against what is known: labelled red cells and simulated devices.

``python -m da_leukemia.calibration.evidence [--smears FOLDER [--subsets]] [--drawn]
[--leukemiaattri FOLDER] [--devices] [--stress] [--fields 12]`` prints the tables of
docs/calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter, label

from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.fields import (
    Field,
    Pixels,
    find_images,
    read_field,
    read_fields,
    spread,
)
from da_leukemia.calibration.light import Values, render
from da_leukemia.calibration.measure import calibrate
from da_leukemia.calibration.record import Calibration

_SQUEEZE = 0.8, 640 / 448
"""Pixels of the released 640 x 640 frame per pixel of the simulator's 800 x 448 one."""

_HEAD = "| {} | truth, px | estimate, px | error | 90 % interval | holds | aspect, truth | cells |"
_LIGHT = " light, RMS | white, levels | noise, truth |"


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


def white_cells(folder: Path) -> float:
    """Return the median side ``sqrt(w * h)`` of labelled white cells that no border cuts, px."""
    data = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    sides = []
    for mark in data["annotations"]:
        x, y, w, h = mark["bbox"]
        width, height = sizes[mark["image_id"]]
        whole = x > 2 and y > 2 and x + w < width - 2 and y + h < height - 2
        if mark["category_id"] == 1 and whole:
            sides.append(np.sqrt(w * h))
    return float(np.median(sides)) if sides else np.nan


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
            if marks[row]["category_id"] != 2 or not apart.all() or not inside:
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


def light_errors(found: Calibration, slides: Sequence[Pixels]) -> str:
    """Return cells of a table: errors of light and white point, noise and its truth.

    Args:
        found: the calibration.
        slides: photographs without cells, two of each film.
    """
    if found.illumination is None or found.background is None:
        return " unknown | unknown | unknown |"
    seen = np.mean([gaussian_filter(s.astype(np.float32), (3, 3, 0)) for s in slides], axis=0)
    levels = np.array([q.value or 0.0 for q in found.background])
    ratio = render(found.illumination, *seen.shape[:2]) * levels / np.maximum(seen, 1)
    offset = np.median(ratio, axis=(0, 1))
    rms = float(np.sqrt(np.mean((ratio / offset - 1) ** 2)))
    white = float(np.abs((offset - 1) * np.median(seen, axis=(0, 1))).max())
    pairs = zip(slides[::2], slides[1::2], strict=True)
    noise = np.sqrt(np.mean([(a[..., 1].astype(float) - b[..., 1]).var() / 2 for a, b in pairs]))
    noisy = "unknown" if found.noise.value is None else f"{found.noise.value:.2f}"
    return f" {rms:.1%} | {white:.1f} | {noisy}, {noise:.2f} |"


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
    more: str = ""

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
            why = why.split(", ", 1)[-1]
            return f"| {self.name} | {true} | unknown: {why} | | | | | |{self.more}"
        error = f"{self.error:+.1%}" if np.isfinite(width) else "-"
        holds = ("yes" if self.holds else "no") if np.isfinite(width) else "-"
        ratio = f"{width / height:.2f}" if np.isfinite(width) else "-"
        return (
            f"| {self.name} | {true} | {red.width:.1f} x {red.height:.1f} | {error} | "
            f"{red.low:.1f}-{red.high:.1f} | {holds} | "
            f"{self.result.aspect.value:.2f}, {ratio} | {self.result.cells} |{self.more}"
        )


def show(title: str, rows: Sequence[Row], more: str = "") -> None:
    """Print a table and, where truth is known, its summary; ``more`` heads further columns."""
    print(f"\n{_HEAD.format(title)}{more}\n|{'---|' * (8 + more.count('|'))}")
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


_DRAWN: dict[str, dict[str, float]] = {
    "plain": {},
    "cover 5%": {"cover": 0.05},
    "cover 10%": {"cover": 0.1},
    "cover 40%": {"cover": 0.4},
    "cover 80%": {"cover": 0.8},
    "aspect 0.56": {"aspect": 0.56},
    "aspect 1.5": {"aspect": 1.5},
    "blur 1 px": {"blur": 1.0},
    "blur 2 px": {"blur": 2.0},
    "blur 4 px": {"blur": 4.0},
    "noise 3": {"noise": 3.0},
    "noise 8": {"noise": 8.0},
}


def _show_drawn() -> None:
    rows = []
    for size in (12.0, 40.0, 90.0):
        for name, how in _DRAWN.items():
            pictures = [drawn(size, seed=k, **how) for k in range(12)]  # type: ignore[arg-type]
            found = calibrate(as_fields(pictures)).calibration
            root = np.sqrt(how.get("aspect", 1.0))
            # 2.56 sigma from 10 % to 90 %; a pixel's own ramp is 0.8 px.
            edge = np.hypot(2.563 * how.get("blur", 0.0), 0.8)
            seen, noise = found.edge_x.value, found.noise.value
            more = f" {'unknown' if seen is None else f'{seen:.1f}'}, {edge:.1f} |"
            more += (
                f" {'unknown' if noise is None else f'{noise:.2f}'}, {how.get('noise', 1.0):.1f} |"
            )
            rows.append(Row(f"{size:.0f} px, {name}", (size * root, size / root), found, more))
    show("drawn discs", rows, " edge x, truth | noise, truth |")


def _show_subsets(folder: Path) -> None:
    """Print the diameter by parts of each device, and its white cells in red-cell diameters."""
    parts: dict[str, Callable[[list[Path]], list[Path]]] = {
        "all": lambda p: p,
        "even": lambda p: p[::2],
        "odd": lambda p: p[1::2],
        "first half": lambda p: p[: len(p) // 2],
        "last half": lambda p: p[len(p) // 2 :],
    }
    print(f"\n| device | images | {' | '.join(parts)} | agree |\n|{'---|' * (3 + len(parts))}")
    for name in ("bccd", "pbc", "aslan", "pig", "rpi", "neg", "pbc_other"):
        paths = find_images(folder / name / "images")
        whole = calibrate_images(paths).red_cell_px
        for most in (50, 20, 10):
            line, agree = [], True
            for part in parts.values():
                red = calibrate_images(part(paths), most=most).red_cell_px
                line.append("unknown" if red is None else f"{red.diameter:.1f}")
                if red is not None and whole is not None:
                    agree &= red.low <= whole.diameter <= red.high
            print(f"| {name} | {most} | {' | '.join(line)} | {'yes' if agree else 'no'} |")
            sys.stdout.flush()


def _show_white_cells(folder: Path) -> None:
    """Print each device's white cells in red-cell diameters, and how loose its boxes are."""
    print("\n| device | white cell, px | red cell, px | white / red | visible / box, cells |")
    print("|---|---|---|---|---|")
    for name in ("bccd", "pbc", "aslan", "pig", "rpi"):
        red = calibrate_images(find_images(folder / name / "images")).red_cell_px
        white, (count, share) = white_cells(folder / name), tightened(folder / name)
        loose = f"{share:.2f}, {count}" if count else "-"
        size = "unknown | -" if red is None else f"{red.diameter:.1f} | {white / red.diameter:.2f}"
        print(f"| {name} | {white:.1f} | {size} | {loose} |")
        sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m da_leukemia.calibration.evidence")
    parser.add_argument("--smears", type=Path, help="folder of the real test pack")
    parser.add_argument("--leukemiaattri", type=Path, help="folder of the real sample fields")
    parser.add_argument("--devices", action="store_true", help="the twelve simulated devices")
    parser.add_argument("--subsets", action="store_true", help="of the test pack, by parts")
    parser.add_argument("--drawn", action="store_true", help="discs whose truth is exact")
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
    if given.smears is not None:
        _show_white_cells(given.smears)
        if given.subsets:
            _show_subsets(given.smears)
    if given.drawn:
        _show_drawn()
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
                more = light_errors(found, empty_slides(name, part))
                rows.append(Row(title, (true * _SQUEEZE[0], true * _SQUEEZE[1]), found, more))
        show("simulated device", rows, _LIGHT)
    if given.stress:
        true = true_diameter(0, patients)
        rows = []
        for device in ("H_100X_C2", "L_40X_C1"):
            pictures = list(photographs(device, patients, given.fields))
            slides = empty_slides(device, patients)
            for name, (factor, change) in _stress().items():
                found = calibrate(as_fields([change(p) for p in pictures])).calibration
                size = true * _SQUEEZE[0] * factor, true * _SQUEEZE[1] * factor
                more = light_errors(found, [change(slide) for slide in slides])
                rows.append(Row(f"{device}, {name}", size, found, more))
        show("stress", rows, _LIGHT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
