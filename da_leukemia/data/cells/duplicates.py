"""Pictures of cells that are there more than once: found by content, kept in one part of a split.

Exact copies have equal bytes. Perceptual ones have thumbnails that differ by less than noise: a
picture that was saved again, converted or resized. Mirrored and turned copies are not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from da_leukemia.data.cells.prints import SIDE, Prints
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.readers.findings import FindingLog

TOLERANCE = 2.5
"""Root mean square of the difference of two thumbnails, in grey levels, below which two pictures
are one. On 514 real cells saving as JPEG of quality 50 made up to 2.0, halving the size 1.1 (in the
median); no two different cells came nearer than 4.5."""

_BLOCK = 4
_AXES = 10
_CHUNK = 65_536


def copies(prints: Sequence[Prints], tolerance: float = TOLERANCE) -> NDArray[np.int64]:
    """Number the pictures of several devices so that copies have equal numbers.

    Args:
        prints: of each device.
        tolerance: see `TOLERANCE`.

    Returns:
        ``(N,)`` over all devices, end to end.
    """
    digest = np.concatenate([p.digest for p in prints])
    thumbnail = np.concatenate([p.thumbnail for p in prints])
    sound = np.concatenate([p.sound for p in prints])
    _, first, exact = np.unique(digest, return_index=True, return_inverse=True)
    one = first[sound[first]]  # one of each content, and only what could be decoded
    a, b = near(thumbnail[one], tolerance)
    rows = np.concatenate([first[exact], one[a]])
    columns = np.concatenate([np.arange(len(digest)), one[b]])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(digest),) * 2)
    found: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def near(
    thumbnails: NDArray[np.uint8], tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs of thumbnails that differ by less than ``tolerance``.

    Nothing is missed: pairs are searched among the principal axes of block means, a projection
    that shortens every distance, and then measured on the whole.
    """
    none = np.zeros(0, np.int64)
    if len(thumbnails) < 2:
        return none, none
    limit = tolerance * np.sqrt(thumbnails.shape[1])
    grid = SIDE // _BLOCK
    blocks = thumbnails.reshape(-1, grid, _BLOCK, grid, _BLOCK, 3).astype(np.float32)
    means = blocks.mean((2, 4)).reshape(len(thumbnails), -1) * _BLOCK
    means -= means.mean(0)
    _, axes = np.linalg.eigh(means.T.astype(np.float64) @ means)
    tree = cKDTree(means @ axes[:, -_AXES:])
    pairs = tree.query_pairs(float(limit), output_type="ndarray").astype(np.int64)
    close = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _CHUNK):  # the whole at once could be gigabytes
        part = pairs[start : start + _CHUNK]
        apart = thumbnails[part[:, 0]].astype(np.float32) - thumbnails[part[:, 1]]
        close[start : start + _CHUNK] = np.linalg.norm(apart, axis=1) < limit
    return pairs[close, 0], pairs[close, 1]


def keep_together(indexes: Sequence[FieldIndex], prints: Sequence[Prints]) -> list[FieldIndex]:
    """Group copies over all devices, and give those of one device each other's labels.

    A group is what patients, fields and copies connect: two patients who share a picture are one
    group. A copy whose label differs keeps its own first; that of another device is not looked at.

    Args:
        indexes: single cells of each device.
        prints: of each, in the same order.

    Returns:
        The indexes with `FieldOfView.together` set where it is needed, the labels of conflicting
        copies, and findings that count and show both.
    """
    numbers = copies(prints)
    cells = [f for index in indexes for f in index]
    _, units = np.unique(np.array([f.group for f in cells], np.str_), return_inverse=True)
    members = np.bincount(numbers, minlength=numbers.max(initial=-1) + 1)
    graph = coo_array(
        (np.ones(len(cells), np.int8), (units, units.max(initial=0) + 1 + numbers)),
        shape=(units.max(initial=0) + 1 + len(members),) * 2,
    )
    groups = connected_components(graph, directed=False)[1][units]
    names: dict[int, set[str]] = {}
    for group, cell in zip(groups.tolist(), cells, strict=True):
        names.setdefault(group, set()).add(cell.group)
    grouped: list[FieldIndex] = []
    start = 0
    for index in indexes:
        part = slice(start, start + len(index))
        start += len(index)
        log = FindingLog()
        labels = _labels(index, numbers[part], log)
        fields = tuple(
            _grouped(field, told, names[group])
            for field, told, group in zip(index, labels, groups[part].tolist(), strict=True)
        )
        grouped.append(FieldIndex(index.domain, fields, (*index.findings, *log.findings())))
    return grouped


def _labels(
    index: FieldIndex, numbers: NDArray[np.int64], log: FindingLog
) -> list[tuple[int, ...]]:
    """Return every cell's own label and those of its copies on the same device."""
    own = [int(f.labels[0]) for f in index]
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    told: list[tuple[int, ...]] = [(label,) for label in own]
    for same in np.split(order, cuts) if len(order) else ():
        if len(same) < 2:
            continue
        shown = " = ".join(index.fields[i].name for i in same[:3].tolist())
        log.add("duplicate_cell", shown, len(same) - 1)
        known = sorted({own[i] for i in same.tolist() if own[i] >= 0})
        if len(known) < 2:
            continue
        log.add("cell_in_several_folders", shown)
        for i in same.tolist():
            if own[i] >= 0:
                told[i] = (own[i], *(k for k in known if k != own[i]))
    return told


def _grouped(field: FieldOfView, labels: tuple[int, ...], names: set[str]) -> FieldOfView:
    together = field.together if len(names) == 1 else f"copies:{min(names)}"
    if len(labels) == 1:
        return field if together == field.together else replace(field, together=together)
    return replace(
        field,
        boxes=np.repeat(field.boxes[:1], len(labels), 0),
        labels=np.array(labels, np.int64),
        attributes=np.concatenate(
            [field.attributes[:1], np.full((len(labels) - 1, field.attributes.shape[1]), -1)]
        ),
        together=together,
    )
