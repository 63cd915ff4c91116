"""What of an experiment's settings, sound one by one, does not go together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from da_leukemia.config.check import ranges
from da_leukemia.config.schema import (
    CALIBRATIONS,
    NAME_MARKS,
    SOURCES_MARK,
    TWINS,
    Attributes,
    Classifier,
    Detector,
    Experiment,
    Sparse,
    TwoStage,
    chosen_detectors,
    devices_of,
)
from da_leukemia.errors import did_you_mean
from da_leukemia.labels import LABEL_SPACES

_OF_FINDING = (
    *("channels", "depth", "strides", "two_stage", "attribute_gradient"),
    *("score_threshold", "nms_iou", "max_detections"),
)
"""Settings of a detector that a classifier of single cells does not have."""

_GROUPS = 8
"""Groups of channels that `models.pyramid` norms together."""


def check_cells(experiment: Experiment) -> list[str]:
    """Return what does not fit together of single cells, their classifiers and their settings."""
    domains = experiment.data.domains
    found = [
        f"data.domains.{name}.crop: its images are single cells already (format cells)"
        for name, domain in domains.items()
        if domain.crop is not None and domain.format == "cells"
    ]
    detectors = chosen_detectors(experiment)
    for where, detector in detectors.items():
        found += _check_cells_for(experiment, detector, where)
    if all(d.kind != "classifier" for d in detectors.values()):
        return found
    used = set(experiment.data.calibration.used)
    used |= {part for c in experiment.calibration or [] for part in CALIBRATIONS.get(c, ())}
    if used - {"colour"}:
        found.append(
            f"calibration: {', '.join(sorted(used - {'colour'}))} goes by place and size in a "
            "whole field; of single cells colour alone can be calibrated: calibration=[none,colour]"
        )
    found += [
        f"data.domains.{name}.calibration: nothing can be measured on single cells; name the file "
        "that `da-leukemia calibrate` wrote for whole fields of this device"
        for name, domain in domains.items()
        if used and domain.format == "cells" and domain.calibration == "auto"
    ]
    if not experiment.data.sparse.whole or any(area != 1 for area in experiment.sparse or []):
        found.append(
            "sparse: leaves out cells by where they lie in a field; a single cell is its whole "
            "picture (for fewer labels, train on fewer cells)"
        )
    return found


def _check_cells_for(experiment: Experiment, detector: Detector, where: str) -> list[str]:
    """Return what of a detector does not go with single cells, or with whole fields."""
    own, domains = detector.classifier, experiment.data.domains
    if detector.kind != "classifier":
        alone = [n for n, d in domains.items() if d.format == "cells" or d.crop is not None]
        found = []
        if alone:
            found.append(
                f"{_domains(alone)}: shows single cells, in which there is nothing to find; set "
                f"{where}.kind=classifier, or give whole fields without `crop`"
            )
        if own != Classifier():
            found.append(
                f"{where}.classifier: means nothing for kind {detector.kind}; set kind: classifier"
            )
        if detector.norm == "frozen":
            found.append(f"{where}.norm: frozen is for kind classifier; take batch or group")
        return found
    whole = [
        name
        for name, domain in domains.items()
        # A folder of images says nothing of what it shows; unlabelled, they may be single cells.
        if domain.format not in ("cells", "images") and domain.crop is None
    ]
    found = []
    if whole:
        found.append(
            f"{_domains(whole)}: the classifier names single cells; set crop=0.15 to cut them out "
            "of whole fields by their true boxes, or format: cells"
        )
    if detector.attributes.head == "attridet":
        found.append(
            f"{where}.attributes.head: attridet reads maps of a detector's backbone; kind "
            "classifier reads attributes from its one vector: use head: ours"
        )
    plain = Detector()
    found += [
        f"{where}.{key}: means nothing for kind classifier, in which nothing is found"
        for key in _OF_FINDING
        if getattr(detector, key) != getattr(plain, key)
    ]
    return found


def _domains(names: Sequence[str]) -> str:
    """Return where the settings of some devices stand: ``data.domains.{a, b}``."""
    return f"data.domains.{names[0]}" if len(names) == 1 else f"data.domains.{{{', '.join(names)}}}"


def check_detector(detector: Detector, where: str = "detector") -> list[str]:
    """Return every setting of a detector that cannot be, ``where`` it stands."""
    found = []
    if detector.attribute_weight == 0 and detector.attributes != Attributes():
        found.append(
            f"{where}.attributes: means nothing with {where}.attribute_weight=0, which leaves out "
            "the attribute head"
        )
    two = detector.two_stage
    if detector.kind == "classifier":
        return found
    if not detector.strides:
        found.append(f"{where}.strides: empty; name at least one")
    if detector.channels % _GROUPS:
        found.append(
            f"{where}.channels: expected a multiple of {_GROUPS}, the groups of its GroupNorm, got "
            f"{detector.channels}"
        )
    if detector.kind == "one_stage":
        if two != TwoStage():
            found.append(
                f"{where}.two_stage: means nothing for kind one_stage; set kind: faster_rcnn"
            )
        return found
    if not two.anchors:
        found.append(f"{where}.two_stage.anchors: empty; name at least one side, in strides")
    strides = sorted(detector.strides)
    steps = itertools.pairwise(strides)
    if any(after != 2 * before for before, after in steps):
        found.append(
            f"{where}.strides: {strides} leave a gap; faster_rcnn pools by torchvision's "
            "MultiScaleRoIAlign, which wants each stride to be twice the one before"
        )
    return found


def check_calibration(experiment: Experiment) -> list[str]:
    """Return every problem of the calibration's settings and of its axis."""
    settings = experiment.data.calibration
    found = [
        f"calibration: unknown value {value!r}{did_you_mean(value, CALIBRATIONS)}"
        for value in experiment.calibration or []
        if value not in CALIBRATIONS
    ]
    if experiment.calibration is not None and settings.used:
        found.append(
            f"data.calibration.{settings.used[0]}: the axis `calibration` of the experiment "
            "switches it, too; use one of them"
        )
    if experiment.calibration == []:
        found.append("calibration: empty; name at least one of none, default, ...")
    return found + _check_ends("data.calibration.jitter", settings.jitter)


