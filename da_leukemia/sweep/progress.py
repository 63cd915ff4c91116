"""What runs and what is left, on the terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from da_leukemia.config import Job
from da_leukemia.sweep import ledger
from da_leukemia.sweep.plan import label

HEARTBEAT = 60.0
"""Seconds between lines about what runs where there is no terminal."""


class Progress:
    """A bar on a terminal, else a line when a job ends and one a minute about what runs."""

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO | None = None,
        idle: str = "waiting for another runner",
    ) -> None:
        self._idle = idle
        self._stream = stream or sys.stderr
        self._total, self._ended, self._failed = total, done, 0
        self._spoken = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                file=self._stream,
                ncols=_columns(),
                nrows=2,  # of a terminal that gives its height as 0, too
                bar_format="{n}/{total} |{bar:20}| {elapsed} ({remaining} left)  {desc}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def finished(
        self,
        job: Job,
        seconds: float | None,
        *,
        failed: bool = False,
        where: str = "by another runner",
    ) -> None:
        """Count a job. ``seconds`` is None for one that ended elsewhere."""
        self._ended += 1
        self._failed += failed
        verdict = "FAILED" if failed else "done"
        took = where if seconds is None else f"{seconds:.0f} s"
        line = f"[{self._ended}/{self._total}] {verdict} {label(job)} ({took})"
        if self._bar is None:
            self._say(line)
            return
        self._bar.update()
        if failed:
            self._bar.write(line, file=self._stream)

    def show(self, running: Sequence[tuple[Job, Path]]) -> None:
        """Say what runs: jobs with their folders."""
        due = time.monotonic() - self._spoken > HEARTBEAT
        if self._bar is None and not due:
            return
        jobs = [f"{label(job)} {ledger.read_progress(folder)}".strip() for job, folder in running]
        what = ", ".join(jobs) or self._idle
        if self._bar is None:
            self._say(f"[{self._ended}/{self._total}] running: {what}")
            return
        self._bar.ncols = _columns()
        failed = f"{self._failed} failed, " if self._failed else ""
        self._bar.set_description_str(f"{failed}{what}")

    def _say(self, line: str) -> None:
        self._spoken = time.monotonic()
        print(line, file=self._stream, flush=True)


def _columns() -> int:
    return shutil.get_terminal_size().columns - 1  # some terminals say 0, where tqdm falls silent
