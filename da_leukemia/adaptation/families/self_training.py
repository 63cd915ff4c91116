"""Settings of what learns from a teacher on the target. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class MeanTeacher:
    """Pseudo-labels from an EMA teacher on weak views, learned on strong views of the target.

    Attributes:
        weight: factor of the target losses; 0 removes the component.
        threshold: teacher score from which a detection becomes a pseudo-label.
        negative: teacher score up to which a location is background; between the two it is
            ignored.
        burn_in: share of training before the target joins.
        ramp: share of training over which the weight rises after burn-in.
        adaptive: let each class's threshold follow the teacher's confidence in it, from
            ``threshold`` on (MRT; Zhao et al., ICCV 2023).
        low: smallest adaptive threshold.
        high: largest adaptive threshold.
        attribute_weight: factor, beside ``weight``, of the loss on attributes that the teacher is
            sure of; 0 takes none from it.
        attribute_threshold: teacher probability from which an attribute's value is a pseudo-label.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(1.0, least=0)
    threshold: float = share(0.6)
    negative: float = share(0.2)
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.1)
    adaptive: bool = False
    low: float = share(0.25)
    high: float = share(0.45)
    attribute_weight: float = number(0.0, least=0)
    attribute_threshold: float = share(0.9)


@dataclass
class Distillation:
    """Soft distillation of an EMA teacher on the target (ALDI++; Kay et al., TMLR 2025).

    Attributes:
        weight: factor of the target losses; 0 removes the component.
        class_weight: factor, beside ``weight``, of the class loss; 0 distils boxes alone.
        box_weight: the same of the box loss; 0 distils classes alone.
        positive: teacher score from which a location's box is learned.
        harmony: weigh locations by score and overlap in place of ``positive`` (Harmonious
            Teacher; Deng et al., CVPR 2023).
        burn_in: share of training before the target joins.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    parts: ClassVar[tuple[str, ...]] = ("class_weight", "box_weight")
    targeted: ClassVar[bool] = True

    weight: float = number(1.0, least=0)
    class_weight: float = number(1.0, least=0)
    box_weight: float = number(1.0, least=0)
    positive: float = share(0.3)
    harmony: bool = False
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.1)


@dataclass
class Masking:
    """Hide blocks of the student's target view; for methods that have a teacher.

    Attributes:
        ratio: share of blocks that is hidden; 0 removes the component.
        block: side of a block in pixels of the network's input.
    """

    strength: ClassVar[str] = "ratio"
    targeted: ClassVar[bool] = True

    ratio: float = share(0.5)
    block: int = number(32, least=1)


@dataclass
class MaskedConsistency:
    """Masked image consistency on a student view of its own (MIC; Hoyer et al., CVPR 2023).

    Attributes:
        weight: factor of the masked view's loss; 0 removes the component.
        ratio: share of blocks that is hidden.
        block: side of a block in pixels of the network's input.
        threshold: teacher score from which a detection becomes a pseudo-label.
        negative: teacher score up to which a location is background.
        burn_in: share of training before the target joins.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(0.5, least=0)
    ratio: float = share(0.5)
    block: int = number(32, least=1)
    threshold: float = share(0.6)
    negative: float = share(0.2)
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.1)
