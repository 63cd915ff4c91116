"""A sweep as it runs, redrawn on the terminal. Free of torch."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from da_leukemia.config import Experiment
from da_leukemia.errors import INTERRUPTED
from da_leukemia.sweep.index import Index
from da_leukemia.sweep.ledger import Standing, State
from da_leukemia.sweep.plan import label, make_plan, unique
from da_leukemia.sweep.status import failures_text, summary

EVERY = 2.0
"""Seconds between pictures."""

WINDOW = 3600.0
"""Seconds over which the throughput is measured."""

RECHECK = 30.0
"""Seconds between looks at jobs that were done, which may be opened again."""


class Watcher:
    """Where the jobs of a plan stand, read anew only as far as needed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.jobs = unique(make_plan(experiment))
        self.standings: dict[str, Standing] = {}
        self.ended: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self._index = Index(experiment.folder)
        self._checked = -RECHECK

    def look(self) -> None:
        """Read the ledger."""
        every = time.monotonic() - self._checked >= RECHECK
        if every:
            self._checked = time.monotonic()
        for job_hash, job in self.jobs.items():
            before = self.standings.get(job_hash)
            done = before is not None and before.state is State.DONE
            if done and not every:
                continue
            standing = self._index.examine(job_hash, job.tests)
            entry = self._index.entry(job_hash)
            if standing.state is State.DONE and entry is not None:
                self.ended[job_hash], self.took[job_hash] = entry.changed / 1e9, entry.took
            self.standings[job_hash] = standing
        self._index.save()

    def picture(self, now: float, lines: int = 40) -> str:
        """Return what there is to see.

        Args:
            now: seconds since 1970.
            lines: of the terminal; what does not fit is counted.
        """
        jobs, by_state = self.jobs, self.standings
        running = [(jobs[h], s.note) for h, s in by_state.items() if s.state is State.RUNNING]
        failures = {h: s.note for h, s in by_state.items() if s.state is State.FAILED}
        left = sum(s.state in (State.RUNNING, State.WAITING) for s in by_state.values())
        done = sum(s.state is State.DONE for s in by_state.values())
        head = [summary(self.experiment, by_state), _bar(done, len(jobs))]
        head.append(pace(self.ended, self.took, left, now))
        shown = max(1, lines - 8)
        body = []
        if failures:
            told = failures_text(self.experiment.folder, jobs, failures).splitlines()
            room = shown // 2 if running else shown
            body += [*told[:room], *([f"  ... {len(told) - room} more lines"] * (len(told) > room))]
        if running:
            room = max(1, shown - len(body))
            body.append("running:")
            body += [f"  {label(job)}  {note}".rstrip() for job, note in running[:room]]
            body += [f"  ... and {len(running) - room} more"] * (len(running) > room)
        return "\n".join([*head, "", *body])

    @property
    def finished(self) -> bool:
        """Whether every job is done."""
        return all(s.state is State.DONE for s in self.standings.values())


def pace(ended: Mapping[str, float], took: Mapping[str, float], left: int, now: float) -> str:
    """Return throughput and time left, from when results were written.

    Args:
        ended: seconds since 1970 at which jobs ended, by hash.
        took: seconds that they took.
        left: jobs that run or wait; failed ones wait for the next run.
        now: seconds since 1970.
    """
    recent = {h: t for h, t in ended.items() if now - t <= WINDOW}
    if not recent:
        return "no job ended in the last hour" if left else ""
    first = min(t - took.get(h, 0.0) for h, t in recent.items())
    span = max(1.0, now - max(first, now - WINDOW))
    rate = len(recent) / span
    text = f"{3600 * rate:.3g} jobs an hour"
    return f"{text}, {duration(left / rate)} left" if left else text


def duration(seconds: float) -> str:
    """Return seconds for people: ``45 s``, ``12 min``, ``3 h 20 min``, ``4 d 3 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _bar(done: int, total: int, width: int = 40) -> str:
    filled = width * done // max(1, total)
    return f"|{'#' * filled}{'-' * (width - filled)}| {100 * done // max(1, total)}%"


def watch(experiment: Experiment, again: str, stream: TextIO | None = None) -> int:
    """Show a sweep until all of it is done; without a terminal, a picture whenever it changes.

    Args:
        experiment: the sweep.
        again: the command that runs it.
        stream: where to draw.

    Returns:
        0 when all is done, 130 after Ctrl-C.
    """
    out, shown = stream or sys.stdout, ""
    watcher = Watcher(experiment)
    try:
        while True:
            watcher.look()
            size = shutil.get_terminal_size()
            text = watcher.picture(time.time(), size.lines if out.isatty() else 40)
            if out.isatty():
                text = "\n".join(_cut(text.splitlines(), size.columns))
                print(f"\x1b[H\x1b[2J{text}", end="", file=out, flush=True)
            elif _still(text) != shown:
                print(f"{text}\n", file=out, flush=True)
            shown = _still(text)
            if watcher.finished:
                print("\nall done", file=out)
                return 0
            time.sleep(EVERY)
    except KeyboardInterrupt:
        print(f"\nto go on: {again}", file=out)
        return INTERRUPTED


def _cut(lines: Sequence[str], columns: int) -> list[str]:
    return [line[: max(1, columns - 1)] for line in lines]


def _still(text: str) -> str:
    """Return a picture without the line of the pace, which changes with the clock."""
    lines = text.splitlines()
    return "\n".join(lines[:2] + lines[3:])
