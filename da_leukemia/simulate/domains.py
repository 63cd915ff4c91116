"""The names that settings use: the release's twelve domains, with factors and sensors of others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from da_leukemia.errors import ConfigError, did_you_mean

DOMAINS: tuple[str, ...] = tuple(
    f"{scope}_{objective}_{camera}"
    for scope in ("H", "L")
    for objective in ("100X", "40X", "10X")
    for camera in ("C1", "C2")
)
"""Microscope (H = high cost, L = low cost), objective, camera (C1 = phone, C2 = its own)."""

EMPTY_DOMAIN, ZIPPED_DOMAIN = "L_10X_C1", "L_100X_C2"
"""Released without images, and with its labels in an archive."""

PATCH_ORDERS = ("x1y1x2y2", "x1x2y1y2")
"""How sparse rows write the patch: as the authors' code reads it, and as their README says."""

FACTORS: dict[str, tuple[str, ...]] = {
    "blur": ("blur", "fringe"),
    "sampling": ("sampling",),
    "illumination": ("flare", "vignette", "gradient", "lamp_of"),
    "colour": ("gain", "saturation", "gamma", "drift", "balance_of"),
    "noise": ("noise", "noise_of"),
    "sharpening": ("sharpen",),
    "jpeg": ("jpeg",),
}
"""What may be taken from another device: the `Device` fields of each factor, in optical order."""


SENSOR = (64, 2000)
"""Least and largest side of a sensor, px."""


@dataclass(frozen=True)
class DomainName:
    """A simulated domain, ``BASE`` or ``BASE~factor+factor~OTHER``, either with ``@WIDTHxHEIGHT``.

    Attributes:
        base: the device that takes the photograph, one of `DOMAINS`.
        factors: what it has from ``other``, in the order of `FACTORS`.
        other: the device that the factors come from, "" where there are none.
        sensor: ``width, height`` of its photographs in px: the same field, so other pixels per um
            and another aspect. None for the release's 640 x 640.
    """

    base: str
    factors: tuple[str, ...] = ()
    other: str = ""
    sensor: tuple[int, int] | None = None

    def __str__(self) -> str:
        name = f"{self.base}~{'+'.join(self.factors)}~{self.other}" if self.factors else self.base
        return f"{name}@{self.sensor[0]}x{self.sensor[1]}" if self.sensor else name


def mixed(base: str, factors: Iterable[str], other: str) -> str:
    """Return the name of the domain ``base`` with ``factors`` of ``other``.

    Raises:
        ConfigError: a device or a factor is unknown, or both devices are the same.
    """
    given = list(factors)
    problems = [
        f"unknown device {name!r}{did_you_mean(name, DOMAINS)}"
        for name in (base, other)
        if name not in DOMAINS
    ]
    problems += [
        f"unknown factor {name!r}{did_you_mean(name, FACTORS)}"
        for name in given
        if name not in FACTORS
    ]
    if not given:
        problems.append(f"name at least one factor of {', '.join(FACTORS)}")
    if base == other:
        problems.append(f"{base} cannot take factors from itself")
    if problems:
        raise ConfigError(problems)
    return str(DomainName(base, tuple(f for f in FACTORS if f in given), other))


def parse_domain(name: str) -> DomainName:
    """Parse the name of a simulated domain.

    Raises:
        ConfigError: it is neither one of `DOMAINS` nor ``BASE~factor+factor~OTHER`` as `mixed`
            writes it, or what follows ``@`` is no sensor; carries a suggestion.
    """
    whole, mark, frame = name.partition("@")
    sensor = _sensor(name, frame) if mark else None
    base, *rest = whole.split("~")
    if not rest:
        if whole not in DOMAINS:
            raise ConfigError(f"unknown domain {name!r}{did_you_mean(whole, DOMAINS)}")
        return DomainName(whole, sensor=sensor)
    if len(rest) != 2:
        raise ConfigError(
            f"cannot read {name!r}; write BASE~factor+factor~OTHER, "
            "e.g. H_100X_C2~blur+noise~L_100X_C2"
        )
    factors, other = rest[0].split("+") if rest[0] else [], rest[1]
    try:
        # One device, one name: it is a folder, a key of an experiment and part of a job's hash.
        wanted = mixed(base, factors, other)
    except ConfigError as error:
        raise ConfigError([f"{name}: {problem}" for problem in error.problems]) from None
    if wanted != whole:
        raise ConfigError(
            f"{name}: factors are named once and in order, write {wanted}{mark}{frame}"
        )
    return DomainName(base, tuple(factors), other, sensor)


def _sensor(name: str, frame: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", frame)
    sides = tuple(int(side) for side in found.groups()) if found else ()
    if not sides or not all(SENSOR[0] <= side <= SENSOR[1] for side in sides):
        raise ConfigError(
            f"{name}: write the sensor as @WIDTHxHEIGHT, each {SENSOR[0]} to {SENSOR[1]} px, e.g. "
            "H_100X_C2@400x280"
        )
    return sides[0], sides[1]
