"""Fields at the network's size as batches, and the order in which they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from da_leukemia.data.batches import VISIBLE, LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import Memory, Picture, Store
from da_leukemia.data.preparation import Preparation, Window
from da_leukemia.data.sparse import learned, opened
from da_leukemia.labels import LabelSpace

_ON_A_CELL = 0.75
"""Share of a labelled field's windows that hold a given cell, or patch, where the field is larger.
"""

Preparations = Preparation | int | Mapping[str, Preparation]
"""Of one device, or of each by its name; a number fits images into a square of that side."""


def _size(how: Preparations) -> int:
    if isinstance(how, int):
        return how
    return how.size if isinstance(how, Preparation) else next(iter(how.values())).size


class View(NamedTuple):
    """One row of a labelled batch: image, fill, and of its ``N`` cells and ``R`` regions."""

    image: torch.Tensor
    fill: torch.Tensor
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    attributes: NDArray[np.int64]
    regions: NDArray[np.float64]


def in_view(
    boxes: NDArray[np.float32], cut: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Tell which boxes are in view at all; with too little of one left its label becomes -1."""
    area, whole = ((b[:, 2:] - b[:, :2]).prod(1) for b in (cut, boxes))
    kept = area > 0
    return kept, np.where(area < VISIBLE * whole, -1, labels)[kept]