def _check_ends(where: str, ends: Sequence[float]) -> list[str]:
    """Return what is wrong with the two ends of a range, each of which may be."""
    if len(ends) == 2 and ends[0] <= ends[1]:
        return []
    return [f"{where}: expected [smallest, largest], got {list(ends)}"]


def check_sparse(experiment: Experiment) -> list[str]:
    """Return every problem of the settings that make fields sparse, and of their axis."""
    settings, axis, found = experiment.data.sparse, experiment.sparse, []
    if axis is None and settings.whole and settings != Sparse():
        found.append(
            "data.sparse: patches and seed mean nothing on whole fields; set data.sparse.area, or "
            "the axis sparse=[0.2]"
        )
    if axis == []:
        found.append("sparse: empty; name at least one share of the area, 1 for whole fields")
    if axis is not None and not settings.whole:
        found.append(
            "data.sparse.area: the axis `sparse` of the experiment sets it, too; use one of them"
        )
    if experiment.data.split.stratify and min(axis or [settings.area]) < 1:
        found.append(
            "data.split.stratify: counts every cell, also those that sparse annotation forgets "
            f"({'sparse' if axis else 'data.sparse.area'}); set it to false, or annotate whole "
            "fields"
        )
    return found


def _check_detector_in(experiment: Experiment, detector: Detector, where: str) -> list[str]:
    """Return what of a detector does not go with the experiment's data and methods."""
    data, found = experiment.data, check_detector(detector, where)
    if detector.kind != "classifier" and data.image_size % max([1, *detector.strides]):
        found.append(
            f"data.image_size: {data.image_size} is no multiple of the largest stride "
            f"{max(detector.strides)}"
        )
    found += [
        f"methods: {name!r} estimates BatchNorm anew, of which {where}.norm=group leaves none"
        for name in experiment.methods
        if detector.norm == "group"
        and any(
            c.get("name") == "adabn" and c.get("weight", 1)
            for c in getattr(experiment.adaptations.get(name), "components", [])
        )
    ]
    head = detector.attribute_weight > 0 and LABEL_SPACES[data.label_space].attributes
    found += [
        f"methods: {name!r} compares features of attributes, but there is no attribute head: "
        f"{where}.attribute_weight is {detector.attribute_weight}, label space "
        f"{data.label_space!r} has {len(LABEL_SPACES[data.label_space].attributes)} attributes"
        for name in experiment.methods
        if not head
        and any(
            c.get("features") == "attributes" and c.get("weight", 1)
            for c in getattr(experiment.adaptations.get(name), "components", [])
        )
    ]
    sizes = LABEL_SPACES[data.label_space].attribute_sizes
    if head and detector.attributes.head == "attridet" and 2 not in sizes:
        found.append(
            f"{where}.attributes.head: attridet reads attributes of two values, of which label "
            f"space {data.label_space!r} has none; use head: ours"
        )
    return found


