"""What a calibration is for: one illumination, one white point, one scale for every device.

Pure functions of one image; none uses the image's own content, so a field full of white cells is
treated like an empty one. Boxes are half-open ``x0, y0, x1, y1`` in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from da_leukemia.calibration.fields import Pixels
from da_leukemia.calibration.light import Values, render
from da_leukemia.calibration.record import Calibration, Quantity

WHITE = 230.0
"""Grey level of the clear background after `same_colour`; leaves room for noise and bubbles."""

RED_CELL = (0.13, 0.29, 0.18)
"""Density, ``-ln(value / background)`` in R, G and B, that `same_colour` gives red cells: the
medians of five real devices (docs/results/calibration_real.md)."""

NUCLEUS = (0.76, 1.10, 0.14)
"""The same of nuclei."""

_FAINTEST = 0.03
"""Mean density of red cells below which their colour says nothing."""

_STRONGEST = 2.0
"""Largest change of density: a wrong estimate must not turn a film black or blank."""

_VAGUE = 0.5
"""Reach of the interval of nuclei's density, of it, from which on they are no reference."""

_RIDGE = 0.1
"""Weight of one factor for all channels against the two references, each of weight 1: what two
stains of nearly one hue do not say is not invented."""

_SAME_FRAME = 0.02
"""Relative difference of aspect up to which an image is the whole frame that was measured."""

_ROWS = 512
"""Rows of an image whose colours are changed at once."""

_DEEPEST = 0.1
"""Light below which `flat_field` amplifies no further: a rim would become bright noise."""


def flat_field(image: Pixels, calibration: Calibration) -> Pixels:
    """Even out the lamp's light; an unknown illumination leaves the image alone.

    So does an image of another shape than most: a part of the frame, and nobody knows which.

    Args:
        image: ``(H, W, 3)`` RGB of the device's whole frame, at any size.
        calibration: the device's.
    """
    frame = calibration.size[0] / calibration.size[1]
    shape = image.shape[1] / image.shape[0]
    if calibration.illumination is None or abs(shape / frame - 1) > _SAME_FRAME:
        return image
    light = render(calibration.illumination, *image.shape[:2])
    return _to_bytes(image / np.maximum(light, _DEEPEST))


def stain_matrix(calibration: Calibration) -> NDArray[np.float64]:
    """Return what the densities of R, G and B are multiplied by, a ``(3, 3)`` matrix.

    It brings the device's red cells to `RED_CELL` and its nuclei to `NUCLEUS`, by least squares
    with a ridge towards one factor for all channels. Where nuclei are unknown or vague it is that
    factor, since red cells alone, matched channel by channel, turn nuclei cyan. The identity where
    background or red cells are unknown, or red cells too faint.
    """
    if calibration.background is None or calibration.red_cell_colour is None:
        return np.eye(3)
    clear, red = _levels(calibration.background), _levels(calibration.red_cell_colour)
    cell = np.log(clear / red)
    if cell.mean() < _FAINTEST:
        return np.eye(3)
    factor = float(np.clip(np.mean(RED_CELL) / cell.mean(), 1 / _STRONGEST, _STRONGEST))
    nuclei = calibration.nucleus_colour
    if nuclei is None:
        return factor * np.eye(3)
    nucleus = np.log(clear / _levels(nuclei))
    reach = np.array([_reach(q) for q in nuclei])
    vague = np.linalg.norm(reach) > _VAGUE * np.linalg.norm(nucleus)
    if vague or nucleus.mean() <= cell.mean():  # nuclei are the densest thing on a film
        return factor * np.eye(3)
    # One column a stain, of length 1: the denser one counts no more.
    length = np.linalg.norm([cell, nucleus], axis=1)
    seen = np.stack([cell, nucleus], axis=1) / length
    wanted = np.stack([RED_CELL, NUCLEUS], axis=1) / length
    plain = _RIDGE * float((seen * wanted).sum() / (seen**2).sum()) * np.eye(3)
    matrix = (wanted @ seen.T + plain) @ np.linalg.inv(seen @ seen.T + _RIDGE * np.eye(3))
    return np.asarray(matrix * min(1.0, _STRONGEST / float(np.linalg.norm(matrix, 2))))


