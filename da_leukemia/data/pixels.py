"""From an opened image to the pixels that a detector gets. Without torch: the check uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DARK = 64
"""Brightness, of 255, that a photograph of a lit film passes somewhere."""


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels ``(H, W, 3)`` that a detector gets; of 16 bits the upper 8.

    Always the upper 8, whatever the image holds: judged image by image, or folder by folder, the
    same camera's fields would differ in brightness. Cameras of 10, 12 and 14 bits that write into
    16 without stretching give nearly black images, which the checks before training refuse.

    Raises:
        ValueError: real numbers of unknown range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are real numbers of unknown range")
    if image.mode.startswith("I"):  # `convert` would clip 16 bits to white
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
