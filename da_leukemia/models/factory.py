"""From settings to a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from da_leukemia.config import Detector
from da_leukemia.config.origin import NO_CHECKPOINT, no_file
from da_leukemia.errors import ConfigError
from da_leukemia.labels import LabelSpace
from da_leukemia.models.attridet import AttriDetHead
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.base import AnyDetector
from da_leukemia.models.classifier import CellBackbone, CellClassifier
from da_leukemia.models.faster_rcnn import FasterRCNN
from da_leukemia.models.losses import CellLoss
from da_leukemia.models.one_stage import OneStageDetector


def build_detector(settings: Detector, space: LabelSpace, size: int = 224) -> AnyDetector:
    """Build the detector, with random weights unless the settings say otherwise.

    Args:
        settings: its settings.
        space: label space.
        size: side of the network's input, which a classifier may be bound to.

    Raises:
        ConfigError: unknown backbone, missing stride, unreadable or unsuitable weights.
    """
    if settings.kind == "classifier":
        return _build_classifier(settings, space, size)
    backbone = Backbone(
        settings.backbone, tuple(sorted(settings.strides)), settings.pretrained, settings.norm
    )
    shared: dict[str, Any] = {
        "channels": settings.channels,
        "depth": settings.depth,
        "attribute_weight": settings.attribute_weight,
        "attribute_gradient": settings.attribute_gradient,
        "attribute_settings": settings.attributes,
        "score_threshold": settings.score_threshold,
        "nms_iou": settings.nms_iou,
        "max_detections": settings.max_detections,
    }
    classes, sizes = len(space.classes), space.attribute_sizes
    detector: AnyDetector
    if settings.kind == "faster_rcnn":
        own = dataclasses.asdict(settings.two_stage)
        detector = FasterRCNN(backbone, classes, sizes, **shared, **own)
    else:
        detector = OneStageDetector(backbone, classes, sizes, **shared)
    if settings.init_from:
        load_weights(detector, Path(settings.init_from))
    return detector


def _build_classifier(settings: Detector, space: LabelSpace, size: int) -> AnyDetector:
    given = dataclasses.asdict(settings.classifier)
    balanced = given.pop("sampling") == "balanced"
    classifier = CellClassifier(
        CellBackbone(settings.backbone, size, settings.pretrained, settings.norm),
        len(space.classes),
        space.attribute_sizes,
        size=size,
        attribute_weight=settings.attribute_weight,
        attribute_settings=settings.attributes,
        loss=CellLoss(given.pop("loss"), **given),
        balanced=balanced,
    )
    if settings.init_from:
        load_weights(classifier, Path(settings.init_from))
    return classifier


def check_settings(settings: Detector, size: int = 224, methods: Sequence[str] = ()) -> None:
    """Build the backbone without weights, to learn early what cannot be.

    Args:
        settings: of the detector.
        size: side of the network's input, px.
        methods: those that estimate the statistics of BatchNorm anew.

    Raises:
        ConfigError: the backbone, its strides or the start weights do not exist, or the methods
            find nothing to estimate.
    """
    if settings.init_from:
        _read_state(Path(settings.init_from), "detector.init_from")
    backbone: Backbone | CellBackbone
    if settings.kind == "classifier":
        backbone = CellBackbone(settings.backbone, size, norm=settings.norm)
    else:
        strides = tuple(sorted(settings.strides))
        if len(set(strides)) != len(strides):
            raise ConfigError(f"detector.strides: {settings.strides} names a stride twice")
        backbone = Backbone(settings.backbone, strides, norm=settings.norm)
        if settings.attributes.head == "attridet" and settings.attribute_weight > 0:
            backbone.also(AttriDetHead.shallow, "detector.attributes.head=attridet")
    if methods and not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise ConfigError(
            f"methods: {', '.join(methods)}: adabn estimates BatchNorm anew, of which "
            f"detector.backbone={settings.backbone} has none; take another backbone, or leave the "
            "component out"
        )


def _read_state(path: Path, where: str) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConfigError(f"{where}: {path}: {no_file(path)}")
    try:
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)[
            "state_dict"
        ]
    except Exception as error:  # pickle, zip and key errors all mean the same here
        raise ConfigError(f"{where}: {path}: {NO_CHECKPOINT}") from error
    return state


def load_weights(
    detector: AnyDetector, path: Path, where: str = "detector.init_from", whole: bool = False
) -> None:
    """Start from the tested weights of an earlier run; what does not fit by shape is left out.

    A detector takes over the backbone of a classifier and the other way round: timm only writes
    ``stages_0`` for ``stages.0`` where it cuts a network into feature maps.

    Args:
        detector: gets the weights.
        path: a checkpoint.
        where: what problems name.
        whole: leave nothing out, every weight must be there.

    Raises:
        ConfigError: no such file, no checkpoint of ours, or nothing in it fits.
    """
    state = _read_state(path, where)
    prefix = "ema.model." if any(k.startswith("ema.model.") for k in state) else "detector."
    given = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = detector.state_dict()
    alike = {k.replace(".", "_"): k for k in own}
    named = {k if k in own else alike.get(k.replace(".", "_"), k): v for k, v in given.items()}
    fitting = {k: v for k, v in named.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ConfigError(f"{where}: {path}: none of its weights fit this detector")
    if whole and fitting.keys() != own.keys():
        lacking = sorted(own.keys() - fitting.keys())
        raise ConfigError(
            f"{where}: {path}: {len(lacking)} weights of this detector are not in it or have "
            f"another shape, {lacking[0]} among them; was it made by another version?"
        )
    detector.load_state_dict(fitting, strict=False)
