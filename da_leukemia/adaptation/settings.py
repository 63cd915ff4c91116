"""The settings of each adaptation component. Free of torch, so that plans are checked at once.

Besides its settings each class says two things: ``strength``, the setting that removes the
component when it is zero, and ``targeted``, whether it looks at photographs of a target device. A
method without a targeted component is source-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


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
        kernel: side of their convolutions; 1 looks at each location alone.
        centre_aware: weight every location with the detector's own class score there (EPM; Hsu et
            al., ECCV 2020), so that cells are aligned and not the ground between them.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = 0.1
    reversal: float = 1.0
    hidden: int = 64
    ramp: float = 1.0
    depth: int = 1
    kernel: int = 1
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
        ramp: as in `Adversarial`.
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

    weight: float = 0.1
    reversal: float = 1.0
    hidden: int = 256
    dropout: float = 0.5
    ramp: float = 1.0
    threshold: float = 0.3
    regions: int = 16
    resolution: int = 3
    condition: str = field(default="none", metadata={"choices": ("none", "outer", "random")})
    random_size: int = 256
    consistency: float = 0.0


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

    probability: float = 0.5
    beta_min: float = 0.0
    beta_max: float = 0.05


@dataclass
class Histogram:
    """Give source images the colour histogram of a target image, channel by channel.

    Attributes:
        probability: share of source images that are restyled; 0 removes the component.
        blend_min: smallest share of the matched image in the mixture with the original.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = True

    probability: float = 0.5
    blend_min: float = 0.5


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
        attribute_threshold: its probability from which an attribute's value is a pseudo-label.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = 1.0
    threshold: float = 0.6
    negative: float = 0.2
    burn_in: float = 0.3
    ramp: float = 0.1
    adaptive: bool = False
    low: float = 0.25
    high: float = 0.45
    attribute_weight: float = 0.0
    attribute_threshold: float = 0.9


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
    targeted: ClassVar[bool] = True

    weight: float = 1.0
    class_weight: float = 1.0
    box_weight: float = 1.0
    positive: float = 0.3
    harmony: bool = False
    burn_in: float = 0.3
    ramp: float = 0.1


@dataclass
class Masking:
    """Hide blocks of the student's target view; for methods that have a teacher.

    Attributes:
        ratio: share of blocks that is hidden; 0 removes the component.
        block: side of a block in pixels of the network's input.
    """

    strength: ClassVar[str] = "ratio"
    targeted: ClassVar[bool] = True

    ratio: float = 0.5
    block: int = 32


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

    weight: float = 0.5
    ratio: float = 0.5
    block: int = 32
    threshold: float = 0.6
    negative: float = 0.2
    burn_in: float = 0.3
    ramp: float = 0.1


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

    weight: float = 0.5
    ramp: float = 1.0
    features: str = field(default="regions", metadata={"choices": ("regions", "map", "attributes")})
    by_class: bool = True
    threshold: float = 0.3
    regions: int = 16
    resolution: int = 3


@dataclass
class Coral:
    """Distance of the covariances of the devices' features (Sun and Saenko, ECCV 2016).

    Attributes:
        weight: factor of the loss; 0 removes the component.
        ramp: as in `Mmd`.
        features: as in `Mmd`.
        by_class: as in `Mmd`.
        threshold: as in `Mmd`.
        regions: as in `Mmd`.
        resolution: as in `Mmd`.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = 10.0
    ramp: float = 1.0
    features: str = field(default="regions", metadata={"choices": ("regions", "map", "attributes")})
    by_class: bool = False
    threshold: float = 0.3
    regions: int = 16
    resolution: int = 3


@dataclass
class Prototypes:
    """Cells of both devices are drawn to their class's mean on the source and off the others.

    Attributes:
        weight: factor of the loss; 0 removes the component.
        ramp: share of training over which the weight rises by DANN's schedule.
        momentum: share of a prototype that stays in each step.
        temperature: of the softmax over cosines.
        threshold: score from which a detection on the target takes part.
        regions: at most this many cells of an image take part.
        resolution: samples per side of a cell's pooled feature.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = 0.1
    ramp: float = 1.0
    momentum: float = 0.99
    temperature: float = 0.1
    threshold: float = 0.3
    regions: int = 16
    resolution: int = 3


