"""The local executor: N jobs at a time, each a fresh process forked from one that has torch loaded.

Importing torch and Lightning takes seconds, starting a process from a fork server that has done so
takes milliseconds. What is done is read from the job folders, never from exit codes, so several
runners may share a sweep. SLURM tasks and Ray workers run their jobs through this, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from da_leukemia.config import Experiment, Job
from da_leukemia.errors import UserError
from da_leukemia.machine import cpus
from da_leukemia.sweep import claims, ledger
from da_leukemia.sweep.attempt import DISK_FULL, LOCKED, WORKER, in_child, last_lines
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.progress import Progress

POLL = 0.5
"""Seconds between looks at the display and at jobs of other runners."""

LOOK = 4
"""Polls between looks at a job that another runner works on."""

SERVER_GONE = 255
"""What multiprocessing says of a process whose fork server died with it."""

GRACE = 5.0
"""Seconds that interrupted jobs have to end by themselves."""

Slot = dict[str, str]
"""The environment of the jobs of one place, e.g. its GPU."""


@dataclass(frozen=True)
class _Running:
    job: Job
    process: ForkServerProcess
    slot: Slot
    since: float


# --- places ----------------------------------------------------------------------------------


def gpus() -> list[str]:
    """Return the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if listing.returncode:
        return []
    slices = re.findall(r"UUID: (MIG-[^)\s]+)", listing.stdout)
    return slices or re.findall(r"^GPU (\d+):", listing.stdout, flags=re.MULTILINE)


def slots(experiment: Experiment) -> list[Slot]:
    """Return one entry for each job that may run at a time."""
    trainer = experiment.trainer
    devices = [] if trainer.accelerator == "cpu" else gpus()
    if devices:
        count = experiment.processes or len(devices)
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(count)]
    count = experiment.processes or max(1, cpus() // trainer.threads)
    return [{"CUDA_VISIBLE_DEVICES": ""} if trainer.accelerator == "cpu" else {}] * count


# --- running ---------------------------------------------------------------------------------


def execute(
    jobs: Mapping[str, Job],
    sweep: Path,
    places: Sequence[Slot],
    context: ForkServerContext,
    worker: str = WORKER,
    stay: bool = True,
) -> dict[str, str]:
    """Run the jobs that are not done and return the last lines of those that failed, by hash.

    Jobs that another runner works on are waited for and taken over if it dies. A full disk or a
    lost folder ends the run: every other job would meet it, too.

    Args:
        jobs: trainings by hash, in the order in which to start them.
        sweep: the sweep's folder.
        places: environments of the jobs that run at a time.
        context: the fork server, see `server.start_server`.
        worker: see `attempt.resolve`.
        stay: wait for jobs that live runners elsewhere work on; otherwise leave them to those.

    Raises:
        KeyboardInterrupt: after the running jobs were ended.
        UserError: the disk is full, or the sweep's folder is gone.
    """
    standings = {h: ledger.examine(sweep, job, h) for h, job in jobs.items()}
    waiting = deque(h for h, standing in standings.items() if standing.state is not State.DONE)
    if not waiting:
        return {}
    stamps = {h: ledger.failure_stamp(ledger.job_folder(sweep, h)) for h in waiting}
    free, running, failures = list(places), dict[str, _Running](), dict[str, str]()
    watch, look_again, home = claims.Watch(), dict[str, float](), ledger.Home(sweep)
    with Progress(len(jobs), len(jobs) - len(waiting)) as progress:
        try:
            while waiting or running:
                for job_hash in list(waiting) if free else ():
                    if not free:
                        break
                    if look_again.get(job_hash, 0.0) > time.monotonic():
                        continue
                    job, folder = jobs[job_hash], ledger.job_folder(sweep, job_hash)
                    standing, dead = ledger.examine(sweep, job, job_hash), None
                    if standing.state is State.RUNNING:  # in another runner
                        dead = watch.dead(folder)
                        if dead is None and not stay and watch.lives(folder):
                            waiting.remove(job_hash)
                            continue
                        if dead is None:
                            look_again[job_hash] = time.monotonic() + LOOK * POLL
                            continue
                    waiting.remove(job_hash)
                    if standing.state is State.DONE:
                        progress.finished(job, None)
                    elif (
                        standing.state is State.FAILED
                        and ledger.failure_stamp(folder) != stamps[job_hash]
                    ):  # in another runner, since this one started
                        failures[job_hash] = standing.note
                        progress.finished(job, None, failed=True)
                    else:
                        running[job_hash] = _start(context, sweep, job, worker, free.pop(0), dead)
                progress.show([(r.job, ledger.job_folder(sweep, h)) for h, r in running.items()])
                if waiting or running:
                    wait([r.process.sentinel for r in running.values()], timeout=POLL)
                    home.check()
                for job_hash, one in list(running.items()):
                    if one.process.is_alive():
                        continue
                    del running[job_hash]
                    free.append(one.slot)
                    if one.process.exitcode == LOCKED:
                        waiting.append(job_hash)
                        continue
                    failure = _verdict(sweep, job_hash, one)
                    if failure is not None:
                        failures[job_hash] = failure
                        if one.process.exitcode == DISK_FULL:
                            home.check_room()
                    progress.finished(
                        one.job, time.monotonic() - one.since, failed=failure is not None
                    )
        finally:
            _end([r.process for r in running.values()])
    return failures


def _start(
    context: ForkServerContext, sweep: Path, job: Job, worker: str, slot: Slot, over: int | None
) -> _Running:
    process = context.Process(
        target=in_child,
        args=(str(sweep.absolute()), job, worker, slot, over),
        name=job.hash,
    )
    process.start()
    return _Running(job, process, slot, time.monotonic())


def _verdict(sweep: Path, job_hash: str, one: _Running) -> str | None:
    """Return why an ended job is not done, None if it is."""
    folder = ledger.job_folder(sweep, job_hash)
    result, note = ledger.read_result(folder, job_hash, one.job.tests)
    if result is not None:
        return None
    code = one.process.exitcode or 0
    failure = ledger.read_failure(folder)
    if failure is not None:
        return failure
    if code == DISK_FULL:
        failure = f"disk full: free some space under {sweep}"
    elif code < 0:
        cause = " (out of memory?)" if -code == signal.SIGKILL else ""
        failure = f"killed by signal {-code}{cause}\n{ledger.log_tail(folder, 10)}"
    elif code == SERVER_GONE:
        failure = f"killed from outside, with its fork server\n{ledger.log_tail(folder, 10)}"
    else:
        failure = f"ended with exit code {code} {note}\n{ledger.log_tail(folder)}"
    try:
        ledger.write_failure(folder, failure)
    except (OSError, UserError) as error:  # the full disk, again
        failure = f"{failure}\n{last_lines(error, 1)}"
    return failure.strip()


def _end(processes: Sequence[ForkServerProcess]) -> None:
    """End jobs with their helpers: politely, then not."""
    for signum, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        alive = [p for p in processes if p.is_alive()]
        for process in alive:
            try:
                os.killpg(process.pid or 0, signum)
            except (ProcessLookupError, PermissionError):  # has made no group yet
                process.kill()
        deadline = time.monotonic() + patience
        try:
            for process in alive:
                process.join(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            continue
