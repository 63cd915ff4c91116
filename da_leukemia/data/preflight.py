"""Everything about an experiment's data that can be known to fail before training starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from da_leukemia.config import Data, Experiment
from da_leukemia.data.cache import audit_once, cache_folder, write_whole
from da_leukemia.data.datamodules import no_images, read_experiment_data
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.splits import Split, leaks
from da_leukemia.errors import ConfigError, DataError, UserError

_LOG = logging.getLogger(__name__)

_SHOWN = 10
"""Leaks that a warning lists; the error lists all."""


def preflight(experiment: Experiment) -> None:
    """Read the labels of every device and refuse what would fail or corrupt a result later.

    The split is written to ``split.json`` in the sweep's folder, where there is one.

    Raises:
        ConfigError: the backbone, its strides or the start weights do not exist.
        DataError: every problem found, with examples; also leaks between the parts of the split.
        UserError: the sweep's folder cannot be written to.
    """
    root = Path(experiment.data.root)
    if not root.is_dir():
        raise DataError(
            f"data.root: {root}: no such folder; give it as data.root=PATH on the command line"
        )
    _check_detector(experiment)
    indexes, split = read_experiment_data(experiment.data)
    problems = []
    for name, index in indexes.items():
        problems += _problems(index)
        parts = {p: len(split.select(index, p)) for p in ("train", "test")}
        if name in (experiment.tests or []) and not parts["test"]:
            problems.append(f"{name}: no field in the test part; see data.split")
        if name in (experiment.sources or []):
            train = split.select(index, "train")
            if not parts["train"]:
                problems.append(f"{name}: no field in the training part; see data.split")
            elif not any((f.labels >= 0).any() for f in train.fields):
                problems.append(
                    f"{name}: is a source but has no labelled cell of label space "
                    f"{experiment.data.label_space!r} in its training part; give it labels, or set "
                    f"data.domains.{name}.labels=test_only"
                )
            if any(f.annotated_region is not None for f in train.fields):
                # The losses would take every unannotated cell for background.
                problems.append(
                    f"{name}: its training fields are annotated in a patch only, which can be "
                    "tested on but not trained on yet; take another source, or set "
                    f"data.domains.{name}.labels=test_only"
                )
    problems += _leaks(experiment.data, list(indexes.values()), split)
    if problems:
        raise DataError(problems)
    if experiment.folder.is_dir():
        path = experiment.folder / "split.json"
        try:
            write_whole(path, f"{split.to_json()}\n".encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error


def _leaks(data: Data, indexes: Sequence[FieldIndex], split: Split) -> list[str]:
    """Return what leaks between the parts; where that is allowed, only warn."""
    try:
        found = audit_once(split, indexes, cache_folder(data.cache_dir))
    except DataError as error:
        return error.problems
    if not found:
        return []
    if data.split.kind == "released":
        found = [
            f"{f.message} ({f.count}): {'; '.join(f.examples)}" for f in leaks(indexes)
        ] + found
    if not data.split.allow_leaks:
        return [
            *found,
            "what is learned from is tested on, so no score would count; set "
            "data.split.allow_leaks=true to run it all the same",
        ]
    rest = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    _LOG.warning(
        "data.split.allow_leaks: what is learned from is tested on:\n  %s",
        "\n  ".join([*found[:_SHOWN], *rest]),
    )
    return []


def _problems(index: FieldIndex) -> list[str]:
    if not len(index):
        return [no_images(index.domain)]
    return [
        f"{index.domain}: {f.message} ({f.count}): {'; '.join(f.examples[:3])}"
        for f in index.findings
        if f.severity == "error"
    ]


def _check_detector(experiment: Experiment) -> None:
    """Build the backbone without weights: a misspelt name must not wait for the first job."""
    from da_leukemia.models.backbone import Backbone

    settings = experiment.detector
    strides = tuple(sorted(settings.strides))
    if len(set(strides)) != len(strides):
        raise ConfigError(f"detector.strides: {settings.strides} names a stride twice")
    Backbone(settings.backbone, strides)
    if settings.init_from and not Path(settings.init_from).is_file():
        raise ConfigError(f"detector.init_from: {settings.init_from}: no such file")
