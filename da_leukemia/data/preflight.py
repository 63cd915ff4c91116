"""Everything about an experiment's data that can be known to fail before training starts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Data,
    Experiment,
    active_components,
    chosen_detectors,
    devices_of,
    names_cells,
    needs_target,
    sparsities,
)
from da_leukemia.config.checkpoints import origin_of
from da_leukemia.config.origin import no_file
from da_leukemia.data.attributes import attribute_counts, constant_attributes
from da_leukemia.data.cache import audit_once, cache_folder, read_cached
from da_leukemia.data.experiment import (
    classes_of,
    domain_source,
    missing_root,
    no_images,
    read_experiment_data,
)
from da_leukemia.data.fields import FieldIndex, FieldOfView
from da_leukemia.data.integrity import whole
from da_leukemia.data.readers import read_domain
from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.data.sparse import learned, made_sparse
from da_leukemia.data.splits import Split, leaks, missing_classes
from da_leukemia.errors import DataError, UserError, counted
from da_leukemia.files import write_whole
from da_leukemia.labels import LABEL_SPACES, get_label_space

_LOG = logging.getLogger(__name__)

_SHOWN = 10
"""Leaks that a warning lists; the error lists all."""

_CONFLICTS = {"soft": "all of them alike", "own": "the one of its own folder", "skip": "nothing"}
"""`Classifier.conflicts` -> what a cell with several types teaches."""


def preflight(experiment: Experiment) -> tuple[dict[str, FieldIndex], Split]:
    """Read the labels of every device and refuse what would fail or corrupt a result later.

    The split is written to ``split.json`` in the sweep's folder, where there is one.

    Returns:
        All fields of each device, and their division.

    Raises:
        DataError: every problem found, with examples; also leaks between the parts of the split.
        UserError: the sweep's folder cannot be written to.
    """
    if missing := missing_root(experiment.data):
        raise DataError(missing)
    gone = [
        f"checkpoints.{name}.path: {checkpoint.path!r}: {no_file(Path(checkpoint.path))}"
        for name, checkpoint in experiment.checkpoints.items()
        if not Path(checkpoint.path).is_file()
    ]
    if gone:
        raise DataError(gone)
    try:
        indexes, split = read_experiment_data(experiment.data)
    except DataError as error:  # of the first device: say it of all
        raise DataError(_unreadable(experiment.data) or error.problems) from None
    problems = []
    sources = {d for source in _trained_sources(experiment) for d in devices_of(source)}
    adapted = set(_adapted_to(experiment)) - sources
    for name, index in indexes.items():
        problems += _problems(index)
        if name in (experiment.tests or []):
            test = split.select(index, "test")
            if not len(test):
                problems.append(f"{name}: no field in the test part; see data.split")
            elif not any(f.labelled_classes for f in test.fields):
                problems.append(_nothing_to_score(experiment.data, name))
        if name in adapted and not len(split.select(index, "train")):
            problems.append(
                f"{name}: is adapted to but has no image in the training part; see data.split, or "
                "leave it out of targets"
            )
        if name in sources:
            train = split.select(index, "train")
            if not len(train):
                problems.append(f"{name}: no field in the training part; see data.split")
            elif not any((f.labels >= 0).any() for f in train.fields):
                problems.append(
                    f"{name}: is a source but has no labelled cell of label space "
                    f"{experiment.data.label_space!r} in its training part; give it labels, or set "
                    f"data.domains.{name}.labels=test_only"
                )
            else:
                problems += _nothing_in_patches(experiment, index, split)
    problems += _too_few(experiment, indexes, split)
    problems += _unseen(experiment, indexes, split)
    _warn_of_too_few_groups(experiment.data, indexes, split)
    problems += _leaks(experiment.data, list(indexes.values()), split)
    if problems:
        raise DataError(problems)
    _warn_of_untested_targets(experiment)
    _warn_of_constant_attributes(experiment, indexes, split)
    _warn_of_unlearning(experiment, indexes, split)
    _warn_of_conflicts(experiment, indexes)
    if experiment.folder.is_dir():
        path = experiment.folder / "split.json"
        try:
            write_whole(path, f"{split.to_json()}\n".encode())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
    return indexes, split


def _trained_sources(experiment: Experiment) -> list[str]:
    """Return the sources that are devices; a checkpoint has learned already."""
    return [s for s in experiment.sources or [] if s not in experiment.checkpoints]


def _adapted_to(experiment: Experiment) -> list[str]:
    """Return the targets, none where no method of the sweep looks at them."""
    known = experiment.adaptations
    adapts = any(needs_target(known[m]) for m in experiment.methods if m in known)
    return list(experiment.targets or []) if adapts else []


def _warn_of_untested_targets(experiment: Experiment) -> None:
    """Say which runs will be adapted to a device on which nothing tests them."""
    tests = experiment.tests or []
    for name in _adapted_to(experiment):
        if name not in tests and experiment.data.domains[name].labels != "none":
            _LOG.warning(
                "targets: %s is adapted to and not tested on, so no gain on it is measured; add it "
                "to tests, or leave it out of targets",
                name,
            )


def _warn_of_constant_attributes(
    experiment: Experiment, indexes: Mapping[str, FieldIndex], split: Split
) -> None:
    """Say what the attribute heads cannot learn; they leave it alone (`AttributeHead.know`)."""
    if not any(d.attribute_weight for d in chosen_detectors(experiment).values()):
        return
    space = get_label_space(experiment.data.label_space)
    for source in _trained_sources(experiment):
        for settings in sparsities(experiment):
            fields = [
                f
                for d in devices_of(source)
                for f in split.select(made_sparse(indexes[d], split, settings), "train")
            ]
            for same in constant_attributes(attribute_counts(fields, space), space):
                _LOG.warning(
                    "%s%s: attribute %s in the training part: it is not learned, and detections of "
                    "this source's runs carry no answer to it",
                    source,
                    "" if settings.whole else f", {settings.area:.3g} of the area annotated",
                    same,
                )


def _warn_of_unlearning(
    experiment: Experiment, indexes: Mapping[str, FieldIndex], split: Split
) -> None:
    """Say where rare types would be lost: nothing reminds a source-free detector of them.

    Its optimiser takes a step in every weight whose gradient keeps its sign, however small: a type
    without pseudo-labels hears from background alone, and its score sinks everywhere.
    """
    known = experiment.adaptations
    risky = [m for m in experiment.methods if m in known and _forgets(known[m])]
    if not risky or names_cells(experiment):
        return
    for source in experiment.sources or []:
        if source in experiment.checkpoints:
            types = len(origin_of(experiment.checkpoints[source]).classes)
        else:
            train = [f for d in devices_of(source) for f in split.select(indexes[d], "train")]
            types = len({int(k) for f in train for k in f.labels if k >= 0})
        if types > 1:
            _LOG.warning(
                "%s: %s learns from its own confident cells alone, and of %d types it may lose "
                "those that it is seldom sure of (docs/results/adaptation_simulated.md); methods "
                "with continued: true learn from the source's labels beside them, "
                "distillation.class_weight: 1 keeps what the detector knew",
                source,
                ", ".join(risky),
                types,
            )


def _warn_of_conflicts(experiment: Experiment, indexes: Mapping[str, FieldIndex]) -> None:
    """Say once how single cells are treated that lie in folders of different types."""
    found = [
        (name, finding)
        for name, index in indexes.items()
        for finding in index.findings
        if finding.kind == "cell_in_several_folders"
    ]
    if not found:
        return
    kinds = {d.classifier.conflicts: None for d in chosen_detectors(experiment).values()}
    name, first = found[0]
    _LOG.warning(
        "%s in folders of different types, such as %s: %s; a copy teaches %s, and counts at test "
        "as the type of its own folder; `data check` shows more",
        counted(sum(finding.count for _, finding in found), "cell picture"),
        name,
        first.examples[0],
        ", ".join(f"{_CONFLICTS[kind]} (detector.classifier.conflicts: {kind})" for kind in kinds),
    )


def _forgets(method: Method) -> bool:
    """Whether a method has pseudo-labels, and neither a label nor soft answers beside them."""
    active = {str(c["name"]): c for c in active_components(method)}
    soft = active.get("distillation", {}).get("class_weight", 0) > 0
    return method.source_free and "mean_teacher" in active and not soft


def _nothing_in_patches(experiment: Experiment, index: FieldIndex, split: Split) -> list[str]:
    """Say which annotated areas leave a source no cell to learn from."""
    found = []
    for settings in sparsities(experiment):
        train = split.select(made_sparse(index, split, settings), "train").fields
        if any((f.labels[learned(f)] >= 0).any() for f in train):
            continue
        found.append(
            f"{index.domain}: no labelled cell lies in an annotated patch of its training part, so "
            "there is nothing to learn from; "
            + (
                "see data.domains.*.patch_order, or take another source"
                if settings.whole
                else f"the annotated area, {settings.area:g} of a field, is too small: take a "
                "larger one or another data.sparse.seed"
            )
        )
    return found


def _unseen(experiment: Experiment, indexes: Mapping[str, FieldIndex], split: Split) -> list[str]:
    """Warn of types that are tested and that a source cannot know; return what shares none."""
    classes = get_label_space(experiment.data.label_space).classes
    single, problems = names_cells(experiment), []
    tested = {n: _types(split.select(indexes[n], "test"), single) for n in experiment.tests or []}
    whole = {name: _types(index, single).keys() for name, index in indexes.items()}
    for source in _trained_sources(experiment):
        train = [f for d in devices_of(source) for f in split.select(indexes[d], "train")]
        seen = _types(train, single).keys()
        has = {k for d in devices_of(source) for k in whole[d]}
        absent: dict[int, list[str]] = {}
        for name, own in tested.items() if seen else ():
            # In all their parts, since a small one lacks much by chance.
            if own and not has & whole[name]:
                problems.append(
                    f"{source}: shares no type of label space {experiment.data.label_space!r} with "
                    f"{name}, which is tested on: it has {_named(has, classes)}, the other "
                    f"{_named(whole[name], classes)}; take a coarser label space "
                    "(data.label_space=wbc), or leave one of them out"
                )
                continue
            for k in own.keys() - seen:
                absent.setdefault(k, []).append(f"{counted(own[k], 'test cell')} of {name}")
        if absent:
            _LOG.warning(
                "%s: has no training cell of %s: they can only be %s",
                source,
                ", ".join(f"{classes[k]} ({', '.join(absent[k])})" for k in sorted(absent)),
                "named wrong" if single else "missed or named wrong",
            )
    return problems


def _warn_of_too_few_groups(data: Data, indexes: Mapping[str, FieldIndex], split: Split) -> None:
    """Say why types are missing in training or test although the split is by type."""
    counted_types = classes_of(data)
    if counted_types is None:
        return
    names = get_label_space(data.label_space).classes
    for name, index in indexes.items():
        missing = missing_classes(split, index, counted_types)
        if missing and data.split.kind == "released":
            why = "the release divides them so, and data.split.stratify carves validation alone"
        else:
            why = (
                "too few or too large groups for data.split.stratify; cells of a patient, a field "
                "or copies of one picture are never divided"
            )
        if missing:
            told = (
                f"{names[k]} ({counted(groups, 'group')}, none in {' or '.join(parts)})"
                for k, (parts, groups) in missing.items()
            )
            _LOG.warning("%s: %s: %s", name, ", ".join(told), why)


def _named(types: Iterable[int], classes: Sequence[str]) -> str:
    return ", ".join(classes[k] for k in sorted(types))


def _types(fields: Iterable[FieldOfView], single: bool) -> Counter[int]:
    """Count the cells of each type; of a single cell the first label is its own."""
    labels = (f.labels[:1] if single else f.labels for f in fields)
    return Counter(int(k) for own in labels for k in own if k >= 0)


def _too_few(experiment: Experiment, indexes: Mapping[str, FieldIndex], split: Split) -> list[str]:
    """Return which targets have fewer training fields than a few-shot method asks for."""
    wanted = {
        experiment.adaptations[m].target_labels: m
        for m in experiment.methods
        if m in experiment.adaptations
    }
    most = max(wanted, default=0)
    there = {t: len(split.select(indexes[t], "train")) for t in experiment.targets or []}
    return [
        f"{target}: {counted(count, 'training field')}, but target_labels of {wanted[most]} asks "
        f"for {most}; set adaptations.{wanted[most]}.target_labels to {count} or less"
        for target, count in there.items()
        if count < most
    ]


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


def _unreadable(data: Data) -> list[str]:
    space, caches = get_label_space(data.label_space), cache_folder(data.cache_dir)
    problems = []
    for name, domain in data.domains.items():
        try:
            problems += _problems(
                read_cached(domain_source(data, name), domain.format, space, caches)
            )
        except DataError as error:
            problems += error.problems
    return problems


def _problems(index: FieldIndex) -> list[str]:
    log = FindingLog()
    for finding in index.findings:
        log.merge(finding)
    whole(index.fields, log)
    errors = [
        f"{index.domain}: {f.message} ({f.count}): {'; '.join(f.examples)}"
        for f in log.findings()
        if f.severity == "error"
    ]
    return errors or ([] if len(index) else [no_images(index.domain)])


def _nothing_to_score(data: Data, name: str) -> str:
    """Say why a device cannot be tested on, and in which label spaces it could be."""
    source, fmt = domain_source(data, name), data.domains[name].format
    known = []
    for space in LABEL_SPACES.values():
        boxes = sum(int((f.labels >= 0).sum()) for f in read_domain(source, fmt, space).fields)
        known += [f"{space.name} ({boxes})"] if boxes else []
    spaces = ", ".join(known)
    remedy = f"set data.label_space to one of {spaces}, " if known else ""
    return (
        f"{name}: is tested, but has no label of label space {data.label_space!r}; "
        + (f"its boxes are classes of {spaces}" if known else "it has none of any label space")
        + f": {remedy}take it out of `tests`, or set data.domains.{name}.labels=none. If its "
        f"films were searched in vain, say so in data.domains.{name}.classes"
    )
