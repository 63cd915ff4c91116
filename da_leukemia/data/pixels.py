"""From an image file to the pixels that a detector gets. Free of torch: the check uses it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16)
"""Bits of a camera's sensor. Cameras of 10, 12 and 14 bits write into 16 without stretching."""

_LOOKED_AT = 16
"""Files of a folder whose largest value tells the depth of its camera."""


def rgb_of(image: Image.Image, path: Path | None = None) -> NDArray[np.uint8]:
    """Return the pixels ``(H, W, 3)`` that a detector gets; of deeper grey the upper 8 bits.

    The upper 8 of as many bits as the camera has (`camera_depth`), not the image: one image darker
    than the others stays darker. Colour of 16 bits Pillow reads by its upper 8 alone.

    Args:
        image: opened.
        path: of its file; without it the depth of grey is taken from this image alone.

    Raises:
        ValueError: real numbers of unknown range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are real numbers of unknown range")
    if is_deep(image):  # `convert` would clip 16 bits to white
        values = np.asarray(image).clip(0, 65535)
        own = _depth_of(int(values.max(initial=0)))
        shift = max(own, camera_depth(path.parent, path.suffix) if path else own) - 8
        return np.repeat((values >> shift).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image is grey of more than 8 bits."""
    return image.mode.startswith("I")


@lru_cache(maxsize=1024)
def camera_depth(folder: Path, suffix: str) -> int:
    """Return how many bits the camera has whose deep grey images are in a folder.

    That is the least of `DEPTHS` that holds what is largest in some of them, spread evenly.

    Args:
        folder: of the images.
        suffix: of their names; files of another kind are another camera's.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix == suffix)
    chosen = {int(i) for i in np.linspace(0, len(paths) - 1, min(_LOOKED_AT, len(paths)))}
    depth = DEPTHS[0]
    for i in sorted(chosen):
        try:
            with Image.open(paths[i]) as image:
                if is_deep(image):
                    depth = max(depth, _depth_of(int(np.asarray(image).max(initial=0))))
        except Exception:  # what is wrong with a damaged file is said where it is asked for
            continue
        if depth == DEPTHS[-1]:
            break
    return depth


def _depth_of(largest: int) -> int:
    return next((bits for bits in DEPTHS if largest < 1 << bits), DEPTHS[-1])
