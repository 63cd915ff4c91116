"""Results read in part: a sweep of 20,000 has gigabytes of them, and no question needs them whole.

A result of 12 test devices has 150 kB. Decoded with a type that names what is wanted, the rest of
the text is only passed over, which takes a tenth of the time (msgspec) and of the memory.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec

from da_leukemia.config import METRICS

Reader = Callable[[bytes], Any]
"""Reads the text of a result, whole or a part; raises `msgspec.MsgspecError` on what it is not."""


class _BriefTest(TypedDict, total=False):
    fingerprint: str | None


class _Brief(TypedDict, total=False):
    version: Any
    job: Any
    tests: dict[str, _BriefTest]
    data: Any
    timings: Any


class _View(TypedDict, total=False):
    f1: float | None
    balanced_accuracy: float | None
    lookup_f1: float | None
    gain_f1: float | None
    lookup_balanced_accuracy: float | None
    gain_balanced_accuracy: float | None


class _Table(TypedDict, total=False):
    count: list[int]
    confidence: list[float | None]
    precision: list[float | None]
    ece: float | None


class _Reliability(TypedDict, total=False):
    types: _Table | None
    attributes: _Table | None


brief: Reader = msgspec.json.Decoder(_Brief).decode
"""Reads what says whether a result counts: its job, tests, data and timings; no scores."""

_PARTS: dict[str, Reader] = {
    "attributes": msgspec.json.Decoder(dict[str, _View] | None).decode,
    "reliability": msgspec.json.Decoder(_Reliability | None).decode,
}
"""Tables of one test of which only the sums are reported."""

_UNREPORTED = ("as_released",)


def _get(self: Any, name: str, default: Any = None) -> Any:
    return getattr(self, name, default)


Headline: Any = msgspec.defstruct(
    "Headline",
    [(m, float | None, None) for m in METRICS]
    + [("fields", int, 0), ("evaluator_version", str, "")],
    namespace={"get": _get, "__getitem__": _get},
    gc=False,  # numbers have no cycles
)
"""The scores of one test, read like the dictionary that they are in the file, at half its size."""


_of_headline: Callable[[Any], tuple[float | None, ...]] = operator.attrgetter(*METRICS)


def scores(metrics: Any) -> tuple[float | None, ...]:
    """Return `METRICS` of one test, read whole or in part; None what it does not have."""
    if isinstance(metrics, Headline):
        return _of_headline(metrics)
    return tuple(map(metrics.get, METRICS))


@functools.lru_cache(256)
def lean(target: str | None, tests: tuple[str, ...]) -> Reader:
    """Return what reads a result without the parts that no report shows.

    Where a run was adapted to one device and tested on another, nothing but its headline scores
    (`METRICS`) is read: nine tests of ten in a large sweep.

    Args:
        target: device that the run was adapted to, None for none.
        tests: devices to read the tests of; others are left out.
    """
    kept: Any = {"records": str | None, "fingerprint": str | None}
    made: Any = TypedDict  # called with what is known at run time only
    off = made("off", {"metrics": Headline}, total=False)
    on = made("on", {**kept, "metrics": dict[str, msgspec.Raw]}, total=False)
    full = [name for name in tests if target in (None, name)]
    told = (
        *("version", "job", "method", "source", "target", "seed", "label_space", "classes"),
        *("epochs", "config", "versions", "code", "data", "split", "devices", "device"),
        *("timings", "memory", "attributes_learned", "label_free"),
    )
    content: Any = dict.fromkeys(told, Any)
    of_tests = made("of_tests", {t: on if t in full else off for t in tests}, total=False)
    read = msgspec.json.Decoder(made("lean", {**content, "tests": of_tests}, total=False)).decode

    def reader(text: bytes) -> Any:
        result: Any = read(text)
        for name in full:
            test = result["tests"].get(name)
            if test is not None:
                test["metrics"] = {
                    key: _PARTS.get(key, msgspec.json.decode)(raw)
                    for key, raw in test["metrics"].items()
                    if key not in _UNREPORTED
                }
        return result

    return reader
