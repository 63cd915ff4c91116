"""Results read in part: a sweep of 20,000 has gigabytes of them, and no question needs them whole.

A result of 12 test devices has 150 kB. Decoded with a type that names what is wanted, the rest of
the text is only passed over, which takes a tenth of the time (msgspec) and of the memory.
"""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

from da_leukemia.sweep.matrix import METRICS

HEAVY = ("as_released",)
"""Entries of a device's metrics that no report shows."""


class _BriefTest(TypedDict, total=False):
    fingerprint: str | None


class _Brief(TypedDict, total=False):
    version: Any
    job: Any
    tests: dict[str, _BriefTest]
    data: Any
    timings: Any


class _LeanTest(TypedDict, total=False):
    metrics: msgspec.Raw
    records: str | None
    fingerprint: str | None


class _Lean(TypedDict, total=False):
    version: Any
    job: Any
    method: str
    source: str
    target: str | None
    seed: int
    label_space: str
    classes: list[str]
    tests: dict[str, _LeanTest]
    epochs: Any
    config: Any
    versions: Any
    code: Any
    data: Any
    split: Any
    devices: Any
    device: Any
    timings: Any
    memory: Any


_scores: Any = dict.fromkeys(METRICS, float | None)
_Scores = TypedDict(  # type: ignore[misc]
    "_Scores", {**_scores, "fields": int, "boxes": int, "evaluator_version": str}, total=False
)
_brief, _lean = msgspec.json.Decoder(_Brief), msgspec.json.Decoder(_Lean)
_headline: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(_Scores)


def brief(text: bytes) -> Any:
    """Return what says whether a result counts: its job, tests, data and timings; no scores.

    Raises:
        msgspec.MsgspecError: not JSON, or not of the kind that is expected.
    """
    return _brief.decode(text)


def lean(text: bytes) -> Any:
    """Return a result without what no report shows.

    Where a run was adapted to one device and tested on another, nothing but its headline scores
    (`METRICS`) is read: nine tests of ten in a large sweep.

    Raises:
        msgspec.MsgspecError: not JSON, or not of the kind that is expected.
    """
    result: Any = _lean.decode(text)
    target = result.get("target") or ""
    for device, test in result["tests"].items():
        if target in ("", device):
            test["metrics"] = slim(msgspec.json.decode(test["metrics"]))
        else:
            test["metrics"] = _headline.decode(test["metrics"])
    return result


def slim(metrics: dict[str, Any]) -> dict[str, Any]:
    """Drop the tables of one test that no report shows, in place."""
    for name in HEAVY:
        metrics.pop(name, None)
    for view in (metrics.get("attributes") or {}).values():
        view.pop("per_attribute", None)
    (metrics.get("reliability") or {}).pop("ece_per_attribute", None)
    return metrics
