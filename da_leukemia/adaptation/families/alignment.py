"""Settings of what draws the features of two devices together. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class Mmd:
    """Multi-kernel maximum mean discrepancy of the devices' features (Long et al., ICML 2015).

    Attributes:
        weight: factor of the loss; 0 removes the component.
        ramp: share of training over which the weight rises by DANN's schedule.
        features: "regions" compares single cells (labelled ones of the source, confident
            detections on the target), "map" compares whole views, "attributes" what the attribute
            head reads those cells' attributes from.
        by_class: compare cells of one class with each other, not all with all.
        threshold: score from which a detection on the target takes part.
        regions: at most this many cells of an image take part.
        resolution: samples per side of a cell's pooled feature.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(0.5, least=0)
    ramp: float = share(1.0)
    features: str = field(default="regions", metadata={"choices": ("regions", "map", "attributes")})
    by_class: bool = True
    threshold: float = share(0.3)
    regions: int = number(16, least=1)
    resolution: int = number(3, least=1)


@dataclass
class Coral:
    """Distance of the covariances of the devices' features (Sun and Saenko, ECCV 2016).

    Attributes:
        weight: factor of the loss; 0 removes the component.
        ramp: as in `mmd`.
        features: as in `mmd`.
        by_class: as in `mmd`.
        threshold: as in `mmd`.
        regions: as in `mmd`.
        resolution: as in `mmd`.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(10.0, least=0)
    ramp: float = share(1.0)
    features: str = field(default="regions", metadata={"choices": ("regions", "map", "attributes")})
    by_class: bool = False
    threshold: float = share(0.3)
    regions: int = number(16, least=1)
    resolution: int = number(3, least=1)


@dataclass
class Prototypes:
    """Cells of both devices are drawn to their class's mean on the source and off the others.

    Attributes:
        weight: factor of the loss; 0 removes the component.
        ramp: share of training over which the weight rises by DANN's schedule.
        momentum: share of a prototype that stays in each step.
        temperature: of the softmax over cosines.
        features: "regions" or "attributes", as in `Mmd`; there is no ground among attributes.
        threshold: score from which a detection on the target takes part.
        regions: at most this many cells of an image take part.
        resolution: samples per side of a cell's pooled feature.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = number(0.1, least=0)
    ramp: float = share(1.0)
    momentum: float = number(0.99, least=0, below=1)
    temperature: float = number(0.1, above=0)
    features: str = field(default="regions", metadata={"choices": ("regions", "attributes")})
    threshold: float = share(0.3)
    regions: int = number(16, least=1)
    resolution: int = number(3, least=1)
