"""Sources that are checkpoints: what they bring into an experiment, and what does not go with them.

See docs/adaptation.md, "Only a checkpoint and your images".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from da_leukemia.adaptation.settings import AFTER_TRAINING, COMPONENTS, Method
from da_leukemia.config.job import active_components
from da_leukemia.config.origin import Origin, file_hash, no_file, read_origin
from da_leukemia.config.schema import (
    CALIBRATED,
    CALIBRATIONS,
    SOURCES_MARK,
    Calibration,
    Checkpoint,
    Detector,
    Experiment,
    chosen_detectors,
    devices_of,
)
from da_leukemia.errors import ConfigError

AS_IT_IS = "fair_source_only"
"""The method that tests a checkpoint unadapted: the twin of those that adapt it."""

_FREE_TO_CHOOSE = (
    *("pretrained", "init_from", "score_threshold", "nms_iou", "max_detections"),
    *("attribute_weight", "attribute_gradient"),
)
"""Settings of a detector that may differ: its weights are given, or it is not trained with them."""

_ALLOWED = (
    "methods that see no image of the source can: source_free_teacher, recommended_source_free, "
    "adabn, tent, any with source_free: true, and fair_source_only (the checkpoint as it is)"
)


def spelt_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Write out ``name: PATH``, and put the checkpoints' settings under an experiment's own.

    What the experiment sets itself stays; `check_checkpoints` says where that does not fit.

    Args:
        given: the experiment's file and overrides.
    """
    named = given.get("checkpoints")
    if not isinstance(named, Mapping):
        return dict(given)
    written = {
        n: {"path": value} if isinstance(value, str) else value for n, value in named.items()
    }
    given = {**given, "checkpoints": written}
    for entry in written.values():
        path = Path(str(entry.get("path", ""))) if isinstance(entry, Mapping) else Path()
        if path.is_file():
            try:
                return _under(settings_of(read_origin(path)), given)
            except ConfigError:  # said by `check_checkpoints`
                continue
    return given


def settings_of(origin: Origin) -> dict[str, Any]:
    """Return the settings of an experiment that a checkpoint decides."""
    detector = {k: v for k, v in origin.detector.items() if k != "init_from"}
    data: dict[str, Any] = {"label_space": origin.label_space, "image_size": origin.image_size}
    return {"detector": detector, "data": {**data, "calibration": dict(origin.calibration)}}


def _under(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings under those that are given; an axis of the calibration switches it alone."""
    if given.get("calibration") is not None:
        kept = {k: v for k, v in base["data"]["calibration"].items() if k not in CALIBRATED}
        base = {**base, "data": {**base["data"], "calibration": kept}}
    return _merged(base, given)


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in given.items():
        below = base.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            both[key] = _merged(below, value)
        else:
            both[key] = value
    return both


def check_checkpoints(experiment: Experiment) -> Iterator[str]:
    """Yield why an experiment cannot use its checkpoints; write down which files they are.

    A file that is gone is no problem where its hash is known: what was done with it still counts,
    and a job that needs it says so.
    """
    for name, checkpoint in experiment.checkpoints.items():
        where = f"checkpoints.{name}"
        if name in experiment.data.domains:
            yield f"{where}: {name!r} is a device of data.domains, too; take another name"
        if SOURCES_MARK in name:
            yield f"{where}: a name cannot hold {SOURCES_MARK!r}, which joins sources"
        if checkpoint.sha256 and not Path(checkpoint.path).exists():
            continue
        try:
            origin = origin_of(checkpoint, where)
        except ConfigError as error:
            yield from error.problems
            continue
        checkpoint.sha256 = file_hash(Path(checkpoint.path))
        for what, its, ours in _differences(origin, experiment):
            yield (
                f"{where}: {checkpoint.path}: was trained with {what} {its}, the experiment has "
                f"{ours}; leave it away to take the checkpoint's"
            )
    named = [
        s for s in experiment.sources or [] if set(devices_of(s)) & set(experiment.checkpoints)
    ]
    yield from (
        f"sources: {source!r}: a checkpoint cannot be joined with other sources"
        for source in named
        if len(devices_of(source)) > 1
    )
    if named and (experiment.sparse is not None or not experiment.data.sparse.whole):
        yield f"sparse: leaves out labels of a source, and {named[0]!r} is a checkpoint"


def origin_of(checkpoint: Checkpoint, where: str = "checkpoints") -> Origin:
    """Return what a checkpoint says of itself, if it is the file that was meant.

    Raises:
        ConfigError: it cannot be read, or is another file than before.
    """
    path = Path(checkpoint.path)
    if not path.is_file():
        raise ConfigError(f"{where}.path: {checkpoint.path!r}: {no_file(path)}")
    found = read_origin(path, where)
    if checkpoint.sha256 not in ("", file_hash(path)):
        raise ConfigError(
            f"{where}: {path}: is not the file that the sweep began with (sha256 is "
            f"{file_hash(path)[:12]}..., was {checkpoint.sha256[:12]}...); bring that one back, or "
            "give this one another name= and leave sha256 away"
        )
    return found


def _differences(origin: Origin, experiment: Experiment) -> Iterator[tuple[str, object, object]]:
    """Yield setting, value of the checkpoint, value of the experiment where they differ."""
    data = experiment.data
    for key in ("label_space", "image_size"):
        if getattr(origin, key) != getattr(data, key):
            yield f"data.{key}", getattr(origin, key), getattr(data, key)
    for where, detector in chosen_detectors(experiment).items():
        ours = dataclasses.asdict(detector)
        yield from _unlike(dataclasses.asdict(Detector()) | origin.detector, ours, where)
    settings, axis = data.calibration, experiment.calibration
    for used in [settings.used] if axis is None else [CALIBRATIONS.get(v, ()) for v in axis]:
        if used != origin.used:
            yield "calibration", list(origin.used), list(used)
    view = origin.calibration.get("view_um", Calibration().view_um)
    if "scale" in origin.used and view != settings.view_um:
        yield "data.calibration.view_um", view, settings.view_um


def _unlike(
    its: Mapping[str, Any], ours: Mapping[str, Any], at: str
) -> Iterator[tuple[str, object, object]]:
    for key, value in ours.items():
        theirs = its.get(key, value)  # a setting that it did not have yet is as it was
        if key == "attribute_weight" and (theirs > 0) != (value > 0):
            yield f"{at}.{key}", theirs, value
        elif key in _FREE_TO_CHOOSE:
            continue
        elif isinstance(value, Mapping) and isinstance(theirs, Mapping):
            yield from _unlike(theirs, value, f"{at}.{key}")
        elif theirs != value:
            yield f"{at}.{key}", theirs, value


def check_methods(experiment: Experiment) -> Iterator[str]:
    """Yield which methods need what a checkpoint does not bring."""
    sources = [s for s in experiment.sources or [] if s in experiment.checkpoints]
    for name in experiment.methods if sources else ():
        why = _needs_source(name, experiment.adaptations.get(name, Method()))
        if why:
            yield f"methods: {name!r} {why}, and {sources[0]!r} is a checkpoint; {_ALLOWED}"


def _needs_source(name: str, method: Method) -> str | None:
    kinds = [c["name"] for c in active_components(method) if c["name"] in COMPONENTS]
    if method.source_free or name == AS_IT_IS:
        return None
    if method.continued:
        return "goes on training on the source"
    if method.target_labels:
        return "learns from labels of the target beside the source's"
    needing = [kind for kind in kinds if kind not in AFTER_TRAINING]
    if needing:
        return f"trains {needing[0]} beside the source's images and labels"
    return None if kinds else "is trained on the source"
