"""What a calibration is for: one illumination, one white point, one scale for every device.

Pure functions of one image; none uses the image's own content, so a field full of white cells is
treated like an empty one. Boxes are half-open ``x0, y0, x1, y1`` in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from da_leukemia.calibration.fields import Pixels
from da_leukemia.calibration.light import Values, render
from da_leukemia.calibration.record import Calibration

WHITE = 230.0
"""Grey level of the clear background after `same_colour`; leaves room for noise and bubbles."""

RED_CELL_DENSITY = 0.22
"""Mean over R, G and B of ``-ln(red cell / background)`` that `same_colour` gives red cells: the
middle of five real devices, 0.11 to 0.34 (docs/results/calibration_real.md)."""

_FAINTEST = 0.03
"""Mean density of red cells below which their colour says nothing."""

_STRONGEST = 2.0
"""Largest change of density: a wrong estimate must not turn a film black or blank."""

_SAME_FRAME = 0.02
"""Relative difference of aspect up to which an image is the whole frame that was measured."""

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


def density_factor(calibration: Calibration) -> float:
    """Return what stain density is multiplied by so that red cells have the common one.

    One number for all channels, because it keeps the hue: channel by channel red cells would match
    and nuclei turn cyan. 1 where background or red cells are unknown, or red cells too faint.
    """
    if calibration.background is None or calibration.red_cell_colour is None:
        return 1.0
    clear, cell = (
        np.array([max(q.value or 0.0, 1.0) for q in colour])
        for colour in (calibration.background, calibration.red_cell_colour)
    )
    density = float(np.log(clear / cell).mean())
    if density < _FAINTEST:
        return 1.0
    return min(max(RED_CELL_DENSITY / density, 1 / _STRONGEST), _STRONGEST)


def same_colour(image: Pixels, calibration: Calibration) -> Pixels:
    """Bring the clear background to a neutral `WHITE` and red cells to one stain density.

    Both references are the device's, so what a field contains changes nothing. An unknown
    background leaves the image alone, unknown red cells leave the density alone.

    Args:
        image: ``(H, W, 3)`` RGB, after `flat_field` where there is a vignette.
        calibration: the device's.
    """
    if calibration.background is None:
        return image
    clear = np.array([max(q.value or 0.0, 1.0) for q in calibration.background])
    share = np.arange(256)[:, None] / clear
    table = _to_bytes(WHITE * share ** density_factor(calibration))
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


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
