"""What is done, judged by the job folders alone.

A job is done when its folder holds a whole ``result.json`` for it, whoever ran it and whatever an
engine says. It runs while a live process claims it (see `claims`).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from da_leukemia import __version__
from da_leukemia.config import Experiment, Job, save_experiment, save_job
from da_leukemia.errors import UserError
from da_leukemia.files import replacing
from da_leukemia.sweep import claims, partial
from da_leukemia.sweep.plan import unique

RESULT, FAILURE, LOG, PROGRESS = "result.json", "error.txt", "log.txt", "progress.json"
PLAN_VERSION, RESULT_VERSION = 1, 1


class State(enum.StrEnum):
    """Where a job stands."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True)
class Standing:
    """A job's state with what belongs to it.

    Attributes:
        state: where it stands.
        note: why it is not done, its progress, or nothing.
        result: the content of ``result.json`` when done.
    """

    state: State
    note: str = ""
    result: dict[str, Any] | None = None


def job_folder(sweep: Path, job_hash: str) -> Path:
    """Return the folder of a job in a sweep's folder."""
    return sweep / "jobs" / job_hash


# --- writing ---------------------------------------------------------------------------------


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what a user can put right about writing ``path`` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"disk full: cannot write {path}; what is done is kept: "
                "free some space and run again"
            ) from error
        if error.errno in (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOTCONN):
            raise UserError(f"cannot write {path}: folder lost ({error.strerror})") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        raise


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path and put the file written there in place of ``path`` at once."""
    with written(path), replacing(path) as temporary:
        yield temporary


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON so that a reader sees the old file or the whole new one.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
        LostClaim: it is in the folder of a job that another runner took over from this process.
    """
    for folder in (path.parent, path.parent.parent):
        claims.check(folder)
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_job(folder: Path, job: Job) -> None:
    """Write a job's ``config.yaml``, the worker's order."""
    with _replacing(folder / "config.yaml") as temporary:
        save_job(job, temporary)


class Home:
    """The sweep's folder as it was when the run began: the same one, and with room to write.

    A share that is unmounted leaves an empty folder behind, in which a sweep would begin anew.
    """

    ROOM = 16 * 2**20
    """Bytes that must fit: less than one checkpoint."""

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        with written(sweep):
            sweep.mkdir(parents=True, exist_ok=True)
            self._is = self._look()

    def _look(self) -> int | None:
        try:
            return self._sweep.stat().st_ino  # the device's number may change when mounted again
        except OSError:
            return None

    def check(self) -> None:
        """Make sure that the folder is still there.

        Raises:
            UserError: it is gone, or another one is in its place.
        """
        if self._look() != self._is:
            raise UserError(
                f"{self._sweep}: this folder was lost during the run (unmounted, moved, removed?); "
                "what was done is where the folder is now. Bring it back and run again"
            )

    def check_room(self) -> None:
        """Make sure that something can still be written.

        Raises:
            UserError: the disk is full.
        """
        self.check()
        with written(self._sweep), tempfile.TemporaryFile(dir=self._sweep) as file:
            file.write(bytes(self.ROOM))
            file.flush()


def entry(job: Job, job_hash: str) -> dict[str, Any]:
    """Return what names an entry of the matrix, and its job."""
    return {
        "method": job.method_name,
        "source": job.source,
        "target": job.target,
        "seed": job.seed,
        "job": job_hash,
    }


def write_plan(experiment: Experiment, entries: Iterable[tuple[Job, str]]) -> None:
    """Write ``plan.json`` and the resolved ``experiment.yaml`` into the sweep's folder.

    Args:
        experiment: complete.
        entries: the plan's jobs with their hashes.
    """
    content = {
        "version": PLAN_VERSION,
        "entries": [entry(job, job_hash) for job, job_hash in entries],
        "experiment": asdict(experiment),
    }
    write_json(experiment.folder / "plan.json", content)
    with _replacing(experiment.folder / "experiment.yaml") as temporary:
        save_experiment(experiment, temporary)


# --- reading ---------------------------------------------------------------------------------


def _read_json(path: Path, reader: partial.Reader = json.loads) -> Any:
    try:
        text = path.read_bytes()
        if reader is not json.loads:
            with contextlib.suppress(msgspec.MsgspecError, KeyError, TypeError, AttributeError):
                return reader(text)  # what is not as expected, `json` reads or refuses
        return json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return False


def read_result(
    folder: Path, job_hash: str, tests: Iterable[str], reader: partial.Reader = json.loads
) -> tuple[dict[str, Any] | None, str]:
    """Return a job's result, or None and the reason why the file there does not count.

    Args:
        folder: of the job.
        job_hash: of the job.
        tests: devices on which it must have been tested.
        reader: reads a part of it where not all is wanted.

    Raises:
        UserError: it was written in another format, so it can be neither used nor replaced.
    """
    content = _read_json(folder / RESULT, reader)
    if content is None:
        return None, ""
    if not isinstance(content, dict) or not isinstance(content.get("tests"), dict):
        return None, f"{RESULT} is half-written and will be made again"
    version = content.get("version", RESULT_VERSION)
    if version != RESULT_VERSION:
        raise UserError(
            f"{folder / RESULT}: written in format {version}, da_leukemia {__version__} reads "
            f"format {RESULT_VERSION}. Go on with the version that wrote it, or use another name="
        )
    if content.get("job") != job_hash:
        return None, f"{RESULT} is of job {content.get('job')} and will be made again"
    missing = missing_tests(content["tests"], tests)
    return (None, missing) if missing else (content, "")


