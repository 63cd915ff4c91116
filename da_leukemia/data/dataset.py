"""Fields at the network's size as batches, and the order in which they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from da_leukemia.data.batches import LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.images import Store, fit_scale, new_store
from da_leukemia.labels import LabelSpace


class FieldDataset(Dataset[int]):
    """Fields of one device at network size.

    Items are indices: `labelled` and `unlabelled` make the batch, so that the target of an
    adaptation can be asked for images only.

    Args:
        fields: what to read.
        space: label space of the fields.
        size: side of the network input.
        store: keeps the decoded images; by default as the settings of the data say.
    """

    def __init__(
        self,
        fields: Sequence[FieldOfView],
        space: LabelSpace,
        size: int,
        store: Store | None = None,
    ) -> None:
        self.fields = list(fields)
        self.space = space
        self.size = size
        self.store = new_store() if store is None else store
        longest = max((len(f.labels) for f in self.fields), default=0)
        # One padded length for the whole data set: every batch has the same shapes.
        self.max_boxes = max(4, -(-longest // 4) * 4)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> int:
        return index

    def image(self, index: int) -> tuple[Tensor, Tensor]:
        """Return ``(3, S, S)`` uint8 and the fill colour ``(3,)`` uint8, not to be written to."""
        return self.store.picture(self.fields[index].image, self.size)

    def scale(self, index: int) -> float:
        """Network pixels per original pixel of one field."""
        return fit_scale(self.fields[index].width, self.fields[index].height, self.size)

    def unlabelled(self, indices: Sequence[int]) -> UnlabelledBatch:
        """Collate images alone."""
        images, fills = zip(*(self.image(i) for i in indices), strict=True)
        return UnlabelledBatch(torch.stack(images), torch.stack(fills), torch.tensor(indices))

    def labelled(self, indices: Sequence[int]) -> LabelledBatch:
        """Collate images and labels."""
        plain = self.unlabelled(indices)
        count, width = len(indices), self.max_boxes
        targets = Targets(
            torch.zeros(count, width, 4),
            torch.full((count, width), -1),
            torch.full((count, width, len(self.space.attributes)), -1),
            torch.zeros(count, width, dtype=torch.bool),
            torch.zeros(count, len(self.space.classes), dtype=torch.bool),
        )
        for row, index in enumerate(indices):
            field = self.fields[index]
            n = len(field.labels)
            targets.boxes[row, :n] = torch.from_numpy(field.boxes * self.scale(index))
            targets.labels[row, :n] = torch.from_numpy(field.labels)
            targets.attributes[row, :n] = torch.from_numpy(field.attributes)
            targets.mask[row, :n] = True
            targets.classes[row, list(field.labelled_classes)] = True
        return LabelledBatch(plain.images, plain.fill, plain.index, targets)


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
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        batches: int,
        seed: int,
        epoch: int,
        steps: int | None = None,
    ) -> None:
        left = batches if steps is None else steps - epoch * batches
        self.length = length
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.epoch = epoch
        self._own = min(batches, left) if left > 0 else batches

    def __len__(self) -> int:
        return self._own

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, number)).permutation(self.length)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of indices."""
        first = self.epoch * self.batches * self.batch_size
        last = first + self._own * self.batch_size
        numbers = range(first // self.length, (last - 1) // self.length + 1)
        stream = np.concatenate([self._permutation(n) for n in numbers])
        stream = stream[first - numbers[0] * self.length :]
        for batch in range(self._own):
            yield stream[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
