"""Settings of what changes how images of the source look. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from da_leukemia.bounds import number, share


@dataclass
class Fourier:
    """Swap low Fourier amplitudes of source and target images (FDA; Yang and Soatto, CVPR 2020).

    Attributes:
        probability: share of source images that take a target image's amplitudes; 0 removes it.
        beta_min: smallest half-width of the swapped window, as a share of the image side.
        beta_max: largest half-width; drawn uniformly per image.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = True

    probability: float = share(0.5)
    beta_min: float = number(0.0, 0, 0.5)
    beta_max: float = number(0.05, 0, 0.5)


@dataclass
class Histogram:
    """Give source images the colour histogram of a target image, channel by channel.

    Attributes:
        probability: share of source images that are restyled; 0 removes the component.
        blend_min: smallest share of the matched image in the mixture with the original.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = True

    probability: float = share(0.5)
    blend_min: float = share(0.5)


@dataclass
class Reinhard:
    """Give source images the mean and spread of a target image in CIE Lab (Reinhard et al., 2001).

    Attributes:
        probability: share of source images that are restyled; 0 removes the component.
        blend_min: smallest share of the restyled image in the mixture with the original.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = True

    probability: float = share(0.5)
    blend_min: float = share(0.5)


@dataclass
class StainJitter:
    """Vary how much of each dye the source's cells took up; no look at a target.

    Attributes:
        probability: share of source images that are varied; 0 removes the component.
        spread: the amount of each dye is multiplied by ``1 - spread`` to ``1 + spread``.
        shift: and then raised by ``-shift`` to ``shift``, in optical density.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = False

    probability: float = share(1.0)
    spread: float = share(0.2)
    shift: float = number(0.02, least=0)


@dataclass
class MixStyle:
    """Feature statistics of two images mixed inside the backbone (Zhou et al., ICLR 2021).

    Attributes:
        probability: share of the images whose statistics are mixed; 0 removes the component.
        alpha: of the Beta distribution of the mixture; small ones keep nearly all of one image.
        stride: mixed behind each map of the backbone up to this stride.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = False

    probability: float = share(0.5)
    alpha: float = number(0.1, above=0, most=1)
    stride: int = number(8, least=1)
