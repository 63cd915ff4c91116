"""The settings of each adaptation component. Free of torch, so that plans are checked at once.

Besides its settings each class says two things: ``strength``, the setting that removes the
component when it is zero, and ``targeted``, whether it looks at photographs of a target device. A
method without a targeted component is source-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from da_leukemia.adaptation.families.adversarial import Adversarial, InstanceAdversarial
from da_leukemia.adaptation.families.alignment import Coral, Mmd, Prototypes
from da_leukemia.adaptation.families.appearance import (
    Fourier,
    Histogram,
    MixStyle,
    Reinhard,
    StainJitter,
)
from da_leukemia.adaptation.families.mixing import ConfMix, CutPaste, Daca
from da_leukemia.adaptation.families.self_training import (
    Distillation,
    MaskedConsistency,
    Masking,
    MeanTeacher,
)
from da_leukemia.adaptation.families.sparse import PatchCrops, SparseSimilarity, SparseTeacher
from da_leukemia.adaptation.families.statistics import AdaBN, Tent
from da_leukemia.bounds import number, share

__all__ = [
    "AFTER_TRAINING",
    "COMPONENTS",
    "SOURCE_FREE",
    "AdaBN",
    "Adversarial",
    "ConfMix",
    "Coral",
    "CutPaste",
    "Daca",
    "Distillation",
    "Fourier",
    "Histogram",
    "InstanceAdversarial",
    "MaskedConsistency",
    "Masking",
    "MeanTeacher",
    "Method",
    "MixStyle",
    "Mmd",
    "PatchCrops",
    "Prototypes",
    "Reinhard",
    "SparseSimilarity",
    "SparseTeacher",
    "StainJitter",
    "Tent",
    "refusal",
]

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
    if isinstance(settings, AdaBN) and settings.rounds:
        return (
            "rounds weigh pictures by the type of their cell, and a field shows cells of several; "
            "set adabn.rounds: 0"
        )
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
    if isinstance(settings, PatchCrops | SparseTeacher | SparseSimilarity):
        return "it is about the part of a field that is not annotated"
    if isinstance(settings, MixStyle):
        return "it mixes maps of a detector's backbone; stain_jitter, reinhard and fda mix images"
    if isinstance(settings, Distillation) and settings.harmony:
        return "harmony weighs locations by the overlap of their boxes, and there are none"
    if isinstance(settings, Adversarial) and settings.centre_aware:
        return "centre_aware weighs locations, of which a picture of one cell has one"
    if isinstance(settings, Mmd | Coral | Prototypes) and settings.features == "attributes":
        return "attributes are read from the feature that the classes are read from; take regions"
    return None


def is_off(settings: Any) -> bool:
    """Whether a component is removed: its strength is 0, or every part of it is."""
    parts = getattr(settings, "parts", ())
    off = bool(parts) and all(getattr(settings, name) == 0 for name in parts)
    return off or getattr(settings, settings.strength) == 0


@dataclass
class Method:
    """What one row of the matrix does: a training recipe and a list of components.

    Attributes:
        augmentation: "strong" learns from the strong view, "weak" from the weak one.
        ema: whether the exponential moving average of the weights is what is tested.
        target_labels: few-shot: this many labelled training fields of the target join the source.
        target_share: share of a training batch that is drawn from them.
        target_images: images of the target beside each one of the source in a step; 1 is what most
            papers take, less is cheaper.
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
    target_labels: int = number(0, least=0)
    target_share: float = number(0.25, above=0, below=1)
    target_images: float = number(1.0, above=0, most=1)
    source_free: bool = False
    continued: bool = False
    outside: str = field(default="ignored", metadata={"choices": ("ignored", "background")})
    patch_mosaics: float = share(0.0)
    learning_rate_factor: float = number(1.0, above=0)
    components: list[dict[str, Any]] = field(default_factory=list)
