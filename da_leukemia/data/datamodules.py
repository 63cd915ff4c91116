"""DataModules: one device with labels, or a labelled source beside an unlabelled target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from da_leukemia.config import Data, Domain, Trainer
from da_leukemia.data import images
from da_leukemia.data.cache import cache_folder, read_cached
from da_leukemia.data.dataset import EpochSampler, FieldDataset
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import DomainSource
from da_leukemia.data.splits import Split, make_split, released_split
from da_leukemia.errors import DataError
from da_leukemia.labels import LabelSpace, get_label_space


def domain_source(data: Data, name: str) -> DomainSource:
    """Say where a device of an experiment is to be read from."""
    domain: Domain = data.domains[name]
    root = Path(data.root)
    if domain.format != "leukemiaattri" or domain.root:
        root = root / (domain.root or name)
    classes = None if domain.classes is None else tuple(domain.classes)
    return DomainSource(
        name,
        root,
        labels=domain.annotations,
        classes=classes,
        patient_pattern=domain.patient_pattern,
        patch_order=domain.patch_order,
    )


def no_images(domain: str) -> str:
    """Say that a device is empty."""
    return f"{domain}: no images; is data.domains.{domain}.root right?"


def read_experiment_data(data: Data) -> tuple[dict[str, FieldIndex], Split]:
    """Read every device and divide them by patient over all of them at once.

    From then on data sets of this process keep their images as ``data.image_cache`` says.

    Raises:
        ConfigError: settings of the data that cannot be.
        DataError: a device that cannot be read, or no image on any device.
    """
    space = get_label_space(data.label_space)
    caches = cache_folder(data.cache_dir)
    indexes = {
        name: read_cached(domain_source(data, name), domain.format, space, caches)
        for name, domain in data.domains.items()
    }
    if not any(len(index) for index in indexes.values()):
        raise DataError([no_images(name) for name in indexes])
    values = list(indexes.values())
    images.use(data, values)
    settings = data.split
    if settings.kind == "released":
        split = released_split(values, validation=settings.validation, seed=settings.seed)
    else:
        split = make_split(
            values, test=settings.test, validation=settings.validation, seed=settings.seed
        )
    return indexes, split


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
        size: side of the network input.
        trainer: batch size, epoch length, workers.
        seed: of the order.
    """

    def __init__(
        self,
        index: FieldIndex,
        split: Split,
        space: LabelSpace,
        size: int,
        trainer: Trainer,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.domain = index.domain
        self.settings = trainer
        self.seed = seed
        self.parts = {
            part: FieldDataset(list(split.select(index, part)), space, size)
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
        """All fields of a part once, in order, with labels."""
        data = self.parts[part]
        return DataLoader(
            data,
            batch_size=self.settings.batch_size,
            collate_fn=data.labelled,
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
        self, index: FieldIndex, target: FieldIndex, split: Split, **settings: Any
    ) -> None:
        """Take the target's index beside the arguments of `DomainDataModule`."""
        super().__init__(index, split, **settings)
        source = self.parts["train"]
        self.target = FieldDataset(list(split.select(target, "train")), source.space, source.size)
        self.target_domain = target.domain

    def train_dataloader(self) -> Mapping[str, DataLoader[Any]]:
        """Batches ``{"source": LabelledBatch, "target": UnlabelledBatch}``."""
        if not len(self.target):
            raise DataError(f"{self.target_domain}: no image to adapt to; see data.split")
        target = self._train_loader(self.target, False, 1)
        return {**super().train_dataloader(), "target": target}
