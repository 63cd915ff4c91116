"""A finished job as the matrix and the report see it: the content of its ``result.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """What a run is called in the matrix; ``target`` is empty for source-only."""

    method: str
    source: str
    target: str
    seed: int

    def __str__(self) -> str:
        goal = f" -> {self.target}" if self.target else ""
        return f"{self.method}: {self.source}{goal}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished job: the content of its ``result.json`` and the folder where it lies."""

    content: Mapping[str, Any]
    folder: Path | None = None

    @cached_property
    def run(self) -> Run:
        """Its name in the matrix."""
        c = self.content
        return Run(c["method"], c["source"], c.get("target") or "", int(c["seed"]))

    @property
    def job(self) -> str:
        """Content hash of the job."""
        return str(self.content["job"])

    def metrics(self, test: str) -> Mapping[str, Any]:
        """Scores on one test device."""
        metrics: Mapping[str, Any] = self.content["tests"][test]["metrics"]
        return metrics

    def looked_at(self, test: str) -> bool:
        """Whether the run was tested on a device, or left what it finds there without a score."""
        return test in self.content["tests"] or test in (self.content.get("label_free") or {})

    def records(self, test: str) -> Path | None:
        """File of the per-field records, None where it is not there."""
        name = self.content["tests"].get(test, {}).get("records")
        if self.folder is None or not name:
            return None
        path = os.path.join(self.folder, name)  # noqa: PTH118  (asked 100,000 times in a report)
        return Path(path) if os.path.isfile(path) else None  # noqa: PTH113
