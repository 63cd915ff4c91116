"""What results say of themselves, kept so that 20,000 of them are counted without being parsed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger
from da_leukemia.sweep.ledger import Standing, State

NAME = "index.json"
"""In the sweep's folder. May be removed at any time: it is made again."""


class Entry(NamedTuple):
    """A whole result.

    Attributes:
        changed: time of its last change, ns; with the size, what tells it from another one.
        size: bytes.
        version: its format.
        took: seconds that the job took.
        tests: devices that it was tested on.
    """

    changed: int
    size: int
    version: int
    took: float
    tests: list[str]


class Index:
    """Finds out where jobs stand, reading only results that are new or changed.

    Args:
        sweep: the sweep's folder.
    """

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._known: dict[str, Entry] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            stored = json.loads((sweep / NAME).read_text(encoding="utf-8"))
            self._known = {h: Entry(*entry) for h, entry in stored.items()}

    def entry(self, job_hash: str) -> Entry | None:
        """Return what is known of a job that `examine` found done."""
        return self._known.get(job_hash)

    def examine(self, job_hash: str, tests: Iterable[str]) -> Standing:
        """Return where a job stands, without its result.

        Args:
            job_hash: of the job.
            tests: devices that it is to be tested on.

        Raises:
            UserError: a result in another format.
        """
        folder = ledger.job_folder(self._sweep, job_hash)
        try:
            found = (folder / ledger.RESULT).stat()
        except OSError:
            return ledger.examine_unfinished(folder, "")
        known = self._known.get(job_hash)
        stamp = (found.st_mtime_ns, found.st_size)
        if known is None or known[:2] != stamp or known.version != ledger.RESULT_VERSION:
            result, note = ledger.read_result(folder, job_hash, ())
            if result is None:
                return ledger.examine_unfinished(folder, note)
            timings: Mapping[str, Any] = result.get("timings") or {}
            took = float(timings.get("total_s", 0.0))
            known = Entry(*stamp, ledger.RESULT_VERSION, took, list(result["tests"]))
            self._known[job_hash] = known
            self._changed = True
        missing = ledger.missing_tests(known.tests, tests)
        if missing:
            return ledger.examine_unfinished(folder, missing)
        return Standing(State.DONE)

    def save(self) -> None:
        """Keep what was read, where that can be written."""
        if self._changed:
            with contextlib.suppress(OSError, UserError):
                ledger.write_json(self._sweep / NAME, self._known, indent=None)
            self._changed = False
