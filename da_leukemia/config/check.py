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
from da_leukemia.bounds import Bounds
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

_IN_ORDER = {
    "negative": "threshold",
    "low": "high",
    "beta_min": "beta_max",
    "burn_in": "until",
}
"""Settings of a component that are never above another one."""

_GROUPS = 8
"""Groups of channels that `models.pyramid` norms together."""

_TEACHERS = ("mean_teacher", "distillation")
"""Components whose student learns from a teacher on the view of the target that all see."""


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
            read = typing.cast(Any, OmegaConf.merge(_alone(schema, key), {key: value}))[key]
        except OmegaConfBaseException:
            wanted = getattr(hint, "__name__", str(hint)) if not arguments else str(hint)
            single = typing.get_origin(hint) is list and not isinstance(value, list | Mapping)
            hint_one = f"; for one value write {where}=[{value}]" if single else ""
            yield f"{where}: expected {wanted}, got {value!r}{hint_one}{_without_percent(value)}"
            continue
        yield from _out_of_bounds(fields[key], hint, read, where)


def ranges(settings: Any, at: str = "") -> Iterator[str]:
    """Yield every number of settings that cannot be, those of the sections within them, too.

    `problems` says so of what is read from a file; this is for settings made in Python.
    """
    hints = typing.get_type_hints(type(settings))
    for setting in dataclasses.fields(settings):
        value, where = getattr(settings, setting.name), f"{at}{setting.name}"
        if dataclasses.is_dataclass(value):
            yield from ranges(value, f"{where}.")
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                if dataclasses.is_dataclass(inner):
                    yield from ranges(inner, f"{where}.{name}.")
        elif value is not None:
            yield from _out_of_bounds(setting, _strip_optional(hints[setting.name]), value, where)


def _out_of_bounds(
    setting: dataclasses.Field[Any], hint: Any, value: Any, where: str
) -> Iterator[str]:
    """Yield which numbers of a setting are not within the bounds that stand beside it."""
    several = typing.get_origin(hint) is list
    kind = typing.get_args(hint)[0] if several else hint
    if kind not in (int, float):
        return
    bounds = setting.metadata.get("bounds", Bounds())
    for place, one in enumerate(value) if several else ((None, value),):
        why = bounds.refusal(one, kind is int)
        if why:
            yield f"{where}{'' if place is None else f'[{place}]'}: {why}"


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
        found += list(problems(COMPONENTS[str(kind)], given, f"{where}.")) or _check_component(
            COMPONENTS[str(kind)], given, where
        )
    if found:
        return found
    checks = (_check_masking, _check_consistency, _check_target_images)
    return [problem for check in checks for problem in check(name, method)]


def _check_target_images(name: str, method: Method) -> list[str]:
    where = f"adaptations.{name}.target_images"
    if method.target_images == 1.0:
        return []
    if method.source_free:
        return [f"{where}: a source_free method sees no other images; set trainer.batch_size"]
    if any(settings["name"] == "confmix" for settings in active_components(method)):
        return [f"{where}: expected 1: confmix makes one picture of an image of each device"]
    return []


def _check_component(schema: type, given: Mapping[str, Any], where: str) -> list[str]:
    """Return what of a component's settings, sound one by one, does not go together."""
    found = []
    hints = typing.get_type_hints(schema)
    for key, value in given.items():
        if isinstance(value, str) and hints[key] in (int, float):
            found.append(f"{where}.{key}: expected a number, got the text {value!r}; write {value}")
    if found:
        return found
    full = schema(**given)
    for low, high in _IN_ORDER.items():
        least, most = getattr(full, low, None), getattr(full, high, None)
        if low == "negative" and low not in given:
            continue  # its default goes with a low threshold: then all else is background
        if least is not None and most is not None and least > most:
            found.append(
                f"{where}.{low}: expected at most {high}, which is {most:g}, got {least:g}"
            )
    if getattr(full, "kernel", 1) % 2 == 0:
        found.append(f"{where}.kernel: expected an odd number, got {full.kernel}")
    return found


def _check_masking(name: str, method: Method) -> list[str]:
    kinds = [settings["name"] for settings in active_components(method)]
    if "masking" not in kinds or set(_TEACHERS) & set(kinds):
        return []
    return [
        f"adaptations.{name}: masking hides parts of what a teacher's student sees; put "
        f"{' or '.join(_TEACHERS)} beside it"
    ]


def _check_consistency(name: str, method: Method) -> list[str]:
    """Return where cells are to agree with a discriminator of whole images that is not there."""
    if any(c["name"] == "adversarial" and not c["centre_aware"] for c in active_components(method)):
        return []
    return [
        f"adaptations.{name}.components[{position}].consistency: instance_adversarial compares "
        "cells with the discriminator of their image, of which there is none; add {name: "
        "adversarial} (weight above 0, not centre_aware) to the components, or set consistency: 0"
        for position, given in enumerate(method.components)
        if given["name"] == "instance_adversarial"
        and given.get("consistency", 0) > 0
        and given.get("weight", 1) > 0
    ]


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
    if not set(_TEACHERS) & set(kinds):
        found.append(
            f"{where}: a source_free method needs mean_teacher or distillation to learn from"
        )
    for given in known:
        if given["name"] in _TEACHERS and given.get("burn_in", 1) != 0:
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
