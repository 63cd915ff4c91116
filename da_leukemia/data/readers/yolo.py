"""Any folder of images with YOLO text files, such as TXL-PBC (Gan et al., Sci Data 12:1694).

Rows are ``class x y width height``, centre and size as shares of the image. Class names come from
``data.yaml``, ``classes.txt`` or ``obj.names``, or in the order of ids from the setting `classes`.
An empty text file says that there is no cell; an image without text file says nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.readers.assemble import RawCell, RawField, assemble, unread_noted
from da_leukemia.data.readers.boxes import header_size, shares_to_box, unreadable
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.readers.labelfile import number_rows, parse_number, read_text
from da_leukemia.data.readers.source import DomainSource
from da_leukemia.data.readers.tree import (
    Pairing,
    child,
    domain_folder,
    pairings,
    released_split,
    subfolders,
    zipped,
)
from da_leukemia.errors import DataError, counted
from da_leukemia.labels import LabelSpace

NAME_FILES = (
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "classes.txt",
    "classes.names",
    "obj.names",
    "_darknet.labels",
)
"""Where class names are looked for: in the domain's folder and with its labels."""


def list_domains(root: Path) -> list[str]:
    """Return the root's own name or the subfolders with YOLO labels."""
    if _is_yolo(root):
        return [root.resolve().name]
    return [p.name for p in subfolders(root) if _is_yolo(p)]


def read(source: DomainSource, space: LabelSpace) -> FieldIndex:
    """Read one domain.

    Raises:
        DataError: no images, no class names, or two lists of class names that differ.
    """
    log = FindingLog()
    folder = domain_folder(source)
    chosen = source.labels if source.labels not in ("", "auto") else "labels"
    if chosen != "labels" and child(folder, chosen) is None:
        raise DataError(
            f"{folder / chosen}: no such folder of labels; correct "
            f"data.domains.{source.domain}.annotations"
        )
    pairs = pairings(folder, chosen)
    if not any(p.images for p in pairs):
        raise DataError(
            f"{folder}: no images in images/, train/images, or beside text files; correct "
            f"data.domains.{source.domain}.root"
        )
    labelled = any(p.labels for p in pairs)
    if not labelled:
        zipped(folder, source.domain, log)
    names = class_names(folder, source, pairs) if labelled else {}
    parts = [p.part for p in pairs]
    raw: list[RawField] = []
    for pair in pairs:
        split = released_split(pair.part, parts)
        everything = [(image, None) for image in pair.images.values()]
        for image, label_file in pair.matched(folder, log) if labelled else everything:
            shown = image.relative_to(folder).as_posix()
            size = header_size(image)
            if size is None:
                log.add("unreadable_image", unreadable(image, shown))
                continue
            item = RawField(image, shown, size, split=split)
            if label_file is not None:
                with unread_noted(item, log):
                    item.cells = _cells(label_file, folder, size, names, log)
            raw.append(item)
    listed = tuple(names.values())
    return assemble(source, space, folder, raw, log, listed=listed, labelled=labelled)


def class_names(folder: Path, source: DomainSource, pairs: list[Pairing]) -> dict[int, str]:
    """Return class names by id.

    Raises:
        DataError: there are none, they cannot be read, or two files disagree.
    """
    beside = {p.parent for pair in pairs for p in (pair.labels or {}).values()}
    places = [folder, *sorted(beside | {p.parent for p in beside if p != folder})]
    found = [p / n for p in dict.fromkeys(places) for n in NAME_FILES if (p / n).is_file()]
    lists = {path: _names_in(path) for path in found}
    lists = {path: names for path, names in lists.items() if names}
    if lists:
        first = next(iter(lists))
        for path, names in lists.items():
            # labelImg writes its own default classes first: a wrong list shifts every label.
            if names != lists[first]:
                raise DataError(
                    f"{path}: other class names than {first} ({names} and {lists[first]}); remove "
                    "the wrong file"
                )
        return lists[first]
    if source.classes is not None:
        return dict(enumerate(source.classes))
    raise DataError(
        f"{folder}: YOLO labels without class names; write classes.txt (one name per line, in the "
        f"order of the ids), or set data.domains.{source.domain}.classes: [name of 0, name of 1]"
    )


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which it would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [getattr(key, "value", None) for key, _ in node.value]
        if twice := next((k for k in keys if isinstance(k, str) and keys.count(k) > 1), None):
            raise yaml.YAMLError(f"the key {twice[:40]!r} comes twice")
        return super().construct_mapping(node, deep)


def _names_in(path: Path) -> dict[int, str]:
    text = read_text(path)
    if path.suffix not in (".yaml", ".yml"):
        lines = [line.strip() for line in text.rstrip().split("\n")]
        return {i: line for i, line in enumerate(lines) if line}
    try:
        content = yaml.load(text, _UniqueKeys)
    except Exception as e:  # damaged YAML raises far more than YAMLError
        reason = " ".join(str(e).split())[:200]
        raise DataError(f"{path}: cannot be read as YAML ({reason}); repair it") from None
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return {}
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(
        str(k).isascii() and str(k).isdigit() and isinstance(v, str) for k, v in names.items()
    ):
        raise DataError(f"{path}: names: expected a list of names, or id: name, in quotes")
    count = content.get("nc")
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{path}: nc says {count} classes, names has {len(names)}; correct one")
    return {int(str(k)[:9]): v.strip() for k, v in names.items()}


def _cells(
    path: Path, folder: Path, size: tuple[int, int], names: dict[int, str], log: FindingLog
) -> list[RawCell]:
    cells = []
    shown = path.relative_to(folder).as_posix()
    for line, values in number_rows(path, shown, log):
        where = f"{shown}: line {line}"
        if len(values) != 5:
            polygon = len(values) > 6 and len(values) % 2
            log.add(
                "unreadable_record",
                f"{where}: {counted(len(values), 'column')}, not 5"
                f"{' (an outline?)' if polygon else ''}",
            )
            continue
        name = names.get(int(values[0])) if values[0] == int(values[0]) else None
        if name is None:
            log.add("unknown_class_id", f"{where}: {values[0]:g}")
            continue
        cells.append(RawCell(shares_to_box(values[1:], size), name, where))
    return cells


def _is_yolo(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    pairs = pairings(folder)
    if not any(p.images and p.labels for p in pairs):
        return False
    beside = {p.parent for pair in pairs for p in (pair.labels or {}).values()}
    places = {folder, *beside, *(p.parent for p in beside if p != folder)}
    return any((p / n).is_file() for p in places for n in NAME_FILES) or _has_rows(pairs)


def _has_rows(pairs: list[Pairing]) -> bool:
    """Tell whether text files of images hold boxes: without class names they may be anything."""
    for pair in pairs:
        for path in [p for stem, p in (pair.labels or {}).items() if stem in pair.images][:3]:
            with path.open("rb") as file:
                row = file.readline(4096).decode("ascii", "replace").split()
            values = [parse_number(word) for word in row]
            if len(values) == 5 and all(v is not None and 0 <= v <= 1 for v in values[1:]):
                return True
    return False
