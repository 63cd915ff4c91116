"""DataModules: one device with labels, or a labelled source beside an unlabelled target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Sampler

from da_leukemia.config import Trainer
from da_leukemia.data.attributes import attribute_counts
from da_leukemia.data.cells.sampling import BalancedSampler
from da_leukemia.data.dataset import (
    EpochSampler,
    FieldDataset,
    Preparations,
    ShareSampler,
    shares,
)
from da_leukemia.data.fields import FieldIndex, FieldOfView, IntArray
from da_leukemia.data.images import Memory, Store
from da_leukemia.data.mosaic import PatchMosaics
from da_leukemia.data.splits import Split
from da_leukemia.errors import DataError
from da_leukemia.labels import LabelSpace

_APART = 1_000_003
"""Between the seeds of devices that are drawn from side by side."""


def _finished_epochs(trainer: L.Trainer | None) -> int:
    if trainer is None:
        return 0
    current: Any = trainer.fit_loop.epoch_progress.current
    return int(current.processed)


class DomainDataModule(L.LightningDataModule):
    """One device with its labels, or several that are learned from at once.

    Args:
        index: all fields of the device, or of each; every device has an equal share of a batch.
        split: division by patient over all devices.
        space: label space.
        how: preparation of the device's images, or of each device's by name; a number fits them
            into a square of that side.
        trainer: batch size, epoch length, workers.
        seed: of the order and of the windows.
        store: keeps the decoded images; memory by default.
        few: labelled training fields of another device (see `few_labelled`).
        few_share: their share of a training batch.
        balanced: single cells: draw every class of each device equally often.
        mosaics: share of training views that are made of annotated patches (see `PatchMosaics`).
    """

    def __init__(
        self,
        index: FieldIndex | Sequence[FieldIndex],
        split: Split,
        space: LabelSpace,
        how: Preparations,
        trainer: Trainer,
        seed: int = 0,
        store: Store | None = None,
        few: Sequence[FieldOfView] = (),
        few_share: float = 0.25,
        balanced: bool = False,
        mosaics: float = 0.0,
    ) -> None:
        super().__init__()
        indexes = [index] if isinstance(index, FieldIndex) else list(index)
        self.domain = ", ".join(i.domain for i in indexes)
        self.few_share = few_share
        self.balanced = balanced
        self.settings = trainer
        self.seed = seed
        self.store = Memory() if store is None else store
        chosen = {
            part: [list(split.select(i, part)) for i in indexes]
            for part in ("train", "validation", "test")
        }
        if few:
            chosen["train"].append(list(few))
        self.groups = [range(0, 0)]
        for fields in chosen["train"]:
            self.groups.append(range(self.groups[-1].stop, self.groups[-1].stop + len(fields)))
        self.groups = self.groups[1:]
        self.has_few = bool(few)
        self.parts = {
            part: FieldDataset(list(chain(*fields)), space, how, self.store, seed * 2)
            for part, fields in chosen.items()
        }
        if mosaics:
            fields = self.parts["train"].fields
            self.parts["train"] = PatchMosaics(
                fields, space, how, self.store, seed * 2, share=mosaics
            )

    def attribute_counts(self) -> IntArray | None:
        """Return ``(A, V)`` labelled training cells by attribute and value; None without a source.

        Fields of a target that is learned from with labels count, an unlabelled target has none.
        """
        train = self.parts["train"]
        return attribute_counts(train.fields, train.space) if len(train) else None

    def _train_loader(
        self, part: FieldDataset, groups: Sequence[range], labelled: bool, stream: int, batch: int
    ) -> DataLoader[Any]:
        if not all(groups):
            raise DataError(
                f"{self.domain}: no field to train on; the split left it none (data.split), or the "
                "data set is empty. Run `da-leukemia data check`"
            )
        # The trainer's own count of finished epochs: right in the first epoch of a resumed run,
        # where Lightning does not call `set_epoch`.
        epoch = _finished_epochs(self.trainer)
        few = labelled and self.has_few
        counts = shares(batch, len(groups) - few, few, self.few_share)
        samplers = [
            EpochSampler(
                len(group),
                count,
                self.settings.epoch_steps,
                self.seed * 2 + stream + _APART * place,
                epoch,
                # Not by Trainer(max_steps): with it, Lightning resumes in the wrong epoch.
                self.settings.steps,
                windows=any(part.redrawn(i) for i in group),
            )
            if not (labelled and self.balanced)
            else BalancedSampler(
                [int(part.fields[i].labels[0]) for i in group],
                count,
                self.settings.epoch_steps,
                self.seed * 2 + stream + _APART * place,
                epoch,
                self.settings.steps,
            )
            for place, (group, count) in enumerate(zip(groups, counts, strict=True))
        ]
        sampler: Sampler[list[int]] = samplers[0]
        if len(groups) > 1:
            sampler = ShareSampler(samplers, groups, len(part))
        return DataLoader(
            part,
            batch_sampler=sampler,
            collate_fn=part.labelled if labelled else part.unlabelled,
            num_workers=self.settings.workers,
            persistent_workers=False,
        )

    def train_dataloader(self) -> Any:
        """Batches of the source: ``{"source": LabelledBatch}``."""
        train, batch = self.parts["train"], self.settings.batch_size
        return {"source": self._train_loader(train, self.groups, True, 0, batch)}

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
    """A labelled source beside the training fields of a target, of which only images are given.

    With no source at all (an empty sequence), batches are of the target alone.
    """

    def __init__(
        self,
        index: FieldIndex | Sequence[FieldIndex],
        target: FieldIndex,
        split: Split,
        how_target: Preparations | None = None,
        target_images: float = 1.0,
        **settings: Any,
    ) -> None:
        """Take the target's index and preparation beside the arguments of `DomainDataModule`.

        By default the target's images are prepared as the source's are. A batch holds
        ``target_images`` of them for each image of the source, one at least.
        """
        super().__init__(index, split, **settings)
        how = settings["how"] if how_target is None else how_target
        images = list(split.select(target, "train"))
        self.target = FieldDataset(images, settings["space"], how, self.store, self.seed * 2 + 1)
        self.target_domain = target.domain
        self.target_batch = max(1, round(target_images * self.settings.batch_size))

    def train_dataloader(self) -> Mapping[str, DataLoader[Any]]:
        """Batches ``{"source": LabelledBatch, "target": UnlabelledBatch}``."""
        if not len(self.target):
            raise DataError(f"{self.target_domain}: no image to adapt to; see data.split")
        whole = [range(len(self.target))]
        target = self._train_loader(self.target, whole, False, 1, self.target_batch)
        return {**(super().train_dataloader() if self.groups else {}), "target": target}