@dataclass
class Reinhard:
    """Give source images the mean and spread of a target image in CIE Lab (Reinhard et al., 2001).

    Attributes:
        probability: share of source images that are restyled; 0 removes the component.
        blend_min: smallest share of the restyled image in the mixture with the original.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = True

    probability: float = 0.5
    blend_min: float = 0.5


@dataclass
class StainJitter:
    """Vary how much of each dye the source's cells took up; no look at a target.

    Attributes:
        probability: share of source images that are varied; 0 removes the component.
        spread: the amount of each dye is multiplied by ``1 - spread`` to ``1 + spread``.
        shift: and raised by ``-shift`` to ``shift``, in optical density.
    """

    strength: ClassVar[str] = "probability"
    targeted: ClassVar[bool] = False

    probability: float = 1.0
    spread: float = 0.2
    shift: float = 0.02


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

    weight: float = 1.0
    threshold: float = 0.5
    negative: float = 0.2
    burn_in: float = 0.3
    ramp: float = 0.1


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

    weight: float = 1.0
    threshold: float = 0.5
    negative: float = 0.2
    burn_in: float = 0.3
    ramp: float = 0.1


@dataclass
class AdaBN:
    """After training, BatchNorm statistics of the target's training images (Li et al., 2016).

    Attributes:
        weight: share of the target's statistics in the mixture with the source's; 0 removes it.
        batches: at most so many batches are looked at.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = True

    weight: float = 1.0
    batches: int = 64


@dataclass
class Tent:
    """After training, entropy minimisation on norm layers (TENT; Wang et al., ICLR 2021).

    Attributes:
        learning_rate: of Adam; 0 removes the component.
        steps: batches of the target's training images that are learned from.
    """

    strength: ClassVar[str] = "learning_rate"
    targeted: ClassVar[bool] = True

    learning_rate: float = 1e-3
    steps: int = 20


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

    probability: float = 0.5
    cells: int = 2
    balance: float = 1.0


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

    probability: float = 0.5
    alpha: float = 0.1
    stride: int = 8


@dataclass
class PatchCrops:
    """First stage of SLA-Det: sparse fields are seen as enlarged crops of their annotated patches.

    Attributes:
        until: share of training after which whole fields are seen; 0 removes the component.
        plain_after: see whole fields without augmentation.
    """

    strength: ClassVar[str] = "until"
    targeted: ClassVar[bool] = False

    until: float = 0.5
    plain_after: bool = False


@dataclass
class SparseTeacher:
    """Confident detections of an EMA teacher outside the annotated patches, learned as cells.

    Attributes:
        weight: factor of their losses; 0 removes the component.
        threshold: teacher score from which a detection becomes a cell.
        overlap: largest IoU with an annotated box.
        boxes: learn the teacher's boxes, too, not only that and what there is.
        burn_in: share of training before the teacher is asked.
        ramp: share of training over which the weight rises after burn-in.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = False

    weight: float = 0.5
    threshold: float = 0.5
    overlap: float = 0.3
    boxes: bool = True
    burn_in: float = 0.3
    ramp: float = 0.2


@dataclass
class SparseSimilarity:
    """Uncertain detections outside the patches drawn to annotated cells of their type (SLA-Det).

    Attributes:
        weight: factor of the loss; 0 removes the component.
        low: teacher score from which a detection takes part.
        high: score from which it is certain, and does not.
        margin: cosine up to which cells of different types may be alike.
        overlap: largest IoU with an annotated box.
        burn_in: share of training before the teacher is asked.
        until: share of training after which it is no more.
        ramp: share of training over which the weight rises after burn-in.
        regions: at most this many cells of an image take part, on either side.
        resolution: samples per side of a cell's pooled feature.
    """

    strength: ClassVar[str] = "weight"
    targeted: ClassVar[bool] = False

    weight: float = 0.1
    low: float = 0.2
    high: float = 0.5
    margin: float = 0.0
    overlap: float = 0.3
    burn_in: float = 0.3
    until: float = 1.0
    ramp: float = 0.2
    regions: int = 16
    resolution: int = 3


COMPONENTS: dict[str, Any] = {
    "adversarial": Adversarial,
    "fourier": Fourier,
    "histogram": Histogram,
    "instance_adversarial": InstanceAdversarial,
    "mmd": Mmd,
    "coral": Coral,
    "prototypes": Prototypes,
    "reinhard": Reinhard,
    "stain_jitter": StainJitter,
    "mean_teacher": MeanTeacher,
    "distillation": Distillation,
    "cut_paste": CutPaste,
    "mixstyle": MixStyle,
    "masking": Masking,
    "masked_consistency": MaskedConsistency,
    "confmix": ConfMix,
    "daca": Daca,
    "adabn": AdaBN,
    "tent": Tent,
    "patch_crops": PatchCrops,
    "sparse_teacher": SparseTeacher,
    "sparse_similarity": SparseSimilarity,
}
"""Component name in a method's YAML -> its settings."""


