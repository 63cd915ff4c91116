"""Settings of what puts parts of images together. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class ConfMix:
    """The target's most confident quadrant pasted on the source (ConfMix; Mattolin, WACV 2023).

    Attributes:
        weight: factor of the losses on the mixed image; 0 removes the component.
        threshold: score from which a detection of the teacher is a cell.
        negative: score up to which there is background; between the two nothing is learned.
        burn_in: share of training before the target joins.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(1.0, least=0)
    threshold: float = share(0.5)
    negative: float = share(0.2)
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.1)


@dataclass
class Daca:
    """Four copies of the target's most confident quadrant, tiled (DACA; Mekhalfi et al., 2023).

    Attributes:
        weight: factor of the losses on the composite; 0 removes the component.
        threshold: score from which a detection of the teacher is a cell.
        negative: score up to which there is background; between the two nothing is learned.
        burn_in: share of training before the target joins.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(1.0, least=0)
    threshold: float = share(0.5)
    negative: float = share(0.2)
    burn_in: float = number(0.3, least=0, below=1)
    ramp: float = share(0.1)


@dataclass
class CutPaste:
    """Cells of rare types pasted into other labelled fields (class balancing, as in I2DA).

    Attributes:
        probability: share of the images that are given each of the cells; 0 removes the component.
        cells: at most so many for an image; one that would stand on another cell is left out.
        balance: a type that is n times rarer is drawn ``n ** balance`` times as often per cell: 0
            draws cells alike, 1 draws types alike.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = False

    probability: float = share(0.5)
    cells: int = number(2, least=1)
    balance: float = number(1.0, least=0)
