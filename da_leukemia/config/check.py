"""What is wrong with settings, one by one and in a method: unknown keys, numbers that cannot be."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from da_leukemia.adaptation.settings import COMPONENTS, SOURCE_FREE, Method, refusal
from da_leukemia.bounds import Bounds
from da_leukemia.config.job import active_components
from da_leukemia.config.schema import Detector
from da_leukemia.errors import did_you_mean

_IN_ORDER = {
    "negative": "threshold",
    "low": "high",
    "beta_min": "beta_max",
    "burn_in": "until",
}
"""Settings of a component that are never above another one."""

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


def _written_off(given: Mapping[str, Any]) -> bool:
    """Whether a component is switched off (`is_off`), of settings that may yet be wrong."""
    kind = COMPONENTS[given["name"]]
    parts = getattr(kind, "parts", ())
    off = bool(parts) and all(given.get(part, 1) == 0 for part in parts)
    return off or given.get(kind.strength, 1) == 0


def _check_source_free(name: str, method: Method) -> list[str]:
    where = f"adaptations.{name}"
    found = []
    if method.target_labels:
        found.append(f"{where}.target_labels: a source_free method learns from no label")
    if method.patch_mosaics:
        found.append(f"{where}.patch_mosaics: a source_free method sees no field of the source")
    known = [given for given in method.components if given.get("name") in COMPONENTS]
    kinds = [g["name"] for g in known if not _written_off(g)]
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
