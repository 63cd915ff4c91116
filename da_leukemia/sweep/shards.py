"""A part of a sweep, for machines that share nothing but its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from da_leukemia.config import Job
from da_leukemia.errors import UserError
from da_leukemia.sweep.plan import label


def shard(jobs: Mapping[str, Job], which: str) -> dict[str, Job]:
    """Return the i-th of n parts of a plan; parts differ by at most one job, also in each kind.

    Which part a job is in follows from the hashes of the whole plan, not from what is done. A plan
    that grew is divided anew; claims keep that safe.

    Args:
        jobs: trainings by hash.
        which: ``i/n`` with 1 <= i <= n.

    Raises:
        UserError: ``which`` is no such thing.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", which.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard: expected i/n with 1 <= i <= n, e.g. 2/8, got {which!r}")
    part, parts = int(found[1]) - 1, int(found[2])
    # Adapting costs about twice as much as learning from the source alone.
    order = sorted(jobs, key=lambda h: (jobs[h].target is not None, h))
    mine = set(order[part::parts])
    return {h: job for h, job in jobs.items() if h in mine}


def named(jobs: Mapping[str, Job], hashes: Iterable[str]) -> dict[str, Job]:
    """Return the jobs of some hashes, of which the first characters suffice.

    Raises:
        UserError: no job, or several, begin like that.
    """
    chosen = {}
    for wanted in hashes:
        fitting = [h for h in jobs if h.startswith(wanted)]
        if len(fitting) != 1:
            several = ", ".join(f"{h} ({label(jobs[h])})" for h in fitting[:5])
            why = f"fits several jobs: {several}" if fitting else "is no job of this plan"
            raise UserError(f"--job: {wanted!r} {why}; see `da-leukemia sweep plan`")
        chosen[fitting[0]] = jobs[fitting[0]]
    return chosen
