"""Copies of real devices as other cameras would have given them, for devices that nobody tuned on.

Each copy has another scale, colour, light, sharpness or noise than its device, and JPEG of another
quality; boxes are scaled with the images. The sources of ``experiments/altered_*.yaml`` are linked
beside the copies; none of them is tested on its own copy, whose fields it has learned from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """How a copy differs from its device.

    Attributes:
        of: the device.
        scale: pixels of the copy per pixel of the device.
        blur: standard deviation of a Gaussian, px of the copy.
        quality: of its JPEG files.
        look: changes colours and light of ``(H, W, 3)``, 0 to 255.
    """

    of: str
    scale: float
    blur: float
    quality: int
    look: Callable[[Pixels, np.random.Generator], Pixels]


def _tint(gain: tuple[float, float, float], gamma: float) -> Callable[..., Pixels]:
    return lambda image, _: 255 * np.clip((image / 255) ** gamma * np.array(gain), 0, 1)


def _darker_to_the_corners(image: Pixels, share: float) -> Pixels:
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    far = 2 * ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2)
    return image * (1 - share * far)[..., None]


def _half_grey_and_noisy(image: Pixels, draw: np.random.Generator) -> Pixels:
    grey = image.mean(-1, keepdims=True)
    return (image + grey) / 2 + draw.normal(0, 8, image.shape)


CAMERAS = {
    "aslan_far": Camera("aslan", 2.7, 0, 50, _tint((1.0, 0.9, 0.72), 0.8)),
    "pbc_dark": Camera("pbc", 0.6, 0.8, 40, _tint((0.62, 0.66, 0.74), 1.1)),
    "bccd_vig": Camera(
        "bccd",
        2.0,
        0,
        80,
        lambda image, draw: _darker_to_the_corners(_tint((0.9, 1.0, 0.85), 1.0)(image, draw), 0.6),
    ),
    "pig_grey": Camera("pig", 1.5, 0, 70, _half_grey_and_noisy),
}


def alter(root: Path, out: Path, name: str) -> None:
    """Write a copy of a device with its labels to ``out/name``."""
    camera, draw = CAMERAS[name], np.random.default_rng(0)
    content = json.loads((root / camera.of / "annotations.json").read_text(encoding="utf-8"))
    (out / name / "images").mkdir(parents=True, exist_ok=True)
    for record in content["images"]:
        file = Path(record["file_name"])
        with Image.open(root / camera.of / "images" / file.name) as opened:
            image = opened.convert("RGB")
        size = (round(image.width * camera.scale), round(image.height * camera.scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        image = image.filter(ImageFilter.GaussianBlur(camera.blur)) if camera.blur else image
        seen = np.clip(camera.look(np.asarray(image, float), draw), 0, 255).astype(np.uint8)
        place = out / name / "images" / f"{file.stem}.jpg"
        Image.fromarray(seen).save(place, quality=camera.quality)
        record |= {"file_name": f"images/{place.name}", "width": size[0], "height": size[1]}
    for cell in content["annotations"]:
        cell["bbox"] = [v * camera.scale for v in cell["bbox"]]
        for key in ("area", "segmentation"):
            cell.pop(key, None)
    (out / name / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{name}: {len(content['images'])} images of {camera.of}")


def main(arguments: list[str] | None = None) -> None:
    """Write all copies."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.altered_devices",
        description="Copy real devices as other cameras would have given them.",
    )
    parser.add_argument("root", type=Path, help="folder of the real devices")
    parser.add_argument("out", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    for name in CAMERAS:
        alter(given.root, given.out, name)
    for source in ("bccd", "pbc"):
        link = given.out / source
        if not link.exists():
            link.symlink_to((given.root / source).resolve())


if __name__ == "__main__":
    main()
