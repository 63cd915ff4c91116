"""One training of an experiment, and its identity: under what its result is kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from da_leukemia.adaptation.settings import AFTER_TRAINING, COMPONENTS, Method, is_off
from da_leukemia.config.schema import (
    Attributes,
    Augmentation,
    Calibration,
    Checkpoint,
    Data,
    Detector,
    Selection,
    Trainer,
    devices_of,
)

IDENTITY_VERSION = 1
"""Raised when the meaning of a setting changes, so that old results are not taken for new ones."""


_LATER_BURN_IN = frozenset({"adversarial", "instance_adversarial"})
"""Components that got a burn-in after results were there."""


def active_components(method: Method) -> list[dict[str, Any]]:
    """Return the components of a method that are not switched off."""
    active = []
    for settings in method.components:
        kind = str(settings["name"])
        full = COMPONENTS[kind](**{k: v for k, v in settings.items() if k != "name"})
        if not is_off(full):
            active.append({"name": kind, **_plain(full)})
    return active


def at_test(method: Method) -> list[str]:
    """Return the components that change the finished detector at every test of its device."""
    return sorted({c["name"] for c in active_components(method)} & AFTER_TRAINING)


def needs_target(method: Method) -> bool:
    """Return whether a method adapts to a device: it looks at it, or learns from its labels."""
    return method.target_labels > 0 or any(
        COMPONENTS[c["name"]].targeted for c in active_components(method)
    )


def _method_identity(settings: Method) -> dict[str, Any]:
    """Leave out the regimes and weights that are not used, as before there were any."""
    method: dict[str, Any] = _plain(settings)
    method["components"] = active_components(settings)
    for component in method["components"]:
        if component.get("class_weight") == 1.0:
            del component["class_weight"]
        if component.get("rounds") == 0:
            del component["rounds"]
        if component["name"] in _LATER_BURN_IN and component["burn_in"] == 0:
            del component["burn_in"]
        if component["name"] == "prototypes" and component["features"] == "regions":
            del component["features"]
    if not method["target_labels"]:
        del method["target_labels"], method["target_share"]
    if settings.target_images == 1.0 or not method["components"]:
        del method["target_images"]
    if method["outside"] == "ignored":
        del method["outside"]
    if method["patch_mosaics"] == 0.0:
        del method["patch_mosaics"]
    for key in ("source_free", "continued"):
        if not method[key]:
            del method[key]
    if method["learning_rate_factor"] == 1.0:
        del method["learning_rate_factor"]
    return method


def _trainer_identity(settings: Trainer) -> dict[str, Any]:
    trainer: dict[str, Any] = _plain(settings)
    for key in ("threads", "workers", "accelerator", "precision", "compile", "validate_every"):
        del trainer[key]
    return trainer


def _detector_identity(settings: Detector) -> dict[str, Any]:
    detector: dict[str, Any] = _plain(settings)
    if settings.norm == "batch":  # as before there was a choice
        del detector["norm"]
    if settings.attributes == Attributes():  # as before there was a choice
        del detector["attributes"]
    if settings.kind == "one_stage":  # as before there was another
        del detector["kind"], detector["two_stage"]
    if settings.kind == "classifier":  # which has nothing of the others
        own = {"kind", "backbone", "pretrained", "norm", "init_from", "classifier"}
        own |= {"attribute_weight", "attributes"}
        return {k: v for k, v in detector.items() if k in own}
    del detector["classifier"]  # as before there was one
    return detector


def _data_identity(settings: Data, seen: Sequence[str]) -> dict[str, Any]:
    """Return what of the data decides a training that sees these devices."""
    only = dataclasses.replace(settings, domains={n: settings.domains[n] for n in seen})
    data: dict[str, Any] = _plain(only)
    for key in ("root", "cache_dir", "image_cache", "memory_cache_gb", "disk_cache_gb"):
        del data[key]
    del data["split"]["allow_leaks"]
    if not settings.split.stratify:  # as before there was a choice
        del data["split"]["stratify"]
    data["calibration"] = _identity_of(settings.calibration)
    if not data["calibration"]:
        del data["calibration"]
    if settings.sparse.whole:  # as before there was a choice
        del data["sparse"]
    for domain in data["domains"].values():
        for key in ("root", "annotations", "calibration", "licence"):
            del domain[key]
        if domain["patch_order"] == "auto":  # as before there was this setting
            del domain["patch_order"]
        del domain["folders"]
        if domain["crop"] is None:
            del domain["crop"]
    return data


def _identity_of(calibration: Calibration) -> dict[str, Any]:
    """Return what of a calibration decides a training; nothing where none is used."""
    settings: dict[str, Any] = _plain(calibration)
    if not calibration.used:
        return {}
    if not calibration.scale:
        del settings["view_um"], settings["jitter"]
    return settings


_IDENTITIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "detector": _detector_identity,
    "method": _method_identity,
    "trainer": _trainer_identity,
}
"""What of a section decides a training, where that is not all of it; of data see
`_data_identity`."""


def _canonical(settings: object) -> str:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


_KEPT = "_kept_hash"
_FLAT = frozenset({str, int, float, bool, type(None), list})
"""Most settings are; a plan of 20,000 jobs has two million."""


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    """Return the settings of a section; nothing for what is none."""
    return tuple(f.name for f in dataclasses.fields(kind)) if is_dataclass(kind) else ()


def _plain(settings: Any) -> Any:
    """Return settings as dictionaries, as `dataclasses.asdict`, without copying what is flat."""
    if not isinstance(settings, dict):
        names = _names(settings.__class__)
        if not names:
            return settings
        settings = {name: getattr(settings, name) for name in names}
    return {k: v if type(v) in _FLAT else _plain(v) for k, v in settings.items()}


@dataclass
class Job:
    """One training and its tests. Written to ``config.yaml`` in the job's folder.

    Attributes:
        method_name: how the matrix calls it; no part of the identity.
        source: device it learns from, with labels; several are ``a+b`` (see `devices_of`).
        target: device it looks at without labels, None for source-only.
        tests: devices it is tested on; no part of the identity, so a new one only adds tests.
        checkpoint: what ``source`` names where it is no device; its content is the identity.
    """

    method_name: str
    method: Method
    source: str
    target: str | None
    seed: int
    tests: list[str]
    data: Data
    detector: Detector
    augmentation: Augmentation
    trainer: Trainer
    selection: Selection = field(default_factory=Selection)
    tracking: str = "none"
    tracking_checkpoints: bool = False
    sweep: str = ""
    checkpoint: Checkpoint | None = None

    @property
    def seen(self) -> tuple[str, ...]:
        """The devices whose labels it learns from; none where its source is a checkpoint."""
        return () if self.checkpoint is not None else devices_of(self.source)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(_KEPT, None)
        object.__setattr__(self, name, value)

    def settle(self, known: dict[object, str] | None = None) -> None:
        """Compute the hash once. From now on no setting inside a section is changed any more.

        Args:
            known: texts of the sections of other jobs that are settled with it, by the identity of
                the section: most sections are one object in all jobs of a plan.
        """
        self.__dict__[_KEPT] = self._hashed({} if known is None else known)

    @property
    def hash(self) -> str:
        """Content hash without names, paths, devices and workers (12 hexadecimal digits)."""
        kept: str | None = self.__dict__.get(_KEPT)
        return self._hashed({}) if kept is None else kept

    def _hashed(self, known: dict[object, str]) -> str:
        seen = (*self.seen, *([self.target] if self.target else []))
        parts = []
        kind: Any = self.__class__
        for name in _decisive(kind):
            value = getattr(self, name)
            if name == "checkpoint":
                if value is None:  # as before there was another source
                    continue
                value = value.sha256
            section = bool(_names(value.__class__))
            key = (name, id(value) if section else value, seen if name == "data" else ())
            if key not in known:
                if name == "data":
                    value = _data_identity(value, seen)
                elif name in _IDENTITIES:
                    value = _IDENTITIES[name](value)
                known[key] = f'"{name}":{_canonical(_plain(value))}'
            parts.append(known[key])
        canonical = f'{{{",".join(parts)},"version":{IDENTITY_VERSION}}}'
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@functools.cache
def _decisive(kind: Any) -> tuple[str, ...]:
    """Return what of a job decides its result, in the order of its canonical text."""
    left_out = ("method_name", "tests", "selection", "sweep", "tracking", "tracking_checkpoints")
    return tuple(sorted(set(_names(kind)).difference(left_out)))  # all of them before "version"
