"""Finished jobs whose data have changed since: found before they are taken for done. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError, counted
from da_leukemia.sweep import ledger
from da_leukemia.sweep.facts import Facts
from da_leukemia.sweep.index import Index
from da_leukemia.sweep.plan import label

LISTED = 5
"""Jobs that are named."""


@dataclass(frozen=True)
class Outdated:
    """Finished jobs of other data, by hash.

    Attributes:
        trained: what changed in what they learned from.
        tested: devices on which they must be tested again.
    """

    trained: Mapping[str, str]
    tested: Mapping[str, list[str]]


def find(sweep: Path, jobs: Mapping[str, Job], facts: Facts) -> Outdated:
    """Compare the results that are there with the data, also those that lack a test.

    Args:
        sweep: the sweep's folder.
        jobs: trainings by hash.
        facts: the data as they are now.
    """
    trained, tested = {}, {}
    index = Index(sweep)
    for job_hash, job in jobs.items():
        result, _ = index.look(job_hash)
        if result is None:
            continue
        changed = difference(result.data, facts.trained_on(job), job)
        if changed:
            trained[job_hash] = changed
            continue
        there = [(d, result.tests[d]) for d in job.tests if d in result.tests]
        stale = [d for d, known in there if known != facts.tested_on(job, d)]
        if stale:
            tested[job_hash] = stale
    index.save()
    return Outdated(trained, tested)


def difference(before: Mapping[str, Any], now: Mapping[str, Any], job: Job) -> str:
    """Say what changed in what a job learned from; nothing where it is the same."""
    said, both = [], (before, now)
    if before.get("fingerprint") != now["fingerprint"]:
        then, since = (
            f"{f.get('train_fields')} fields, {f.get('train_boxes')} boxes" for f in both
        )
        counts = f"{since}, other labels or images" if then == since else f"{then}, now {since}"
        said.append(f"training data of {job.source} ({counts})")
    if before.get("target_fingerprint") != now.get("target_fingerprint"):
        said.append(
            f"images of {job.target} (then {before.get('target_images')}, now "
            f"{now.get('target_images')})"
        )
    if before.get("few_labelled") != now.get("few_labelled"):
        said.append(f"the labelled fields of {job.target}")
    start = now.get("init_from")  # results of before it was written down, or a file that is gone
    if start is not None and before.get("init_from", start) != start:
        said.append(f"detector.init_from ({job.detector.init_from} is another file)")
    if before.get("calibration") != now.get("calibration"):
        said.append("calibration")
    return ", ".join(said)


def reopen(experiment: Experiment, jobs: Mapping[str, Job], outdated: Outdated) -> str:
    """Let outdated jobs be done again: tests always, trainings where the experiment allows it.

    A result that no longer counts stays in its folder as ``result.outdated.json``.

    Returns:
        What was reopened, for people; empty where nothing was.

    Raises:
        UserError: trainings of other data, and ``changed_data`` is not ``retrain``.
    """
    if outdated.trained and experiment.changed_data != "retrain":
        named = [f"  {label(jobs[h])}: {why}" for h, why in outdated.trained.items()]
        if len(named) > LISTED:
            named[LISTED:] = [f"  ... and {len(named) - LISTED} more"]
        count = len(outdated.trained)
        verb = "was" if count == 1 else "were"
        raise UserError(
            f"{experiment.folder}: {counted(count, 'finished job')} {verb} trained on other data:\n"
            + "\n".join(named)
            + "\nA matrix of both would compare nothing. Is data.root right? Then give this data "
            "name=SOMETHING_NEW, or set changed_data=retrain to train these jobs again"
        )
    for job_hash in outdated.trained:
        _set_aside(experiment, job_hash)
    for job_hash, devices in outdated.tested.items():
        _forget_tests(experiment, job_hash, devices)
    said = []
    if outdated.trained:
        said.append(f"{len(outdated.trained)} trained again")
    if outdated.tested:
        devices = sorted({d for found in outdated.tested.values() for d in found})
        said.append(f"{len(outdated.tested)} tested again on {', '.join(devices)}")
    return f"data changed since these jobs were done: {'; '.join(said)}" if said else ""


def _set_aside(experiment: Experiment, job_hash: str) -> None:
    folder = ledger.job_folder(experiment.folder, job_hash)
    with ledger.hold(folder) as held:
        if held:
            (folder / ledger.RESULT).replace(folder / "result.outdated.json")


def _forget_tests(experiment: Experiment, job_hash: str, devices: list[str]) -> None:
    folder = ledger.job_folder(experiment.folder, job_hash)
    with ledger.hold(folder) as held:
        result, _ = ledger.read_result(folder, job_hash, ())
        if held and result is not None:
            tests = {d: t for d, t in result["tests"].items() if d not in devices}
            ledger.write_json(folder / ledger.RESULT, {**result, "tests": tests})
