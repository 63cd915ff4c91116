"""What a report is about: an experiment, its results, and the jobs that have none yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment
from da_leukemia.errors import UserError
from da_leukemia.report.gains import gains, shares
from da_leukemia.report.gap import GapTable, gap_closed
from da_leukemia.report.intervals import Bootstrap
from da_leukemia.sweep.ledger import job_folder, read_failure
from da_leukemia.sweep.matrix import Matrix, Result, Run, build_matrix
from da_leukemia.sweep.plan import make_plan


@dataclass(frozen=True)
class Missing:
    """A job without a result.

    Attributes:
        failure: last lines of its failed attempt, None if it has not failed.
    """

    run: Run
    job: str
    failure: str | None


@dataclass(frozen=True)
class Contents:
    """Everything that the report shows, computed once.

    Attributes:
        results: in the order of the plan.
        missing: jobs of the plan without a result.
        planned: number of entries in the plan.
        gap: gap closed of the headline metric.
        added: the same against twins of the same calibration, where that is another table.
    """

    experiment: Experiment
    results: Sequence[Result]
    missing: Sequence[Missing]
    planned: int
    matrix: Matrix
    gap: GapTable
    added: GapTable | None


def as_results(
    experiment: Experiment, results: Iterable[Result | Mapping[str, Any]]
) -> list[Result]:
    """Give every result its folder in the sweep; what is a `Result` already stays as it is."""
    return [
        r if isinstance(r, Result) else Result(r, job_folder(experiment.folder, str(r["job"])))
        for r in results
    ]


def gather(
    experiment: Experiment,
    results: Iterable[Result | Mapping[str, Any]],
    cache: Path | None = None,
) -> Contents:
    """Build the matrix and find out what is missing.

    Args:
        experiment: a complete one, as `load_experiment` gives it.
        results: parsed result files of the experiment, in any order (see `ledger.collect`).
        cache: file that keeps the bootstrap intervals between reports.

    Raises:
        UserError: two jobs claim one place of the matrix.
    """
    found = as_results(experiment, results)
    tests = set(experiment.tests or experiment.data.domains)
    found = [_only(r, tests) for r in found]
    jobs = make_plan(experiment)
    order = {Run(j.method_name, j.source, j.target or "", j.seed): j for j in jobs}
    stray = [r.run for r in found if r.run not in order]
    if stray:
        raise UserError(f"{stray[0]}: this result is no part of {experiment.name}")
    by_run = {r.run: r for r in found}
    missing = []
    for run, job in order.items():
        if run not in by_run:
            name = job.hash
            missing.append(Missing(run, name, read_failure(job_folder(experiment.folder, name))))
    bootstrap = Bootstrap(cache)
    matrix = build_matrix(
        found,
        intervals=bootstrap,
        methods=list(dict.fromkeys(job.method_name for job in jobs)),
        devices=list(experiment.data.domains),
    )
    metric = matrix.headline
    gap = gap_closed(
        matrix, metric, gains(bootstrap, found, metric), shares(bootstrap, found, metric)
    )
    added = None
    if any(matrix.twin(m) != matrix.reference(m) for m in matrix.adapted):
        paired = gains(bootstrap, found, metric, alike=True)
        closed = shares(bootstrap, found, metric, alike=True)
        added = gap_closed(matrix, metric, paired, closed, alike=True)
    bootstrap.save()
    return Contents(
        experiment=experiment,
        results=[by_run[run] for run in order if run in by_run],
        missing=missing,
        planned=len(order),
        matrix=matrix,
        gap=gap,
        added=added,
    )


def _only(result: Result, tests: set[str]) -> Result:
    """Leave out devices that the experiment no longer tests on."""
    kept = {t: s for t, s in result.content["tests"].items() if t in tests}
    return Result({**result.content, "tests": kept}, result.folder)
