"""Components of a mask: which are single ellipses, and touching ones taken apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    distance_transform_edt,
    gaussian_filter,
    label,
    maximum_filter,
)

from da_leukemia.calibration.light import Mask, Values

Numbers = NDArray[np.signedinteger]

_ELLIPTIC = 0.955
"""Least area over that of the ellipse with the same moments: two touching cells stay below."""

_ROUND = 1.45
"""Most length over width of a single red cell, once the device's aspect is taken out."""


def fitting(
    numbered: Numbers, count: int, valid: Mask, aspect: float, least: float
) -> tuple[NDArray[np.int64], Values]:
    """Return the numbers ``(n,)`` of whole elliptic components, and their moments ``(6, n)``."""
    wanted = np.bincount(numbered.ravel(), minlength=count + 1) > least
    wanted[0] = False
    wanted[_touching(numbered, valid)] = False
    moments = _moments(numbered, wanted)
    round_ = _elliptic(moments, aspect)
    return np.flatnonzero(wanted)[round_], moments[:, round_]


def depth(mask: Mask, aspect: float) -> Values:
    """Return the distance to the outline, in pixels of x."""
    found = distance_transform_edt(mask, sampling=(aspect, 1.0))
    assert isinstance(found, np.ndarray)  # it is a tuple only with `return_indices`
    return found


def cut(mask: Mask, depth: Values, expected: float) -> tuple[Numbers, int]:
    """Part touching cells: shrink them until they come apart, then grow each back."""
    cores, count = label(mask & (depth > 0.3 * expected))
    if not count:
        return np.zeros(mask.shape, dtype=np.int32), 0
    away, nearest = distance_transform_edt(cores == 0, return_indices=True)
    grown = cores[nearest[0], nearest[1]]
    return np.where(mask & (away < 0.4 * expected), grown, 0), count


def fill(raw: Mask, most: float) -> Mask:
    """Fill the pallor of ring cells, but not the clear space that a ring of cells encloses."""
    clear, count = label(~raw)
    holes = np.bincount(clear.ravel(), minlength=count + 1) <= most
    for side in (clear[0], clear[-1], clear[:, 0], clear[:, -1]):
        holes[side] = False
    holes[0] = False
    return np.asarray(raw | holes[clear])


def _moments(numbered: Numbers, wanted: Mask) -> Values:
    """Return area, centre x and y, and moments xx, yy, xy of the wanted components, ``(6, n)``."""
    y, x = np.nonzero(wanted[numbered])
    which = np.cumsum(wanted)[numbered[y, x]]
    size = int(wanted.sum()) + 1
    area = np.bincount(which, minlength=size)[1:].astype(float)
    cx = np.bincount(which, x, size)[1:] / area
    cy = np.bincount(which, y, size)[1:] / area
    dx, dy = x - cx[which - 1], y - cy[which - 1]
    third = 1 / 12  # a pixel is a square, not a point
    xx = np.bincount(which, dx * dx, size)[1:] / area + third
    yy = np.bincount(which, dy * dy, size)[1:] / area + third
    xy = np.bincount(which, dx * dy, size)[1:] / area
    return np.stack([area, cx + 0.5, cy + 0.5, xx, yy, xy])


def _elliptic(moments: Values, aspect: float) -> Mask:
    area, _, _, xx, yy, xy = moments
    solid = area / (4 * np.pi * np.sqrt(np.maximum(xx * yy - xy**2, 1e-9)))
    wide, skew = yy * aspect**2, xy * aspect  # a round cell now has equal moments
    middle, half = (xx + wide) / 2, np.hypot((xx - wide) / 2, skew)
    long = np.sqrt((middle + half) / np.maximum(middle - half, 1e-9))
    return np.asarray((solid > _ELLIPTIC) & (long < _ROUND))


def _touching(numbered: Numbers, valid: Mask) -> Numbers:
    """Return the components at the border of the image or of the valid field."""
    edge = [numbered[:2], numbered[-2:], numbered[:, :2], numbered[:, -2:]]
    found = np.concatenate([part.ravel() for part in edge])
    if not valid.all():
        near = maximum_filter((~valid).astype(np.uint8), 5) > 0
        found = np.concatenate([found, numbered[near]])
    return np.unique(found)


def inscribed(depth: Values, valid: Mask, expected: float, aspect: float) -> Values:
    """Return diameters in x of the circles that fit, one for each cell even in a clump."""
    window = (max(3, int(0.75 * expected / aspect) | 1), max(3, int(0.75 * expected) | 1))
    smooth = gaussian_filter(depth, 0.03 * expected)
    peak = (maximum_filter(smooth, window) == smooth) & (depth > 0.15 * expected)
    rows, columns = np.nonzero(peak & valid)
    radius = depth[rows, columns]
    height, width = depth.shape
    inside = (columns > radius) & (columns < width - radius)
    inside &= (rows > radius / aspect) & (rows < height - radius / aspect)
    # The transform counts from pixel centres to pixel centres: the outline lies half a pixel in.
    return np.asarray(2 * radius[inside] - 1)
