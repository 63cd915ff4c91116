"""One reader per on-disk format; each returns the same `FieldIndex`.

A new format is a module with ``read(source, space)`` and ``list_domains(root)`` and one line in
`READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers import (
    cells,
    coco,
    images,
    leukemiaattri,
    m5,
    raabin,
    sparse,
    voc,
    yolo,
)
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import ConfigError, did_you_mean
from da_leukemia.labels import LabelSpace

__all__ = [
    "READERS",
    "DomainSource",
    "Reader",
    "detect_format",
    "find_domains",
    "list_domains",
    "read_domain",
]


@dataclass(frozen=True)
class Reader:
    """How a format is read and how its domains are found below a root."""

    read: Callable[[DomainSource, LabelSpace], FieldIndex]
    list_domains: Callable[[Path], list[str]]


READERS: dict[str, Reader] = {
    "sparse": Reader(sparse.read, sparse.list_domains),
    "leukemiaattri": Reader(leukemiaattri.read, leukemiaattri.list_domains),
    "coco": Reader(coco.read, coco.list_domains),
    "m5": Reader(m5.read, m5.list_domains),
    "voc": Reader(voc.read, voc.list_domains),
    "yolo": Reader(yolo.read, yolo.list_domains),
    "raabin": Reader(raabin.read, raabin.list_domains),
    "cells": Reader(cells.read, cells.list_domains),
    "images": Reader(images.read, images.list_domains),
}
"""Formats by name, in the order in which they are tried by `detect_format`."""


def read_domain(source: DomainSource, fmt: str, space: LabelSpace) -> FieldIndex:
    """Read all fields of one domain.

    Args:
        source: where the domain lies.
        fmt: a name in `READERS`.
        space: label space into which classes and attributes are translated.

    Returns:
        The fields in the order of the label files, and every anomaly as a finding.

    Raises:
        ConfigError: unknown format or setting.
        DataError: the domain or a label file cannot be read.
    """
    return _reader(fmt).read(source, space)


def list_domains(root: Path, fmt: str) -> list[str]:
    """Return the domains below ``root``, sorted.

    Raises:
        ConfigError: unknown format.
    """
    return _reader(fmt).list_domains(Path(root))


def find_domains(root: Path) -> dict[str, str]:
    """Return the domains below ``root`` and their formats, sorted by name.

    Where the root itself is a domain, what lies below belongs to it. Otherwise every subfolder
    has the first format that finds something in it, at last `images`.
    """
    root = Path(root)
    listed = {fmt: reader.list_domains(root) for fmt, reader in READERS.items()}
    without = listed.pop("images")
    own = root.resolve().name
    for fmt, names in listed.items():
        if names == [own]:
            return {own: fmt}
    found: dict[str, str] = {}
    for fmt, names in listed.items():
        for name in names:
            found.setdefault(name, fmt)
    if found:
        # The devices of M5 are not called like their folders.
        inside = ("images", "annotations") if "m5" in found.values() else ()
        without = [name for name in images.folders(root) if name.lower() not in inside]
    return dict(sorted((dict.fromkeys(without, "images") | found).items()))


def detect_format(root: Path) -> str | None:
    """Return the first format that finds a domain below ``root``."""
    return next((name for name, r in READERS.items() if r.list_domains(Path(root))), None)


def _reader(fmt: str) -> Reader:
    if fmt not in READERS:
        raise ConfigError(f"data.format: unknown format {fmt!r}{did_you_mean(fmt, READERS)}")
    return READERS[fmt]
