"""The grid of jobs that an experiment stands for. Free of torch, so a plan is shown at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable, Sequence

from da_leukemia.adaptation.settings import AFTER_TRAINING, COMPONENTS, Method
from da_leukemia.config import (
    CALIBRATED,
    CALIBRATIONS,
    Calibration,
    Experiment,
    Job,
    Sparse,
    active_components,
    complete,
    devices_of,
)
from da_leukemia.errors import ConfigError

PLAIN = "source_only"
FAIR = "fair_source_only"
"""Nothing of the target, with the steps, augmentation and EMA of the adapted methods."""

TWIN_MARK = ":"
"""Between `FAIR` and the method it is the twin of, where that has a recipe of its own."""

CALIBRATION_MARK = "+"
"""Between a method and what calibration it was run with, as the matrix calls both."""


AREA_MARK = "@"
"""Between a method and the annotated area that it learned from, as the matrix calls both."""


def sparse_name(method: str, area: float) -> str:
    """Return what the matrix calls a method on sparse fields: ``mean_teacher@20%``."""
    return method if area == 1 else f"{method}{AREA_MARK}{100 * area:g}%"


def area_of(method: str) -> float:
    """Return the annotated share of the fields in a name by `sparse_name`; 1 where it has none."""
    _, mark, told = uncalibrated(method).partition(AREA_MARK)
    return float(told.rstrip("%")) / 100 if mark else 1.0


def without_area(method: str) -> str:
    """Return a method's name without its annotated area, its calibration kept."""
    return uncalibrated(method).partition(AREA_MARK)[0] + calibration_of(method)


def calibrated_name(method: str, used: Sequence[str]) -> str:
    """Return what the matrix calls a method with a calibration: ``fda+scale+colour``.

    All of it together is ``fda+calibrated``.
    """
    if tuple(used) == CALIBRATED:
        used = ["calibrated"]
    return CALIBRATION_MARK.join([method, *used])


def calibration_of(method: str) -> str:
    """Return what `calibrated_name` put behind a method, the mark included; "" where nothing."""
    base, mark, used = method.partition(CALIBRATION_MARK)
    del base
    return mark + used


def reference_of(method: str, methods: Collection[str]) -> str:
    """Return the source-only run that a method is measured against.

    It has the method's calibration and annotated area.

    Args:
        method: as the matrix calls it.
        methods: all that are there.
    """
    base, calibration = uncalibrated(method), calibration_of(method)
    own = f"{FAIR}{TWIN_MARK}{base}{calibration}"
    return own if own in methods else f"{sparse_name(FAIR, area_of(base))}{calibration}"


def uncalibrated(method: str) -> str:
    """Return a method's name without what `calibrated_name` put behind it."""
    return method.partition(CALIBRATION_MARK)[0]


def needs_target(method: Method) -> bool:
    """Return whether a method adapts to a device: it looks at it, or learns from its labels."""
    return method.target_labels > 0 or any(
        COMPONENTS[c["name"]].targeted for c in active_components(method)
    )


def fair_twin(name: str, method: Method, fair: Method) -> tuple[str, Method]:
    """Return an adapted method without its target: what it has to beat, and what that is called.

    Args:
        name: of the method.
        method: what adapts.
        fair: the experiment's fair source-only method; the twin itself where it has the same
            recipe.
    """
    kept = [c for c in active_components(method) if not COMPONENTS[c["name"]].targeted]
    twin = Method(method.augmentation, method.ema, components=kept)
    recipe = (fair.augmentation, fair.ema, active_components(fair))
    if recipe == (twin.augmentation, twin.ema, kept):
        return FAIR, fair
    return f"{FAIR}{TWIN_MARK}{name}", twin


def source_model(job: Job) -> Job:
    """Return the source-only job whose finished weights a job starts from, or tests."""
    kept = [c for c in active_components(job.method) if not COMPONENTS[c["name"]].targeted]
    method = Method(job.method.augmentation, job.method.ema, components=kept)
    name = calibrated_name(sparse_name(FAIR, job.data.sparse.area), job.data.calibration.used)
    return dataclasses.replace(job, method=method, method_name=name, target=None)


def adapts_after_training(job: Job) -> bool:
    """Return whether all that a job does with its target, it does to its finished source model."""
    kinds = {c["name"] for c in active_components(job.method) if COMPONENTS[c["name"]].targeted}
    learns = job.method.target_labels > 0 or job.method.source_free
    return bool(kinds) and kinds <= AFTER_TRAINING and not learns


def make_plan(experiment: Experiment) -> list[Job]:
    """Lay out every entry of the matrix as a job, source-only ones first.

    A method without a component that looks at a target is one job for each source and seed; any
    other method is one job for each target besides its source, and all of that once for each value
    of ``experiment.calibration`` and ``experiment.sparse``. Each job is tested on all
    ``experiment.tests``. Two methods with the same content give two entries with one hash (see
    `unique`): one training, two rows.

    Adapted methods bring the ``experiment.twins`` they are compared with: ``fair`` is the same
    recipe without the target, ``oracle`` that recipe trained on the tested targets themselves,
    ``plain`` source-only without EMA and strong augmentation, not calibrated where the axis has
    such runs.

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
    if not tests:
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
        rows += [(PLAIN, plain, source, None, bare) for source in sources]
    if "fair" in experiment.twins:
        alone |= references
    for name, method in alone.items():
        rows += [(name, method, source, None, axis) for source in sources]
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
    jobs = [
        _job(experiment, name, method, source, target, seed, tests, calibration, sparse)
        for name, method, source, target, chosen in rows
        for calibration in chosen
        for sparse in sparsities(experiment)
        for seed in dict.fromkeys(experiment.seeds)
    ]
    for job in jobs:
        job.settle()
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


def sparsities(experiment: Experiment) -> list[Sparse]:
    """Return the values of the axis `sparse` as settings."""
    settings = experiment.data.sparse
    if experiment.sparse is None:
        return [settings]
    areas = dict.fromkeys(experiment.sparse)
    return [dataclasses.replace(settings, area=area) for area in areas]


def _job(
    experiment: Experiment,
    name: str,
    method: Method,
    source: str,
    target: str | None,
    seed: int,
    tests: list[str],
    calibration: Calibration,
    sparse: Sparse,
) -> Job:
    return Job(
        method_name=calibrated_name(sparse_name(name, sparse.area), calibration.used),
        method=method,
        source=source,
        target=target,
        seed=seed,
        tests=tests,
        data=dataclasses.replace(experiment.data, calibration=calibration, sparse=sparse),
        detector=experiment.detector,
        augmentation=experiment.augmentation,
        trainer=experiment.trainer,
        selection=experiment.selection,
        tracking=experiment.tracking,
        tracking_checkpoints=experiment.tracking_checkpoints,
        sweep=experiment.name,
    )


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
