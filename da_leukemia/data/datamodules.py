"""DataModules: one device with labels, or a labelled source beside an unlabelled target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from da_leukemia.config import Trainer
from da_leukemia.data.dataset import EpochSampler, FieldDataset
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.images import Memory, Store
from da_leukemia.data.preparation import Preparation
from da_leukemia.data.splits import Split
from da_leukemia.errors import DataError
from da_leukemia.labels import LabelSpace


def _finished_epochs(trainer: L.Trainer | None) -> int:
    if trainer is None:
        return 0
    current: Any = trainer.fit_loop.epoch_progress.current
    return int(current.processed)


class DomainDataModule(L.LightningDataModule):
    """One device with its labels: train, validation and test.

    Args:
        index: all fields of the device.
        split: division by patient over all devices.
        space: label space.
        how: preparation of the device's images; a number fits them into a square of that side.
        trainer: batch size, epoch length, workers.
        seed: of the order and of the windows.
        store: keeps the decoded images; memory by default.
    """

    def __init__(
        self,
        index: FieldIndex,
        split: Split,
        space: LabelSpace,
        how: Preparation | int,
        trainer: Trainer,
        seed: int = 0,
        store: Store | None = None,
    ) -> None:
        super().__init__()
        self.domain = index.domain
        self.settings = trainer
        self.seed = seed
        self.store = Memory() if store is None else store
        self.parts = {
            part: FieldDataset(list(split.select(index, part)), space, how, self.store, seed * 2)
            for part in ("train", "validation", "test")
        }

    def _train_loader(self, part: FieldDataset, labelled: bool, stream: int) -> DataLoader[Any]:
        if not len(part):
            raise DataError(
                f"{self.domain}: no field to train on; the split left it none (data.split), or the "
                "data set is empty. Run `da-leukemia data check`"
            )
        # The trainer's own count of finished epochs: right in the first epoch of a resumed run,
        # where Lightning does not call `set_epoch`.
        epoch = _finished_epochs(self.trainer)
        sampler = EpochSampler(
            len(part),
            self.settings.batch_size,
            self.settings.epoch_steps,
            self.seed * 2 + stream,
            epoch,
            # Not by Trainer(max_steps): with it, Lightning resumes in the wrong epoch.
            self.settings.steps,
            windows=part.how.scaled,
        )
        return DataLoader(
            part,
            batch_sampler=sampler,
            collate_fn=part.labelled if labelled else part.unlabelled,
            num_workers=self.settings.workers,
            persistent_workers=False,
        )

    def train_dataloader(self) -> Any:
        """Batches of the source: ``{"source": LabelledBatch}``."""
        return {"source": self._train_loader(self.parts["train"], True, 0)}

    def evaluation_loader(self, part: str) -> DataLoader[Any]:
        """All fields of a part once, in order, window by window: images without labels."""
        data = self.parts[part]
        return DataLoader(
            range(len(data.windows)),  # type: ignore[arg-type]
            batch_size=self.settings.batch_size,
            collate_fn=data.searched,
            num_workers=self.settings.workers,
        )

    def val_dataloader(self) -> Any:
        """Validation fields of the device."""
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> Any:
        """Test fields of the device."""
        return self.evaluation_loader("test")


class AdaptationDataModule(DomainDataModule):
    """A labelled source beside the training fields of a target, of which only images are given."""

    def __init__(
        self,
        index: FieldIndex,
        target: FieldIndex,
        split: Split,
        how_target: Preparation | int | None = None,
        **settings: Any,
    ) -> None:
        """Take the target's index and preparation beside the arguments of `DomainDataModule`.

        By default the target's images are prepared as the source's are.
        """
        super().__init__(index, split, **settings)
        source = self.parts["train"]
        how = source.how if how_target is None else how_target
        images = list(split.select(target, "train"))
        self.target = FieldDataset(images, source.space, how, self.store, self.seed * 2 + 1)
        self.target_domain = target.domain

    def train_dataloader(self) -> Mapping[str, DataLoader[Any]]:
        """Batches ``{"source": LabelledBatch, "target": UnlabelledBatch}``."""
        if not len(self.target):
            raise DataError(f"{self.target_domain}: no image to adapt to; see data.split")
        target = self._train_loader(self.target, False, 1)
        return {**super().train_dataloader(), "target": target}
