"""What was run under a name before, so that nothing of it is lost unnoticed. Free of torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from da_leukemia import __version__
from da_leukemia.config import Experiment, Job, job_of
from da_leukemia.errors import ConfigError, UserError, counted
from da_leukemia.sweep import ledger
from da_leukemia.sweep.plan import reduced
from da_leukemia.sweep.results import Run

LISTED = 5
"""Differences, and jobs, that are named."""

_Entry = Mapping[str, Any]
"""What a plan says of a job, see `ledger.entry`."""

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

    Finished jobs that would leave the matrix because another job takes their place in it, or
    because their method has another form (adapted or source-only), are a reason to stop. A plan
    that grows or shrinks is not.

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
    lost = _lost(experiment, replaced, entries)
    if lost and experiment.changed_settings != "accept":
        changed = list(_changes(then, asdict(experiment)))
        if len(changed) > LISTED:
            changed[LISTED:] = [f"... and {len(changed) - LISTED} more"]
        verb = "was" if len({old["job"] for old in lost}) == 1 else "were"
        raise UserError(
            f"{experiment.folder}: {_count(lost)} {verb} trained with other settings and "
            f"would leave the matrix ({_named(lost)}):\n"
            + "\n".join(f"  {change}" for change in changed or ["(the meaning of a setting)"])
            + "\nGive these settings name=SOMETHING_NEW, or set changed_settings=accept; the "
            "finished jobs stay in the folder either way"
        )


def keep_old_plan(experiment: Experiment, entries: Sequence[tuple[Job, str]]) -> str:
    """Leave a plan of which entries were replaced as ``plan.1.json``, ``plan.2.json``, ...

    Returns:
        Which finished jobs are no longer part of the plan, for people; empty where none is.
    """
    path = experiment.folder / "plan.json"
    if not path.is_file():
        return ""
    before = json.loads(path.read_text(encoding="utf-8"))
    replaced = list(_replaced(before["entries"], entries))
    if not replaced:
        return ""
    name = f"plan.{1 + sum(1 for _ in experiment.folder.glob('plan.*.json'))}.json"
    ledger.write_json(experiment.folder / name, before)
    lost = _lost(experiment, replaced, entries)
    if not lost:
        return ""
    return (
        f"{_count(lost)} of the plan before left the matrix ({_named(lost)}); nothing is deleted: "
        f"they stay in {experiment.folder / 'jobs'}, listed in {name}"
    )


def _replaced(
    before: Sequence[Mapping[str, Any]], entries: Sequence[tuple[Job, str]]
) -> Iterator[_Entry]:
    """Yield the entries of which another job has the place now, or a method of another form."""
    now = {(j.method_name, j.source, j.target, j.seed): h for j, h in entries}
    planned = set(now.values())
    forms = {(j.method_name, j.source, j.seed, j.target is None) for j, _ in entries}
    for entry in before:
        method, source, target, seed = (entry[k] for k in ("method", "source", "target", "seed"))
        same, other = ((method, source, seed, (target is None) is own) for own in (True, False))
        gone = now.get((method, source, target, seed), entry["job"]) != entry["job"]
        if (gone or (other in forms and same not in forms)) and entry["job"] not in planned:
            yield entry


def _lost(
    experiment: Experiment, replaced: Iterable[_Entry], entries: Sequence[tuple[Job, str]]
) -> list[_Entry]:
    """Return the replaced entries that have a result, and not of a training that is planned."""
    planned = {job_hash for _, job_hash in entries}
    found = []
    for entry in replaced:
        folder = ledger.job_folder(experiment.folder, entry["job"])
        result, _ = ledger.read_result(folder, entry["job"], ())
        if result is None:
            continue
        with contextlib.suppress(ConfigError, KeyError):  # of another version: it is another one
            if reduced(job_of(result["config"], str(folder))).hash in planned:
                continue
        found.append(entry)
    return found


def _count(entries: Iterable[_Entry]) -> str:
    return counted(len({entry["job"] for entry in entries}), "finished job")


def _named(entries: Sequence[_Entry]) -> str:
    """Return some of the entries by name, and how many more there are."""
    runs = [Run(e["method"], e["source"], e["target"] or "", e["seed"]) for e in entries[:LISTED]]
    more = [f"and {len(entries) - LISTED} more"] if len(entries) > LISTED else []
    return "; ".join([*map(str, runs), *more])


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
