"""What is wrong with settings: unknown keys, wrong values, numbers that cannot be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from da_leukemia.adaptation.settings import COMPONENTS, SOURCE_FREE, Method, refusal
from da_leukemia.config.job import active_components
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

_WIDEST_CROP = 2
"""Margin around a cell, in boxes; with more it is a field."""

_MOST_PATCHES = 64
"""Patches of a field; with more there is no patch left that holds a cell."""


def _strip_optional(hint: Any) -> Any:
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    is_union = type(None) in typing.get_args(hint)
    return arguments[0] if is_union and arguments else hint


def problems(schema: type, given: Mapping[str, Any], at: str) -> Iterator[str]:
    """Yield every unknown key and wrong value of ``given`` against a dataclass."""
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in given.items():
        where = f"{at}{key}"
        if key not in fields:
            yield f"{where}: unknown key{did_you_mean(str(key), fields)}"
            continue
        hint = _strip_optional(hints[key])
        if value is None and hint is not hints[key]:
            continue
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                yield from problems(typing.cast(type, hint), value, f"{where}.")
            else:
                yield f"{where}: expected a section of settings, got {value!r}"
            continue
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1]):
            if not isinstance(value, Mapping):
                yield f"{where}: expected names with settings, got {value!r}"
                continue
            for name, inner in value.items():
                if inner is None:
                    continue
                if isinstance(inner, Mapping):
                    yield from problems(typing.cast(type, arguments[1]), inner, f"{where}.{name}.")
                else:
                    yield f"{where}.{name}: expected a section of settings, got {inner!r}"
            continue
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            yield f"{where}: unknown value {value!r}{did_you_mean(str(value), choices)}"
            continue
        try:
            OmegaConf.merge(_alone(schema, key), {key: value})
        except OmegaConfBaseException:
            wanted = getattr(hint, "__name__", str(hint)) if not arguments else str(hint)
            single = typing.get_origin(hint) is list and not isinstance(value, list | Mapping)
            hint_one = f"; for one value write {where}=[{value}]" if single else ""
            yield f"{where}: expected {wanted}, got {value!r}{hint_one}{_without_percent(value)}"


def _without_percent(value: Any) -> str:
    """Say how shares are written, where some are given in per cent."""
    given = [str(v).strip() for v in (value if isinstance(value, list) else [value])]
    shares = [v[:-1] for v in given if re.fullmatch(r"[0-9]+(\.[0-9]+)? ?%", v)]
    written = ", ".join(f"{float(v) / 100:g}" for v in shares)
    return f"; write {written}" if written else ""


@functools.cache
def _alone(schema: type, key: str) -> Any:
    """Return a schema of one field: merging into a whole one copies all of it."""
    hints = {key: typing.get_type_hints(schema)[key]}
    only = type(schema.__name__, (), {"__annotations__": hints, "__module__": schema.__module__})
    default = next(f for f in dataclasses.fields(schema) if f.name == key)
    if default.default is not dataclasses.MISSING:
        setattr(only, key, default.default)
    elif default.default_factory is not dataclasses.MISSING:
        setattr(only, key, dataclasses.field(default_factory=default.default_factory))
    return OmegaConf.structured(dataclasses.dataclass(only))


def check_method(name: str, method: Method) -> list[str]:
    """Return every problem in a method's list of components."""
    found = []
    if method.target_labels < 0:
        found.append(
            f"adaptations.{name}.target_labels: expected 0 or more, got {method.target_labels}"
        )
    if not 0 < method.target_share < 1:
        found.append(
            f"adaptations.{name}.target_share: expected a share between 0 and 1, got "
            f"{method.target_share}"
        )
    if not 0 <= method.patch_mosaics <= 1:
        found.append(
            f"adaptations.{name}.patch_mosaics: expected a share between 0 and 1, got "
            f"{method.patch_mosaics}"
        )
    if method.learning_rate_factor <= 0:
        found.append(
            f"adaptations.{name}.learning_rate_factor: expected a number above 0, got "
            f"{method.learning_rate_factor}"
        )
    if method.source_free:
        found += _check_source_free(name, method)
    if method.source_free and method.continued:
        found.append(
            f"adaptations.{name}.continued: a source_free method has no source to go on with; it "
            "starts from the finished source-only run as it is"
        )
    for position, settings in enumerate(method.components):
        where = f"adaptations.{name}.components[{position}]"
        kind = settings.get("name")
        if kind not in COMPONENTS:
            found.append(
                f"{where}.name: unknown component {kind!r}{did_you_mean(str(kind), COMPONENTS)}"
            )
            continue
        given = {k: v for k, v in settings.items() if k != "name"}
        found += problems(COMPONENTS[str(kind)], given, f"{where}.")
    return found


