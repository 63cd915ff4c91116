"""The grid of jobs that an experiment stands for. Free of torch, so a plan is shown at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

from da_leukemia.adaptation.settings import COMPONENTS, Method
from da_leukemia.config import (
    CALIBRATED,
    CALIBRATIONS,
    Calibration,
    Experiment,
    Job,
    active_components,
    complete,
)
from da_leukemia.errors import ConfigError

CALIBRATION_MARK = "+"
"""Between a method and what calibration it was run with, as the matrix calls both."""


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


def needs_target(method: Method) -> bool:
    """Return whether a method adapts to a device, i.e. has an active component that looks at it."""
    return any(COMPONENTS[c["name"]].targeted for c in active_components(method))


def make_plan(experiment: Experiment) -> list[Job]:
    """Lay out every entry of the matrix as a job, source-only ones first.

    A method without a component that looks at a target is one job for each source and seed; any
    other method is one job for each target besides its source, and all of that once for each value
    of ``experiment.calibration``. Each job is tested on all ``experiment.tests``. Two methods with
    the same content give two entries with one hash (see `unique`): one training, two rows.

    Raises:
        ConfigError: an unknown name, or a method for which no job is left.
    """
    experiment = copy.deepcopy(experiment)
    complete(experiment)
    sources, targets, tests = (
        list(dict.fromkeys(names or ()))
        for names in (experiment.sources, experiment.targets, experiment.tests)
    )
    seeds = list(dict.fromkeys(experiment.seeds))
    methods = {name: experiment.adaptations[name] for name in experiment.methods}
    problems = []
    if not sources:
        problems.append("sources: no device has labels to learn from")
    if not tests:
        problems.append("tests: empty; name at least one device")
    jobs = []
    for adapted in (False, True):
        for name, method in methods.items():
            if needs_target(method) != adapted:
                continue
            pairs = [
                (source, target)
                for source in sources
                for target in (targets if adapted else [None])
                if target != source
            ]
            if sources and not pairs:
                problems.append(
                    f"methods: {name!r} adapts to a device, but targets {targets} leave none "
                    f"besides the source"
                )
            jobs += [
                _job(experiment, name, source, target, seed, tests, calibration)
                for calibration in calibrations(experiment)
                for source, target in pairs
                for seed in seeds
            ]
    if problems:
        raise ConfigError(problems)
    if not jobs:
        raise ConfigError("methods: empty; name at least one")
    return jobs


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
    source: str,
    target: str | None,
    seed: int,
    tests: list[str],
    calibration: Calibration,
) -> Job:
    return Job(
        method_name=calibrated_name(name, calibration.used),
        method=experiment.adaptations[name],
        source=source,
        target=target,
        seed=seed,
        tests=tests,
        data=dataclasses.replace(experiment.data, calibration=calibration),
        detector=experiment.detector,
        augmentation=experiment.augmentation,
        trainer=experiment.trainer,
        tracking=experiment.tracking,
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
