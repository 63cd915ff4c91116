"""Where images and labels lie below a folder, without regard to case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.data.readers.boxes import IMAGE_SUFFIXES
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.errors import DataError, no_such_folder

PARTS = ("train", "val", "valid", "validation", "test")
_VALIDATION = PARTS[1:4]

_NO_LABELS = frozenset(
    (*PARTS, "trainval", "classes", "names", "notes", "readme", "readme.dataset", "readme.roboflow")
)
"""Stems of text files that lie beside label files and are none, unless an image is called so."""


@dataclass(frozen=True)
class Pairing:
    """A folder of images and the folder with their label files.

    Attributes:
        part: "train", "val", ... as the folder is called, "" where there are no parts.
        images: images by stem in lower case, sorted.
        labels: label files by stem in lower case, sorted; None where there is no folder of labels.
        twins: images and label files whose stem an earlier one has (``a.png`` beside ``a.jpg``).
    """

    part: str
    images: dict[str, Path]
    labels: dict[str, Path] | None
    twins: tuple[Path, ...] = ()

    def matched(self, folder: Path, log: FindingLog) -> list[tuple[Path, Path]]:
        """Return images with their label files in the order of the images; report the rest."""
        labels = self.labels or {}
        for stem, path in labels.items():
            if stem not in self.images:
                log.add("missing_image", f"{path.relative_to(folder).as_posix()}: no image")
        for image in [*(p for s, p in self.images.items() if s not in labels), *self.twins]:
            kind = "image_not_in_labels" if image.suffix.lower() != ".txt" else "missing_image"
            log.add(kind, image.relative_to(folder).as_posix())
        return [(p, labels[s]) for s, p in self.images.items() if s in labels]


def child(folder: Path, *parts: str) -> Path | None:
    """Descend by folder name without regard to case; the exact spelling wins."""
    for part in parts:
        if (folder / part).exists():
            folder = folder / part
            continue
        if not folder.is_dir():
            return None
        same = sorted(p for p in folder.iterdir() if p.name.lower() == part.lower())
        if not same:
            return None
        folder = same[0]
    return folder


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly below ``folder``, sorted; none where it is no folder."""
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def domain_folder(source: DomainSource) -> Path:
    """Return the folder of a domain: ``root/domain`` where there is one, else ``root``.

    Raises:
        DataError: there is no such folder.
    """
    found = child(source.root, source.domain)
    if found is not None and found.is_dir():
        return found
    if source.root.is_dir():
        return source.root
    raise DataError(no_folder(source))


def no_folder(source: DomainSource) -> str:
    """Say that a domain's folder is not there."""
    return (
        f"{no_such_folder(source.root)}; correct data.domains.{source.domain}.root (it is relative "
        "to data.root, and the name of the device where it is not set)"
    )


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted; none where it is no folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES)


def by_stem(paths: Iterable[Path]) -> tuple[dict[str, Path], tuple[Path, ...]]:
    """Return files by stem in lower case, and those whose stem an earlier one has."""
    first: dict[str, Path] = {}
    twins = tuple(p for p in paths if first.setdefault(p.stem.lower(), p) is not p)
    return first, twins


def pairings(folder: Path, labels: str = "labels") -> list[Pairing]:
    """Find images and their text files in any of the usual layouts.

    ``images/train`` and ``labels/train``, ``train/images`` and ``train/labels``, both without
    parts, or text files beside the images.
    """
    found: list[Pairing] = []
    seen: set[Path] = set()
    inner = Path(labels).parts
    for part in ("", *PARTS):
        tail = (part,) if part else ()
        for images, texts in (
            (("images", *tail), (*inner, *tail)),
            ((*tail, "images"), (*tail, *inner)),
            (tail, tail),
        ):
            place = child(folder, *images)
            pictures, twins = by_stem(images_in(place) if place and place not in seen else ())
            text_place = child(folder, *texts)
            fresh = text_place is not None and text_place not in seen
            files = _texts(text_place, pictures) if text_place is not None and fresh else None
            if not pictures and (not files or images == texts):
                continue
            if place is not None and not files and (beside := _texts(place, pictures)):
                files = beside
            if images == texts and not files:
                continue  # a folder of images alone, such as an overview beside the data
            seen |= {p for p in (place, text_place) if p is not None}
            labelled, more = by_stem(files or ())
            found.append(Pairing(part, pictures, None if files is None else labelled, twins + more))
    return found


def _texts(folder: Path, images: dict[str, Path]) -> list[Path] | None:
    if not folder.is_dir():
        return None
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".txt")
    return [p for p in found if p.stem.lower() in images or _is_label(p)]


def _is_label(path: Path) -> bool:
    return path.stem.lower() not in _NO_LABELS


def released_split(part: str, parts: list[str]) -> str:
    """Return "train" or "test" of a part; validation is the test where there is no other."""
    if part in _VALIDATION:
        return "train" if "test" in parts else "test"
    return part


def zipped(folder: Path, domain: str, log: FindingLog) -> None:
    """Report archives in and directly below a folder that has no labels."""
    for archive in sorted([*folder.glob("*.zip"), *folder.glob("*/*.zip")]):
        log.add("zipped_labels", f"{domain}: {archive.relative_to(folder).as_posix()}")