class FieldDataset(Dataset[int]):
    """Fields of one device, or of several, at network size.

    Items are numbers: `labelled` and `unlabelled` make the batch, so that the target of an
    adaptation can be asked for images only.

    A picture that is larger than the network's input is seen through windows. In training, number
    ``i + n * len(self)`` is the ``n``-th random window of field ``i``; at test, `windows` lists
    those that cover each field, and `searched` makes batches of them.

    Args:
        fields: what to read.
        space: label space of the fields.
        how: preparation of the device's images, or of each device's by name; a number fits them
            into a square of that side.
        store: keeps the decoded images; memory by default.
        seed: of the random windows.
    """

    def __init__(
        self,
        fields: Sequence[FieldOfView],
        space: LabelSpace,
        how: Preparations,
        store: Store | None = None,
        seed: int = 0,
    ) -> None:
        self.fields = list(fields)
        self.space = space
        self._how = how
        self.size = _size(how)
        self.store = Memory() if store is None else store
        self.seed = seed
        self.windows: list[tuple[int, Window]] = [
            (i, window)
            for i, field in enumerate(self.fields)
            for window in self.how(field).windows(field.width, field.height)
        ]
        longest = max((len(f.labels) for f in self.fields), default=0)
        # One padded length for the whole data set: every batch has the same shapes.
        self.max_boxes = max(4, -(-longest // 4) * 4)
        # 0 where all fields are annotated whole: nothing is computed then.
        self.max_regions = max((len(f.annotated_regions or ()) for f in self.fields), default=0)

    def without_labels(self) -> FieldDataset:
        """Return the same images from which every label is taken out."""
        blind = [
            replace(
                f,
                boxes=f.boxes[:0],
                labels=f.labels[:0],
                attributes=f.attributes[:0],
                labelled_classes=(),
                annotated_regions=None,
            )
            for f in self.fields
        ]
        return self.of(blind)

    def of(self, fields: Sequence[FieldOfView]) -> FieldDataset:
        """Return a data set of other fields that are read as these are."""
        return FieldDataset(fields, self.space, self._how, self.store, self.seed)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> int:
        return index

    def how(self, field: FieldOfView) -> Preparation:
        """Return how the images of a field's device are prepared."""
        if isinstance(self._how, int):
            return Preparation(self._how)
        return self._how if isinstance(self._how, Preparation) else self._how[field.domain]

    def image(self, index: int) -> Picture:
        """Return ``(3, H, W)`` uint8 and the fill colour ``(3,)`` uint8, not to be written to."""
        field = self.fields[index]
        return self.store.picture(field.image, self.how(field))

    def factors(self, index: int) -> NDArray[np.float64]:
        """Picture pixels per original pixel of one field, for ``x0, y0, x1, y1``."""
        field = self.fields[index]
        return self.how(field).placement(field.width, field.height).factors

    def _corner(self, number: int, labelled: bool) -> tuple[int, int]:
        """Return the left and top edge of a training window in its picture."""
        serial, index = divmod(number, len(self))
        field = self.fields[index]
        across, down = self.how(field).canvas(field.width, field.height)
        room = np.array([across - self.size, down - self.size])
        if not room.any():
            return 0, 0
        draw = np.random.default_rng((self.seed, serial, index))
        corner = draw.uniform(0, room + 1)
        if labelled and len(field.boxes) and draw.random() < _ON_A_CELL:
            box = field.boxes[draw.integers(len(field.boxes))] * self.factors(index)
            corner = (box[:2] + box[2:]) / 2 - draw.uniform(0.1, 0.9, 2) * self.size
        elif labelled and field.annotated_regions and draw.random() < _ON_A_CELL:
            patch = field.annotated_regions[draw.integers(len(field.annotated_regions))]
            x1, y1, x2, y2 = np.array(patch) * self.factors(index)
            point = draw.uniform((x1, y1), (x2, y2))
            corner = point - draw.uniform(0.1, 0.9, 2) * self.size
        x, y = np.clip(corner.astype(np.int64), 0, room)
        return int(x), int(y)

    def _batch(
        self, fields: Sequence[int], corners: Sequence[tuple[int, int]], index: Sequence[int]
    ) -> UnlabelledBatch:
        images, fills = zip(*(self.image(i) for i in fields), strict=True)
        size = self.size
        cut = [
            image[:, y : y + size, x : x + size]
            for image, (x, y) in zip(images, corners, strict=True)
        ]
        return UnlabelledBatch(torch.stack(cut), torch.stack(fills), torch.tensor(index))

    def searched(self, numbers: Sequence[int]) -> UnlabelledBatch:
        """Collate windows by their place in `windows`, which is the ``index`` of the batch."""
        chosen = [self.windows[n] for n in numbers]
        return self._batch([i for i, _ in chosen], [(w.x, w.y) for _, w in chosen], numbers)

    def true_boxes(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return all true boxes of the fields of windows, as ``(B, M, 4)`` in their pixels.

        What lies outside a window is pressed against its border; the padding is zero. For tests
        that ask a detector to read attributes at them, never for a training step.
        """
        boxes = torch.zeros(len(numbers), self.max_boxes, 4)
        for row, number in enumerate(numbers):
            index, window = self.windows[number]
            corner = np.array([window.x, window.y] * 2)
            moved = self.fields[index].boxes * self.factors(index) - corner
            boxes[row, : len(moved)] = torch.from_numpy(moved.clip(0, self.size))
        return boxes

    def searches(self, batch_size: int, shuffled: bool = False) -> Iterator[UnlabelledBatch]:
        """Yield all windows once: in their order, or in a random one that is always the same."""
        numbers = np.arange(len(self.windows))
        if shuffled:
            numbers = np.random.default_rng(0).permutation(numbers)
        for first in range(0, len(numbers), batch_size):
            yield self.searched(numbers[first : first + batch_size].tolist())

    def unlabelled(self, numbers: Sequence[int]) -> UnlabelledBatch:
        """Collate images alone."""
        fields = [n % len(self) for n in numbers]
        return self._batch(fields, [self._corner(n, False) for n in numbers], fields)

    def labelled(self, numbers: Sequence[int]) -> LabelledBatch:
        """Collate images and labels."""
        fields = [n % len(self) for n in numbers]
        views = [self.view(n) for n in numbers]
        count, width = len(fields), self.max_boxes
        targets = Targets(
            torch.zeros(count, width, 4),
            torch.full((count, width), -1),
            torch.full((count, width, len(self.space.attributes)), -1),
            torch.zeros(count, width, dtype=torch.bool),
            torch.zeros(count, len(self.space.classes), dtype=torch.bool),
            torch.zeros(count, self.max_regions, 4) if self.max_regions else None,
        )
        for row, (index, view) in enumerate(zip(fields, views, strict=True)):
            n = len(view.boxes)
            targets.boxes[row, :n] = torch.from_numpy(view.boxes)
            targets.labels[row, :n] = torch.from_numpy(view.labels)
            targets.attributes[row, :n] = torch.from_numpy(view.attributes)
            targets.mask[row, :n] = True
            targets.classes[row, list(self.fields[index].labelled_classes)] = True
            if targets.regions is not None:
                targets.regions[row, : len(view.regions)] = torch.from_numpy(view.regions)
        images, fills = (
            torch.stack(t) for t in zip(*((v.image, v.fill) for v in views), strict=True)
        )
        return LabelledBatch(images, fills, torch.tensor(fields), targets)

    def redrawn(self, index: int) -> bool:
        """Whether a field looks different each time that its labelled view is drawn."""
        return self.how(self.fields[index]).scaled

    def view(self, number: int) -> View:
        """Return what the batch of `labelled` shows of a number."""
        index = number % len(self)
        field = self.fields[index]
        corner = x, y = self._corner(number, True)
        image, fill = self.image(index)
        boxes, labels, kept = self._inside(index, corner)
        return View(
            image[:, y : y + self.size, x : x + self.size],
            fill,
            boxes,
            labels,
            field.attributes[kept],
            opened(field) * self.factors(index) - np.array([*corner, *corner]),
        )

    def known(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes of a field in its picture, and their labels: -1 for those not learned."""
        field = self.fields[index]
        boxes = (field.boxes * self.factors(index)).astype(np.float32)
        return boxes, np.where(learned(field), field.labels, -1)

    def _inside(
        self, index: int, corner: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Return boxes and labels in a window, and which of the field's they are."""
        field = self.fields[index]
        boxes, known = self.known(index)
        if self.how(field).canvas(field.width, field.height) == (self.size, self.size):
            return boxes, known, np.ones(len(boxes), dtype=bool)
        moved = boxes - np.array([*corner, *corner], np.float32)
        cut = moved.clip(0, self.size)
        kept, labels = in_view(moved, cut, known)
        return cut[kept], labels, kept


class EpochSampler(Sampler[list[int]]):
    """Batches of an endless stream of permutations, cut into epochs of equal length.

    A pure function of ``(seed, epoch)``: a resumed run sees what an uninterrupted one would.

    Args:
        length: number of fields.
        batch_size: fields per batch.
        batches: batches per epoch.
        seed: of the permutations.
        epoch: which stretch of the stream.
        steps: batches of the whole run; the epoch in which they end is shorter.
        windows: give field ``i``, drawn for the ``n``-th time, the number ``i + n * length``.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        batches: int,
        seed: int,
        epoch: int,
        steps: int | None = None,
        windows: bool = False,
    ) -> None:
        left = batches if steps is None else steps - epoch * batches
        self.length = length
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.epoch = epoch
        self.windows = windows
        self._own = min(batches, left) if left > 0 else batches

    def __len__(self) -> int:
        return self._own

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, number)).permutation(self.length)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of numbers (see `FieldDataset`)."""
        first = self.epoch * self.batches * self.batch_size
        last = first + self._own * self.batch_size
        numbers = range(first // self.length, (last - 1) // self.length + 1)
        passes = self.length if self.windows else 0
        stream = np.concatenate([self._permutation(n) + n * passes for n in numbers])
        stream = stream[first - numbers[0] * self.length :]
        for batch in range(self._own):
            yield stream[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class ShareSampler(Sampler[list[int]]):
    """Batches in which each of several groups of fields has its share, whatever its size.

    Args:
        samplers: one per group; their numbers count inside the group.
        groups: the fields of each, as places in the data set.
        length: number of fields of the data set.
    """

    def __init__(
        self, samplers: Sequence[EpochSampler], groups: Sequence[Sequence[int]], length: int
    ) -> None:
        self.samplers = list(samplers)
        self.groups = [np.asarray(group, np.int64) for group in groups]
        self.length = length

    def __len__(self) -> int:
        return len(self.samplers[0])

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of numbers (see `FieldDataset`), group by group."""
        for parts in zip(*self.samplers, strict=True):
            batch: list[int] = []
            for part, group in zip(parts, self.groups, strict=True):
                serial, place = np.divmod(np.array(part), len(group))
                batch += (group[place] + serial * self.length).tolist()
            yield batch


def shares(batch_size: int, sources: int, few: bool, few_share: float) -> list[int]:
    """Divide a batch among the devices of a source, and the few labelled target fields last.

    Args:
        batch_size: images of a batch, at least one for each.
        sources: devices.
        few: whether there are labelled target fields.
        few_share: their share.
    """
    last = min(max(1, round(batch_size * few_share)), batch_size - sources) if few else 0
    base, more = divmod(batch_size - last, sources)
    parts = [base + (i < more) for i in range(sources)]
    return [*parts, last] if few else parts
