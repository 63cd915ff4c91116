"""What results say of themselves, kept so that 20,000 of them are counted without being parsed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger, partial
from da_leukemia.sweep.ledger import Standing, State

NAME = "index.json"
"""In the sweep's folder. May be removed at any time: it is made again."""


class Entry(NamedTuple):
    """A whole result.

    Attributes:
        changed: time of its last change, ns.
        stamp: what tells the file from another one, see `_stamp`.
        version: its format.
        took: seconds that the job took.
        tests: devices that it was tested on, with the fingerprint of what it was tested on.
        data: what it was trained on, see `Facts.trained_on`.
    """

    changed: int
    stamp: tuple[int, int, int]
    version: int
    took: float
    tests: dict[str, str | None]
    data: dict[str, Any]


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    """Return what changes whenever a file is written or replaced, also where its times are set.

    No program sets the time of the last change of the inode, and a file that takes the place of
    another in the same tick of the clock has another inode.
    """
    return (found.st_ctime_ns, found.st_size, found.st_ino)


_decoder = msgspec.json.Decoder(dict[str, Entry])


class Index:
    """Finds out where jobs stand, reading only results that are new or changed.

    Args:
        sweep: the sweep's folder.
    """

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._known: dict[str, Entry] = {}
        self._changed = False
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = _decoder.decode((sweep / NAME).read_bytes())

    def entry(self, job_hash: str) -> Entry | None:
        """Return what is known of a job that `examine` found done."""
        return self._known.get(job_hash)

    def look(self, job_hash: str) -> tuple[Entry | None, str]:
        """Return what a job's result says of itself, or None and why there is none that counts.

        Raises:
            UserError: a result in another format.
        """
        folder = ledger.job_folder(self._sweep, job_hash)
        try:
            found = (folder / ledger.RESULT).stat()
        except OSError:
            return None, ""
        known = self._known.get(job_hash)
        if known is None or known.stamp != _stamp(found) or known.version != ledger.RESULT_VERSION:
            result, note = ledger.read_result(folder, job_hash, (), partial.brief)
            if result is None:
                return None, note
            timings: Mapping[str, Any] = result.get("timings") or {}
            known = Entry(
                changed=found.st_mtime_ns,
                stamp=_stamp(found),
                version=ledger.RESULT_VERSION,
                took=float(timings.get("total_s", 0.0)),
                tests={name: test.get("fingerprint") for name, test in result["tests"].items()},
                data=result.get("data") or {},
            )
            self._known[job_hash] = known
            self._changed = True
        return known, ""

    def examine(self, job_hash: str, tests: Iterable[str]) -> Standing:
        """Return where a job stands, without its result.

        Args:
            job_hash: of the job.
            tests: devices that it is to be tested on.

        Raises:
            UserError: a result in another format.
        """
        known, note = self.look(job_hash)
        if known is not None:
            note = ledger.missing_tests(known.tests, tests)
            if not note:
                return Standing(State.DONE)
        return ledger.examine_unfinished(ledger.job_folder(self._sweep, job_hash), note)

    def save(self) -> None:
        """Keep what was read, where that can be written."""
        if self._changed:
            with contextlib.suppress(OSError, UserError):
                ledger.write_json(self._sweep / NAME, self._known, indent=None)
            self._changed = False
