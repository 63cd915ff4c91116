"""How files and overrides become an experiment.

``extends:`` files first, then the experiment file, then ``key=value`` overrides, all through
OmegaConf. Every unknown key and wrong value is reported at once, with a suggestion.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from da_leukemia.adaptation.settings import Method
from da_leukemia.config.check import check_fit, check_method
from da_leukemia.config.check import problems as problems_of
from da_leukemia.config.checkpoints import check_checkpoints, check_methods, spelt_out
from da_leukemia.config.job import Job
from da_leukemia.config.published import Published, check_published
from da_leukemia.config.schema import (
    LEAVE_ONE_OUT,
    METRICS,
    SOURCES_MARK,
    Experiment,
    chosen_detectors,
    devices_of,
)
from da_leukemia.config.together import check_calibration, check_numbers
from da_leukemia.errors import ConfigError, did_you_mean, no_such_folder

T = TypeVar("T")

_GROUPS = ("trainer", "detector", "data", "augmentation")
"""``trainer=smoke`` merges ``configs/trainer/smoke.yaml``; these keys are such groups."""


def shipped(kind: str) -> Path:
    """Return the folder ``configs`` or ``experiments``, of the checkout or of the installation."""
    package = Path(__file__).resolve().parent.parent
    beside = package.parent / kind
    return beside if beside.is_dir() else package / "_shipped" / kind


def _config_folders(near: Path | None) -> list[Path]:
    folders = []
    if near is not None:
        folders += [near.parent / "configs", near.parent.parent / "configs"]
    return [*folders, Path.cwd() / "configs", shipped("configs")]


def _find(group: str, name: str, near: Path | None, what: str) -> Path:
    for folder in _config_folders(near):
        path = folder / group / f"{name}.yaml"
        if path.is_file():
            return path
    known = {p.stem for f in _config_folders(near) for p in (f / group).glob("*.yaml")}
    raise ConfigError(f"{what}: unknown {name!r}{did_you_mean(name, known)}")


def _load_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        experiments = {p.name: p for p in shipped("experiments").glob("*.yaml")}
        if not path.suffix and f"{path.name}.yaml" not in experiments:
            raise ConfigError(no_such_folder(path))
        raise ConfigError(f"{path}: no such file{did_you_mean(path.name, experiments)}")
    try:
        loaded = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error
    except Exception as error:  # the YAML parser's own hierarchy is not public
        lines = path.read_text(encoding="utf-8").splitlines()
        hint = "; indent with spaces, not tabs" if any(t[:1] == "\t" for t in lines) else ""
        raise ConfigError(f"{path}: not valid YAML: {error}{hint}") from error
    content = OmegaConf.to_container(loaded)
    if content is None or content == {}:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    return {str(k): v for k, v in content.items()}


def _load_extended(path: Path, chain: tuple[Path, ...] = ()) -> DictConfig:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(map(str, chain))}")
    content = _load_yaml(path)
    bases = content.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends: expected a file or a list of files, got {bases!r}")
    merged = OmegaConf.create({})
    for base in bases:
        extended = _load_extended(path.parent / _from_home(base), (*chain, path))
        merged = typing.cast(DictConfig, OmegaConf.merge(merged, extended))
    return typing.cast(DictConfig, OmegaConf.merge(merged, OmegaConf.create(content)))


def _typed(schema: type, given: Mapping[str, Any]) -> Any:
    given = {
        key: ({n: (v or {}) for n, v in value.items()} if key == "adaptations" else value)
        for key, value in given.items()
    }
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))


def read_as(schema: type[T], told: Mapping[str, Any]) -> T:
    """Return settings that another run wrote down; what it did not have yet has its default.

    Raises:
        ConfigError: an entry is unknown or of another kind.
    """
    problems = list(problems_of(schema, told, ""))
    if problems:
        raise ConfigError(problems)
    settings: T = _typed(schema, told)
    return settings


def load_method(name: str, near: Path | None = None) -> Method:
    """Load ``configs/adaptation/NAME.yaml``.

    Raises:
        ConfigError: no such method, or a file with problems.
    """
    method: Method = _load_typed(Method, _find("adaptation", name, near, "methods"))
    return method


def load_published(name: str, near: Path | None = None) -> Published:
    """Load ``configs/published/NAME.yaml``, near the experiment first.

    Raises:
        ConfigError: no such table, or a file with problems.
    """
    table: Published = _load_typed(Published, _find("published", name, near, "published"))
    return table


def _load_typed(schema: type, path: Path) -> Any:
    content = OmegaConf.to_container(_load_extended(path), resolve=True)
    assert isinstance(content, dict)
    given = {str(k): v for k, v in content.items()}
    problems = list(problems_of(schema, given, f"{path.name}: "))
    if problems:
        raise ConfigError(problems)
    return _typed(schema, given)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``key=value`` overrides.

    Raises:
        ConfigError: with every problem that was found, each with what was expected.
    """
    path = Path(path)
    if not path.exists() and (shipped("experiments") / path.name).is_file():
        path = shipped("experiments") / path.name
    merged = _load_extended(path)
    typed = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{override!r}: expected key=value")
        if key in _GROUPS:
            piece = _load_extended(_find(key, value, path, key))
        else:
            typed.append(key.strip())
            try:
                piece = OmegaConf.from_dotlist([override])
            except Exception as error:  # YAML errors inside a value
                raise ConfigError(f"{override!r}: cannot be read: {error}") from error
        merged = typing.cast(DictConfig, OmegaConf.merge(merged, piece))
    try:
        content = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(content, dict)
    given = {str(k): _from_home(v) for k, v in content.items()}
    domains = given.get("data", {}).get("domains") if isinstance(given.get("data"), dict) else None
    if isinstance(domains, dict):
        given["data"]["domains"] = {n: ({} if d is None else d) for n, d in domains.items()}
    given = _methods_over_their_presets(_detectors_over_their_base(spelt_out(given)), path)
    problems = [f"{path}: {p}" for p in problems_of(Experiment, given, "")]
    if problems:
        raise ConfigError(_blamed(problems, path, typed))
    experiment: Experiment = _typed(Experiment, given)
    try:
        complete(experiment, path)
    except ConfigError as error:
        raise ConfigError(_blamed(error.problems, path, typed)) from None
    return experiment


