"""Whether an adapted run and its source-only twin differ by the adaptation alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from da_leukemia.sweep.names import reference_of
from da_leukemia.sweep.results import Result, Run


def unfair(by_run: Mapping[Run, Result]) -> dict[str, str]:
    """Return method -> the settings that distinguish its training from that of its twin."""
    found: dict[str, str] = {}
    methods = {run.method for run in by_run}
    twins = {method: reference_of(method, methods) for method in methods}
    for run, result in sorted(by_run.items()):
        if not run.target or run.method in found:
            continue
        twin = by_run.get(Run(twins[run.method], run.source, "", run.seed))
        if twin is None:
            continue
        mine, theirs = (r.content.get("config") or {} for r in (result, twin))
        if _same(mine, theirs):
            continue
        mine, theirs = _recipe(mine), _recipe(theirs)
        differing = sorted(k for k in mine.keys() & theirs.keys() if mine[k] != theirs[k])
        if differing:
            found[run.method] = "; ".join(
                f"{k} is {mine[k]}, in {twins[run.method]} {theirs[k]}" for k in differing[:3]
            )
    return found


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run and its twin must share, flat."""
    data = config.get("data", {})
    sections = {
        "detector": config.get("detector", {}),
        "augmentation": config.get("augmentation", {}),
        "trainer": {
            k: v
            for k, v in config.get("trainer", {}).items()
            if k not in ("threads", "workers", "accelerator", "precision", "compile")
        },
        "data": {k: data.get(k) for k in ("image_size", "label_space", "split") if k in data},
        "method": {
            k: v for k, v in config.get("method", {}).items() if k in ("augmentation", "ema")
        },
    }
    return {f"{name}.{key}": v for name, inner in sections.items() for key, v in inner.items()}


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two recipes are the same for certain; settings that are one object cost nothing."""
    methods = [c.get("method", {}) for c in (a, b)]
    return all(
        a.get(part) == b.get(part) for part in ("detector", "augmentation", "trainer", "data")
    ) and all(methods[0].get(k) == methods[1].get(k) for k in ("augmentation", "ema"))
