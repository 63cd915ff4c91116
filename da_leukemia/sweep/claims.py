"""Who works on a job, on folders that several machines share.

On one machine the kernel knows best: a lock on ``job.lock`` ends with its process. Across machines
locks are often private to each (NFS with ``nolock``, Lustre with ``localflock``, FUSE, SMB), so a
job is also claimed by files:

- ``claims/000007`` is made by a hard link, where there are none with O_EXCL; shared file systems
  keep both exclusive. Whoever makes the highest number owns the job. Numbers are never used again,
  so of two runners that both find a claim dead, one gets the next number, and a runner that comes
  back sees that it lost.
- Its owner rewrites it every `BEAT` seconds. It is dead when it stayed the same through `MISSED`
  looks, each at least a beat after the one before. Clocks of two machines are never compared, and
  an observer that was itself asleep, or cut off from the server, has not looked.
- A process that could not beat in time, because it was paused, asks before it writes (`check`).

Free of torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

FOLDER, LOCK = "claims", "job.lock"

BEAT = 10.0
"""Seconds between signs of life."""

MISSED = 6
"""Looks without a sign of life after which a claim is dead."""

_LENGTH = 512
"""Characters of a claim's file."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LostClaim(Exception):
    """Another runner took the job over, because this process gave no sign of life for too long."""


def machine() -> str:
    """Return what is the same for all processes of one running kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"


def now() -> float:
    """Return seconds that go on while this process is stopped, and while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


# --- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the claim with the highest number says.

    Attributes:
        number: of the claim; 0 where there is none.
        text: its content, which changes with each sign of life.
        owner: host and process, for people.
        machine: see `machine`.
        device: the file system as that machine numbers it; None where the text cannot be read.
        released: the owner has ended.
        silent: seconds since the last sign of life, by the clock of the file server.
    """

    number: int = 0
    text: str = ""
    owner: str = ""
    machine: str = ""
    device: int | None = None
    released: bool = True
    silent: float = 0.0


def read(folder: Path) -> Claim:
    """Return the claim on a job."""
    numbers = _numbers(folder)
    while numbers:
        path = _path(folder, numbers[-1])
        try:
            text = path.read_text(encoding="utf-8")
            written = path.stat().st_mtime
        except FileNotFoundError:  # removed by the maker of a higher one
            numbers = _numbers(folder)
            continue
        content: Any = None
        with contextlib.suppress(ValueError):
            content = json.loads(text)
        if not isinstance(content, dict):  # being written, or its writer died in the act
            return Claim(numbers[-1], text, released=False)
        return Claim(
            numbers[-1],
            text,
            str(content.get("owner", "")),
            str(content.get("machine", "")),
            content.get("device"),
            bool(content.get("released")),
            max(0.0, time.time() - written),
        )
    return Claim()


def _numbers(folder: Path) -> list[int]:
    try:
        return sorted(int(f.name) for f in (folder / FOLDER).iterdir() if f.name.isdigit())
    except FileNotFoundError:
        return []


def _path(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:06d}"


def holder(folder: Path) -> Claim | None:
    """Return who works on a job, None where nobody does.

    A claim of another machine counts until it is released: whether it is dead takes several looks
    (see `Watch`).
    """
    locked = is_locked(folder)
    claim = read(folder)
    if locked:
        return claim
    return None if claim.released or _dead_here(folder, claim) else claim


def _dead_here(folder: Path, claim: Claim) -> bool:
    """Whether an unlocked job's claim is of this machine: the kernel dropped the lock with it."""
    if claim.machine != machine() or not _locks_work(folder):
        return False
    try:
        return claim.device == folder.stat().st_dev
    except OSError:
        return False


class Watch:
    """Finds out which claims are dead, by looking at them again and again."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Claim, float, int]] = {}
        self._alive: set[Path] = set()

    def dead(self, folder: Path) -> int | None:
        """Look at a job that `holder` says is claimed.

        Returns:
            The number of its claim where that is dead, else None.
        """
        time_now = now()
        claim, looked, same = self._seen.get(folder, (Claim(-1), 0.0, 0))
        if claim.number >= 0 and time_now - looked < BEAT:
            return None
        current = read(folder)
        if is_locked(folder) or (current.number, current.text) != (claim.number, claim.text):
            self._seen[folder] = (current, time_now, 0)
            if claim.number >= 0:
                self._alive.add(folder)
            return None
        self._seen[folder] = (current, time_now, same + 1)
        return current.number if same + 1 >= MISSED else None

    def lives(self, folder: Path) -> bool:
        """Return whether a process of this machine, or signs of life, were seen by `dead`."""
        return is_locked(folder) or folder in self._alive


# --- locks -----------------------------------------------------------------------------------


def is_locked(folder: Path) -> bool:
    """Return whether a live process of this machine holds the job's lock."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return False


