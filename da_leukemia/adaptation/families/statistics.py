"""Settings of what acts on the finished network. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class AdaBN:
    """After training, BatchNorm statistics of the target's training images (Li et al., 2016).

    Attributes:
        weight: share of the target's statistics in the mixture with the source's; 0 removes it.
        batches: at most so many batches are looked at.
        rounds: 0 lets all images count alike, as in the paper. More: single cells are weighted so
            that types come in the shares that training showed, whatever the mix of the target,
            which the network's own answers tell, so many times over. Norm layers learned with the
            source's mix, and another one looks to them like another device.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = share(1.0)
    batches: int = number(64, least=1)
    rounds: int = number(0, least=0)


@dataclass
class Tent:
    """After training, entropy minimisation on norm layers (TENT; Wang et al., ICLR 2021).

    Attributes:
        learning_rate: of Adam; 0 removes the component.
        steps: batches of the target's training images that are learned from.
    """

    strength: ClassVar[str] = "learning_rate"
    targeted: ClassVar[bool] = True

    learning_rate: float = number(1e-3, 0, 10)
    steps: int = number(20, least=1)