def check_numbers(experiment: Experiment) -> list[str]:
    """Return every number of an experiment that cannot be."""
    problems = list(ranges(experiment))
    data, trainer = experiment.data, experiment.trainer
    for where, detector in chosen_detectors(experiment).items():
        problems += _check_detector_in(experiment, detector, where)
    problems += [
        f"detectors.{name}: a name cannot hold {mark!r}, which joins the parts of a run's name"
        for name in experiment.detectors
        for mark in NAME_MARKS
        if mark in name
    ]
    problems += check_sparse(experiment) + check_cells(experiment)
    if data.split.test + data.split.validation >= 1:
        problems.append(
            "data.split: expected test and validation to leave something to learn from, got "
            f"test={data.split.test}, validation={data.split.validation}"
        )
    problems += _check_ends("augmentation.scale", experiment.augmentation.scale)
    if 2 * experiment.augmentation.blur_sigma >= data.image_size:
        problems.append(
            "augmentation.blur_sigma: expected less than half of data.image_size, which is "
            f"{data.image_size}, got {experiment.augmentation.blur_sigma:g}"
        )
    several = max((len(devices_of(s)) for s in experiment.sources or []), default=1)
    shots = any(
        experiment.adaptations[m].target_labels
        for m in experiment.methods
        if m in experiment.adaptations
    )
    if trainer.batch_size < several + shots:
        problems.append(
            f"trainer.batch_size: {trainer.batch_size} has no place for every device that is "
            f"learned from at once ({several + shots})"
        )
    problems += [
        f"data.domains.{name}: a name cannot hold {SOURCES_MARK!r}, which joins the devices of a "
        "source"
        for name in data.domains
        if SOURCES_MARK in name
    ]
    problems += [
        f"data.domains.{name}: a device's name is that of a file, too; it cannot hold '/'"
        for name in data.domains
        if name == ".." or Path(name).name != name
    ]
    problems += [
        f"twins: unknown value {value!r}{did_you_mean(value, TWINS)}"
        for value in experiment.twins
        if value not in TWINS
    ]
    if not experiment.seeds:
        problems.append("seeds: empty; name at least one")
    if experiment.name in ("", "..") or Path(experiment.name).name != experiment.name:
        problems.append(f"name: {experiment.name!r} cannot be the name of a folder")
    slurm = experiment.slurm
    if slurm.warning_seconds >= 60 * slurm.minutes:
        problems.append(
            "slurm.warning_seconds: expected less than slurm.minutes, got "
            f"{slurm.warning_seconds} of {60 * slurm.minutes}"
        )
    return problems
