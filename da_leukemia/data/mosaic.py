"""Annotated patches of several fields laid side by side, each at its own scale, to fill a view.

A field of which a fifth is annotated teaches a fifth of what its pixels cost. A view made of
patches teaches most of what one of a field does that is annotated whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.dataset import FieldDataset, View, in_view
from da_leukemia.data.fields import FieldOfView

MOST_PATCHES = 32
"""Of a view; a twentieth of a field fills it with about twenty."""

MARGIN = 0.5
"""Seen around a patch, in median cells of the device: nothing is learned as background there. With
none, cells on the edge of a patch teach that cells end at seams (docs/results/sparse.md)."""

_FULLER = 4
"""Boxes that a mosaic has room for, in those of the fullest field."""

_PURPOSE = 7
"""Keeps the random numbers of mosaics apart from those of windows."""

_LEAST = 8
"""Pixels below which what is left of a patch, or of the view, shows no cell."""


class Patch(NamedTuple):
    """An annotated region of a field with some pixels around it, in its picture; half-open."""

    field: int
    region: int
    x1: int
    y1: int
    x2: int
    y2: int


class Tile(NamedTuple):
    """A patch, cut to the room that it has, and where its top left corner comes to lie."""

    patch: Patch
    x: int
    y: int


def laid_out(
    size: int, first: Patch, another: Callable[[], Patch | None], draw: np.random.Generator
) -> list[Tile]:
    """Fill a view with patches, row by row.

    The first of a row says how high the row is; what sticks out of the row or the view is cut off,
    at a random side so that no part of a patch is always lost.

    Args:
        size: side of the view, px.
        first: the patch that the view is about, never left out.
        another: draws one more; None where a field has none.
        draw: of what is cut off.
    """
    tiles: list[Tile] = []
    x = y = height = 0
    patch: Patch | None = first
    for _ in range(MOST_PATCHES):
        if patch is not None:
            if size - x < _LEAST:
                x, y, height = 0, y + height, 0
            if size - y < _LEAST:
                break
            cut = _cut(patch, size - x, height or size - y, draw)
            tiles.append(Tile(cut, x, y))
            x += cut.x2 - cut.x1
            height = height or cut.y2 - cut.y1
        patch = another()
    return tiles


def _cut(patch: Patch, wide: int, high: int, draw: np.random.Generator) -> Patch:
    """Return as much of a patch as fits, a random part of it."""
    spare = np.array([patch.x2 - patch.x1 - wide, patch.y2 - patch.y1 - high]).clip(0)
    x, y = (int(v) for v in draw.integers(0, spare + 1))
    x1, y1 = patch.x1 + x, patch.y1 + y
    return patch._replace(x1=x1, y1=y1, x2=min(patch.x2, x1 + wide), y2=min(patch.y2, y1 + high))


def cut_out(
    field: int, region: int, box: NDArray[np.float64], width: int, height: int, margin: float
) -> Patch | None:
    """Return an annotated region with a margin, as far as the picture goes.

    Args:
        field: its number.
        region: number of the region.
        box: ``x1, y1, x2, y2`` of the region, px of the picture.
        width: of what the picture shows.
        height: likewise.
        margin: px on every side, so that annotated cells on the region's edge are seen whole.

    Returns:
        None where there are next to no pixels.
    """
    x1, y1 = np.ceil((box[:2] - margin).clip(0)).astype(int)
    x2, y2 = np.floor(np.minimum(box[2:] + margin, [width, height])).astype(int)
    if min(x2 - x1, y2 - y1) < _LEAST:
        return None
    return Patch(field, region, int(x1), int(y1), int(x2), int(y2))


class PatchMosaics(FieldDataset):
    """Fields of which patches alone are annotated, seen as mosaics of them.

    Number ``i + n * len(self)`` begins with a patch of field ``i``; the rest is drawn from the
    other sparse fields of its device. Fields that are annotated whole are seen as they are.

    Args:
        fields: what to read.
        share: of the labelled views of sparse fields that are mosaics.
        settings: the other arguments of `FieldDataset`.
    """

    def __init__(self, fields: Sequence[FieldOfView], *settings: Any, share: float) -> None:
        super().__init__(fields, *settings)
        self.share = share
        self._sparse: dict[str, list[int]] = {}  # sparse fields of each device
        sides: dict[str, list[float]] = {}
        for i, field in enumerate(self.fields):
            if field.annotated_regions:
                self._sparse.setdefault(field.domain, []).append(i)
                boxes, _ = self.known(i)
                longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0)
                sides.setdefault(field.domain, []).extend(longer.tolist())
        self._margin = {n: MARGIN * float(np.median(s)) if s else 0.0 for n, s in sides.items()}
        if self._sparse:
            self.max_boxes *= _FULLER
            self.max_regions = max(self.max_regions, MOST_PATCHES)

    def redrawn(self, index: int) -> bool:
        """Whether a field looks different each time that its labelled view is drawn."""
        return bool(self.fields[index].annotated_regions) or super().redrawn(index)

    def view(self, number: int) -> View:
        """Return what the batch of `labelled` shows of a number."""
        serial, index = divmod(number, len(self))
        field = self.fields[index]
        if not field.annotated_regions:
            return super().view(number)
        draw = np.random.default_rng((self.seed, serial, index, _PURPOSE))
        first = self._patch(index, draw) if draw.random() < self.share else None
        if first is None:
            return super().view(number)
        others = self._sparse[field.domain]
        tiles = laid_out(
            self.size,
            first,
            lambda: self._patch(others[draw.integers(len(others))], draw),
            draw,
        )
        return self._joined(tiles)

    def _patch(self, index: int, draw: np.random.Generator) -> Patch | None:
        """Draw one of the annotated patches of a field; None where it is too small to show."""
        field = self.fields[index]
        region = int(draw.integers(len(field.annotated_regions or ())))
        box = self._region(index, region)
        placed = self.how(field).placement(field.width, field.height)
        return cut_out(index, region, box, placed.width, placed.height, self._margin[field.domain])

    def _region(self, index: int, region: int) -> NDArray[np.float64]:
        """Return an annotated region ``(4,)`` of a field, px of its picture."""
        regions = self.fields[index].annotated_regions
        assert regions is not None
        box: NDArray[np.float64] = np.array(regions[region], np.float64) * self.factors(index)
        return box

    def _joined(self, tiles: Sequence[Tile]) -> View:
        """Paint the tiles; from the first on whose cells find no room they are left away."""
        _, fill = self.image(tiles[0].patch.field)
        canvas = fill[:, None, None].expand(3, self.size, self.size).clone()
        parts, room = [], self.max_boxes
        for patch, x, y in tiles:
            index, region, x1, y1, x2, y2 = patch
            boxes, known = self.known(index)
            cut = boxes.clip((x1, y1) * 2, (x2, y2) * 2)
            kept, labels = in_view(boxes, cut, known)
            room -= int(kept.sum())
            if room < 0:
                break
            canvas[:, y : y + y2 - y1, x : x + x2 - x1] = self.image(index)[0][:, y1:y2, x1:x2]
            shift = np.array([x - x1, y - y1] * 2, np.float32)
            annotated = self._region(index, region).clip((x1, y1) * 2, (x2, y2) * 2) + shift
            attributes = self.fields[index].attributes[kept]
            parts.append((cut[kept] + shift, labels, attributes, annotated[None]))
        joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return View(canvas, fill, *joined)