def _check_source_free(name: str, method: Method) -> list[str]:
    where = f"adaptations.{name}"
    found = []
    if method.target_labels:
        found.append(f"{where}.target_labels: a source_free method learns from no label")
    if method.patch_mosaics:
        found.append(f"{where}.patch_mosaics: a source_free method sees no field of the source")
    known = [given for given in method.components if given.get("name") in COMPONENTS]
    kinds = [g["name"] for g in known if g.get(COMPONENTS[g["name"]].strength, 1) != 0]
    found += [
        f"{where}: {kind} needs images of the source, which a source_free method has not; it can "
        f"have {', '.join(sorted(SOURCE_FREE))}"
        for kind in kinds
        if kind not in SOURCE_FREE
    ]
    if not {"mean_teacher", "distillation"} & set(kinds):
        found.append(
            f"{where}: a source_free method needs mean_teacher or distillation to learn from"
        )
    for given in known:
        if given["name"] in ("mean_teacher", "distillation") and given.get("burn_in", 1) != 0:
            found.append(
                f"{where}: {given['name']}.burn_in: expected 0: a source_free method starts from a "
                "trained detector"
            )
    return found


def check_fit(name: str, method: Method, detector: Detector, where: str = "detector") -> list[str]:
    """Return why a method, whose settings are sound, cannot run on the detector of a section."""
    found = []
    if detector.kind == "classifier" and (method.outside != "ignored" or method.patch_mosaics):
        found.append(
            f"methods: {name!r} cannot run on {where}.kind=classifier: it is about the part of a "
            "field that is not annotated, and a single cell is its whole picture"
        )
    for settings in active_components(method):
        kind = settings.pop("name")
        why = refusal(COMPONENTS[kind](**settings), detector.kind)
        if why:
            found.append(f"methods: {name!r} cannot run on {where}.kind={detector.kind}: {why}")
    return found


