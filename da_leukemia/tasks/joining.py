"""From detections in windows to records of fields: no cell is counted twice at a seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from da_leukemia.data.dataset import FieldDataset
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.models.base import Detections

SAME_CELL = 0.4
"""IoU from which detections of one type in two windows are the same cell. A cell near a seam is
found whole in both: far below what two whole finds reach, above what neighbours do."""


class _Found(NamedTuple):
    """Detections of one window that count, in pixels of the stored image, best first."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    attributes: NDArray[np.float32]


class Join:
    """Collects detections window by window and joins those of a field once it is complete.

    Args:
        data: whose windows are detected on, in the order of `FieldDataset.windows`.
        most: detections kept of a field.
    """

    def __init__(self, data: FieldDataset, most: int) -> None:
        self._data = data
        self._most = most
        self._records: list[FieldRecord] = []
        self._open: list[_Found] = []
        self._asked: list[NDArray[np.float32]] = []
        self._next = 0

    def add(self, found: Detections, windows: Sequence[int], asked: Tensor | None = None) -> None:
        """Take the detections ``(B, K)`` of a batch of windows.

        Args:
            found: the detections.
            windows: their numbers.
            asked: ``(B, M, S)`` attribute probabilities read at `FieldDataset.true_boxes`.

        Raises:
            ValueError: not the windows that follow.
        """
        read = None if asked is None else asked.float().cpu().numpy()
        boxes, scores = found.boxes.float().cpu().numpy(), found.scores.float().cpu().numpy()
        labels, mask = found.labels.cpu().numpy(), found.mask.cpu().numpy()
        attributes = found.attributes.float().cpu().numpy()
        for row, number in enumerate(windows):
            if number != self._next:
                raise ValueError(f"window {number} came where {self._next} was expected")
            self._next += 1
            index, window = self._data.windows[number]
            real = mask[row]
            corner = np.array([window.x, window.y] * 2, np.float32)
            seen = boxes[row][real] + corner
            centre = (seen[:, :2] + seen[:, 2:]) / 2
            left, top, right, bottom = window.kept
            kept = (centre >= (left, top)).all(1) & (centre < (right, bottom)).all(1)
            field = self._data.fields[index]
            # The window may reach past the image: nothing is found outside it.
            limit = np.array([field.width, field.height] * 2, np.float32)
            inside = np.clip(seen[kept] / self._data.factors(index), 0, limit)
            self._open.append(
                _Found(
                    inside.astype(np.float32),
                    scores[row][real][kept],
                    labels[row][real][kept],
                    attributes[row][real][kept],
                )
            )
            if read is not None:
                self._asked.append(read[row, : len(field.labels)])
            last = number + 1 == len(self._data.windows)
            if last or self._data.windows[number + 1][0] != index:
                self._close(index)

    def _close(self, index: int) -> None:
        field = self._data.fields[index]
        found = _merged(self._open, self._most) if len(self._open) > 1 else self._open[0]
        asked = self._read(index) if self._asked else None
        self._open, self._asked = [], []
        self._records.append(
            FieldRecord(
                key=field.key,
                group=field.group,
                true_boxes=field.boxes,
                true_labels=field.labels,
                true_attributes=field.attributes,
                boxes=found.boxes,
                scores=found.scores,
                labels=found.labels,
                attribute_probs=found.attributes,
                regions=field.annotated_regions,
                true_attribute_probs=asked,
            )
        )

    def _read(self, index: int) -> NDArray[np.float32]:
        """Return what was read at each true box in the window that has it nearest its middle."""
        boxes = self._data.fields[index].boxes * self._data.factors(index)
        windows = self._data.windows[self._next - len(self._asked) : self._next]
        middle = np.array([(w.x, w.y) for _, w in windows]) + self._data.size / 2
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        off = np.abs(centre[None] - middle[:, None]).max(axis=2)  # (windows, boxes)
        nearest: NDArray[np.float32] = np.stack(self._asked)[off.argmin(axis=0), range(len(boxes))]
        return nearest

    def finish(self) -> list[FieldRecord]:
        """Return the records of all fields, in their order.

        Raises:
            ValueError: windows are missing.
        """
        if self._next != len(self._data.windows):
            raise ValueError(f"{self._next} of {len(self._data.windows)} windows were given")
        return self._records


def _merged(windows: Sequence[_Found], most: int) -> _Found:
    """Join windows of a field: of the same cell found in two of them, the better one stays."""
    boxes, scores, labels, attributes = (np.concatenate(v) for v in zip(*windows, strict=True))
    window = np.repeat(np.arange(len(windows)), [len(w.scores) for w in windows])
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    alive = np.ones(len(order), dtype=bool)
    kept: list[int] = []
    for place in order:
        if not alive[place]:
            continue
        kept.append(int(place))
        if len(kept) == most:
            break
        low = np.maximum(boxes[:, :2], boxes[place, :2])
        high = np.minimum(boxes[:, 2:], boxes[place, 2:])
        common = (high - low).clip(0).prod(1)
        same = common > SAME_CELL * (area + area[place] - common)
        alive &= ~(same & (labels == labels[place]) & (window != window[place]))
    return _Found(boxes[kept], scores[kept], labels[kept], attributes[kept])
