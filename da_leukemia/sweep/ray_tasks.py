"""The Ray executor: one core task for each job, on a cluster that is there.

A Ray worker keeps its fork server between tasks, so torch is imported once in each, and a job is a
fresh process of its own (`executors.run_here`). Ray runs a task again whose worker or node died;
the job then goes on from its last epoch. Free of torch.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError, counted
from da_leukemia.sweep import ledger
from da_leukemia.sweep.executors import run_here
from da_leukemia.sweep.follow import follow
from da_leukemia.sweep.ledger import State

POLL = 1.0
"""Seconds between looks at the tasks."""

RETRIES = 20
"""Deaths of workers and nodes that a job survives."""

_WHAT_TO_DO = (
    "start one with `ray start --head`, name another with ray.address=HOST:PORT, or set "
    "ray.start=true for one on this machine"
)

ANSWER = 5.0
"""Seconds in which a cluster must take a connection."""


def _task(folder: str, sweep: str, jobs: Mapping[str, Job], worker: str) -> dict[str, str]:
    os.chdir(folder)  # paths of data may be relative to where the sweep was started
    return run_here(Path(sweep), jobs, worker)


class Ray:
    """See `executors.Executor`.

    Raises:
        UserError: there is no such cluster, or no node of it can run a job.
    """

    def __init__(self, experiment: Experiment) -> None:
        settings = experiment.ray
        self._cpus = settings.cpus or float(experiment.trainer.threads)
        self._gpus = settings.gpus
        if not ray.is_initialized():
            _connect(None if settings.start else _address(settings.address))
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        if not any(n.get("CPU", 0) >= self._cpus and n.get("GPU", 0) >= self._gpus for n in nodes):
            raise UserError(
                f"executor=ray: no node has {self._cpus:g} CPUs and {self._gpus:g} GPUs for a job; "
                "set ray.cpus= and ray.gpus="
            )

    def about(self, left: int) -> str:
        """Say on how much."""
        has = ray.cluster_resources()
        nodes = counted(sum(bool(n["Alive"]) for n in ray.nodes()), "Ray node")
        return f"{nodes}, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"

    def run(self, jobs: Mapping[str, Job], sweep: Path, worker: str) -> dict[str, str]:
        """Run jobs, see `Executor`."""
        sweep = sweep.absolute()
        left = {
            h: job
            for h, job in jobs.items()
            if ledger.examine(sweep, job, h).state is not State.DONE
        }
        remote: Any = ray.remote(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES, max_calls=0
        )(_task)
        tasks = {
            h: remote.remote(str(Path.cwd()), str(sweep), {h: job}, worker)
            for h, job in left.items()
        }
        said: dict[str, str] = {}

        def held() -> set[str]:
            waiting = [tasks[h] for h in tasks if h not in said]
            ready = (
                set(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]) if waiting else ()
            )
            for job_hash, task in tasks.items():
                if job_hash not in said and task in ready:
                    said[job_hash] = _outcome(task, job_hash)
            return {h for h in tasks if h not in said}

        try:
            return follow(left, sweep, held, lambda h: said[h], POLL)
        finally:
            for job_hash in held():
                ray.cancel(tasks[job_hash], force=True)


def _outcome(task: Any, job_hash: str) -> str:
    """Return why a task that ended left its job undone, as far as Ray knows."""
    try:
        failures: dict[str, str] = ray.get(task)
    except RayError as error:
        return "\n".join(str(error).splitlines()[-10:])
    return failures.get(job_hash, "the Ray task ended without a result")


def _address(given: str) -> str:
    """Return where the cluster is.

    Raises:
        UserError: nobody takes a connection there.
    """
    if given == "auto":
        given = os.environ.get("RAY_ADDRESS", "auto")
    if given == "auto":  # Ray looks for one on this machine
        return given
    host, _, port = given.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(f"executor=ray: no cluster at {given} ({error}); {_WHAT_TO_DO}") from error
    return given


def _connect(address: str | None) -> None:
    try:
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        where = f"at {address}" if address not in (None, "auto") else "on this machine"
        said = str(error).splitlines()[0]
        raise UserError(f"executor=ray: no Ray cluster {where} ({said}); {_WHAT_TO_DO}") from error
