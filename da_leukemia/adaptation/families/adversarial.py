"""Settings of the discriminators behind gradient reversal. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class Adversarial:
    """Domain discriminator behind gradient reversal, on each pyramid level (Ganin et al., 2016).

    Attributes:
        weight: factor of the discriminator's loss; 0 removes the component.
        reversal: scale of the reversed gradient that reaches the detector.
        hidden: channels of the discriminator's hidden layers.
        ramp: share of training over which the reversal rises from 0 by DANN's schedule
            ``2 / (1 + exp(-10 p)) - 1``; 0 reverses at full strength from the start.
        depth: hidden layers.
        kernel: side of their convolutions, odd; 1 looks at each location alone.
        burn_in: share of training before the target joins; the reversal's rise begins there.
        centre_aware: weight every location with the detector's own class score there (EPM; Hsu et
            al., ECCV 2020), so that cells are aligned and not the ground between them.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(0.1, least=0)
    reversal: float = number(1.0, least=0)
    hidden: int = number(64, least=1)
    ramp: float = share(1.0)
    depth: int = number(1, least=0)
    kernel: int = number(1, least=1)
    burn_in: float = number(0.0, least=0, below=1)
    centre_aware: bool = False


@dataclass
class InstanceAdversarial:
    """Domain discriminator on the features of single cells (DA-Faster; Chen et al., CVPR 2018).

    On the source these are the labelled cells, on the target the student's confident detections.

    Attributes:
        weight: factor of the discriminator's loss; 0 removes the component.
        reversal: scale of the reversed gradient that reaches the detector.
        hidden: width of the two hidden layers.
        dropout: share of hidden units that are dropped.
        ramp: as in `adversarial`.
        burn_in: as in `adversarial`.
        threshold: score from which a detection on the target takes part.
        regions: at most this many cells of an image take part.
        resolution: samples per side of a cell's pooled feature.
        condition: "none" sees the feature; "outer" its outer product with the class posterior
            (CDAN; Long et al., NeurIPS 2018); "random" that product in a random projection.
        random_size: length of the random projection.
        consistency: factor, beside ``weight``, of the distance between this probability and the
            mean one of the image; needs an `adversarial` component in the method.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(0.1, least=0)
    reversal: float = number(1.0, least=0)
    hidden: int = number(256, least=1)
    dropout: float = number(0.5, least=0, below=1)
    ramp: float = share(1.0)
    burn_in: float = number(0.0, least=0, below=1)
    threshold: float = share(0.3)
    regions: int = number(16, least=1)
    resolution: int = number(3, least=1)
    condition: str = field(default="none", metadata={"choices": ("none", "outer", "random")})
    random_size: int = number(256, least=1)
    consistency: float = number(0.0, least=0)
