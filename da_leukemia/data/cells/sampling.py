"""Which cells a training step sees: those of known type, and each type as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.dataset import EpochSampler
from da_leukemia.data.fields import FieldIndex


def known_cells(index: FieldIndex) -> FieldIndex:
    """Return the cells whose type is one of the label space; the others teach nothing.

    For devices that are learned from with their labels. A target keeps all of its cells, for to
    choose among them would be to look at labels.
    """
    chosen = tuple(f for f in index if len(f.labels) and f.labels[0] >= 0)
    return FieldIndex(index.domain, chosen, index.findings)


class BalancedSampler(EpochSampler):
    """Batches in which every class comes equally often, and the cells of a class in turn.

    A pure function of ``(seed, epoch)`` as its base is. Over the whole run no class comes more than
    once oftener than another; a cell comes again when all of its class have been there.

    Args:
        labels: class of every cell.
        batch_size: cells per batch.
        batches: batches per epoch.
        seed: of the order.
        epoch: which stretch of the stream.
        steps: batches of the whole run.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        batches: int,
        seed: int,
        epoch: int,
        steps: int | None = None,
    ) -> None:
        super().__init__(len(labels), batch_size, batches, seed, epoch, steps)
        given = np.asarray(labels)
        self.cells = [np.flatnonzero(given == k) for k in np.unique(given)]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of numbers (see `FieldDataset`)."""
        first = self.epoch * self.batches * self.batch_size
        last = first + self._own * self.batch_size
        rounds = np.arange(first // len(self.cells), (last - 1) // len(self.cells) + 1)
        turns = np.stack([self._turns(k, rounds) for k in range(len(self.cells))], 1)
        for row, number in enumerate(rounds.tolist()):  # classes in another order every round
            turns[row] = np.random.default_rng((self.seed, 1, number)).permutation(turns[row])
        stream = turns.reshape(-1)[first - int(rounds[0]) * len(self.cells) :]
        for batch in range(self._own):
            yield stream[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def _turns(self, kind: int, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cell of a class in each round."""
        cells = self.cells[kind]
        passes, places = np.divmod(rounds, len(cells))
        orders = {
            p: np.random.default_rng((self.seed, 2, kind, p)).permutation(cells)
            for p in np.unique(passes).tolist()
        }
        chosen = [orders[p][i] for p, i in zip(passes.tolist(), places.tolist(), strict=True)]
        return np.array(chosen, np.int64)
