"""What was read once: indexes of domains and leak audits, kept in a cache folder.

An entry counts only while every file of the domain has the size and the times that it had when
the entry was made, and while the code that read it is the same. A cache that cannot be read or
written costs time, never a result: the data are then read as if there were none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia import __version__
from da_leukemia.data.fields import FieldIndex, FieldOfView, Finding
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.data.splits import Split, audit
from da_leukemia.errors import DataError
from da_leukemia.files import write_whole
from da_leukemia.labels import LabelSpace

_LOG = logging.getLogger(__name__)

MOST_ENTRIES = 500
"""Entries of a kind that are kept; the ones that were not used for longest go first."""

_PACKAGE = Path(__file__).resolve().parent.parent


def code_version(paths: Iterable[Path]) -> str:
    """Hash source files, so that nobody has to remember to raise a number."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# Taken when this module is loaded: a process that lives on must not store what its old readers
# found under the version of new ones.
_READERS = code_version(
    [
        *(_PACKAGE / "data" / "readers").glob("*.py"),
        _PACKAGE / "data" / "fields.py",
        _PACKAGE / "labels.py",
        Path(__file__),
    ]
)
_AUDIT = code_version([_PACKAGE / "data" / "splits.py", Path(__file__)])


def cache_folder(setting: str) -> Path | None:
    """Return the folder that ``data.cache_dir`` means, None where caches are switched off.

    Args:
        setting: a folder, "" for none, "auto" for ``$XDG_CACHE_HOME/da_leukemia`` (by default
            ``~/.cache/da_leukemia``).
    """
    if not setting:
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the standard: a relative one is to be ignored
        return base / "da_leukemia"
    try:
        return Path.home() / ".cache" / "da_leukemia"
    except RuntimeError:  # a user without a home
        return None


def file_state(path: str | Path) -> str:
    """Return what changes with a file's content: size and times of last change, "gone" without it.

    The time of change in the file system counts too: copying tools restore the other one.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  # half the time of Path.stat for many files
    except (OSError, ValueError):
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def read_cached(
    source: DomainSource, fmt: str, space: LabelSpace, folder: Path | None
) -> FieldIndex:
    """Read all fields of a domain, from the cache where its files have not changed.

    Args:
        source: where the domain lies.
        fmt: a name in ``readers.READERS``.
        space: label space into which it is read.
        folder: of the caches; None reads the files.

    Returns:
        What `read_domain` returns, findings included.

    Raises:
        ConfigError: unknown format or setting.
        DataError: the domain or a label file cannot be read. Nothing is stored then.
    """
    places = _places(source, fmt)
    if folder is None or not places:
        return read_domain(source, fmt, space)
    told = repr((source, Path.cwd() / source.root, fmt, space, _READERS))
    name = f"{file_name(source.domain)}-{hashlib.sha256(told.encode()).hexdigest()[:24]}.npz"
    entry = folder / "index" / name
    # Before reading: what changes meanwhile makes the entry useless, not wrong.
    fingerprint = _fingerprint(places, folder)
    index = _load(entry, fingerprint)
    if index is None:
        index = read_domain(source, fmt, space)
        outside = [str(f.image) for f in index.fields if not _is_below(f.image, places)]
        # An image that is missing elsewhere may turn up there without a change to the listing.
        missing = any(f.kind == "missing_image" for f in index.findings)
        if index.fields and not (outside and missing):
            store(entry, _pack(index, fingerprint, {p: file_state(p) for p in outside}))
    return index


def audit_once(split: Split, indexes: Sequence[FieldIndex], folder: Path | None) -> list[str]:
    """Return the leaks that `splits.audit` finds, remembered while no file changes.

    Raises:
        DataError: an image is gone.
    """
    digest = hashlib.sha256(f"{_AUDIT} {split.fingerprint}".encode())
    for field in (f for index in indexes for f in index.fields):
        state = file_state(field.image)
        if state == "gone":
            raise DataError(f"{field.image}: the image is missing; run `da-leukemia data check`")
        line = f"\n{field.key}\0{field.group}\0{Path.cwd() / field.image}\0{state}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    entry = None if folder is None else folder / "audit" / f"{digest.hexdigest()[:32]}.json"
    if entry is not None:
        try:
            found = json.loads(entry.read_text("utf-8"))
            _used(entry)
            return [str(problem) for problem in found["problems"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not audited yet, or unreadable: audited now
    problems: list[str] = []
    try:
        audit(split, indexes)
    except DataError as error:
        problems = error.problems
    if entry is not None:
        store(entry, json.dumps({"problems": problems}).encode())
    return problems


# --- which files an entry rests on ---------------------------------------------------------------


def _places(source: DomainSource, fmt: str) -> list[Path]:
    """Return the folders that a reader may look into, none where that is not known."""
    root = source.root
    if fmt == "leukemiaattri" and root.is_dir():
        # Its root holds all domains; a change in one must not make the others be read again.
        same = [p for p in root.iterdir() if p.name.lower() == source.domain.lower()]
        return sorted(same) or [root]
    # Around labels that lie elsewhere, readers look for images and class names.
    return [root] if _is_below(root / source.labels, [root]) else []


def _is_below(path: Path, places: Sequence[Path]) -> bool:
    return ".." not in path.parts and any(p == path or p in path.parents for p in places)


def _fingerprint(places: Sequence[Path], caches: Path) -> str:
    """Hash the names of all files below, their sizes and times. Links are followed."""
    digest = hashlib.sha256()
    for place in places:
        for line in sorted(_listing(place, caches)):
            digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _listing(place: Path, caches: Path) -> list[str]:
    if not place.is_dir():
        return [f"{place}\0{file_state(place)}"]
    # Caches may lie beside the data; what they hold is not a part of it.
    entered = {(s.st_dev, s.st_ino) for s in [caches.stat()]} if caches.is_dir() else set()
    lines: list[str] = []
    waiting = [str(place)]
    while waiting:
        folder = waiting.pop()
        try:
            found = os.stat(folder)  # noqa: PTH116
            if (found.st_dev, found.st_ino) in entered:  # also a link to a folder above
                continue
            entered.add((found.st_dev, found.st_ino))
            lines.append(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(entry.path)
                    else:
                        lines.append(f"{entry.path}\0{file_state(entry.path)}")
        except OSError as error:  # a folder that may not be opened, or has just gone
            lines.append(f"{folder}\0{error.errno}")
    return lines


def file_name(domain: str) -> str:
    """Return the name of a domain as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", domain)[:60]


