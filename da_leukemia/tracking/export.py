"""A finished sweep told to Weights & Biases afterwards, from its folder alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from da_leukemia.config import Experiment, complete
from da_leukemia.errors import UserError, counted
from da_leukemia.sweep.ledger import job_folder, read_result
from da_leukemia.sweep.plan import label, make_plan, unique
from da_leukemia.tracking.wandb_run import finish_job, log_summary, start_job


@dataclass
class Exported:
    """What was told.

    Attributes:
        logged: jobs.
        tracked: jobs that have a run already.
        unfinished: jobs without a result.
        failed: names of jobs that wandb did not take to the end.
    """

    logged: int = 0
    tracked: int = 0
    unfinished: int = 0
    failed: list[str] = field(default_factory=list)


def export_sweep(
    experiment: Experiment,
    *,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Log every finished job of a sweep as a run, then the summary with matrix and report.

    Jobs that were tracked while they trained, or exported before, have a run in ``NAME/wandb`` and
    are left out.

    Args:
        experiment: the sweep; `tracking_checkpoints` asks for the weights as artifacts.
        again: log jobs that have a run, too; a server then holds their media twice.
        progress: called with (done, total).

    Raises:
        UserError: nothing is done yet, there is no report, or wandb is disabled or missing.
    """
    complete(experiment)
    jobs = unique(make_plan(experiment))
    page = experiment.folder / "report" / "index.html"
    if not page.is_file():
        raise UserError(f"{page}: no such file; write the report first with `sweep report`")
    out, known = Exported(), set() if again else _tracked(experiment.folder)
    for done, (job_hash, job) in enumerate(jobs.items()):
        if progress is not None:
            progress(done, len(jobs))
        folder = job_folder(experiment.folder, job_hash)
        result, _ = read_result(folder, job_hash, job.tests)
        if result is None:
            out.unfinished += 1
            continue
        if job_hash in known:
            out.tracked += 1
            continue
        run = start_job(job, folder)
        if run is None:
            raise UserError(
                "nothing can be logged: WANDB_MODE is `disabled`, or wandb is not installed"
            )
        result["config"]["tracking_checkpoints"] = experiment.tracking_checkpoints
        for step, metrics in _epochs(folder / "metrics.csv"):
            run.log(metrics, step)
        finish_job(run, {**result, "method": job.method_name}, folder)
        if run.broken:
            out.failed.append(label(job))
        else:
            out.logged += 1
    if not out.logged + out.tracked + len(out.failed):
        raise UserError(
            f"{experiment.folder}: none of the {counted(len(jobs), 'job')} of this experiment "
            "has a result. Were the finished ones run with other settings? Repeat those, or give "
            "the folder in place of the experiment file"
        )
    log_summary(experiment, page.parent)
    return out


def _tracked(sweep: Path) -> set[str]:
    """Return the hashes of jobs that have a run: its folder is ``[offline-]run-TIME-HASH``."""
    return {
        path.name.rpartition("-")[2]
        for path in (sweep / "wandb" / "wandb").glob("*run-*")
        if any(path.glob("run-*.wandb"))
    }


def _epochs(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Give step and metrics of each row that a job wrote while it trained."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            yield step, {name: float(value) for name, value in row.items() if value}
