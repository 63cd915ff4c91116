"""A folder of photographs without labels: a device that is only adapted to.

Every image below the folder is a field, however deep it lies; what begins with a dot is passed
over. Folders called ``train``, ``val`` and ``test`` are its released parts; without any, all is
training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import assemble, bare_fields
from da_leukemia.data.readers.boxes import IMAGE_SUFFIXES
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import (
    PARTS,
    domain_folder,
    images_in,
    released_split,
    subfolders,
)
from da_leukemia.labels import LabelSpace


def list_domains(root: Path) -> list[str]:
    """Return the root's own name where images lie in it, or the subfolders that hold some."""
    inner = (p for p in subfolders(root) if p.name.lower() in ("images", *PARTS))
    if images_in(root) or any(next(_images(p), None) for p in inner):
        return [root.resolve().name]
    return folders(root)


def folders(root: Path) -> list[str]:
    """Return the subfolders that hold images, at any depth."""
    found = (p for p in subfolders(root) if not p.name.startswith("."))
    return [p.name for p in found if next(_images(p), None)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one device.

    Raises:
        DataError: there is no such folder.
    """
    log = FindingLog()
    folder = domain_folder(source)
    found = sorted(_images(folder))
    above = {p: [part.lower() for part in p.relative_to(folder).parts[:-1]] for p in found}
    parts = sorted({name for names in above.values() for name in names} & set(PARTS))
    raw = list(bare_fields(found, folder, log))
    for item in raw:
        part = next((name for name in above[item.image] if name in PARTS), "")
        item.name = item.shown.removesuffix(item.image.suffix).removeprefix("images/")
        item.split = released_split(part, parts) if parts else "train"
    return assemble(source, space, folder, raw, log, labelled=False)


def _images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        ):
            yield path
