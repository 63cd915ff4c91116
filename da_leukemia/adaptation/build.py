"""From a method's settings to its components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.adversarial import Adversarial, InstanceAdversarial
from da_leukemia.adaptation.alignment import Coral, Mmd
from da_leukemia.adaptation.appearance import Fourier, Histogram, Reinhard, StainJitter
from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.cut_paste import CutPaste
from da_leukemia.adaptation.distillation import Distillation
from da_leukemia.adaptation.masking import MaskedConsistency, Masking
from da_leukemia.adaptation.mean_teacher import MeanTeacher
from da_leukemia.adaptation.mixing import ConfMix, Daca
from da_leukemia.adaptation.mixstyle import MixStyle
from da_leukemia.adaptation.prototypes import Prototypes
from da_leukemia.adaptation.sparse import PatchCrops, SparseSimilarity, SparseTeacher
from da_leukemia.adaptation.statistics import AdaBN, Tent
from da_leukemia.config import active_components
from da_leukemia.errors import ConfigError
from da_leukemia.models.base import AnyDetector


def _sizes(detector: AnyDetector) -> tuple[int, ...]:
    return detector.attributes.sizes if detector.attributes is not None else ()


def _width(features: str, detector: AnyDetector) -> int:
    """Return the length of what `regions.cell_features` gives."""
    if features == "attributes":
        assert detector.attributes is not None
        return detector.attributes.embedded
    return detector.region_channels


_BUILDERS: dict[str, Callable[[Any, AnyDetector], Component]] = {
    "adversarial": lambda x, d: Adversarial(x, d.channels, len(d.strides)),
    "fourier": lambda x, d: Fourier(x),
    "histogram": lambda x, d: Histogram(x),
    "instance_adversarial": lambda x, d: InstanceAdversarial(x, d.region_channels, d.classes),
    "mmd": lambda x, d: Mmd(x, d.classes),
    "coral": lambda x, d: Coral(x, d.classes),
    "prototypes": lambda x, d: Prototypes(x, _width(x.features, d), d.classes),
    "reinhard": lambda x, d: Reinhard(x),
    "stain_jitter": lambda x, d: StainJitter(x),
    "mean_teacher": lambda x, d: MeanTeacher(x, d.classes, _sizes(d)),
    "distillation": lambda x, d: Distillation(x, d.classes),
    "masking": lambda x, d: Masking(x),
    "masked_consistency": lambda x, d: MaskedConsistency(x, d.classes),
    "confmix": lambda x, d: ConfMix(x, d.classes),
    "daca": lambda x, d: Daca(x, d.classes),
    "mixstyle": lambda x, d: MixStyle(x),
    "cut_paste": lambda x, d: CutPaste(x, d.classes),
    "adabn": lambda x, d: AdaBN(x),
    "tent": lambda x, d: Tent(x),
    "patch_crops": lambda x, d: PatchCrops(x),
    "sparse_teacher": lambda x, d: SparseTeacher(x),
    "sparse_similarity": lambda x, d: SparseSimilarity(x),
}


def build_components(method: s.Method, detector: AnyDetector) -> list[Component]:
    """Build the components of a method that are not switched off by a zero strength.

    Raises:
        ConfigError: one of them means nothing on this kind of detector.
    """
    built: list[Component] = []
    for given in active_components(method):
        kind = given.pop("name")
        settings = s.COMPONENTS[kind](**given)
        why = s.refusal(settings, detector.kind)
        if why:
            raise ConfigError(f"{kind}: {why}")
        built.append(_BUILDERS[kind](settings, detector))
    for component in built:
        if isinstance(component, InstanceAdversarial):
            component.meet(built)
    return built