def _from_home(value: Any) -> Any:
    """Write out ``~/`` at the beginning of every text, as a shell does where it is not quoted."""
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path.home() / value[2:])
    if isinstance(value, dict):
        return {key: _from_home(v) for key, v in value.items()}
    return [_from_home(v) for v in value] if isinstance(value, list) else value


def _blamed(problems: Iterable[str], path: Path, typed: Iterable[str]) -> list[str]:
    """Blame the command line, not the file, for what was typed there."""
    begun = tuple(f"{path}: {key}{mark}" for key in typed for mark in ".:[")
    return [
        f"command line: {p.removeprefix(f'{path}: ')}" if p.startswith(begun) else p
        for p in problems
    ]


def _detectors_over_their_base(given: dict[str, Any]) -> dict[str, Any]:
    """Write out what each of `detectors` shares with `detector`; what is no section stays."""
    base, named = given.get("detector", {}), given.get("detectors")
    if not isinstance(base, dict) or not isinstance(named, dict):
        return given
    whole = {
        name: OmegaConf.to_container(OmegaConf.merge(base, own or {}))
        if isinstance(own, dict | None)
        else own
        for name, own in named.items()
    }
    return {**given, "detectors": whole}


def _methods_over_their_presets(given: dict[str, Any], near: Path) -> dict[str, Any]:
    """Write out the shipped method that an entry of `adaptations` changes.

    An entry that names no components is a change of the method of its name; with components it
    is a method of its own. Otherwise ``adaptations.few_shot.target_labels=3`` would leave out all
    that few_shot does, and still be called so.
    """
    named = given.get("adaptations")
    if not isinstance(named, dict):
        return given
    whole = dict(named)
    for name, own in named.items():
        if isinstance(own, dict | None) and "components" not in (own or {}):
            with contextlib.suppress(ConfigError):  # a name of its own
                preset = _load_extended(_find("adaptation", str(name), near, "methods"))
                whole[name] = OmegaConf.to_container(OmegaConf.merge(preset, own or {}))
    return {**given, "adaptations": whole}


