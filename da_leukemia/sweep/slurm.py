"""The SLURM executor: a job array through submitit.

A task runs some jobs, one after the other, in processes of its own (`executors.run_here`). Before
its time is over SLURM sends USR2: submitit requeues the task, and the job goes on from its last
epoch; so it does when SLURM itself requeues a task that was pre-empted, or whose node failed. What
was submitted is written down, so a runner that ends leaves the queue alone and the next one follows
it. Free of torch.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError, counted, did_you_mean
from da_leukemia.sweep import ledger
from da_leukemia.sweep.executors import run_here
from da_leukemia.sweep.follow import follow
from da_leukemia.sweep.ledger import State

POLL = 5.0
"""Seconds between looks at the queue."""

REQUEUES = 10_000
"""Time-outs that submitit bears; for limits under ten minutes every pre-emption counts as one."""


@dataclass
class Task:
    """What one task of the array does.

    Attributes:
        sweep: the sweep's folder, absolute.
        jobs: trainings by hash.
        worker: see `attempt.resolve`.
    """

    sweep: Path
    jobs: Mapping[str, Job]
    worker: str

    def __call__(self) -> dict[str, str]:
        """Run the jobs that are not done."""
        return run_here(self.sweep, self.jobs, self.worker)

    def checkpoint(self) -> DelayedSubmission:
        """Be the same again: everything else is on disk."""
        return DelayedSubmission(self)


class Slurm:
    """See `executors.Executor`.

    Raises:
        UserError: SLURM is not here, does not answer, or has no such partition.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._settings = experiment.slurm
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "executor=slurm: no sbatch on this machine; run this where you submit jobs, or use "
                "executor=local, or `sweep plan --emit sbatch`"
            )
        known = set(_ask("sinfo", "-h", "-o", "%R").split())
        wanted = self._settings.partition
        for name in filter(None, wanted.split(",")):
            if name not in known:
                raise UserError(f"slurm.partition: unknown {name!r}{did_you_mean(name, known)}")

    def about(self, left: int) -> str:
        """Say how many tasks."""
        tasks = -(-left // self._settings.jobs_per_task)
        where = f" on {self._settings.partition}" if self._settings.partition else ""
        return f"up to {counted(tasks, 'SLURM task')}{where}"

    def run(self, jobs: Mapping[str, Job], sweep: Path, worker: str) -> dict[str, str]:
        """Submit what is neither done nor in the queue, and follow it, see `Executor`."""
        sweep = sweep.absolute()
        standings = {h: ledger.examine(sweep, job, h) for h, job in jobs.items()}
        left = {h: job for h, job in jobs.items() if standings[h].state is not State.DONE}
        book = _Book(sweep / "slurm" / "submitted.json")
        queued = _in_queue()
        tasks = {task: mine for task, mine in book.tasks.items() if task in queued}
        known = {h for mine in tasks.values() for h in mine}
        fresh = {h: job for h, job in left.items() if h not in known}
        tasks |= self._submit(fresh, sweep, worker, book, tasks)
        task_of = {h: task for task, mine in tasks.items() for h in mine}

        def held() -> set[str]:
            try:
                alive = _in_queue()
            except UserError as error:  # a controller that restarts: nobody is judged meanwhile
                print(error, file=sys.stderr)
                return set(task_of)
            return {h for h, task in task_of.items() if task in alive}

        def reason(job_hash: str) -> str:
            return _last_words(sweep / "slurm", task_of.get(job_hash, ""))

        try:
            return follow(left, sweep, held, reason, POLL)
        except KeyboardInterrupt:
            arrays = sorted({task.partition("_")[0] for task in tasks})
            print(
                f"the tasks stay in the queue; to end them: scancel {' '.join(arrays)}",
                file=sys.stderr,
            )
            raise

    def _submit(
        self,
        jobs: Mapping[str, Job],
        sweep: Path,
        worker: str,
        book: _Book,
        before: Mapping[str, list[str]],
    ) -> dict[str, list[str]]:
        """Submit jobs as arrays and write down which task runs which."""
        each, hashes = self._settings.jobs_per_task, list(jobs)
        parts = [hashes[i : i + each] for i in range(0, len(hashes), each)]
        for job_hash in hashes:
            with ledger.written(sweep):
                ledger.job_folder(sweep, job_hash).mkdir(parents=True, exist_ok=True)
        if not hashes:
            return {}
        tasks: dict[str, list[str]] = {}
        for start in range(0, len(parts), self._settings.tasks):
            some = parts[start : start + self._settings.tasks]
            orders = [Task(sweep, {h: jobs[h] for h in part}, worker) for part in some]
            try:
                executor = SlurmExecutor(sweep / "slurm", max_num_timeout=REQUEUES)
                executor.update_parameters(**self._parameters())
                submitted = executor.submit_array(orders)
            except (FailedSubmissionError, FailedJobError) as error:
                why = str(error).strip().splitlines()
                said = next((x for x in reversed(why) if "sbatch" in x), why[-1] if why else "")
                raise UserError(f"executor=slurm: sbatch refused the jobs: {said}") from error
            tasks |= {s.job_id: part for s, part in zip(submitted, some, strict=True)}
            book.write({**before, **tasks})
        return tasks

    def _parameters(self) -> dict[str, Any]:
        """Return what to ask sbatch for, in submitit's words."""
        s = self._settings
        asked: dict[str, Any] = {
            "job_name": re.sub(r"[^\w.-]", "_", self._experiment.name),
            "time": s.minutes,
            "signal_delay_s": s.warning_seconds,
            "cpus_per_task": s.cpus or self._experiment.trainer.threads,
            "mem": f"{round(1024 * s.memory_gb)}MB" if s.memory_gb else None,
            "gpus_per_node": s.gpus or None,
            "partition": s.partition or None,
            "account": s.account or None,
            "qos": s.qos or None,
            "constraint": s.constraint or None,
            "array_parallelism": s.at_a_time,
            "setup": s.setup or None,
            "additional_parameters": {"requeue": True},
            "stderr_to_stdout": True,
        }
        return {key: value for key, value in asked.items() if value is not None}


class _Book:
    """``slurm/submitted.json``: which task of the queue runs which jobs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tasks: dict[str, list[str]] = {}
        try:
            self.tasks = {str(k): list(v) for k, v in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); it says what is in the queue. If nothing of "
                "this sweep is (squeue), remove it"
            ) from error

    def write(self, tasks: Mapping[str, list[str]]) -> None:
        ledger.write_json(self._path, tasks)


def _ask(*command: str) -> str:
    """Return what a SLURM command prints.

    Raises:
        UserError: the controller does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"executor=slurm: {command[0]} does not answer: {error}") from error
    if done.returncode:
        raise UserError(f"executor=slurm: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _in_queue() -> set[str]:
    """Return this user's tasks that wait, run or are on their way out.

    Raises:
        UserError: the controller does not answer.
    """
    lines = _ask("squeue", "-h", "--array", "-u", getpass.getuser(), "-o", "%F_%K").split()
    return {line.removesuffix("_N/A") for line in lines}


def _last_words(folder: Path, task: str) -> str:
    """Return what is known of a task that left the queue without a word of its job."""
    said = f"SLURM task {task or '(unknown)'} ended without a result"
    with contextlib.suppress(UserError):
        states = _ask("sacct", "-n", "-X", "-P", "-j", task, "-o", "State,ExitCode").split("\n")
        said += f" ({states[0]})" if states[0] else ""
    log = folder / f"{task}_0_log.out"
    with contextlib.suppress(OSError):
        said += "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    return f"{said}\nlog: {log}"
