"""Where jobs run: one interface over the ledger on disk. Free of torch, submitit and Ray.

An executor only gets folders to run. What is done is read from them, whatever an engine says.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError
from da_leukemia.sweep import local
from da_leukemia.sweep.server import start_server


class Executor(Protocol):
    """Runs jobs somewhere."""

    def about(self, left: int) -> str:
        """Say for people how ``left`` jobs will be run."""

    def run(self, jobs: Mapping[str, Job], sweep: Path, worker: str) -> dict[str, str]:
        """Run the jobs that are not done; return the last lines of those that failed, by hash.

        Args:
            jobs: trainings by hash, in the order in which to start them.
            sweep: the sweep's folder.
            worker: see `attempt.resolve`.

        Raises:
            KeyboardInterrupt: what runs on this machine was ended before.
            UserError: nothing can be run, or nothing can be written any more.
        """


class Local:
    """Processes of this machine, see `local`."""

    def __init__(self, experiment: Experiment) -> None:
        self._places = local.slots(experiment)
        self._threads = experiment.trainer.threads

    def about(self, left: int) -> str:
        """Say how many at a time."""
        return f"{min(len(self._places), left)} at a time"

    def run(self, jobs: Mapping[str, Job], sweep: Path, worker: str) -> dict[str, str]:
        """Run jobs, see `Executor`."""
        with _main_forgotten():
            context = start_server(worker, self._threads)
            return local.execute(jobs, sweep, self._places, context, worker)


def choose(experiment: Experiment) -> Executor:
    """Return the executor that an experiment asks for.

    Raises:
        UserError: it is not installed, or there is no such cluster.
    """
    if experiment.executor == "slurm":
        _need("submitit", "slurm")
        from da_leukemia.sweep.slurm import Slurm

        return Slurm(experiment)
    if experiment.executor == "ray":
        _need("ray", "ray")
        from da_leukemia.sweep.ray_tasks import Ray

        return Ray(experiment)
    return Local(experiment)


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"executor={extra}: {module} is not installed; pip install 'da-leukemia[{extra}]', or "
            "use executor=local, or `sweep plan --emit commands`"
        )


# --- inside a task of a cluster --------------------------------------------------------------


def run_here(sweep: Path, jobs: Mapping[str, Job], worker: str) -> dict[str, str]:
    """Run jobs one after the other in what a cluster gave to this process.

    torch is imported once, in the fork server; each job is a fresh process of its own. Signals
    with which a cluster ends its tasks reach this process only: it ends the job, and a job leaves
    no verdict about itself because it had to make room.

    Arguments as of `Executor.run`; returns what that returns.
    """
    threads = max(job.trainer.threads for job in jobs.values())
    with _main_forgotten():
        with _signals_for_this_process_only():
            context = start_server(worker, threads)
        return local.execute(jobs, sweep, [_gpu()], context, worker, stay=False)


def _gpu() -> local.Slot:
    """Return the GPU that this task was given; the fork server may know that of an earlier one."""
    name = "CUDA_VISIBLE_DEVICES"
    return {name: os.environ[name]} if name in os.environ else {}


@contextmanager
def _signals_for_this_process_only() -> Iterator[None]:
    """Have what is started now, and its children, never see the signals of a cluster."""
    ours = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_forgotten() -> Iterator[None]:
    """Keep new processes from importing the main module again, once for each job."""
    main = sys.modules["__main__"]
    names = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__ = None
    if "__file__" in names:
        del main.__file__
    try:
        yield
    finally:
        for name, value in names.items():
            setattr(main, name, value)