def missing_tests(there: Collection[str], wanted: Iterable[str]) -> str:
    """Say on which devices a job is still to be tested; nothing where on none."""
    missing = [name for name in wanted if name not in there]
    return f"still to be tested on {', '.join(missing)}" if missing else ""


def read_failure(folder: Path) -> str | None:
    """Return the last lines of a failed attempt, or None."""
    try:
        return (folder / FAILURE).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def read_progress(folder: Path) -> str:
    """Return how far a running job is, for people: ``45%``, ``testing``, or nothing."""
    content = _read_json(folder / PROGRESS)
    try:
        if content["phase"] == "test":
            return "testing"
        return f"{100 * int(content['step']) // int(content['steps'])}%"
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        return ""


def _runs(folder: Path, holder: claims.Claim) -> str:
    said = [read_progress(folder)]
    if holder.machine != claims.machine() and holder.owner:
        said.append(f"on {holder.owner}")
        if holder.silent > claims.MISSED * claims.BEAT:
            said.append(f"no sign of life for {holder.silent:.0f} s")
    return ", ".join(filter(None, said))


def examine(sweep: Path, job: Job, job_hash: str | None = None) -> Standing:
    """Return where a job stands."""
    job_hash = job_hash or job.hash
    folder = job_folder(sweep, job_hash)
    result, note = read_result(folder, job_hash, job.tests)
    if result is not None:
        return Standing(State.DONE, result=result)
    return examine_unfinished(folder, note)


def examine_unfinished(folder: Path, note: str) -> Standing:
    """Return where a job stands that is not done.

    Args:
        folder: of the job.
        note: why the result that is there does not count.
    """
    if not folder.is_dir():
        return Standing(State.WAITING, note)
    holder = claims.holder(folder)
    if holder is not None:
        return Standing(State.RUNNING, _runs(folder, holder))
    failure = read_failure(folder)
    if failure is not None:
        return Standing(State.FAILED, failure)
    if not note and any((folder / "checkpoints").glob("*.ckpt")):
        note = "interrupted; goes on from its checkpoint"
    return Standing(State.WAITING, note)


def collect(sweep: Path, jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Return the results of the entries that are done, each under its entry's method name.

    Without what no report shows (see `partial.lean`); `read_result` gives them whole.
    """
    jobs, shared = list(jobs), _Shared()
    found: dict[str, dict[str, Any]] = {}
    for job_hash, job in unique(jobs).items():
        folder = job_folder(sweep, job_hash)
        reader = partial.lean(job.target, tuple(job.tests))
        result, _ = read_result(folder, job_hash, job.tests, reader)
        if result is not None:
            found[job_hash] = shared.slim(result)
    return [{**found[j.hash], "method": j.method_name} for j in jobs if j.hash in found]


class _Shared:
    """Has results share what is equal in them: settings, versions, devices."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Any]] = {}

    def slim(self, result: dict[str, Any]) -> dict[str, Any]:
        config = result.get("config")
        if isinstance(config, dict):
            result["config"] = {k: self._one(f"config.{k}", v) for k, v in config.items()}
        return {
            key: self._one(key, value) if key not in ("tests", "config") else value
            for key, value in result.items()
        }

    def _one(self, key: str, value: Any) -> Any:
        if not isinstance(value, dict | list):
            return value
        seen = self._seen.setdefault(key, [])
        for other in seen:
            if other == value:
                return other
        if len(seen) < 64:
            seen.append(value)
        return value


# --- locks and failures ----------------------------------------------------------------------


@contextmanager
def hold(
    folder: Path,
    patience: float = 0.3,
    over: int | None = None,
    on_loss: Callable[[], None] | None = None,
) -> Iterator[bool]:
    """Own a job for as long as the block runs; gives False if another process does.

    Arguments as of `claims.hold`.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        with written(folder / claims.LOCK):
            held = stack.enter_context(claims.hold(folder, patience, over, on_loss))
        yield held


def failure_stamp(folder: Path) -> int | None:
    """Return what changes when a job fails anew, None where it has not failed."""
    try:
        return (folder / FAILURE).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def write_failure(folder: Path, text: str) -> None:
    """Leave the last lines of a failed attempt."""
    with _replacing(folder / FAILURE) as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")


def clear_attempt(folder: Path) -> None:
    """Forget the failure and the progress of an earlier attempt."""
    for name in (FAILURE, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def log_tail(folder: Path, lines: int = 15) -> str:
    """Return the last lines of a job's log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def count(standings: Mapping[str, Standing]) -> dict[State, int]:
    """Return how many jobs are in each state."""
    return {state: sum(s.state is state for s in standings.values()) for state in State}
