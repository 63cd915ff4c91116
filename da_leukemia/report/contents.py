"""What a report is about: an experiment, its results, and the jobs that have none yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError
from da_leukemia.report.depth import Depth, open_cells
from da_leukemia.report.factors import Cost, factor_costs
from da_leukemia.report.gains import gains, shares
from da_leukemia.report.gap import GapTable, gap_closed
from da_leukemia.report.headlines import reference_method
from da_leukemia.report.intervals import Bootstrap
from da_leukemia.report.ranks import Ranks, ranks_of
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.ledger import job_folder, read_failure
from da_leukemia.sweep.matrix import Matrix
from da_leukemia.sweep.names import FAIR, LONGER, longer_of
from da_leukemia.sweep.plan import make_plan, starts_trained
from da_leukemia.sweep.results import Result, Run

MOST = 6
"""Methods that are drawn: a page or a picture of thirty matrices is read by nobody."""


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
        results: in the order of the plan; of adapted runs the test on their target alone.
        missing: jobs of the plan without a result.
        planned: number of entries in the plan.
        gap: gap closed of the headline metric.
        added: the same against twins of the same calibration, where that is another table.
        equal: the same against twins of equal length, None where there are none.
        ranks: average ranks of the methods, None where there are too few methods or cells.
        depths: what stands behind single cells.
        costs: what each optical factor costs; empty where no devices differ in single factors.
    """

    experiment: Experiment
    results: Sequence[Result]
    missing: Sequence[Missing]
    planned: int
    matrix: Matrix
    gap: GapTable
    added: GapTable | None
    equal: GapTable | None = None
    ranks: Ranks | None = None
    costs: Sequence[Cost] = ()
    depths: Sequence[Depth] = ()

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The methods that are drawn: all, or of many the references and the best `MOST`.

        Best is who closes most of the gap. Files of numbers (CSV, Markdown) have all of them.
        """
        return _drawn(self.matrix, self.gap)

    @property
    def left_out(self) -> str | None:
        """Say which methods are not drawn; None where all are."""
        many = len(self.matrix.methods)
        if many <= MOST:
            return None
        return (
            f"Of {many} methods {len(self.shown)} are drawn: those that gain most, and what they "
            "are compared to; matrix.csv and matrix.md have all."
        )


def _drawn(matrix: Matrix, gap: GapTable) -> tuple[str, ...]:
    methods = matrix.methods
    if len(methods) <= MOST:
        return methods
    compared = {s.method for s in gap.summaries} | set(matrix.adapted)
    worth = {
        s.method: (s.ratio_of_means is not None, s.ratio_of_means or s.mean_gain or 0.0)
        for s in gap.summaries
        if s.ratio_of_means is not None or s.mean_gain is not None
    }
    best = sorted(worth, key=lambda m: worth[m], reverse=True)
    best += [m for m in methods if m in compared]
    reference = reference_method(matrix)
    others = [m for m in methods if m not in compared and m != reference]
    references = [*([reference] if reference else []), *others]
    order = dict.fromkeys([*references[: MOST // 2], *best, *others])
    chosen = set(list(order)[:MOST])
    return tuple(m for m in methods if m in chosen)


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
    plan: Sequence[Job] | None = None,
) -> Contents:
    """Build the matrix and find out what is missing.

    Args:
        experiment: a complete one, as `load_experiment` gives it.
        results: parsed result files of the experiment, in any order (see `ledger.collect`).
        cache: file that keeps the bootstrap intervals between reports.
        plan: of the experiment, where it has been made already.

    Raises:
        UserError: two jobs claim one place of the matrix.
    """
    found = as_results(experiment, results)
    tests = set(experiment.tests or experiment.data.domains)
    found = [_only(r, tests) for r in found]
    jobs = make_plan(experiment) if plan is None else plan
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
    found = [_on_target(r) for r in found]  # the rest is in the matrix, and large
    gap = gap_closed(
        matrix, metric, gains(bootstrap, found, metric), shares(bootstrap, found, metric)
    )
    gap = replace(gap, notes=(*gap.notes, *_unequal(matrix, jobs, experiment.checkpoints)))
    added = None
    if any(matrix.twin(m) != matrix.reference(m) for m in matrix.adapted):
        paired = gains(bootstrap, found, metric, alike=True)
        closed = shares(bootstrap, found, metric, alike=True)
        added = gap_closed(matrix, metric, paired, closed, alike=True)
    equal = None
    if any(longer_of(m, matrix.methods) for m in matrix.adapted):
        paired = gains(bootstrap, found, metric, longer=True)
        closed = shares(bootstrap, found, metric, longer=True)
        equal = gap_closed(matrix, metric, paired, closed, longer=True)
    costs = factor_costs(bootstrap, found, metric)
    depths = open_cells(bootstrap, matrix, gap, found, metric, _drawn(matrix, gap))
    bootstrap.save()
    by_run = {r.run: r for r in found}
    return Contents(
        experiment=experiment,
        results=[by_run[run] for run in order if run in by_run],
        missing=missing,
        planned=len(order),
        matrix=matrix,
        gap=gap,
        added=added,
        equal=equal,
        ranks=ranks_of(matrix, metric),
        costs=costs,
        depths=depths,
    )


def _unequal(matrix: Matrix, jobs: Iterable[Job], checkpoints: Collection[str] = ()) -> list[str]:
    """Say which methods took more steps than all that they are compared with."""
    started = {job.method_name for job in jobs if job.target and starts_trained(job.method)}
    alone = [m for m in matrix.adapted if m in started and not longer_of(m, matrix.methods)]
    if not alone:
        return []
    verb = "starts" if len(alone) == 1 else "start"
    if all(job.source in checkpoints for job in jobs):
        why = f"a {LONGER} of equal length would need the data that the checkpoint was trained on."
    else:
        why = f"there is no {LONGER} beside it, the twin of equal length."
    return [f"{', '.join(alone)} {verb} from a finished run and took more steps than {FAIR}; {why}"]


def _on_target(result: Result) -> Result:
    """Leave out the tests of an adapted run on devices that it did not adapt to."""
    target = result.run.target
    if not target:
        return result
    kept = {t: s for t, s in result.content["tests"].items() if t == target}
    return Result({**result.content, "tests": kept}, result.folder)


def _only(result: Result, tests: set[str]) -> Result:
    """Leave out devices that the experiment no longer tests on."""
    if result.content["tests"].keys() <= tests:
        return result
    kept = {t: s for t, s in result.content["tests"].items() if t in tests}
    return Result({**result.content, "tests": kept}, result.folder)