SOURCE_FREE = frozenset({"mean_teacher", "distillation", "masking", "adabn", "tent"})
"""Components that ask for no image of the source."""


AFTER_TRAINING = frozenset({"adabn", "tent"})
"""Components that act on the finished network and change nothing before."""


def refusal(settings: Any, detector: str) -> str | None:
    """Return why a component cannot work on a kind of detector; None where it can."""
    if detector == "classifier":
        return _refusal_on_cells(settings)
    if isinstance(settings, Distillation) and settings.harmony and detector != "one_stage":
        return (
            f"harmony weighs every location of a dense detector, and {detector} answers at "
            "proposals that its teacher has already chosen; use detector.kind=one_stage, or "
            "distillation without harmony (aldi_pp)"
        )
    return None


def _refusal_on_cells(settings: Any) -> str | None:
    """Return why a component means nothing where every picture is one cell."""
    if isinstance(settings, CutPaste | ConfMix | Daca):
        return "it pastes cells or parts of fields into a picture, which then is of no one class"
    if isinstance(settings, MixStyle):
        return "it mixes maps of a detector's backbone; stain_jitter, reinhard and fda mix images"
    if isinstance(settings, Distillation) and settings.harmony:
        return "harmony weighs locations by the overlap of their boxes, and there are none"
    if isinstance(settings, Adversarial) and settings.centre_aware:
        return "centre_aware weighs locations, of which a picture of one cell has one"
    if isinstance(settings, Mmd | Coral) and settings.features == "attributes":
        return "attributes are read from the feature that the classes are read from; take regions"
    return None


@dataclass
class Method:
    """What one row of the matrix does: a training recipe and a list of components.

    Attributes:
        augmentation: "strong" learns from the strong view, "weak" from the weak one.
        ema: whether the exponential moving average of the weights is what is tested.
        target_labels: few-shot: this many labelled training fields of the target join the source.
        target_share: share of a training batch that is drawn from them.
        source_free: start from the finished fair source-only run, or `detector.init_from`, and
            learn from the target's images alone.
        continued: start from the same weights, and learn from the source further.
        outside: what the part of a source field means that is not annotated: "ignored" teaches
            nothing, "background" that there is no cell (what a detector does that does not know).
        patch_mosaics: share of the source's training views that are made of the annotated patches
            of several fields, where fields are annotated in part.
        learning_rate_factor: of `trainer.learning_rate`, for methods that start from good weights.
        components: dictionaries with a ``name`` and that component's settings.
    """

    augmentation: str = field(default="strong", metadata={"choices": ("weak", "strong")})
    ema: bool = True
    target_labels: int = 0
    target_share: float = 0.25
    source_free: bool = False
    continued: bool = False
    outside: str = field(default="ignored", metadata={"choices": ("ignored", "background")})
    patch_mosaics: float = 0.0
    learning_rate_factor: float = 1.0
    components: list[dict[str, Any]] = field(default_factory=list)
