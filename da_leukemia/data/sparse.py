"""Fields of which patches alone are annotated: what counts inside, and fields made so.

Free of torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from da_leukemia.config import Sparse
from da_leukemia.data.fields import FieldIndex, FieldOfView, FloatArray, Region
from da_leukemia.data.splits import Split

TOLERANCE = 1.0
"""Pixels by which the centre of an annotated cell may leave its patch: coordinates are rounded."""

_ASPECT = (2 / 3, 3 / 2)


def centred_in(
    boxes: FloatArray, regions: Sequence[Region], tolerance: float = 0.0
) -> NDArray[np.bool_]:
    """Tell which boxes ``(N, 4)`` have their centre in one of the regions.

    A cell belongs to the patch that holds its centre, as in Sparse-LeukemiaAttri.
    """
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    x1, y1, x2, y2 = np.array(regions, np.float64).reshape(-1, 4).T[..., None]
    across = (x1 - tolerance <= x) & (x < x2 + tolerance)
    inside: NDArray[np.bool_] = (across & (y1 - tolerance <= y) & (y < y2 + tolerance)).any(axis=0)
    return inside


def learned(field: FieldOfView) -> NDArray[np.bool_]:
    """Tell which cells ``(N,)`` of a field may be learned: a box outside its patch is a stray."""
    if field.annotated_regions is None:
        return np.ones(len(field.boxes), dtype=bool)
    return centred_in(field.boxes, field.annotated_regions, TOLERANCE)


def opened(field: FieldOfView) -> NDArray[np.float64]:
    """Return the annotated regions ``(R, 4)``; a side on the image's edge is moved to infinity.

    Beyond the edge there is nothing that could have been left out.
    """
    if field.annotated_regions is None:
        return np.array([[-math.inf, -math.inf, math.inf, math.inf]])
    regions = np.array(field.annotated_regions, np.float64).reshape(-1, 4)
    low, high = regions[:, :2], regions[:, 2:]
    return np.concatenate(
        [
            np.where(low <= 0, -math.inf, low),
            np.where(high >= [field.width, field.height], math.inf, high),
        ],
        axis=1,
    )


def made_sparse(index: FieldIndex, split: Split, settings: Sparse) -> FieldIndex:
    """Return a device of whose fields only random patches are annotated, cells elsewhere forgotten.

    Test fields stay whole. The patches of a field depend on its name and the seed, not on its cells
    or other fields; those of a larger area hold those of a smaller one. A field that is sparse
    already stays as it is.
    """
    if settings.whole:
        return index
    fields = tuple(
        f
        if f.annotated_regions is not None or split.part_of(f) == "test"
        else _made_sparse(f, settings)
        for f in index
    )
    return FieldIndex(index.domain, fields, index.findings)


def _made_sparse(field: FieldOfView, settings: Sparse) -> FieldOfView:
    regions = patches(field, settings)
    kept = centred_in(field.boxes, regions)
    return replace(
        field,
        boxes=field.boxes[kept],
        labels=field.labels[kept],
        attributes=field.attributes[kept],
        annotated_regions=regions,
    )


def patches(field: FieldOfView, settings: Sparse) -> tuple[Region, ...]:
    """Draw the patches of a field: it is divided into equal tiles, each of which gets one.

    So patches never overlap, and together they have the share of the area that was asked for.
    """
    digest = hashlib.sha256(f"{settings.seed} {field.key}".encode("utf-8", "surrogateescape"))
    draw = np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
    rows, columns = _tiles(settings.patches, field.width / field.height)
    width, height = field.width / columns, field.height / rows
    found = []
    for tile in range(settings.patches):
        x, y, shape = draw.random(3)  # always three, so that the area moves no patch
        aspect = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** shape  # of width to height, in tiles
        wide = min(1.0, math.sqrt(settings.area * aspect))
        tall = min(1.0, settings.area / wide)
        wide = settings.area / tall
        left = (tile % columns + x * (1 - wide)) * width
        top = (tile // columns + y * (1 - tall)) * height
        found.append((left, top, left + wide * width, top + tall * height))
    return tuple(found)


def _tiles(count: int, aspect: float) -> tuple[int, int]:
    """Divide a field into ``rows x columns`` tiles, as square as they can be."""
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(shapes, key=lambda s: abs(math.log(aspect * s[0] / s[1])))
