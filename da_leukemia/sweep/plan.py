"""The grid of jobs that an experiment stands for. Free of torch, so a plan is shown at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

from da_leukemia.adaptation.settings import AFTER_TRAINING, COMPONENTS, Method
from da_leukemia.config import (
    CALIBRATIONS,
    Calibration,
    Data,
    Experiment,
    Job,
    active_components,
    complete,
    devices_of,
    needs_target,
    sparsities,
)
from da_leukemia.errors import ConfigError
from da_leukemia.sweep.names import (
    DETECTOR_MARK,
    FAIR,
    LONGER,
    PLAIN,
    TWIN_MARK,
    detector_of,
    full_name,
)


def fair_twin(name: str, method: Method, fair: Method) -> tuple[str, Method]:
    """Return an adapted method without its target: what it has to beat, and what that is called.

    Args:
        name: of the method.
        method: what adapts.
        fair: the experiment's fair source-only method; the twin itself where it has the same
            recipe.
    """
    twin = _without_target(method)
    if _without_target(fair) == twin:
        return FAIR, fair
    return f"{FAIR}{TWIN_MARK}{name}", twin


def starts_trained(method: Method) -> bool:
    """Return whether a method begins where its source-only run has ended."""
    return method.source_free or method.continued


def longer_twin(name: str, method: Method) -> tuple[str, Method]:
    """Return source-only of equal length for a method that starts trained, and what it is called.

    It goes on from the same weights for as many steps, at the same learning rate and with the same
    averaging of weights; all that differs is what it sees.
    """
    twin = dataclasses.replace(
        _without_target(method),
        continued=True,
        learning_rate_factor=method.learning_rate_factor,
    )
    return f"{LONGER}{TWIN_MARK}{name}", twin


def _without_target(method: Method) -> Method:
    """Return what is left of a method where there is no target: how it sees its source."""
    return Method(
        method.augmentation,
        method.ema,
        outside=method.outside,
        patch_mosaics=method.patch_mosaics,
        components=[c for c in active_components(method) if not COMPONENTS[c["name"]].targeted],
    )


def source_model(job: Job) -> Job:
    """Return the source-only job whose finished weights a job starts from, or tests."""
    detector = detector_of(job.method_name).removeprefix(DETECTOR_MARK)
    name = full_name(FAIR, job.data.calibration.used, detector, job.data.sparse.area)
    method = _without_target(job.method)
    return reduced(dataclasses.replace(job, method=method, method_name=name, target=None))


_OF_PATCHES = ("patch_crops", "sparse_teacher", "sparse_similarity")
"""Components that do nothing where fields are annotated whole, see `adaptation.sparse`."""


def reduced(job: Job) -> Job:
    """Return a job without what its method does with patches, where all its fields are whole.

    Such methods, of which nothing else differs, are one training then, to the last bit.
    """
    method, domains = job.method, job.data.domains
    labelled = [*job.seen, *([job.target] if job.target and method.target_labels else [])]
    whole = job.data.sparse.whole and all(domains[d].format != "sparse" for d in labelled)
    if job.checkpoint is not None or not whole:
        return job
    acts = [  # `plain_after` changes how whole fields are seen
        c for c in method.components if c["name"] not in _OF_PATCHES or c.get("plain_after")
    ]
    if acts == method.components and method.outside == "ignored" and not method.patch_mosaics:
        return job
    plain = dataclasses.replace(method, outside="ignored", patch_mosaics=0.0, components=acts)
    return dataclasses.replace(job, method=plain)


def trains(job: Job) -> bool:
    """Return whether a job trains: not where it takes a checkpoint as it is, or finishes it."""
    return job.checkpoint is None or job.method.source_free


def adapts_after_training(job: Job) -> bool:
    """Return whether all that a job does with its target, it does to its finished source model."""
    kinds = {c["name"] for c in active_components(job.method) if COMPONENTS[c["name"]].targeted}
    learns = job.method.target_labels > 0 or starts_trained(job.method)
    return bool(kinds) and kinds <= AFTER_TRAINING and not learns


def make_plan(experiment: Experiment) -> list[Job]:
    """Lay out every entry of the matrix as a job, source-only ones first.

    A method without a component that looks at a target is one job for each source and seed; any
    other method is one job for each target besides its source, and all of that once for each value
    of ``experiment.calibration``, ``.sparse`` and ``.detectors``. Each job is tested on all
    ``experiment.tests``. Two methods with the same content, or that differ in nothing that acts on
    these fields (see `reduced`), give two entries with one hash (see `unique`): one training, two
    rows.

    Adapted methods bring the ``experiment.twins`` they are compared with: ``fair`` is the same
    recipe without the target, ``oracle`` that recipe trained on the tested targets themselves,
    ``longer`` the one of equal length for a method that starts from a finished run (see
    `longer_twin`), ``plain`` source-only without EMA and strong augmentation, not calibrated where
    the axis has such runs.

    A source that is a checkpoint is not trained: its ``fair`` twin is the checkpoint as it is, and
    it has no ``plain`` and no ``longer`` one. Where all sources are, there need be no test.

    Raises:
        ConfigError: an unknown name, or a method for which no job is left.
    """
    experiment = copy.deepcopy(experiment)
    complete(experiment)
    sources, targets, tests = (
        list(dict.fromkeys(names or ()))
        for names in (experiment.sources, experiment.targets, experiment.tests)
    )
    axis = calibrations(experiment)
    methods = {name: experiment.adaptations[name] for name in experiment.methods}
    adapted = {name: method for name, method in methods.items() if needs_target(method)}
    problems = []
    if not sources:
        problems.append("sources: no device has labels to learn from")
    given = experiment.checkpoints
    trainable = [source for source in sources if source not in given]
    if not tests and (trainable or not sources):
        problems.append("tests: empty; name at least one device")
    if not methods:
        problems.append("methods: empty; name at least one")
    for name, method in adapted.items():
        problems += _few_shot_problems(experiment, name, method, targets)
        if sources and all(t in devices_of(s) for s in sources for t in targets):
            problems.append(
                f"methods: {name!r} adapts to a device, but targets {targets} leave none "
                f"besides the source"
            )
    if problems:
        raise ConfigError(problems)
    rows: list[tuple[str, Method, str, str | None, list[Calibration]]] = []
    fair = methods.get(FAIR, experiment.adaptations.get(FAIR, Method()))
    references = dict(fair_twin(name, method, fair) for name, method in adapted.items())
    oracles = [
        t
        for t in targets
        if t in tests and t not in sources and experiment.data.domains[t].labels == "all"
    ]
    alone = {name: method for name, method in methods.items() if name not in adapted}
    if adapted and "plain" in experiment.twins and PLAIN not in alone:
        plain = experiment.adaptations.get(PLAIN, Method("weak", ema=False))
        bare = [c for c in axis if not c.used] or axis
        rows += [(PLAIN, plain, source, None, bare) for source in trainable]
    if "fair" in experiment.twins:
        alone |= references
    for name, method in alone.items():
        rows += [(name, method, source, None, axis) for source in sources]
    if "longer" in experiment.twins:
        started = {name: method for name, method in adapted.items() if starts_trained(method)}
        further = [longer_twin(name, method) for name, method in started.items()]
        rows += [(*twin, source, None, axis) for twin in further for source in trainable]
    if "oracle" in experiment.twins:
        for name, method in references.items():
            rows += [(name, method, target, None, axis) for target in oracles]
    for name, method in adapted.items():
        rows += [
            (name, method, source, target, axis)
            for source in sources
            for target in targets
            if target not in devices_of(source)
        ]
    variants = {  # one object for all jobs that share it
        id(calibration): [
            dataclasses.replace(experiment.data, calibration=calibration, sparse=sparse)
            for sparse in sparsities(experiment)
        ]
        for calibration in axis
    }
    jobs = [
        _job(experiment, name, method, source, target, seed, tests, data, detector)
        for name, method, source, target, chosen in rows
        for calibration in chosen
        for data in variants[id(calibration)]
        for detector in experiment.detectors or [""]
        for seed in dict.fromkeys(experiment.seeds)
    ]
    known: dict[object, str] = {}
    for job in jobs:
        job.settle(known)
    return jobs


def _few_shot_problems(
    experiment: Experiment, name: str, method: Method, targets: Sequence[str]
) -> list[str]:
    if not method.target_labels:
        return []
    return [
        f"methods: {name!r} learns from labelled fields of its target, but {target!r} has labels: "
        f"{experiment.data.domains[target].labels}; take it out of `targets`"
        for target in targets
        if experiment.data.domains[target].labels != "all"
    ]


def calibrations(experiment: Experiment) -> list[Calibration]:
    """Return the values of the axis `calibration` as settings."""
    settings = experiment.data.calibration
    if experiment.calibration is None:
        return [settings]
    chosen = [CALIBRATIONS[value] for value in dict.fromkeys(experiment.calibration)]
    return [
        dataclasses.replace(
            settings,
            scale="scale" in names,
            illumination="illumination" in names,
            colour="colour" in names,
        )
        for names in chosen
    ]


def _job(
    experiment: Experiment,
    name: str,
    method: Method,
    source: str,
    target: str | None,
    seed: int,
    tests: list[str],
    data: Data,
    detector: str,
) -> Job:
    job = Job(
        method_name=full_name(name, data.calibration.used, detector, data.sparse.area),
        method=method,
        source=source,
        target=target,
        seed=seed,
        tests=tests,
        data=data,
        detector=experiment.detectors[detector] if detector else experiment.detector,
        augmentation=experiment.augmentation,
        trainer=experiment.trainer,
        selection=experiment.selection,
        tracking=experiment.tracking,
        tracking_checkpoints=experiment.tracking_checkpoints,
        sweep=experiment.name,
        checkpoint=experiment.checkpoints.get(source),
    )
    return reduced(job)


def unique(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return the trainings behind a plan's entries by hash: the first of each set of twins."""
    trainings: dict[str, Job] = {}
    for job in jobs:
        trainings.setdefault(job.hash, job)
    return trainings


def label(job: Job) -> str:
    """Return a job's short name for people: ``method source->target s0``."""
    arrow = f"->{job.target}" if job.target else ""
    return f"{job.method_name} {job.source}{arrow} s{job.seed}"