def check_cells(experiment: Experiment) -> list[str]:
    """Return what does not fit together of single cells, their classifiers and their settings."""
    domains = experiment.data.domains
    found = [
        f"data.domains.{name}.crop: expected a margin as a share of the box, "
        f"0 to {_WIDEST_CROP}, got {domain.crop:g}"
        + (f"; did you mean {domain.crop / 100:g}?" if domain.crop > _WIDEST_CROP else "")
        for name, domain in domains.items()
        if domain.crop is not None and not 0 <= domain.crop <= _WIDEST_CROP
    ]
    found += [
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
    limits = {"beta": (0, 1), "smoothing": (0, 1), "tau": (0, 10), "gamma": (0, 10)}
    found += [
        f"{where}.classifier.{key}: expected a number from {low} to below {high}, got "
        f"{getattr(own, key)}"
        for key, (low, high) in limits.items()
        if not low <= getattr(own, key) < high
    ]
    return found


def _domains(names: Sequence[str]) -> str:
    """Return where the settings of some devices stand: ``data.domains.{a, b}``."""
    return f"data.domains.{names[0]}" if len(names) == 1 else f"data.domains.{{{', '.join(names)}}}"


def check_detector(detector: Detector, where: str = "detector") -> list[str]:
    """Return every setting of a detector that cannot be, ``where`` it stands."""
    found = [
        f"{where}.{key}: expected 0 or more, got {getattr(detector, key)}"
        for key in ("attribute_weight", "attribute_gradient")
        if getattr(detector, key) < 0
    ]
    if detector.attribute_weight == 0 and detector.attributes != Attributes():
        found.append(
            f"{where}.attributes: means nothing with {where}.attribute_weight=0, which leaves out "
            "the attribute head"
        )
    two = detector.two_stage
    if detector.kind == "classifier":
        return found
    if detector.kind == "one_stage":
        if two != TwoStage():
            found.append(
                f"{where}.two_stage: means nothing for kind one_stage; set kind: faster_rcnn"
            )
        return found
    found += [
        f"{where}.two_stage.{key}: expected at least 1, got {getattr(two, key)}"
        for key in ("proposals", "sampled", "hidden")
        if getattr(two, key) < 1
    ]
    if not two.anchors or min(two.anchors) <= 0:
        found.append(f"{where}.two_stage.anchors: expected sides above 0, got {two.anchors}")
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
    if settings.view_um <= 0:
        found.append(f"data.calibration.view_um: expected a length in um, got {settings.view_um}")
    if len(settings.jitter) != 2 or not 0 < settings.jitter[0] <= settings.jitter[1]:
        found.append("data.calibration.jitter: expected [smallest, largest], both above 0")
    if settings.images < 1:
        found.append(f"data.calibration.images: expected at least 1, got {settings.images}")
    return found


def check_sparse(experiment: Experiment) -> list[str]:
    """Return every problem of the settings that make fields sparse, and of their axis."""
    settings, axis = experiment.data.sparse, experiment.sparse
    given = [("data.sparse.area", settings.area), *(("sparse", area) for area in axis or [])]
    found = [
        f"{where}: expected a share of the area above 0 and up to 1, got {area:g}"
        + (f"; did you mean {area / 100:g}?" if 1 < area <= 100 else "")
        for where, area in given
        if not 0 < area <= 1
    ]
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
    if not 1 <= settings.patches <= _MOST_PATCHES:
        found.append(f"data.sparse.patches: expected 1 to {_MOST_PATCHES}, got {settings.patches}")
    return found


def _check_detector_in(experiment: Experiment, detector: Detector, where: str) -> list[str]:
    """Return what of a detector does not go with the experiment's data and methods."""
    data, found = experiment.data, check_detector(detector, where)
    if detector.kind == "classifier":
        if data.image_size < 8:
            found.append(f"data.image_size: expected at least 8, got {data.image_size}")
    elif min(detector.strides, default=0) < 1:
        found.append(f"{where}.strides: expected numbers above 0, got {detector.strides}")
    elif data.image_size % max(detector.strides) or data.image_size <= 0:
        found.append(
            f"data.image_size: {data.image_size} is no positive multiple of the largest stride "
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
    problems = []
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
    problems += [
        f"trainer.{key}: expected at least 1, got {getattr(trainer, key)}"
        for key in ("steps", "epoch_steps", "batch_size", "threads")
        if getattr(trainer, key) < 1
    ]
    if not 0 < data.split.test < 1 or not 0 <= data.split.validation < 1 - data.split.test:
        problems.append(
            "data.split: expected 0 < test < 1 and 0 <= validation < 1 - test, got "
            f"test={data.split.test}, validation={data.split.validation}"
        )
    if len(experiment.augmentation.scale) != 2 or min(experiment.augmentation.scale) <= 0:
        problems.append("augmentation.scale: expected [smallest, largest], both above 0")
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
        f"twins: unknown value {value!r}{did_you_mean(value, TWINS)}"
        for value in experiment.twins
        if value not in TWINS
    ]
    if experiment.selection.every < 0:
        problems.append(
            f"selection.every: expected epochs, 0 for none, got {experiment.selection.every}"
        )
    if experiment.selection.images < 1:
        problems.append(f"selection.images: expected at least 1, got {experiment.selection.images}")
    if not experiment.seeds:
        problems.append("seeds: empty; name at least one")
    if experiment.name in ("", "..") or Path(experiment.name).name != experiment.name:
        problems.append(f"name: {experiment.name!r} cannot be the name of a folder")
    if experiment.processes is not None and experiment.processes < 1:
        problems.append(f"processes: expected at least 1, got {experiment.processes}")
    return problems + _check_executors(experiment)


def _check_executors(experiment: Experiment) -> list[str]:
    slurm, ray = experiment.slurm, experiment.ray
    found = [
        f"slurm.{key}: expected at least 1, got {getattr(slurm, key)}"
        for key in ("minutes", "jobs_per_task", "at_a_time", "tasks")
        if getattr(slurm, key) < 1
    ]
    found += [
        f"{section}.{key}: expected at least 0, got {getattr(settings, key)}"
        for section, settings, keys in (
            ("slurm", slurm, ("cpus", "memory_gb", "gpus")),
            ("ray", ray, ("cpus", "gpus")),
        )
        for key in keys
        if getattr(settings, key) < 0
    ]
    if slurm.gpus > 1:
        found.append(f"slurm.gpus: a job trains on one GPU, got {slurm.gpus}")
    if not 1 <= slurm.warning_seconds < 60 * slurm.minutes:
        found.append(
            f"slurm.warning_seconds: expected at least 1 and less than slurm.minutes, got "
            f"{slurm.warning_seconds}"
        )
    return found
