"""What was run under a name before, so that nothing of it is lost unnoticed. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from da_leukemia import __version__
from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError, counted
from da_leukemia.sweep import ledger

LISTED = 5
"""Differences that are named."""

_NO_RESULT = (
    *("executor", "slurm", "ray", "processes", "runs_dir", "name"),
    *("tracking", "tracking_checkpoints"),
    *("changed_data", "changed_settings", "seeds", "methods", "tests", "sources", "targets"),
    "twins",
    "calibration",
)
"""Settings of an experiment that change no job, only which there are."""


def check(experiment: Experiment, entries: Sequence[tuple[Job, str]]) -> None:
    """Compare a plan with the one that its folder was made with; change nothing.

    Finished jobs that would leave the matrix because another job takes their place in it are a
    reason to stop. A plan that grows or shrinks is not.

    Args:
        experiment: complete.
        entries: the plan's jobs with their hashes.

    Raises:
        UserError: the folder was written by another version, or with other settings.
    """
    path = experiment.folder / "plan.json"
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        version, then = before["version"], before["experiment"]
        replaced = list(_replaced(before["entries"], entries))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: not a plan that can be read ({error!r}); its folder may hold finished jobs. "
            "Use another name=, or remove this file if the folder is yours"
        ) from error
    if version != ledger.PLAN_VERSION:
        raise UserError(
            f"{path}: written in format {version}, da_leukemia {__version__} writes format "
            f"{ledger.PLAN_VERSION}. Go on with the version that wrote it, or use another name="
        )
    lost = [old for old in replaced if _is_done(experiment, old)]
    if lost and experiment.changed_settings != "accept":
        changed = list(_changes(then, asdict(experiment)))
        if len(changed) > LISTED:
            changed[LISTED:] = [f"... and {len(changed) - LISTED} more"]
        verb = "was" if len(lost) == 1 else "were"
        raise UserError(
            f"{experiment.folder}: {counted(len(lost), 'finished job')} {verb} trained with other "
            "settings and would leave the matrix:\n"
            + "\n".join(f"  {change}" for change in changed or ["(the meaning of a setting)"])
            + "\nGive these settings name=SOMETHING_NEW, or set changed_settings=accept; the "
            "finished jobs stay in the folder either way"
        )


def keep_old_plan(experiment: Experiment, entries: Sequence[tuple[Job, str]]) -> None:
    """Leave a plan of which entries were replaced as ``plan.1.json``, ``plan.2.json``, ..."""
    path = experiment.folder / "plan.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(True for _ in _replaced(before["entries"], entries)):
        number = 1 + sum(1 for _ in experiment.folder.glob("plan.*.json"))
        ledger.write_json(experiment.folder / f"plan.{number}.json", before)


def _replaced(
    before: Sequence[Mapping[str, Any]], entries: Sequence[tuple[Job, str]]
) -> Iterator[str]:
    """Yield the hashes of which another job has the place now."""
    now = {(j.method_name, j.source, j.target, j.seed): h for j, h in entries}
    planned = set(now.values())
    for entry in before:
        place = (entry["method"], entry["source"], entry["target"], entry["seed"])
        if now.get(place, entry["job"]) != entry["job"] and entry["job"] not in planned:
            yield entry["job"]


def _is_done(experiment: Experiment, job_hash: str) -> bool:
    result, _ = ledger.read_result(ledger.job_folder(experiment.folder, job_hash), job_hash, ())
    return result is not None


def _changes(before: Any, now: Any, at: str = "") -> Iterator[str]:
    """Yield what differs between two experiments, as ``key: old -> new``."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        if before != now:
            yield f"{at}: {before} -> {now}"
        return
    for key in {**before, **now}:
        if not at and key in _NO_RESULT:
            continue
        yield from _changes(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
