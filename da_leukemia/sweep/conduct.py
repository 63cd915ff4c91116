"""A whole sweep: data, jobs, report. Also one job of it in this process."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from da_leukemia.config import Data, Experiment, Job, active_components, chosen_detectors, complete
from da_leukemia.errors import INTERRUPTED, UserError, counted
from da_leukemia.machine import cpus
from da_leukemia.progress import bar
from da_leukemia.sweep import ledger, settled
from da_leukemia.sweep.attempt import WORKER, Busy, insist
from da_leukemia.sweep.executors import Executor, choose
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.plan import label, make_plan, unique
from da_leukemia.sweep.server import call, start_server
from da_leukemia.sweep.status import failures_text, survey

_LOG = logging.getLogger(__name__)

Choice = Callable[[Mapping[str, Job]], dict[str, Job]]
"""Takes a plan's trainings by hash and returns those to run, see `shards`."""


def run_sweep(experiment: Experiment, worker: str = WORKER, part: Choice | None = None) -> int:
    """Run the jobs that are not done, then write and print the report.

    Args:
        experiment: filled with its defaults in place.
        worker: what trains a job (see `attempt.resolve`).
        part: chooses some of the jobs; then no report is written.

    Returns:
        The exit code: 0, 1 where jobs failed, 130 after an interruption.

    Raises:
        UserError: a configuration or data problem, known before a job starts, or a full disk.
    """
    complete(experiment)
    try:
        with _ended_by_signals():
            executor, plan = choose(experiment), make_plan(experiment)
            if part is not None:
                part(unique(plan))  # a part that is none is said before anything else is done
            settled.check(experiment, [(job, job.hash) for job in plan])
            render(experiment)
            check_data(experiment, make_plan(experiment))
            jobs, failures = _run_what_is_left(experiment, executor, worker, part)
    except KeyboardInterrupt:
        print(
            "interrupted; what is done is kept, run the same command again to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    if part is not None:
        print(
            f"{len(jobs) - len(failures)} of this part's {counted(len(jobs), 'job')} done; "
            "when all parts are: da-leukemia sweep report",
            file=sys.stderr,
        )
    elif len(failures) < len(jobs):
        report(experiment)
    if failures:
        print(f"\n{failures_text(experiment.folder, jobs, failures)}", file=sys.stderr)
        print(
            f"\n{len(failures)} of {len(jobs)} jobs failed; running the same command again tries "
            "them again",
            file=sys.stderr,
        )
        return 1
    return 0


def _run_what_is_left(
    experiment: Experiment, executor: Executor, worker: str, part: Choice | None
) -> tuple[dict[str, Job], dict[str, str]]:
    """Run the jobs that are not done; return all jobs, and the last lines of those that failed."""
    entries, standings = survey(experiment)
    jobs = unique(job for job, _ in entries)
    if left := settled.keep_old_plan(experiment, entries):
        print(left, file=sys.stderr)
    ledger.write_plan(experiment, entries)
    if part is not None:
        jobs = part(jobs)
    done = sum(standings[h].state is State.DONE for h in jobs)
    if done == len(jobs):
        return jobs, {}
    print(
        f"{counted(len(jobs), 'job')}, {done} done; {executor.about(len(jobs) - done)}; "
        f"{experiment.folder}",
        file=sys.stderr,
    )
    if worker == WORKER:  # another one has a detector of its own
        call(start_server(worker, experiment.trainer.threads), check_detector, experiment)
    return jobs, executor.run(jobs, experiment.folder, worker)


def reproduce(path: Path, out: Path | None = None) -> int:
    """Run a finished job again in a fresh folder, compare, and say what differs.

    Args:
        path: its ``result.json``, which is only read.
        out: folder to run in; by default a new one in the sweep's ``reproduced``.

    Returns:
        0 where every metric is the same, else 1.

    Raises:
        UserError: no such result, one of another version, or a problem with the data.
    """
    from da_leukemia.sweep import reproduce as reproducing

    before, job = reproducing.read(path)
    if job.hash != before["job"]:
        print(
            f"this version calls the job {job.hash}, then it was {before['job']}: a setting was "
            "added or means something else",
            file=sys.stderr,
        )
    job.tests, job.tracking = list(before["tests"]), "none"
    _render(job.data, None)
    folder = reproducing.fresh_folder(path, out)
    print(f"{label(job)} again in {folder}", file=sys.stderr)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(job.trainer.threads))
    with _ended_by_signals():
        now = reproducing.again(job, folder)
    found = reproducing.compare(before, now)
    print(reproducing.text(found, folder))
    return 0 if found.agrees else 1


