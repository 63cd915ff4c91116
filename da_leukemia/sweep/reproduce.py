"""Running a finished job again, to see whether it gives the same numbers."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from da_leukemia.config import Job, job_of
from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger
from da_leukemia.sweep.attempt import WORKER, attempt

LISTED = 20
"""Differences that are named."""

_MADE_WITH = ("versions", "code", "device", "data", "split")
"""Parts of a result that say with what it was made; those that are in it are compared."""


@dataclass
class Comparison:
    """Two results of one job.

    Attributes:
        made: what they were made with differs: one line each.
        scores: metrics differ: one line each.
        compared: number of scores compared.
        largest: largest absolute difference of two numbers.
    """

    made: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    compared: int = 0
    largest: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether all metrics are the same."""
        return not self.scores and self.compared > 0


def read(path: Path) -> tuple[dict[str, Any], Job]:
    """Return a result and its job.

    Raises:
        UserError: no result, or one that does not say how it was made.
    """
    if path.is_dir():
        path = path / ledger.RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; expected runs/NAME/jobs/HASH/result.json"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole result ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("tests"), dict):
        raise UserError(f"{path}: no result of a job; expected its tests under `tests`")
    version = content.get("version")
    if version != ledger.RESULT_VERSION:
        raise UserError(
            f"{path}: written in format {version}, this version reads {ledger.RESULT_VERSION}; use "
            "the version that wrote it"
        )
    config = content.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{path}: does not say how it was made (config is missing)")
    return content, job_of(config, str(path))


def fresh_folder(path: Path, out: Path | None) -> Path:
    """Make the folder in which the job runs again.

    Args:
        path: the result.
        out: folder to use, which must be empty or not there; by default a new one beside the jobs
            of the sweep.

    Raises:
        UserError: the folder holds something, or cannot be made.
    """
    with ledger.written(path):
        if out is None:
            home = path.resolve().parent
            above = home.parent.parent if home.parent.name == "jobs" else home
            (above / "reproduced").mkdir(exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=above / "reproduced"))
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: is not empty; name another folder")
        out.mkdir(parents=True, exist_ok=True)
    return out


def again(job: Job, folder: Path, worker: str = WORKER) -> dict[str, Any]:
    """Run a job in a folder of its own, in this process, and return its result."""
    result = attempt(folder, job, worker)
    shutil.rmtree(ledger.job_folder(folder, job.hash) / "checkpoints", ignore_errors=True)
    return result


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """Compare the results of two runs of a job, to the last digit."""
    found = Comparison()
    for part in _MADE_WITH:
        if part in before or part in now:
            found.made += [
                f"{w}: {a} -> {b}"
                for w, a, b in _pairs(before.get(part), now.get(part), part)
                if a != b
            ]
    unlabelled = before.get("label_free", {})
    for where, a, b in _pairs(unlabelled, now["label_free"] if unlabelled else {}, "label_free"):
        found.compared += 1
        if a != b:
            found.scores.append(f"{where}: {a} -> {b}")
    for device, test in before["tests"].items():
        other = now["tests"].get(device)
        if other is None:
            found.scores.append(f"{device}: not tested")
            continue
        if test.get("fingerprint") != other.get("fingerprint"):
            found.made.append(f"test data of {device}: other fields, labels or image sizes")
        for where, a, b in _pairs(test["metrics"], other["metrics"], device):
            found.compared += 1
            if a == b or (_is_nan(a) and _is_nan(b)):
                continue
            gap = ""
            if _is_number(a) and _is_number(b):
                found.largest = max(found.largest, abs(b - a))
                gap = f" ({b - a:+.3g})"
            found.scores.append(f"{where}: {a} -> {b}{gap}")
    return found


def _pairs(before: Any, now: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the leaves of two trees with where they are; None stands for what is not there."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from _pairs(before.get(key), now.get(key), f"{where} {key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (a, b) in enumerate(zip(before, now, strict=True)):
            yield from _pairs(a, b, f"{where} [{i}]")
    else:
        yield where, before, now


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def text(found: Comparison, folder: Path) -> str:
    """Return a comparison for people."""
    lines = []
    if found.made:
        lines += ["made with other things than then:", *_some(found.made)]
    else:
        lines.append("same code version, packages, device and data as then")
    if found.agrees:
        lines.append(f"the metrics agree: {found.compared} values, every digit")
    else:
        lines.append(
            f"the metrics DIFFER in {len(found.scores)} of {found.compared} values, by "
            f"{found.largest:.3g} at most:"
        )
        lines += _some(found.scores)
    return "\n".join([*lines, f"the new run: {folder}"])


def _some(lines: list[str]) -> list[str]:
    more = [f"  ... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return [*(f"  {line}" for line in lines[:LISTED]), *more]
