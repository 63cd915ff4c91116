"""Published numbers that a report prints ours beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from da_leukemia.bounds import number
from da_leukemia.errors import did_you_mean


@dataclass
class PublishedRow:
    """Numbers of one training and one test device; one that is absent was not published."""

    train: str = ""  # device of the experiment, or several as `a+b`; empty: the row's name
    test: str = ""  # empty: the device that was trained on
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> system -> number


@dataclass
class Published:
    """One published table, ``configs/published/NAME.yaml``."""

    source: str = ""  # citation, and how the numbers were read
    note: str = ""  # what to know before comparing
    scale: float = number(1.0, above=0)  # theirs = scale x ours: 100 where they are per cent
    digits: int = number(1, least=0)  # decimals of both
    systems: dict[str, str] = field(default_factory=dict)  # name in `numbers` -> as it is printed
    rows: dict[str, PublishedRow] = field(default_factory=dict)  # by the training device, or a name


def check_published(
    tables: Mapping[str, Published], devices: Mapping[str, object], metrics: tuple[str, ...]
) -> list[str]:
    """Return every problem of the tables of an experiment.

    Args:
        tables: by name.
        devices: those of the experiment; a row of another one is left out of the report.
        metrics: that a result can have.
    """
    found = []
    for name, table in tables.items():
        where = f"published_tables.{name}"
        if not table.source.strip():
            found.append(f"{where}.source: empty; say where the numbers were published")
        for row, content in table.rows.items():
            at = f"{where}.rows.{row}.numbers"
            found += [
                f"{at}: unknown metric {metric!r}{did_you_mean(metric, metrics)}"
                for metric in content.numbers
                if metric not in metrics
            ]
            found += [
                f"{at}.{metric}.{system}: expected a number, got {number}; leave out what was not "
                "published"
                for metric, numbers in content.numbers.items()
                for system, number in numbers.items()
                if not math.isfinite(number)
            ]
        trained = [train.split("+") for train, _ in places(table).values()]
        if not any(all(device in devices for device in train) for train in trained):
            rows = ", ".join(table.rows) or "there is none"
            found.append(
                f"{where}.rows: none is trained on a device of the experiment "
                f"({', '.join(devices)}): {rows}"
            )
    return found


def places(table: Published) -> dict[str, tuple[str, str]]:
    """Return the training and the test device of each row."""
    found = {}
    for name, row in table.rows.items():
        train = row.train or name
        found[name] = train, row.test or train
    return found