def complete(experiment: Experiment, path: Path | None = None) -> None:
    """Fill the defaults that depend on other settings and check names against each other.

    Args:
        experiment: filled in place; doing so again changes nothing.
        path: its file, near which methods are looked for and which problems name.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems = []
    domains = experiment.data.domains
    labelled = [name for name, d in domains.items() if d.labels == "all"]
    if not domains:
        problems.append("data.domains: empty; name at least one device")
    default = list(experiment.checkpoints) or labelled
    experiment.sources = _sources(experiment, labelled, default)
    if experiment.tests is None:
        experiment.tests = [name for name, d in domains.items() if d.labels != "none"]
    if experiment.targets is None:
        blind = [name for name, d in domains.items() if d.labels == "none"]
        experiment.targets = [*experiment.tests, *blind]
    problems += check_calibration(experiment)
    problems += check_checkpoints(experiment)
    for key in ("sources", "tests", "targets"):
        for name in dict.fromkeys(
            d for entry in getattr(experiment, key) for d in devices_of(entry)
        ):
            if key == "sources" and name in experiment.checkpoints:
                continue
            if name not in domains:
                known = [*domains, *(experiment.checkpoints if key == "sources" else ())]
                problems.append(f"{key}: unknown device {name!r}{did_you_mean(name, known)}")
                continue
            labels = domains[name].labels
            if key == "sources" and labels != "all":
                problems.append(f"sources: {name!r} has labels: {labels}, it cannot be trained on")
            if key == "tests" and labels == "none":
                problems.append(f"tests: {name!r} has labels: none, it cannot be scored")
    for name in experiment.methods:
        try:
            if name not in experiment.adaptations:
                experiment.adaptations[name] = load_method(name, path)
            method = experiment.adaptations[name]
            wrong = check_method(name, method)
            for where, detector in chosen_detectors(experiment).items() if not wrong else ():
                problems += check_fit(name, method, detector, where)
            problems += wrong
        except ConfigError as error:
            problems += error.problems
    if not problems:  # of methods that could be read
        problems += check_methods(experiment)
    for name in experiment.published:
        try:
            if name not in experiment.published_tables:
                experiment.published_tables[name] = load_published(name, path)
        except ConfigError as error:
            problems += error.problems
    problems += check_published(experiment.published_tables, domains, METRICS)
    problems += check_numbers(experiment)
    if problems:
        raise ConfigError([f"{path}: {p}" if path else p for p in problems])


def _sources(experiment: Experiment, labelled: list[str], default: list[str]) -> list[str]:
    """Write out `leave_one_out`, and name the devices of a source in one order."""
    given = default if experiment.sources is None else experiment.sources
    place = {name: i for i, name in enumerate(experiment.data.domains)}
    sources: list[str] = []
    for entry in given:
        if entry == LEAVE_ONE_OUT and entry not in place:
            sources += [_joined(d for d in labelled if d != one) for one in labelled]
        else:
            names = dict.fromkeys(devices_of(entry))
            sources.append(_joined(sorted(names, key=lambda n: place.get(n, len(place)))))
    return [s for s in dict.fromkeys(sources) if s]


def _joined(devices: Iterable[str]) -> str:
    return SOURCES_MARK.join(devices)


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write an experiment as YAML that `load_experiment` reads back without other files."""
    OmegaConf.save(OmegaConf.structured(experiment), path)


def save_job(job: Job, path: Path) -> None:
    """Write a job as YAML."""
    OmegaConf.save(OmegaConf.structured(job), path)


def load_job(path: Path) -> Job:
    """Read a job written by `save_job`."""
    given = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(given, dict)
    job: Job = _typed(Job, {str(k): v for k, v in given.items()})
    return job


def job_of(given: Mapping[str, Any], where: str) -> Job:
    """Make a job of the settings in a result.

    Args:
        given: what `dataclasses.asdict` made of the job.
        where: what problems name.

    Raises:
        ConfigError: settings that this version does not know.
    """
    problems = [f"{where}: config.{p}" for p in problems_of(Job, given, "")]
    if problems:
        raise ConfigError([*problems, f"{where}: use the version of da_leukemia that wrote it"])
    job: Job = _typed(Job, given)
    return job