def same_colour(image: Pixels, calibration: Calibration) -> Pixels:
    """Bring the clear background to a neutral `WHITE`, red cells and nuclei to common densities.

    The references are the device's, so what a field contains changes nothing. An unknown
    background leaves the image alone, unknown red cells leave the densities alone.

    Args:
        image: ``(H, W, 3)`` RGB, after `flat_field` where there is a vignette.
        calibration: the device's.
    """
    if calibration.background is None:
        return image
    levels = np.maximum(np.arange(256), 1)[:, None]
    table = np.log(levels / _levels(calibration.background)).astype(np.float32)
    matrix = stain_matrix(calibration).T.astype(np.float32)
    out = np.empty_like(image)
    for top in range(0, len(image), _ROWS):  # a photograph of 12 megapixels stays small in memory
        part = image[top : top + _ROWS]
        density = np.stack([table[part[..., c], c] for c in range(3)], axis=-1)
        out[top : top + _ROWS] = _to_bytes(WHITE * np.exp(density @ matrix))
    return out


def _reach(level: Quantity) -> float:
    """Return how far a density's 90 % interval reaches from its value."""
    value, low, high = (max(v or 0.0, 1.0) for v in (level.value, level.low, level.high))
    return float(max(np.log(value / low), np.log(high / value)))


def _levels(colour: Sequence[Quantity]) -> NDArray[np.float64]:
    return np.array([max(q.value or 0.0, 1.0) for q in colour])


def fill_colour(
    calibration: Calibration, illumination: bool, colour: bool
) -> NDArray[np.uint8] | None:
    """Return the clear background ``(3,)`` after corrections, None where it is unknown.

    Args:
        calibration: the device's.
        illumination: whether `flat_field` was applied.
        colour: whether `same_colour` was applied.
    """
    if calibration.background is None or not (illumination or colour):
        return None
    levels = [WHITE if colour else q.value or 0.0 for q in calibration.background]
    return _to_bytes(np.array(levels))


def _to_bytes(values: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.clip(values, 0, 255) + 0.5, dtype=np.uint8)


def scale_factors(
    calibration: Calibration, canonical_px_per_um: float, size: tuple[int, int]
) -> tuple[float, float]:
    """Return the exact factors in x and y that `scale_to` applies to an image of a size.

    Args:
        calibration: the device's; an unknown scale gives ``(1, 1)``.
        canonical_px_per_um: pixels per um that images are brought to.
        size: ``width, height`` of the image, px.

    Returns:
        New over old width and height: images have whole pixels, so they are the rounded ones.
    """
    if canonical_px_per_um <= 0:
        raise ValueError(f"canonical_px_per_um must be positive, not {canonical_px_per_um}")
    out = []
    for side, scale in zip(size, _scales(calibration), strict=True):
        out.append(max(1, round(side * canonical_px_per_um / scale)) / side if scale else 1.0)
    return out[0], out[1]


def _scales(calibration: Calibration) -> tuple[float | None, float | None]:
    """Return px per um in x and y: one number where the pixels may well be square, as most are."""
    x, y, aspect = (
        calibration.px_per_um_x.value,
        calibration.px_per_um_y.value,
        calibration.aspect,
    )
    if x and y and aspect.low and aspect.high and aspect.low <= 1 <= aspect.high:
        x = y = (x * y) ** 0.5
    return x, y


def scale_to(
    image: Pixels, boxes: Values, calibration: Calibration, canonical_px_per_um: float
) -> tuple[Pixels, Values]:
    """Bring an image and its boxes to a common number of pixels per um in x and y.

    Args:
        image: ``(H, W, 3)`` RGB in the device's own pixels.
        boxes: ``(n, 4)`` in it.
        calibration: the device's; an unknown scale leaves both alone.
        canonical_px_per_um: pixels per um of the result.

    Returns:
        The image and ``(n, 4)`` float64 boxes in it. `boxes_back` undoes the latter.
    """
    height, width = image.shape[:2]
    x, y = scale_factors(calibration, canonical_px_per_um, (width, height))
    new = (round(width * x), round(height * y))
    factors = np.array([x, y, x, y])
    out = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * factors
    if new == (width, height):
        return image, out
    # Pillow's filters widen with the reduction, so nothing aliases.
    resized = Image.fromarray(image).resize(new, Image.Resampling.BILINEAR)
    return np.asarray(resized), out


def boxes_back(
    boxes: Values, calibration: Calibration, canonical_px_per_um: float, size: tuple[int, int]
) -> Values:
    """Map boxes of a scaled image back to the original.

    Args:
        boxes: ``(n, 4)`` in the image that `scale_to` returned.
        calibration: the same as there.
        canonical_px_per_um: the same as there.
        size: ``width, height`` of the original image, px.
    """
    x, y = scale_factors(calibration, canonical_px_per_um, size)
    given = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.asarray(given / np.array([x, y, x, y]))
