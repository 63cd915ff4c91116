"""What a component of an adaptation method is, and what it may see in a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw
from da_leukemia.models.one_stage import OneStageDetector, Outputs


@dataclass
class StepContext:
    """One training step as the components see it. No target label can be reached from here.

    Attributes:
        detector: the student.
        teacher: its moving average, in evaluation mode; None where no component asked for it.
        progress: share of training done, 0..1.
        draw: random numbers of this step.
        source: outputs on the source view the student learns from.
        source_targets: labels of that view; the source's own, which every method may use.
        target: outputs on the target's view; None where no component asked for it.
        target_weak: weak view of the target ``(B, 3, S, S)``, None for source-only.
        log: call with a name and a tensor to have it averaged and logged.
    """

    detector: OneStageDetector
    teacher: OneStageDetector | None
    progress: float
    draw: Draw
    source: Outputs
    source_targets: Targets
    target: Outputs | None
    target_weak: Tensor | None
    log: Callable[[str, Tensor], None]


class Component(nn.Module):
    """A mechanism that can be combined with others.

    A component may restyle the source, ask for a student view of the target, add named losses, and
    own modules. Class attributes say what it needs, so that nothing is computed in vain.
    """

    needs_teacher = False

    def restyle(self, source: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the source images ``(B, 3, S, S)`` in 0..1 in the target's appearance."""
        del target, draw
        return source

    def wants_target(self, progress: float) -> bool:
        """Whether the student must see the target's strong view now."""
        del progress
        return False

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Return named losses, weights applied."""
        del context
        return {}
