"""What a component of an adaptation method is, and what it may see in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from da_leukemia.config import Augmentation
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.base import AnyDetector, Detections, Outputs, Places


class Taught:
    """What the teacher says on a weak view, without gradient."""

    def __init__(self, teacher: AnyDetector, weak: Tensor) -> None:
        self.teacher = teacher
        with torch.no_grad():
            self.outputs: Outputs = teacher(weak)

    @cached_property
    def detections(self) -> Detections:
        """Its detections, best first; only dense methods go without."""
        return self.teacher.decode(self.outputs)

    @cached_property
    def places(self) -> Places:
        """What it thinks at each of its places."""
        with torch.no_grad():
            return self.teacher.places(self.outputs)

    def peaks(self, labelled: Tensor) -> Tensor:
        """Return its best score of a class in ``labelled`` ``(C,)`` at each place, ``(B, L)``."""
        return (self.places.scores * labelled).amax(-1)


@dataclass
class Views:
    """The images of one training step, before the student has seen them.

    Attributes:
        teacher: see `StepContext`.
        progress: share of training done, 0..1.
        draw: random numbers of the components in this step.
        augmentation: what strong views look like.
        source: the source view that the student learns from, ``(B, 3, S, S)`` in 0..1.
        source_targets: its labels.
        target_weak: weak view of the target, same shape.
        target_strong: the same geometry with the photometry of the student's views.
        log: see `StepContext`.
    """

    teacher: AnyDetector | None
    progress: float
    draw: Draw
    augmentation: Augmentation
    source: Tensor
    source_targets: Targets
    target_weak: Tensor
    target_strong: Tensor
    log: Callable[[str, Tensor], None]

    @cached_property
    def taught(self) -> Taught:
        """See `StepContext.taught`."""
        assert self.teacher is not None
        return Taught(self.teacher, self.target_weak)


class NoSource:
    """In place of the source's outputs in a source-free step: asking for anything is an error."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"a source-free step has no source to take {name!r} from")


@dataclass
class StepContext:
    """One training step as the components see it. No target label can be reached from here.

    Attributes:
        detector: the student.
        teacher: its moving average, in evaluation mode; None where no component asked for it.
        progress: share of training done, 0..1.
        draw: random numbers of this step.
        source: outputs on the source view the student learns from; `NoSource` where there is none.
        source_targets: labels of that view; the source's own, which every method may use. Without
            a source there are none, but which classes it labels is known.
        target: outputs on the target's view; None where no component asked for it.
        target_weak: weak view of the target ``(B, 3, S, S)``, None for source-only.
        source_weak: the source view without the student's photometry, same shape; None where there
            is no source.
        log: call with a name and a tensor to have it averaged and logged.
    """

    detector: AnyDetector
    teacher: AnyDetector | None
    progress: float
    draw: Draw
    source: Outputs
    source_targets: Targets
    target: Outputs | None
    target_weak: Tensor | None
    log: Callable[[str, Tensor], None]
    source_weak: Tensor | None = None

    @property
    def source_free(self) -> bool:
        """Whether there is no image of the source."""
        return isinstance(self.source, NoSource)

    @cached_property
    def taught_source(self) -> Taught:
        """What the teacher says on the source: computed once, whoever asks first."""
        assert self.teacher is not None
        assert self.source_weak is not None
        return Taught(self.teacher, self.source_weak)

    @cached_property
    def taught(self) -> Taught:
        """What the teacher says on the weak view: computed once, whoever asks first."""
        assert self.teacher is not None
        assert self.target_weak is not None
        return Taught(self.teacher, self.target_weak)

    def after(self, views: Views | None) -> Self:
        """Take over what the teacher was asked for before the student's forward pass."""
        if views is not None and "taught" in vars(views):
            self.taught = views.taught
        return self


@dataclass
class Extra:
    """More images for the student, seen in the forward pass of the step.

    Attributes:
        images: ``(N, 3, S, S)`` in 0..1.
        losses: called with the step and the student's outputs on them.
    """

    images: Tensor
    losses: Callable[[StepContext, Outputs], dict[str, Tensor]]


Images = Callable[[], Iterable[Tensor]]
"""Call for the target's unlabelled training images, batch by batch: ``(B, 3, S, S)`` in 0..1."""


class Component(nn.Module):
    """A mechanism that can be combined with others.

    A component may restyle the source, ask for a student view of the target, disguise it, compose
    images of its own, add named losses, own modules, and act on the finished network. Class
    attributes say what it needs, so that nothing is computed in vain.
    """

    needs_teacher = False
    restyles_alone = False  # whether `restyle` needs no target, and is called without one
    # whether its losses on the target teach the detector's head; else they reach its features
    # alone, and what the head says there is read without gradient
    teaches_head = True
    finishes = False  # whether `finish` does anything

    def attach(self, network: AnyDetector) -> None:
        """Reach into the student, once, after its moving average was copied from it."""
        del network

    def begin(self, draw: Draw, progress: float) -> None:
        """Take note that a training step begins."""
        del draw, progress

    def vary(self, augmentation: Augmentation) -> Augmentation:
        """Return how the source's views are varied in this step."""
        return augmentation

    def restyle(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the source images ``(B, 3, S, S)`` in 0..1 in the target's appearance.

        Where there is no target, ``target`` is the source.
        """
        del target, draw
        return source

    def rework(self, images: Tensor, targets: Targets, draw: Draw) -> tuple[Tensor, Targets]:
        """Return labelled images ``(B, 3, S, S)`` in 0..1 and their labels, changed together.

        Called for every labelled batch, after `restyle` and before the strong view's photometry.
        """
        del draw
        return images, targets

    def wants_target(self, progress: float) -> bool:
        """Whether the student must see the target's strong view now."""
        del progress
        return False

    def disguise(self, target: Tensor, draw: Draw) -> Tensor:
        """Return the student's target view ``(B, 3, S, S)``, the geometry unchanged."""
        del draw
        return target

    def composes(self, progress: float) -> bool:
        """Whether `compose` is wanted now."""
        del progress
        return False

    def compose(self, views: Views) -> Extra:
        """Return images of its own for the student."""
        raise NotImplementedError

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Return named losses, weights applied."""
        del context
        return {}

    def finish(self, network: AnyDetector, images: Images) -> None:
        """Change the tested weights after training, for the target device alone.

        Must be repeatable: a job that is tested again goes through it again.
        """
        del network, images
