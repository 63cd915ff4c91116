"""What a checkpoint says of the detector in it, so that it can be adapted with nothing else there.

Every finished job writes it into its ``last.ckpt``. Torch is loaded only to open a file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from da_leukemia.config.schema import CALIBRATED, devices_of
from da_leukemia.errors import ConfigError

KEY = "da_leukemia"
"""Entry of a checkpoint."""

AT_TEST = "da_leukemia_at_test"
"""Entry of a checkpoint: components that change the detector at every test, if there are any."""

FORMAT = 1

NO_CHECKPOINT = (
    "no checkpoint of ours, or a damaged one; expected the checkpoints/last.ckpt of a finished job"
)


@dataclass(frozen=True)
class Origin:
    """A trained detector, and what of its source it still has to know.

    Attributes:
        label_space: name.
        image_size: side of the network's input, px.
        detector: its settings.
        calibration: settings of the calibration that it was trained with.
        device: calibration of the device that it learned from (of several, of one whose scale is
            known), as `calibration.record.Calibration.to_dict`; None where none was used.
        classes: the cell types that its source labels.
        cells: labelled training cells by type; None where nobody counted.
        fields: training fields of the source.
        lookup: attributes by cell type (`evaluation.ClassLookup.to_dict`), None without attributes.
        licence: of the source's photographs and labels.
        history: the jobs that led to it, for people, the first one first.
    """

    label_space: str
    image_size: int
    detector: dict[str, Any]
    calibration: dict[str, Any]
    device: dict[str, Any] | None
    classes: list[str]
    cells: dict[str, int] | None
    fields: int | None
    lookup: dict[str, Any] | None
    licence: str
    history: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which torch loads with ``weights_only``."""
        told: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, **told}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: another format, or an entry too few or too many.
        """
        if told.get("format") != FORMAT:
            raise ValueError(f"written in format {told.get('format')!r}, expected {FORMAT}")
        names = {f.name for f in dataclasses.fields(cls)}
        given = {key: value for key, value in told.items() if key != "format"}
        if given.keys() != names:
            odd = ", ".join(sorted(given.keys() ^ names))
            raise ValueError(f"other entries than expected: {odd}")
        return cls(**given)

    @property
    def used(self) -> tuple[str, ...]:
        """What of the calibration it was trained with."""
        return tuple(name for name in CALIBRATED if self.calibration.get(name))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, computed again only when the file has changed.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    return _file_hash(path.resolve(), state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(64)
def _file_hash(path: Path, *state: int) -> str:
    del state
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_file(path: Path) -> str:
    """Say that a checkpoint is not there."""
    return "a folder; name the file in it" if path.is_dir() else "no such file"


def read_origin(path: Path, where: str = "checkpoints") -> Origin:
    """Read what a checkpoint says of itself.

    One that was written before checkpoints did is explained by the ``result.json`` of its job, if
    it still lies in the job's folder.

    Args:
        path: the file.
        where: what problems name.

    Raises:
        ConfigError: no such file, no checkpoint of ours, or one that says nothing.
    """
    try:
        return _read_origin(path.resolve(), file_hash(path))
    except OSError as error:
        raise ConfigError(f"{where}: {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {path}: {error}") from error


@functools.lru_cache(64)
def _read_origin(path: Path, digest: str) -> Origin:
    del digest  # so that another file at the same place is read anew
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content["state_dict"]
    except Exception as error:  # pickle, zip and key errors all mean the same here
        raise ValueError(NO_CHECKPOINT) from error
    if KEY in content:
        return Origin.from_dict(content[KEY])
    result = path.parent.parent / "result.json"
    try:
        return _from_result(json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            "does not say what detector it is: it is of an unfinished job, or of an earlier "
            f"version, which needs the job's {result.name} in the folder above ({error!r})"
        ) from error


def _from_result(result: Mapping[str, Any]) -> Origin:
    """Tell it from the result of the job; what its source labels, from the test on the source."""
    data, sources = result["config"]["data"], devices_of(result["source"])
    tested = [result["tests"][name]["metrics"]["per_class"] for name in sources]
    devices = [result["devices"][name] for name in sources if name in result["devices"]]
    return Origin(
        label_space=data["label_space"],
        image_size=data["image_size"],
        detector=result["config"]["detector"],
        calibration=data["calibration"],
        device=best_known(devices),
        classes=[c for c in result["classes"] if any(c in scores for scores in tested)],
        cells=None,
        fields=result["data"].get("train_fields"),
        lookup=result["attribute_lookup"],
        licence="; ".join(f"{n}: {data['domains'][n].get('licence') or '?'}" for n in sources),
        history=[history_of(result)],
    )


def best_known(devices: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first device of known scale, else the first, else None."""
    known = [d for d in devices if d.get("px_per_um_x")]
    return next(iter([*known, *devices]), None)


def history_of(result: Mapping[str, Any]) -> str:
    """Name a job for people."""
    goal = f" to {result['target']}" if result.get("target") else ""
    return f"{result['method']}: {result['source']}{goal}, seed {result['seed']} ({result['job']})"
