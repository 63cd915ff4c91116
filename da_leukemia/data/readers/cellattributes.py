"""Tables of attributes beside single cells: WBCAtt (Tsutsui et al., NeurIPS 2023).

``pbc_attr_v1_train.csv`` and its kin: a row per image, ``img_name`` and a column per attribute.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from da_leukemia.data.fields import IntArray
from da_leukemia.data.readers.boxes import MISSING
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.labels import LabelSpace, normalise

_KEY = "img_name"
_PARTS = (("train", "train"), ("val", "train"), ("test", "test"))
_TOLD = frozenset({_KEY, "label", "path"})


class AttributeRow(NamedTuple):
    """Attributes of one image.

    Attributes:
        codes: ``(A,)`` codes, -1 where missing.
        part: released part, from the name of the table.
        where: file and line.
    """

    codes: IntArray
    part: str
    where: str


def attribute_tables(folder: Path, space: LabelSpace, log: FindingLog) -> dict[str, AttributeRow]:
    """Read every table with a column ``img_name`` below a folder, by image name in lower case.

    Args:
        folder: of the data set.
        space: its attributes are looked for; without any, only the released parts are read.
        log: receives values and columns that the space does not have.
    """
    found: dict[str, AttributeRow] = {}
    for path in sorted(folder.rglob("*.csv")):
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                header = reader.fieldnames or []
                if _KEY not in header:
                    continue
                part = next((p for name, p in _PARTS if name in path.stem.lower()), "")
                columns = _columns(header, space, path.name, log)
                for row in reader:
                    where = f"{path.name}: line {reader.line_num}"
                    codes = np.full(len(space.attributes), MISSING, np.int64)
                    for column, attribute in columns.items():
                        codes[attribute] = _code(row.get(column), space, attribute, where, log)
                    name = Path(row[_KEY] or "").name.lower()
                    found[name] = AttributeRow(codes, part, where)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            log.add("unreadable_label_file", f"{path.name}: {error}")
    return found


def _columns(
    header: Sequence[str], space: LabelSpace, shown: str, log: FindingLog
) -> dict[str, int]:
    columns = {}
    for name in header:
        column = space.find_attribute(name)
        if column is not None:
            columns[name] = column
        elif space.attributes and name not in _TOLD:
            log.add("attribute_unknown", f"{shown}: {name}")
    return columns


def _code(value: str | None, space: LabelSpace, attribute: int, where: str, log: FindingLog) -> int:
    told = space.attributes[attribute]
    wanted = normalise(value or "")
    for code, name in enumerate(told.values):
        if normalise(name) == wanted:
            return code
    kind = "attribute_out_of_range" if wanted else "attribute_missing"
    log.add(kind, f"{where}: {told.name} {value!r}")
    return MISSING
