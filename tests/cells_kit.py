"""What the tests of single cells share: drawn cells in the published folder layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "neutrophil": (200, 120, 160),
    "lymphocyte": (90, 60, 170),
    "monocyte": (130, 130, 190),
    "eosinophil": (230, 110, 90),
    "basophil": (60, 30, 110),
}


def picture(seed: int, colour=(120, 60, 150), size=(40, 40), light=1.0) -> Image.Image:
    """Draw a disc of one colour on a cloudy ground; another seed is another cell."""
    draw = np.random.default_rng(seed)
    width, height = size
    ground = Image.fromarray(draw.integers(150, 255, (5, 5, 3), dtype=np.uint8))
    image = np.asarray(ground.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[:height, :width]
    centre = np.array([width, height]) / 2 + draw.normal(0, 2, 2)
    inside = np.hypot(x - centre[0], y - centre[1]) < width * draw.uniform(0.22, 0.35)
    image[inside] = np.array(colour) + draw.normal(0, 8, (int(inside.sum()), 3))
    return Image.fromarray((image * light).clip(0, 255).astype(np.uint8))


def put(path: Path, image: Image.Image, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


def five_types(
    root: Path, cells: int = 6, seed: int = 0, light: float = 1.0, side: int = 40
) -> Path:
    """Write folders of the five types, as a device that is darker or lighter."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        for n in range(cells):
            image = picture(seed + 1000 * k + n, colour, (side, side), light)
            put(root / name / f"{name[:2]}_{n}.png", image)
    return root
