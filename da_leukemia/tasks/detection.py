"""`DetectionTask`: training and testing of a detector, alone or under adaptation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from da_leukemia.adaptation.base import Component, Extra, NoSource, StepContext, Views
from da_leukemia.config import Augmentation, Trainer
from da_leukemia.data.batches import LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.views import (
    Draw,
    generator_for,
    strong_photometry,
    warp_images,
    warp_targets,
    weak_geometry,
)
from da_leukemia.errors import ConfigError
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.models.base import AnyDetector, Outputs
from da_leukemia.models.ema import MovingAverage
from da_leukemia.tasks.divergence import DivergedError, FirstBad
from da_leukemia.tasks.joining import Join
from da_leukemia.tasks.metrics import FieldMetric
from da_leukemia.tasks.optimisation import adamw_with_cosine
from da_leukemia.tasks.testing import answers, detect, network_input

# Purposes of random numbers (see `generator_for`): the source's do not shift when a target joins,
# so that a run with every adaptation weight at zero is its source-only twin to the last bit.
_SOURCE, _TARGET, _COMPONENTS, _SAMPLES = 0, 1, 2, 3


def _spread(images: Tensor, count: int) -> Tensor:
    """Repeat images round and round to ``count`` of them."""
    return (
        images if len(images) == count else images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    )


class DetectionTask(L.LightningModule):
    """Trains a detector on a labelled source, with any list of adaptation components.

    Batches are ``{"source": LabelledBatch}``, ``{"source": ..., "target": UnlabelledBatch}``, or
    ``{"target": ...}`` for source-free adaptation.

    Args:
        detector: the network.
        components: adaptation components; empty for source-only.
        trainer: optimisation settings.
        augmentation: what the views look like.
        strong: learn from the strong view of the source (else from the weak one).
        ema: test the moving average of the weights (else the last ones).
        seed: of the views.
        source_classes: classes that the source labels, needed where there is no source to ask.
        learning_rate_factor: of the trainer's learning rate.
        outside_is_ground: take what is not annotated for background.
    """

    def __init__(
        self,
        detector: AnyDetector,
        components: Sequence[Component] = (),
        *,
        trainer: Trainer,
        augmentation: Augmentation,
        strong: bool = True,
        ema: bool = True,
        seed: int = 0,
        source_classes: Sequence[int] = (),
        learning_rate_factor: float = 1.0,
        outside_is_ground: bool = False,
    ) -> None:
        super().__init__()
        self.source_classes = tuple(source_classes)
        self.learning_rate = trainer.learning_rate * learning_rate_factor
        self.detector = detector
        self.components = torch.nn.ModuleList(components)
        self.settings = trainer
        self.augmentation = augmentation
        self.strong = strong
        self.outside_is_ground = outside_is_ground
        self.seed = seed
        self.tests_average = ema
        needs_average = ema or any(c.needs_teacher for c in components)
        self.ema = MovingAverage(detector, trainer.ema) if needs_average else None
        for component in self._components:  # the average goes without what they add
            component.attach(detector)
        self.validation: FieldDataset | None = None
        self._join: Join | None = None
        self._first_bad = FirstBad()

    @property
    def tested(self) -> AnyDetector:
        """The weights that are validated and tested."""
        if self.tests_average and self.ema is not None:
            return self.ema.network
        return self.detector

    # --- training ----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Tell the attribute heads what the labels hold, where the data module can say it.

        Raises:
            ConfigError: the loss balances classes that nobody counted.
        """
        head = self.detector.attributes
        if head is None:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        counts = data.attribute_counts() if hasattr(data, "attribute_counts") else None
        averaged = self.ema.network.attributes if self.ema is not None else None
        for each in (head, averaged):
            if each is not None and counts is not None:
                each.know(torch.from_numpy(counts))
        if head.loss_kind == "class_balanced" and not bool(head.told):
            raise ConfigError(
                "detector.attributes.loss: class_balanced needs the counts of the training labels; "
                "train with a DomainDataModule or call detector.attributes.know(counts)"
            )

    @property
    def _progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return min(1.0, self.global_step / max(1, self.settings.steps))

    def _draw(self, purpose: int) -> Draw:
        """Return this step's random numbers for one purpose."""
        return Draw(generator_for(self.seed, self.global_step, purpose, self.device))

    def _begin(self, own: Draw) -> Augmentation:
        """Let every component begin the step; returns the augmentation that they leave."""
        augmentation = self.augmentation
        for component in self._components:
            component.begin(own, self._progress)
            augmentation = component.vary(augmentation)
        return augmentation

    def _disguise(self, images: Tensor, own: Draw) -> Tensor:
        for component in self._components:
            images = component.disguise(images, own)
        return images

    def _views(
        self,
        batch: LabelledBatch | UnlabelledBatch,
        draw: Draw,
        strong: bool,
        augmentation: Augmentation | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return geometry, weak view and strong view (the weak one where it is not wanted)."""
        settings = self.augmentation if augmentation is None else augmentation
        size = batch.images.shape[-1]
        images = batch.images.float().div(255).contiguous(memory_format=torch.channels_last)
        geometry = weak_geometry(len(images), size, settings, draw)
        weak = warp_images(images, batch.fill.float() / 255, geometry)
        return geometry, weak, strong_photometry(weak, settings, draw) if strong else weak

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step: views, restyling, one forward pass over both devices, all losses."""
        del batch_idx
        if "source" not in batch:
            return self._source_free_step(batch["target"])
        progress = self._progress
        source: LabelledBatch = batch["source"]
        target: UnlabelledBatch | None = batch.get("target")
        own = self._draw(_COMPONENTS)
        augmentation = self._begin(own)
        composers = [c for c in self._components if c.composes(progress)]
        wanted = any(c.wants_target(progress) for c in self._components)

        weak_target = strong_target = None
        if target is not None:
            strong = self.strong and (wanted or bool(composers))
            _, weak_target, strong_target = self._views(target, self._draw(_TARGET), strong)
        weak_source, images, targets = self._source_views(source, weak_target, augmentation, own)

        views = None
        extras: list[tuple[Component, Extra]] = []
        if composers and weak_target is not None and strong_target is not None:
            views = Views(
                teacher=self._teacher,
                progress=progress,
                draw=own,
                augmentation=self.augmentation,
                source=images,
                source_targets=targets,
                target_weak=weak_target,
                target_strong=strong_target,
                log=self._log_mean,
            )
            extras = [(c, c.compose(views)) for c in composers]
        parts = [images]
        if wanted and strong_target is not None:
            parts.append(self._disguise(strong_target, own))
        aligning = all(not c.teaches_head for c in self._components if c.wants_target(progress))
        learned = len(images) if aligning and not extras else None
        seen = self._forward(parts + [extra.images for _, extra in extras], learned)
        on_target = seen[1] if len(parts) > 1 else None
        losses = self.detector.loss(seen[0], targets, draw=self._draw(_SAMPLES))
        if len(self.components):
            context = StepContext(
                detector=self.detector,
                teacher=self._teacher,
                progress=progress,
                draw=own,
                source=seen[0],
                source_targets=targets,
                target=on_target,
                target_weak=weak_target,
                log=self._log_mean,
                source_weak=weak_source,
            ).after(views)
            asked = zip(extras, seen[len(parts) :], strict=True)
            answered = [(component, extra, found) for (component, extra), found in asked]
            losses |= self._adaptation_losses(context, answered, losses)

        return self._total(losses)

    def _source_views(
        self,
        source: LabelledBatch,
        style: Tensor | None,
        augmentation: Augmentation,
        own: Draw,
    ) -> tuple[Tensor, Tensor, Targets]:
        """Return the source as it is learned from: weak view, view for the student, its labels.

        Args:
            source: the labelled batch.
            style: weak view of the target, for components that restyle the source after it.
            augmentation: of this step.
            own: random numbers of the components.
        """
        draw = self._draw(_SOURCE)
        geometry, images, _ = self._views(source, draw, False, augmentation)
        for component in self._components:
            if style is not None or component.restyles_alone:
                after = images if style is None else _spread(style, len(images))
                images = component.restyle(images, after, own)
        targets = warp_targets(source.targets, geometry, source.images.shape[-1])
        if self.outside_is_ground:
            targets = replace(targets, regions=None)
        for component in self._components:
            images, targets = component.rework(images, targets, own)
        strong = strong_photometry(images, augmentation, draw) if self.strong else images
        return images, strong, targets

    def _source_free_step(self, batch: UnlabelledBatch) -> Tensor:
        """One step on the target alone: what its teacher says is all there is to learn."""
        own = self._draw(_COMPONENTS)
        _, weak, strong = self._views(batch, self._draw(_TARGET), self.strong)
        self._begin(own)
        (seen,) = self._forward([self._disguise(strong, own)])
        context = StepContext(
            detector=self.detector,
            teacher=self._teacher,
            progress=self._progress,
            draw=own,
            source=cast(Outputs, NoSource()),
            source_targets=self._no_targets(len(weak)),
            target=seen,
            target_weak=weak,
            log=self._log_mean,
        )
        return self._total(self._adaptation_losses(context, [], {}))

    def _no_targets(self, batch: int) -> Targets:
        device, head = self.device, self.detector.attributes
        attributes = len(head.sizes) if head is not None else 0
        classes = torch.zeros(batch, self.detector.classes, dtype=torch.bool, device=device)
        classes[:, list(self.source_classes)] = True
        return Targets(
            torch.zeros(batch, 1, 4, device=device),
            torch.full((batch, 1), -1, device=device),
            torch.full((batch, 1, attributes), -1, device=device),
            torch.zeros(batch, 1, dtype=torch.bool, device=device),
            classes,
        )

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        total = torch.stack(list(losses.values())).sum()
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in losses.items()}, on_epoch=True, on_step=False
        )
        self.log("train/loss", total.detach(), on_epoch=True, on_step=False)
        self._first_bad.note(losses)
        return total

    @property
    def _components(self) -> list[Component]:
        return list(self.components)  # type: ignore[arg-type]  # ModuleList knows only Module

    @property
    def _teacher(self) -> AnyDetector | None:
        return self.ema.network if self.ema is not None else None

    def _log_mean(self, name: str, value: Tensor) -> None:
        self.log(name, value, on_epoch=True, on_step=False)

    def _forward(self, parts: Sequence[Tensor], learned: int | None = None) -> list[Outputs]:
        """See several groups of images in one pass; returns the outputs of each group.

        Args:
            parts: the groups.
            learned: images that the head learns from, see `DetectorBase.forward`.
        """
        images = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        outputs = self.detector(images.contiguous(memory_format=torch.channels_last), learned)
        seen, first = [], 0
        for part in parts:
            seen.append(outputs.select(slice(first, first + len(part))))
            first += len(part)
        return seen

    def _adaptation_losses(
        self,
        context: StepContext,
        answered: Sequence[tuple[Component, Extra, Outputs]],
        supervised: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of all components; ``answered`` is what they composed and got."""
        losses: dict[str, Tensor] = {}
        unsupervised: list[Tensor] = []
        calls: list[tuple[Component, dict[str, Tensor]]]
        calls = [(c, c.losses(context)) for c in self._components]
        calls += [(c, extra.losses(context, outputs)) for c, extra, outputs in answered]
        for component, found in calls:
            for name, value in found.items():
                losses[name] = losses[name] + value if name in losses else value
            if component.needs_teacher:
                unsupervised += found.values()
        if unsupervised and supervised:
            against = torch.stack(list(supervised.values())).sum().detach().clamp(min=1e-6)
            ratio = torch.stack(unsupervised).sum().detach() / against
            self._log_mean("health/unsupervised_ratio", ratio)
        return losses

    @property
    def _asks(self) -> bool:
        """Whether this step is looked at: asking a GPU makes it wait, so once in 50 steps."""
        return self.device.type == "cpu" or self.global_step % 50 == 0

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Stop on a diverging loss or gradient, and say which, before it reaches the weights."""
        del args
        if not self._asks:
            return
        wrong = self._first_bad.complaint()
        if wrong := wrong or self._first_bad.complaint_of_gradient(self.parameters()):
            raise self._diverged(wrong)

    def on_train_batch_end(self, *args: Any) -> None:
        """Let the average follow."""
        del args
        if self.ema is not None:
            self.ema.update(self.detector)

    def on_train_epoch_end(self) -> None:
        """Stop before weights that are no numbers are saved over the last good checkpoint."""
        sums = torch.stack([p.detach().float().sum() for p in self.parameters()])
        if not bool(torch.isfinite(sums).all()):
            wrong = self._first_bad.complaint()  # a GPU may not have been asked in time
            raise self._diverged(wrong or "the weights are not finite any more")

    def _diverged(self, what: str) -> DivergedError:
        saved = self.current_epoch * self.settings.epoch_steps
        kept = f"The checkpoint of step {saved} is kept" if saved else "None was saved yet"
        return DivergedError(
            f"step {self.global_step}: {what}. {kept}; lower trainer.learning_rate or the "
            "component's weight"
        )

    def configure_optimizers(self) -> Any:
        """See `adamw_with_cosine`."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return adamw_with_cosine(trainable, self.settings, self.learning_rate)

    # --- testing -----------------------------------------------------------------------------

    @property
    def finishes(self) -> bool:
        """Whether a component changes the network after training (see `finished`)."""
        return any(c.finishes for c in self._components)

    @contextmanager
    def finished(self, batches: Callable[[], Iterable[UnlabelledBatch]]) -> Iterator[None]:
        """Within, the tested weights are those after every component's `finish`; then as before.

        Args:
            batches: call for the target's unlabelled training images, in a fixed order.
        """

        def images() -> Iterator[Tensor]:
            for batch in batches():
                yield network_input(batch.to(self.device))

        before = {k: v.clone() for k, v in self.tested.eval().state_dict().items()}
        try:
            for component in self._components:
                component.finish(self.tested, images)
            yield
        finally:
            self.tested.load_state_dict(before)

    def predict_fields(
        self, batches: Iterable[UnlabelledBatch], data: FieldDataset
    ) -> list[FieldRecord]:
        """Return what the tested weights find on a data set (see `answers`).

        Args:
            batches: windows of the data set, in its order (see `FieldDataset.searched`).
            data: the data set.
        """
        return answers(self.tested, batches, data, self.device)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        assert self.validation is not None
        self._join = Join(self.validation, self.detector.max_detections)
        self.tested.eval()

    def validation_step(self, batch: UnlabelledBatch, batch_idx: int) -> None:
        """Collect detections on the source's validation fields."""
        del batch_idx
        assert self._join is not None
        assert self.validation is not None
        detect(self.tested, batch, self.validation, self._join)

    def on_validation_epoch_end(self) -> None:
        """Score them."""
        assert self._join is not None
        assert self.validation is not None
        labelled = {c for field in self.validation.fields for c in field.labelled_classes}
        metric = FieldMetric(self.validation.space, sorted(labelled))
        metric.update(self._join.finish())
        scores = metric.compute()
        for name in ("ap50", "ap50_95", "attribute_f1"):
            if scores[name] is not None:
                self.log(f"val/{name}", float(scores[name]))
