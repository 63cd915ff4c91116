"""What the matrix calls a row: a method, and with what it was run.

``sparse_recommended~20%+calibrated@small`` is a method, the annotated area that it learned from,
the calibration and the detector; each part is there only where it is not what everybody has.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from da_leukemia.config import CALIBRATED, NAME_MARKS

PLAIN = "source_only"
FAIR = "fair_source_only"
"""Nothing of the target, with the steps, augmentation and EMA of the adapted methods."""
LONGER = "longer_source_only"
"""Goes on from `FAIR` on the source as long as a method does that begins there, too."""

TWIN_MARK, AREA_MARK, CALIBRATION_MARK, DETECTOR_MARK = tuple(NAME_MARKS)
"""`TWIN_MARK` joins `FAIR` and the method it is the twin of, where that has its own recipe, and
`LONGER` and its method always."""

_once = functools.lru_cache(4096)
"""A report asks the same of few names a hundred thousand times."""


def full_name(method: str, used: Sequence[str] = (), detector: str = "", area: float = 1.0) -> str:
    """Return a method's name with all that it was run with.

    Args:
        method: its own name, or its twin's.
        used: factors of the calibration; all of it together is ``+calibrated``.
        detector: where the experiment compares several.
        area: annotated share of the fields.
    """
    if tuple(used) == CALIBRATED:
        used = ["calibrated"]
    sparse = "" if area == 1 else f"{AREA_MARK}{100 * area:g}%"
    name = CALIBRATION_MARK.join([method + sparse, *used])
    return f"{name}{DETECTOR_MARK}{detector}" if detector else name


def detector_of(method: str) -> str:
    """Return the detector in a full name, its mark included."""
    _, mark, detector = method.partition(DETECTOR_MARK)
    return mark + detector


@_once
def calibration_of(method: str) -> str:
    """Return the calibration in a full name, its mark included."""
    _, mark, used = method.partition(DETECTOR_MARK)[0].partition(CALIBRATION_MARK)
    return mark + used


@_once
def area_of(method: str) -> float:
    """Return the annotated share of the fields in a full name."""
    _, mark, told = _alone(method).partition(AREA_MARK)
    return float(told.rstrip("%")) / 100 if mark else 1.0


@_once
def uncalibrated(method: str) -> str:
    """Return what the same method with the same area and detector is called uncalibrated."""
    return _alone(method) + detector_of(method)


@_once
def without_area(method: str) -> str:
    """Return what the same method with the same calibration and detector is on whole fields."""
    return _alone(method).partition(AREA_MARK)[0] + _further(method)


def reference_of(method: str, methods: Collection[str]) -> str:
    """Return the source-only run that a method is measured against.

    It has the method's annotated area, calibration and detector.

    Args:
        method: a full name.
        methods: all that are there.
    """
    alone, further = _alone(method), _further(method)
    own = f"{FAIR}{TWIN_MARK}{alone}{further}"
    _, mark, area = alone.partition(AREA_MARK)
    return own if own in methods else f"{FAIR}{mark}{area}{further}"


def longer_of(method: str, methods: Collection[str]) -> str | None:
    """Return the source-only run that took as many steps as a method, None where there is none.

    It has the method's annotated area, calibration and detector.

    Args:
        method: a full name.
        methods: all that are there.
    """
    name = f"{LONGER}{TWIN_MARK}{method}"
    return name if name in methods else None


def _further(method: str) -> str:
    return calibration_of(method) + detector_of(method)


def _alone(method: str) -> str:
    """Return the method and its annotated area."""
    return method.removesuffix(_further(method))