def run_one(experiment: Experiment, job: Job) -> dict[str, Any]:
    """Run one job of an experiment in this process and return its result.

    Raises:
        UserError: a problem with the data, or another process runs the job.
    """
    render(experiment)
    check_data(experiment, [job])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is loaded
        os.environ.setdefault(name, str(experiment.trainer.threads))
    with _ended_by_signals():
        try:
            return insist(experiment.folder, job)
        except Busy as error:
            raise UserError(f"{label(job)} runs already in another process") from error


def render(experiment: Experiment) -> None:
    """Render the data where it is simulated and not there yet.

    Raises:
        UserError: there is no such simulated device, or the folder holds something else.
    """
    _render(experiment.data, experiment.processes)


def _render(data: Data, processes: int | None) -> None:
    simulation = data.simulate
    if simulation.patients < 1:
        return
    from da_leukemia.simulate import simulate

    root = Path(data.root)
    with _alone(root), bar("rendering") as progress:
        simulate(
            root,
            domains=list(data.domains),
            patients=simulation.patients,
            fields_per_patient=simulation.fields_per_patient,
            seed=simulation.seed,
            workers=processes or cpus(),
            progress=progress,
        )


def check_data(experiment: Experiment, jobs: Sequence[Job]) -> None:
    """Look at the data before any job starts, and at whether finished jobs are of these data.

    Raises:
        UserError: data that no job could use, or that finished jobs were not trained on.
    """
    from da_leukemia.data.devices import measure_devices
    from da_leukemia.data.preflight import preflight
    from da_leukemia.sweep import outdated
    from da_leukemia.sweep.facts import Facts

    indexes, split = preflight(experiment)
    devices = {}
    calibrated = [job.data for job in jobs if job.data.calibration.used]
    if calibrated:  # what differs between them is what it is used for, not what is measured
        with bar("measuring devices") as progress:
            devices = measure_devices(calibrated[0], indexes, split, progress)
    trainings = unique(jobs)
    found = outdated.find(experiment.folder, trainings, Facts(indexes, split, devices))
    said = outdated.reopen(experiment, trainings, found)
    if said:
        print(said, file=sys.stderr)


def check_detector(experiment: Experiment) -> None:
    """Build the backbone: a misspelt name must not wait for the first job. Imports torch.

    Raises:
        UserError: the backbone, its strides or the start weights do not exist, or a method asks
            for what the backbone lacks.
    """
    from da_leukemia.models.factory import check_settings

    known = experiment.adaptations
    methods = [
        m
        for m in experiment.methods
        if m in known and any(c["name"] == "adabn" for c in active_components(known[m]))
    ]
    for detector in chosen_detectors(experiment).values():
        check_settings(detector, experiment.data.image_size, methods)


def report(experiment: Experiment) -> None:
    """Write the report of what is done, print the matrix and say where the report lies.

    Raises:
        UserError: nothing is done yet.
    """
    from da_leukemia.report import gather, missing_sentence, render_text, write_contents

    complete(experiment)
    folder = experiment.folder / "report"
    with _no_search_for_cycles():
        plan = make_plan(experiment)
        results = ledger.collect(experiment.folder, plan)
        if not results:
            raise UserError(f"{experiment.folder}: no job is done yet; start with `sweep run`")
        contents = gather(experiment, results, folder / "intervals.json", plan)
        del results
        index = write_contents(contents, folder)
    print(render_text(contents.matrix))
    if contents.missing:
        print(f"\n{missing_sentence(contents)}")
    print(f"\nreport: {index}")
    if experiment.tracking == "wandb":
        try:
            from da_leukemia.tracking.wandb_run import log_summary

            log_summary(experiment, folder)
        except Exception as error:  # tracking is told, never asked: no reason to fail
            _LOG.warning("Weights & Biases: the summary was not logged: %s", error)


def again(experiment: str, overrides: Sequence[str]) -> str:
    """Return the command that runs a sweep."""
    return shlex.join(["da-leukemia", "sweep", "run", experiment, *overrides])


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Hold the garbage collector while millions of small things are there that have no cycles.

    It looks through all of them again and again, which takes a third of the time. The few cycles of
    the pictures that are drawn meanwhile may wait.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process renders into the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Treat SIGTERM and the closing of the terminal like Ctrl-C, so that no job is left behind."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    try:
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:  # nohup ignores SIGHUP
                before[signum] = signal.signal(signum, interrupt)
    except ValueError:  # not in the main thread: the caller's business
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
