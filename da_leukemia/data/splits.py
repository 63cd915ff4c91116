"""Who is learned from and who is tested on: splits by patient over all devices at once.

A patient photographed through two devices shows the same cells twice. For source -> target work
a split inside each domain therefore leaks; here a patient is in one part everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from da_leukemia.data.balance import FIELDS, Balance, Stratum
from da_leukemia.data.fields import FieldIndex, FieldOfView, Finding
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.errors import ConfigError, DataError, did_you_mean

PARTS = ("train", "validation", "test")

_ATTEMPTS = 20
"""Orders that are tried while a stratum lacks a part; with few, shared patients none may do."""

ClassesOf = Callable[[FieldOfView], Iterable[int]]
"""Tells the class of every cell of a field that a stratified split counts."""


@dataclass(frozen=True)
class Split:
    """A part for every group, or for every field where a release divides patients.

    Attributes:
        parts: ``FieldOfView.group`` (or ``FieldOfView.key``) -> "train", "validation" or "test".
        unit: "group" or "field": what the keys of ``parts`` are.
    """

    parts: Mapping[str, str]
    unit: str = "group"

    def __post_init__(self) -> None:
        if self.unit not in ("group", "field") or not set(self.parts.values()) <= set(PARTS):
            raise DataError("a split needs the unit 'group' or 'field' and the parts " + str(PARTS))
        object.__setattr__(self, "parts", dict(sorted(self.parts.items())))

    def part_of(self, field: FieldOfView) -> str:
        """Return the part of a field.

        Raises:
            DataError: the split was made without this field.
        """
        key = field.group if self.unit == "group" else field.key
        if key not in self.parts:
            raise DataError(f"{field.key}: not in the split; make the split from the present data")
        return self.parts[key]

    def select(self, index: FieldIndex, part: str) -> FieldIndex:
        """Return the fields of one part, in the order of ``index``.

        Raises:
            ConfigError: there is no such part.
            DataError: a field is not in the split.
        """
        if part not in PARTS:
            raise ConfigError(f"unknown part {part!r}{did_you_mean(part, PARTS)}")
        chosen = tuple(f for f in index.fields if self.part_of(f) == part)
        return FieldIndex(index.domain, chosen, index.findings)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any assignment."""
        rows = json.dumps([self.unit, sorted(self.parts.items())])
        return hashlib.sha256(rows.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the split as JSON text, the same for equal splits."""
        content = {
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "parts": dict(self.parts),
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Split:
        """Read what `to_json` wrote.

        Raises:
            DataError: it is no split or was changed by hand.
        """
        try:
            content = json.loads(text)
            split = cls(dict(content["parts"]), content["unit"])
            same = split.fingerprint == content["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"this is no split file ({e!r}); make the split again") from None
        if not same:
            raise DataError("the split file was changed after it was written; make it again")
        return split


def make_split(
    indexes: Sequence[FieldIndex],
    *,
    test: float,
    validation: float,
    seed: int,
    classes_of: ClassesOf | None = None,
) -> Split:
    """Divide all domains at once, keeping every group (patient) in one part.

    Groups are dealt in an order drawn from ``seed``, each to the part that brings every domain
    nearest to the wanted shares of fields; then groups are moved while that helps. The result
    depends on the data and the seed, not on the order of files or domains.

    With ``classes_of`` every class of a domain gets its shares of cells, too, and a class of three
    groups or more comes into every part unless the domain's shares would suffer (see `Balance`).

    Args:
        indexes: all domains of the experiment.
        test: wanted share of the fields of each domain in test.
        validation: wanted share in validation.
        seed: another seed gives another split.
        classes_of: what is counted of a field beside itself; below 0 is no class. None: nothing.

    Raises:
        ConfigError: the shares are not possible.
        DataError: there are no fields.
    """
    if not (test >= 0 and validation >= 0 and test + validation < 1):
        raise ConfigError(
            f"data.split: test={test} and validation={validation} must not be negative and must "
            "leave something to train on (sum below 1)"
        )
    groups: dict[str, dict[Stratum, int]] = defaultdict(lambda: defaultdict(int))
    for index in indexes:
        for f in index.fields:
            held = groups[f.group]
            held[f.domain, FIELDS] += 1
            for k in classes_of(f) if classes_of is not None else ():
                if k >= 0:
                    held[f.domain, k] += 1
    if not groups:
        raise DataError("no fields to split: every domain is empty")
    wanted = (1 - test - validation, validation, test)
    attempts: list[Balance] = []
    for attempt in range(_ATTEMPTS):
        salt = f"{seed}" if attempt == 0 else f"{seed}/{attempt}"
        order = sorted(groups, key=lambda g: hashlib.sha256(f"{salt}:{g}".encode()).digest())
        attempts.append(Balance(groups, wanted))
        attempts[-1].deal(order)
        if attempts[-1].settled:
            break
    balance = min(attempts, key=lambda b: b.cost)
    return Split({g: PARTS[p] for g, p in balance.part.items()})


def released_split(
    indexes: Sequence[FieldIndex],
    *,
    validation: float = 0.1,
    seed: int = 0,
    classes_of: ClassesOf | None = None,
) -> Split:
    """Take train and test as released, and carve validation out of train by patient.

    Between domains this leaks (see `leaks`); it is meant for repeating published numbers. What is
    carved is by class, too, with ``classes_of`` (see `make_split`).

    Raises:
        ConfigError: ``validation`` is not in [0, 1).
        DataError: a field has no released split.
    """
    missing = [f.key for i in indexes for f in i.fields if not f.released_split]
    if missing:
        raise DataError(
            f"{len(missing)} fields have no released split, e.g. {missing[0]}; use a split by "
            "patient for these domains"
        )
    train = [
        FieldIndex(i.domain, tuple(f for f in i.fields if f.released_split == "train"))
        for i in indexes
    ]
    if not any(len(i) for i in train):
        raise DataError("no field is released as train")
    carved = make_split(train, test=0.0, validation=validation, seed=seed, classes_of=classes_of)
    parts = {
        f.key: carved.part_of(f) if f.released_split == "train" else f.released_split
        for i in indexes
        for f in i.fields
    }
    return Split(parts, unit="field")


def leaks(indexes: Sequence[FieldIndex]) -> list[Finding]:
    """List patients that the release trains on in one domain and tests on in another (or the same).

    Returns:
        No finding or one, which counts patients.
    """
    where: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for index in indexes:
        for f in index.fields:
            if f.patient and f.released_split:
                where[f.patient][f.released_split].add(f.domain)
    log = FindingLog()
    for patient, seen in sorted(where.items()):
        if seen["train"] and seen["test"]:
            log.add(
                "patient_leak",
                f"patient {patient}: train in {', '.join(sorted(seen['train']))}; "
                f"test in {', '.join(sorted(seen['test']))}",
            )
    return list(log.findings())


def coverage(split: Split, indexes: Sequence[FieldIndex]) -> list[Finding]:
    """Report domains that have no field in a part, as with fewer than three patients."""
    log = FindingLog()
    for index in indexes:
        present = {split.part_of(f) for f in index.fields}
        for part in PARTS:
            if index.fields and part not in present and part in split.parts.values():
                log.add("split_empty_part", f"{index.domain}: no field in {part}")
    return list(log.findings())


def missing_classes(
    split: Split, index: FieldIndex, classes_of: ClassesOf
) -> dict[int, tuple[tuple[str, ...], int]]:
    """Return which classes of a domain have no cell to learn or none to test on.

    Returns:
        Class -> of "train" and "test" what lacks it, and the number of groups that hold it.
    """
    seen: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for f in index.fields:
        for k in set(classes_of(f)):
            if k >= 0:
                seen[k].add((split.part_of(f), f.group))
    missing = {}
    for k, found in sorted(seen.items()):
        there = {part for part, _ in found}
        if lacking := tuple(p for p in ("train", "test") if p not in there):
            missing[k] = lacking, len({group for _, group in found})
    return missing


def audit(split: Split, indexes: Sequence[FieldIndex]) -> None:
    """Refuse a split that leaks between its parts.

    Raises:
        DataError: a group is in two parts, or two parts hold an image with the same bytes; lists
            every case.
    """
    by_group: dict[str, dict[str, str]] = defaultdict(dict)
    by_size: dict[int, list[tuple[FieldOfView, str]]] = defaultdict(list)
    for index in indexes:
        for f in index.fields:
            part = split.part_of(f)
            by_group[f.group].setdefault(part, f.key)
            try:
                by_size[f.image.stat().st_size].append((f, part))
            except OSError as e:
                raise DataError(f"{f.image}: cannot be read ({e.strerror})") from None
    problems = [
        f"{group} is in {' and '.join(f'{p} ({k})' for p, k in sorted(seen.items()))}; split by "
        "patient"
        for group, seen in sorted(by_group.items())
        if len(seen) > 1
    ]
    for candidates in by_size.values():
        # Only files of one size can be equal, which spares reading nearly all of them.
        if len({part for _, part in candidates}) > 1:
            problems += _same_content(candidates)
    if problems:
        raise DataError(problems)


def _same_content(candidates: Sequence[tuple[FieldOfView, str]]) -> list[str]:
    by_content: dict[str, dict[str, str]] = defaultdict(dict)
    for f, part in candidates:
        digest = hashlib.sha1(f.image.read_bytes(), usedforsecurity=False).hexdigest()
        by_content[digest].setdefault(part, f.key)
    return [
        f"the same image is in {' and '.join(f'{p} ({k})' for p, k in sorted(seen.items()))}; "
        "remove one copy or give both the same patient"
        for _, seen in sorted(by_content.items())
        if len(seen) > 1
    ]
