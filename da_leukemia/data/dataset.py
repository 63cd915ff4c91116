"""Fields decoded to the network's size, and the arithmetic back to the original image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from da_leukemia.data.batches import LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.data.fields import FieldOfView
from da_leukemia.errors import DataError
from da_leukemia.labels import LabelSpace

MEMORY_LIMIT = 4 << 30
"""Decoded fields of one data set are kept in memory up to this many bytes."""

_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to ``(H, W, 3)`` uint8; 16-bit grey values keep their upper 8 bits.

    Raises:
        DataError: missing or unreadable, naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are real numbers of unknown range")
            if image.mode.startswith("I"):  # `convert` would clip 16 bits to white
                grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image is missing; run `da-leukemia data check`") from error
    except _UNDECODABLE as error:
        raise DataError(
            f"{path}: the image cannot be decoded ({error}); download it again or remove it"
        ) from error


def fit_scale(width: int, height: int, size: int) -> float:
    """Scale that fits an image into a square of ``size``, aspect kept."""
    return size / max(width, height)


def fit(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fit an image into the top left of a square, the rest filled with its background colour.

    Returns:
        The ``(size, size, 3)`` image and the fill colour ``(3,)``: the median, which on a film is
        the clear background between cells or near it.
    """
    height, width = image.shape[:2]
    scale = fit_scale(width, height, size)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Box + reduce: antialiased and fast; bilinear would alias when a 1440-px photo is shrunk.
    resized = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BILINEAR))
    fill = np.median(resized[::4, ::4].reshape(-1, 3), axis=0).astype(np.uint8)
    out = np.broadcast_to(fill, (size, size, 3)).copy()
    out[: new[1], : new[0]] = resized
    return out, fill


class FieldDataset(Dataset[int]):
    """Fields of one device at network size, kept in memory once decoded.

    Items are indices: `labelled` and `unlabelled` make the batch, so that the target of an
    adaptation can be asked for images only.

    Args:
        fields: what to read.
        space: label space of the fields.
        size: side of the network input.
    """

    def __init__(self, fields: Sequence[FieldOfView], space: LabelSpace, size: int) -> None:
        self.fields = list(fields)
        self.space = space
        self.size = size
        self._keep = len(self.fields) * size * size * 3 <= MEMORY_LIMIT
        self._images: dict[int, tuple[Tensor, Tensor]] = {}
        longest = max((len(f.labels) for f in self.fields), default=0)
        # One padded length for the whole data set: every batch has the same shapes.
        self.max_boxes = max(4, -(-longest // 4) * 4)

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> int:
        return index

    def image(self, index: int) -> tuple[Tensor, Tensor]:
        """Return ``(3, S, S)`` uint8 and the fill colour ``(3,)`` uint8."""
        if index in self._images:
            return self._images[index]
        array, fill = fit(read_image(self.fields[index].image), self.size)
        item = (torch.from_numpy(array).permute(2, 0, 1).contiguous(), torch.from_numpy(fill))
        if self._keep:
            self._images[index] = item
        return item

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
