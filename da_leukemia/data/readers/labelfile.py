"""Label files as they come: decoded, parsed and refused with the place of the fault."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.errors import DataError

LARGEST = 1e6
"""No coordinate of a photograph is larger; a larger number is a damaged file."""

_NUMBER = re.compile(
    r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE
)


def read_text(path: Path) -> str:
    r"""Read a UTF-8 text file with or without a byte-order mark, line ends as ``\n``.

    Raises:
        DataError: the file cannot be opened, is an archive, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e}); check the path") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
    if raw.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}: the file is a zip archive; unpack it in this folder")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        column = e.start - raw.rfind(b"\n", 0, e.start)
        raise DataError(
            f"{path}: line {line}, column {column}: not UTF-8 text; save the file as UTF-8 or "
            "copy it again"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number_rows(path: Path, where: str, log: FindingLog) -> Iterator[tuple[int, list[float]]]:
    """Yield line number and values of every row of a text file of numbers; empty lines are none.

    Args:
        path: the text file.
        where: its name in findings.
        log: receives rows that are not numbers, or hold one that no label can have.

    Raises:
        DataError: the file is no text.
    """
    for line, row in enumerate(read_text(path).split("\n"), start=1):
        values = []
        for match in re.finditer(r"\S+", row):
            token, column = match.group(), match.start() + 1
            value = parse_number(token)
            if value is None or not abs(value) <= LARGEST:  # NaN too
                what = "number" if value is None else "coordinate or code"
                log.add(
                    "unreadable_record",
                    f"{where}: line {line}: column {column}: {token[:40]!r} is no {what}",
                )
                break
            values.append(value)
        else:
            if values:
                yield line, values


def parse_number(token: str) -> float | None:
    """Return a written number, NaN and infinity included, or None where it is none."""
    # float() alone would take "1_0" for 10.
    return float(token) if _NUMBER.fullmatch(token) else None


class Ambiguous(dict[str, Any]):
    """A JSON object with keys that come twice: nobody knows which of their values is meant.

    Attributes:
        repeated: how often each of these keys comes.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = {k: n for k, n in Counter(k for k, _ in pairs).items() if n > 1}

    def __str__(self) -> str:
        """Say what is wrong."""
        return f"the key {next(iter(self.repeated))[:40]!r} comes twice"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; in it, objects with a key twice are `Ambiguous`.

    It may hold NaN and infinity, which `number` refuses record by record.

    Raises:
        DataError: not JSON, or not an object; says where.
    """
    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as e:
        at_end = e.pos >= len(text.rstrip()) or "Unterminated" in e.msg
        cause = "the file ends too early; copy it again" if at_end else "repair or export it again"
        raise DataError(f"{path}: line {e.lineno}, column {e.colno}: {e.msg}; {cause}") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read as JSON ({e}); export it again") from None
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: line 1, column 1: expected a JSON object with images, annotations and "
            f"categories, found {type(data).__name__}"
        )
    return data


def records(data: dict[str, Any], key: str, path: Path) -> list[Any]:
    """Return the list under ``key``.

    Raises:
        DataError: it is missing or no list.
    """
    value = data.get(key)
    if isinstance(value, list):
        return value
    found = "is missing" if key not in data else f"is {type(value).__name__}, not a list"
    raise DataError(f"{path}: the entry {key!r} {found}; a COCO label file needs it")


def number(value: object) -> float | None:
    """Return a JSON value as a coordinate, or None where it is no number a photograph can have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # None for NaN too


def identity(value: object) -> int | str | None:
    """Return an id of an image, annotation or category, or None where it cannot be one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of a key that comes twice json keeps the last value, which would lose a label.
    record = dict(pairs)
    return record if len(record) == len(pairs) else Ambiguous(pairs)
