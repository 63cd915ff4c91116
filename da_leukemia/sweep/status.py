"""A sweep's plan and state as text. Free of torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import counted
from da_leukemia.sweep import ledger
from da_leukemia.sweep.index import Index
from da_leukemia.sweep.ledger import Standing, State
from da_leukemia.sweep.plan import label, make_plan, unique

LISTED = 20
"""Jobs of one state that are named."""


def survey(experiment: Experiment) -> tuple[list[tuple[Job, str]], dict[str, Standing]]:
    """Return the plan's entries with their hashes, and where each training stands (no results)."""
    entries = [(job, job.hash) for job in make_plan(experiment)]
    first: dict[str, Job] = {}
    for job, job_hash in entries:
        first.setdefault(job_hash, job)
    index = Index(experiment.folder)
    standings = {h: index.examine(h, job.tests) for h, job in first.items()}
    index.save()
    return entries, standings


def plan_text(experiment: Experiment) -> str:
    """Return the plan as a table: what would run, and what is there already."""
    entries, standings = survey(experiment)
    seen: dict[str, str] = {}
    rows = []
    for job, job_hash in entries:
        standing = standings[job_hash]
        note = standing.note.splitlines()[-1] if standing.note else ""
        if job_hash in seen:
            note = f"same training as {seen[job_hash]}"
        seen.setdefault(job_hash, job.method_name)
        state = standing.state.value
        rows.append(
            (job_hash, state, job.method_name, job.source, job.target or "", job.seed, note)
        )
    table = _table(("job", "state", "method", "source", "target", "seed", ""), rows)
    return "\n".join([table, "", summary(experiment, standings)])


def missing_folders(experiment: Experiment) -> list[str]:
    """Say which folders are not there; what is in them is looked at by ``sweep run``."""
    from da_leukemia.data.experiment import domain_source, missing_root
    from da_leukemia.data.readers.tree import no_folder

    data = experiment.data
    if data.simulate.patients > 0:
        return []
    if missing := missing_root(data):
        return missing
    sources = [domain_source(data, name) for name in data.domains]
    return [no_folder(source) for source in sources if not source.root.is_dir()]


def summary(experiment: Experiment, standings: Mapping[str, Standing]) -> str:
    """Return one line of counts."""
    counts = ", ".join(f"{n} {state}" for state, n in ledger.count(standings).items() if n)
    tests = experiment.data.domains if experiment.tests is None else set(experiment.tests)
    devices = counted(len(tests), "device") if tests else "no device (none has test labels)"
    jobs = counted(len(standings), "job")
    return f"{experiment.folder}: {jobs}, each tested on {devices}: {counts}"


def status_text(experiment: Experiment, again: str) -> str:
    """Return the jobs by state, the failures with their last lines, and how to go on.

    Args:
        experiment: the sweep.
        again: the command that runs it.
    """
    entries, standings = survey(experiment)
    jobs = unique(job for job, _ in entries)
    blocks = [summary(experiment, standings)]
    for state in (State.RUNNING, State.WAITING):
        chosen = [(jobs[h], s) for h, s in standings.items() if s.state is state]
        if chosen:
            lines = [f"  {label(job)}  {s.note}".rstrip() for job, s in chosen[:LISTED]]
            if len(chosen) > LISTED:
                lines.append(f"  ... and {len(chosen) - LISTED} more")
            blocks.append("\n".join([f"{state}:", *lines]))
    failures = {h: s.note for h, s in standings.items() if s.state is State.FAILED}
    if failures:
        blocks.append(failures_text(experiment.folder, jobs, failures))
    if any(s.state in (State.FAILED, State.WAITING) for s in standings.values()):
        blocks.append(f"to go on: {again}")
    elif all(s.state is State.DONE for s in standings.values()):
        blocks.append("all done")
    return "\n\n".join(blocks)


def failures_text(sweep: Path, jobs: Mapping[str, Job], failures: Mapping[str, str]) -> str:
    """Return the failed jobs with their last lines and the paths of their logs."""
    lines = ["failed:"]
    for job_hash, text in failures.items():
        lines.append(f"  {label(jobs[job_hash])}")
        lines.append(textwrap.indent(text or "(no message)", "    | "))
        lines.append(f"    log: {ledger.job_folder(sweep, job_hash) / ledger.LOG}")
    return "\n".join(lines)


def as_json(experiment: Experiment) -> dict[str, Any]:
    """Return the plan with states, for programs."""
    entries, standings = survey(experiment)
    return {
        "name": experiment.name,
        "folder": str(experiment.folder),
        "counts": {state.value: n for state, n in ledger.count(standings).items()},
        "entries": [
            {
                **ledger.entry(job, job_hash),
                "state": standings[job_hash].state.value,
                "note": standings[job_hash].note,
            }
            for job, job_hash in entries
        ],
    }


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
