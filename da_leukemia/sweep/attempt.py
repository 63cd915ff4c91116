"""One attempt at a job: lock, order, worker, verdict. In its own process or in this one."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from da_leukemia.config import Job
from da_leukemia.errors import UserError
from da_leukemia.sweep import claims, ledger

WORKER = "da_leukemia.sweep.worker:run_job"
"""What trains a job: a function of its folder. Importing it imports torch."""

FAILED, LOCKED, DISK_FULL = 1, 75, 28
"""Exit codes of `in_child`: see the job's error.txt; another runner has it; nothing can be
written, not even error.txt."""

_PR_SET_PDEATHSIG = 1


class Busy(Exception):
    """Another process works on the job."""


def resolve(worker: str) -> Callable[[Path], None]:
    """Import ``module:function``."""
    module, _, name = worker.partition(":")
    function: Callable[[Path], None] = getattr(importlib.import_module(module), name)
    return function


def attempt(
    sweep: Path,
    job: Job,
    worker: str = WORKER,
    over: int | None = None,
    on_loss: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run a job in this process unless it is done, and return its result.

    A failure leaves the last lines in ``error.txt``.

    Args:
        sweep: the sweep's folder.
        job: what to run.
        worker: see `resolve`.
        over: number of a claim that was found dead, see `claims.Watch`.
        on_loss: called from another thread if another machine takes the job over meanwhile.

    Raises:
        Busy: another process has the job, or took it over.
    """
    job_hash = job.hash
    folder = ledger.job_folder(sweep, job_hash)
    with ledger.hold(folder, over=over, on_loss=on_loss) as held:
        if not held:
            raise Busy
        result, _ = ledger.read_result(folder, job_hash, job.tests)
        if result is not None:  # another runner was faster
            return result
        ledger.clear_attempt(folder)
        ledger.write_job(folder, job)
        try:
            resolve(worker)(folder)
            result, why = ledger.read_result(folder, job_hash, job.tests)
            if result is None:
                raise RuntimeError(f"the worker ended without a whole {ledger.RESULT} {why}")
        except claims.LostClaim as error:
            raise Busy from error
        except Exception as error:
            _fence(folder)
            ledger.write_failure(folder, last_lines(error))
            raise
    return result


def _fence(folder: Path) -> None:
    """Say nothing about a job that is another's now, however this attempt at it ended."""
    try:
        claims.check(folder)
    except claims.LostClaim as lost:
        raise Busy from lost


def insist(sweep: Path, job: Job, worker: str = WORKER) -> dict[str, Any]:
    """Run a job as `attempt` does, also one whose claim turns out to be dead.

    Raises:
        Busy: a process that is alive has the job.
    """
    folder = ledger.job_folder(sweep, job.hash)
    try:
        return attempt(sweep, job, worker)
    except Busy:
        first, watch = claims.read(folder), claims.Watch()
        if first.released or claims.is_locked(folder):
            raise
        print(f"{folder}: is {first.owner or 'its last owner'} still alive?", file=sys.stderr)
        while (over := watch.dead(folder)) is None:
            if claims.is_locked(folder) or claims.read(folder).text != first.text:
                raise
            time.sleep(claims.BEAT / 5)
    return attempt(sweep, job, worker, over)


def last_lines(error: BaseException, lines: int = 15) -> str:
    """Return what to tell of an exception: a user's error as it is, else the traceback's end."""
    if isinstance(error, UserError):
        return str(error)
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-lines:])


def in_child(
    sweep: str, job: Job, worker: str, environment: Mapping[str, str], over: int | None = None
) -> None:
    """Run a job as the whole life of a forked process, all output in the job's log.

    Args:
        sweep: the sweep's folder.
        job: what to run.
        worker: see `resolve`.
        environment: variables to set, among them the GPUs that it may use.
        over: see `attempt`.
    """
    os.setsid()  # a group of its own: ended as a whole, and deaf to the terminal's Ctrl-C
    _die_with_runner()
    os.environ.update(environment)
    folder = ledger.job_folder(Path(sweep), job.hash)
    try:
        if not Path(sweep).is_dir():  # do not make a lost folder anew where it was mounted
            raise FileNotFoundError(f"{sweep} is gone")
        folder.mkdir(parents=True, exist_ok=True)
        _redirect(folder / ledger.LOG)
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}", flush=True)
        attempt(Path(sweep), job, worker, over, lambda: os._exit(LOCKED))
    except Busy:
        sys.exit(LOCKED)
    except Exception as error:
        code = DISK_FULL if _disk_full(error) else FAILED
        try:
            traceback.print_exc()
            sys.stderr.flush()
        except OSError:
            pass
        sys.exit(code)


def _redirect(log: Path) -> None:
    """Send output to the log at the level of file descriptors, so that C libraries' goes too."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(file=2)


def _die_with_runner() -> None:
    """End this process and its helpers when the runner or the fork server between them ends.

    The server does not end with the runner: it lives as long as any process that it forked.
    """
    runner = multiprocessing.parent_process()
    assert runner is not None

    def watch() -> None:
        runner.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error) or "disk full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
