"""Following jobs that an engine runs, by the ledger and not by what the engine says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from da_leukemia.config import Job
from da_leukemia.sweep import claims, ledger
from da_leukemia.sweep.ledger import State
from da_leukemia.sweep.progress import Progress

SETTLE = 3
"""Looks without a result after a job left its engine: shared folders show files late."""


def follow(
    jobs: Mapping[str, Job],
    sweep: Path,
    held: Callable[[], set[str]],
    reason: Callable[[str], str],
    poll: float,
) -> dict[str, str]:
    """Wait until every job is done or has left its engine; return last lines of those that failed.

    Args:
        jobs: trainings by hash that are with the engine.
        sweep: the sweep's folder.
        held: says which of them the engine queues or runs.
        reason: says what the engine knows about one that left without a verdict of its own.
        poll: seconds between looks.

    Raises:
        UserError: the sweep's folder is gone.
    """
    home, failures = ledger.Home(sweep), dict[str, str]()
    stamps = {h: ledger.failure_stamp(ledger.job_folder(sweep, h)) for h in jobs}
    left, gone, watch = dict(jobs), dict[str, int](), claims.Watch()
    with Progress(len(jobs), 0, idle="queued") as progress:
        while left:
            home.check()
            there = held()  # before the ledger: a job writes its result, then leaves
            running = []
            for job_hash, job in list(left.items()):
                folder = ledger.job_folder(sweep, job_hash)
                standing = ledger.examine(sweep, job, job_hash)
                failed = (
                    standing.state is State.FAILED
                    and ledger.failure_stamp(folder) != stamps[job_hash]
                )
                alive = standing.state is State.RUNNING
                if alive and job_hash not in there:  # where the engine lost it, or elsewhere
                    alive = watch.dead(folder) is None
                if alive:
                    running.append((job, folder))
                if standing.state is State.DONE or (failed and job_hash not in there):
                    del left[job_hash]
                    if failed:
                        failures[job_hash] = standing.note
                    progress.finished(job, None, failed=failed, where="on the cluster")
                elif job_hash in there or alive:
                    gone.pop(job_hash, None)
                else:
                    gone[job_hash] = gone.get(job_hash, 0) + 1
                    if gone[job_hash] >= SETTLE:
                        del left[job_hash]
                        failures[job_hash] = reason(job_hash)
                        progress.finished(job, None, failed=True, where="on the cluster")
            progress.show(running)
            if left:
                time.sleep(poll)
    return failures