def _locks_work(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _lock(file: TextIO, patience: float) -> bool:
    """Take the lock, or say that another process has it. True also where there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise
        else:
            return True


# --- holding ---------------------------------------------------------------------------------


@dataclass
class Held:
    """A claim that this process owns.

    Attributes:
        folder: the job's.
        number: of the claim.
        on_loss: called by the heart's thread when the claim is lost.
    """

    folder: Path
    number: int
    on_loss: Callable[[], None] | None = None
    _beats: int = 0
    _last: float = 0.0
    _lost: bool = False
    _end: threading.Event = field(default_factory=threading.Event)
    _one: threading.Lock = field(default_factory=threading.Lock)

    def _text(self, released: bool) -> str:
        """Return what the file says, always of one length: it is written over, never cut."""
        content = {
            "owner": f"{socket.gethostname()} process {os.getpid()}",
            "machine": machine(),
            "device": self.folder.stat().st_dev,
            "beat": self._beats,
            "released": released,
        }
        return json.dumps(content).ljust(_LENGTH)

    def take(self) -> bool:
        """Make the claim; False if another process was faster."""
        path = _path(self.folder, self.number)
        path.parent.mkdir(exist_ok=True)
        if not self._made(path):
            return False
        self._last = now()
        for number in _numbers(self.folder):
            if number < self.number:
                _path(self.folder, number).unlink(missing_ok=True)
        return True

    def _made(self, path: Path) -> bool:
        """Write the claim's file; False if it is there.

        It appears with its text: of an empty one, whose writer was killed in the act, nobody could
        tell whether the writer lives, and the job would wait for `MISSED` beats.
        """
        draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            draft.write_text(self._text(released=False), encoding="utf-8")
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here: FAT, some shares
                return self._made_empty_first(path)
            return True
        finally:
            draft.unlink(missing_ok=True)

    def _made_empty_first(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._text(released=False))
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise
        return True

    def beat(self, released: bool = False) -> None:
        """Give a sign of life.

        Raises:
            LostClaim: the job is another's now.
        """
        with self._one:
            started = now()
            path = _path(self.folder, self.number)
            self._lost = self._lost or _numbers(self.folder)[-1:] != [self.number]
            if not self._lost:
                self._beats += 1
                try:  # without O_CREAT: nothing comes back that was removed
                    with path.open("r+", encoding="utf-8") as file:
                        file.write(self._text(released))
                    self._last = started
                except FileNotFoundError:
                    self._lost = True
            if self._lost:
                raise LostClaim(f"{self.folder}: taken over by another runner")

    def check(self) -> None:
        """Make sure, before something is written, that the job is still this process's.

        Costs a look at the clock while the heart beats in time.

        Raises:
            LostClaim: the job is another's now.
        """
        if self._lost or now() - self._last > 2 * BEAT:
            self.beat()

    def start(self) -> None:
        """Beat in a thread until `stop`."""
        threading.Thread(target=self._live, daemon=True, name="heart").start()

    def stop(self) -> None:
        """End the thread and release the claim, if it is still ours."""
        self._end.set()
        with contextlib.suppress(LostClaim, OSError):
            self.beat(released=True)

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            try:
                self.beat()
            except LostClaim as error:
                print(f"stopped: {error}", file=sys.stderr, flush=True)
                if self.on_loss is not None:
                    self.on_loss()
                return
            except OSError as error:  # a full disk or a lost folder: the next beat may succeed
                print(f"no sign of life could be given: {error}", file=sys.stderr, flush=True)


_held: dict[Path, Held] = {}


@contextmanager
def hold(
    folder: Path,
    patience: float = 0.3,
    over: int | None = None,
    on_loss: Callable[[], None] | None = None,
) -> Iterator[bool]:
    """Own a job for as long as the block runs; gives False if another process does.

    Args:
        folder: the job's folder, created where needed.
        patience: seconds to keep asking for the lock: `is_locked` holds it for an instant.
        over: number of a claim that was found dead (see `Watch`).
        on_loss: called from another thread when the claim is lost to another machine.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if not _lock(file, patience):
            yield False
            return
        before = read(folder)
        if not (before.released or before.number == over or _dead_here(folder, before)):
            yield False
            return
        held = Held(folder, before.number + 1, on_loss)
        if not held.take():
            yield False
            return
        key = folder.absolute()
        held.start()
        _held[key] = held
        try:
            yield True
        finally:
            del _held[key]
            held.stop()


def check(folder: Path) -> None:
    """Make sure that a job claimed by this process is still its own; others pass.

    Raises:
        LostClaim: the job is another's now.
    """
    held = _held.get(folder.absolute())
    if held is not None:
        held.check()
