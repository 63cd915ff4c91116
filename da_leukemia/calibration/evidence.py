"""Measure the calibration against what is known: labelled red cells and simulated devices.

``python -m da_leukemia.calibration.evidence [--smears FOLDER [--subsets]] [--drawn]
[--leukemiaattri FOLDER] [--devices] [--stress] [--fields 12]`` prints the tables of
docs/calibration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from da_leukemia.calibration.automatic import calibrate_images
from da_leukemia.calibration.fields import Pixels, find_images, read_fields, spread
from da_leukemia.calibration.light import render
from da_leukemia.calibration.measure import calibrate
from da_leukemia.calibration.record import Calibration
from da_leukemia.calibration.truths import (
    as_fields,
    blurred,
    drawn,
    empty_slides,
    labelled,
    photographs,
    rimmed,
    sized,
    stained,
    tightened,
    true_diameter,
    vignetted,
    white_cells,
)

_SQUEEZE = 0.8, 640 / 448
"""Pixels of the released 640 x 640 frame per pixel of the simulator's 800 x 448 one."""

_HEAD = "| {} | truth, px | estimate, px | error | 90 % interval | holds | aspect, truth | cells |"
_LIGHT = " light, RMS, stated | white, levels | noise, truth |"


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
    stated = found.illumination_error
    bound = "unknown" if stated is None else f"{stated:.1%}"
    return f" {rms:.1%}, {bound} | {white:.1f} | {noisy}, {noise:.2f} |"


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


def _stress() -> dict[str, tuple[float, Callable[[Pixels], Pixels]]]:
    """Return what is done to a picture, by name, and how much larger its cells become."""
    out: dict[str, tuple[float, Callable[[Pixels], Pixels]]] = {}
    for size in (5, 8, 11, 20, 80, 120, 150):
        factor = size / 39.0
        out[f"{size} px"] = (factor, partial(sized, factor=factor))
    for depth in (0.4, 0.7):
        out[f"vignette {depth:.0%}"] = (1.0, partial(vignetted, depth=depth))
    for strength in (0.5, 0.7, 1.3):
        out[f"stain x {strength}"] = (1.0, partial(stained, factor=strength))
    for sigma in (2.0, 4.0):
        out[f"blur {sigma:.0f} px"] = (1.0, partial(blurred, sigma=sigma))
    return out


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


_RIMS = (
    (0.5, 0.5, 0.4, 0.4),
    (0.5, 0.5, 0.47, 0.47),
    (0.53, 0.46, 0.36, 0.4),
    (0.5, 0.5, 0.5, 0.6),
)


def _show_rims(device: str, pictures: Sequence[Pixels]) -> None:
    """Print the valid field beside the ellipse outside which pictures were darkened."""
    print(f"\n| {device}, rim | truth | estimate | 90 % interval | holds |\n|{'---|' * 5}")
    for truth in _RIMS:
        found = calibrate(as_fields([rimmed(p, truth) for p in pictures])).calibration.valid
        for what, true, part in zip(
            ("x", "y", "radius x", "radius y"), truth, found or (), strict=False
        ):
            low, high = part.low or 0.0, part.high or 0.0
            holds = "yes" if low <= true <= high else "no"
            print(f"| {what} | {true:.1%} | {part.value:.1%} | {low:.1%}-{high:.1%} | {holds} |")
        if found is None:
            print(f"| {truth} | | unknown | | |")
        sys.stdout.flush()


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
            _show_rims(device, pictures)
            for name, (factor, change) in _stress().items():
                found = calibrate(as_fields([change(p) for p in pictures])).calibration
                size = true * _SQUEEZE[0] * factor, true * _SQUEEZE[1] * factor
                more = light_errors(found, [change(slide) for slide in slides])
                rows.append(Row(f"{device}, {name}", size, found, more))
        show("stress", rows, _LIGHT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