# --- one entry -----------------------------------------------------------------------------------

_ARRAYS = ("boxes", "labels", "attributes")
_PLAIN = tuple(f.name for f in dataclasses.fields(FieldOfView) if f.name not in _ARRAYS)


def _pack(index: FieldIndex, fingerprint: str, outside: dict[str, str]) -> bytes:
    """Write an index as ``.npz`` without pickle: arrays end to end, the rest as JSON."""
    text = {
        "fingerprint": fingerprint,
        "outside": outside,
        "domain": index.domain,
        "findings": [dataclasses.asdict(f) for f in index.findings],
        "fields": {n: [getattr(f, n) for f in index.fields] for n in _PLAIN},
    }
    written = json.dumps(text, default=_as_json, separators=(",", ":")).encode()
    arrays = {n: np.concatenate([getattr(f, n) for f in index.fields]) for n in _ARRAYS}
    counts = np.array([len(f.labels) for f in index.fields], dtype=np.int64)
    file = io.BytesIO()
    np.savez(
        file,
        text=np.frombuffer(written, np.uint8),
        counts=counts,
        boxes=arrays["boxes"],
        labels=arrays["labels"],
        attributes=arrays["attributes"],
    )
    return file.getvalue()


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no JSON form of {type(value).__name__}")


def _load(entry: Path, fingerprint: str) -> FieldIndex | None:
    """Return the index of an entry, None where there is none or it is out of date."""
    try:
        with np.load(entry, allow_pickle=False) as content:
            text: dict[str, Any] = json.loads(content["text"].tobytes())
            if text["fingerprint"] != fingerprint:
                return None
            if any(file_state(path) != state for path, state in text["outside"].items()):
                return None
            index = _unpack(text, content["counts"], {n: content[n] for n in _ARRAYS})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # zip, zlib, numpy and JSON each have their own for damage
        _LOG.warning("%s: cannot be read (%s); the labels are read again", entry, error)
        return None
    _used(entry)
    return index


def _unpack(
    text: dict[str, Any], counts: NDArray[np.int64], arrays: dict[str, NDArray[Any]]
) -> FieldIndex:
    ends = np.cumsum(counts)
    if any(len(a) != int(counts.sum()) for a in arrays.values()):
        raise ValueError("its arrays are of different lengths")
    parts = {name: np.split(array, ends[:-1]) for name, array in arrays.items()}
    columns = {name: text["fields"][name] for name in _PLAIN}
    rows = zip(*columns.values(), *parts.values(), strict=True)
    names = (*columns, *parts)
    fields = []
    for row in rows:
        values = dict(zip(names, row, strict=True))
        values["image"] = Path(values["image"])
        values["labelled_classes"] = tuple(values["labelled_classes"])
        regions = values["annotated_regions"]
        values["annotated_regions"] = regions and tuple(tuple(r) for r in regions)
        fields.append(FieldOfView(**values))
    findings = (Finding(**{**f, "examples": tuple(f["examples"])}) for f in text["findings"])
    return FieldIndex(text["domain"], tuple(fields), tuple(findings))


# --- files ---------------------------------------------------------------------------------------


def store(entry: Path, content: bytes) -> None:
    """Keep an entry and forget the ones that were not used for longest; a full disk only warns."""
    try:
        write_whole(entry, content)
        kept = sorted(entry.parent.iterdir(), key=_last_used, reverse=True)
        for old in kept[MOST_ENTRIES:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _say_unwritable(entry.parent, str(error))


@functools.cache
def _say_unwritable(folder: Path, problem: str) -> None:
    """Say once per process that nothing can be kept."""
    _LOG.warning("%s: no cache can be written (%s); set data.cache_dir", folder, problem)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed by another job
        return 0.0


def _used(entry: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's cache, or gone meanwhile
        os.utime(entry)
