"""What an experiment is: its schema, how files and overrides become it, and a job's identity.

Loading: ``extends:`` files first, then the experiment file, then ``key=value`` overrides, all
through OmegaConf. Every unknown key and wrong value is reported at once, with a suggestion.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from da_leukemia.adaptation.settings import COMPONENTS, STRENGTH, Method
from da_leukemia.errors import ConfigError, did_you_mean
from da_leukemia.labels import LABEL_SPACES

IDENTITY_VERSION = 1
"""Raised when the meaning of a setting changes, so that old results are not taken for new ones."""


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": (default, *choices)})


@dataclass
class Domain:
    """One device: where its photographs are and what of its labels may be used."""

    format: str = _choice("coco", "leukemiaattri", "sparse", "m5", "raabin", "voc", "yolo")
    root: str = ""  # relative to data.root; empty = the domain's name (leukemiaattri: data.root)
    annotations: str = "auto"  # label file relative to root
    classes: list[str] | None = None  # the classes it labels; null = what its files say
    labels: str = _choice("all", "test_only")  # test_only: scored, never trained on
    patient_pattern: str | None = None  # regex with a group `patient`, over the file name
    patch_order: str = _choice("auto", "x1y1x2y2", "x1x2y1y2")  # columns of a sparse label's patch


@dataclass
class Split:
    """Division by patient (or field where there are none) over all devices at once."""

    kind: str = _choice("patient", "released")
    test: float = 0.3
    validation: float = 0.1
    seed: int = 0
    allow_leaks: bool = False  # patients or images in two parts are then only a warning


@dataclass
class Simulation:
    """Render the data first. Devices are the keys of `data.domains`. 0 patients = no rendering."""

    patients: int = 0
    fields_per_patient: int = 8
    seed: int = 0


@dataclass
class Data:
    """Devices, label space and training size."""

    root: str = "data"
    label_space: str = field(default="wbc", metadata={"choices": tuple(LABEL_SPACES)})
    image_size: int = 320  # square network input; images are fitted into it, aspect kept
    cache_dir: str = "auto"  # of what was read once; auto: ~/.cache/da_leukemia, "": none
    image_cache: str = _choice("memory", "disk", "none")  # of images at training size
    memory_cache_gb: float = 4.0  # of a data set; images beyond it are decoded each time
    disk_cache_gb: float = 20.0  # of all experiments; unused files make room
    domains: dict[str, Domain] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    simulate: Simulation = field(default_factory=Simulation)


@dataclass
class Detector:
    """The one-stage multi-task detector."""

    backbone: str = "mobilenetv4_conv_small"
    pretrained: bool = False  # download ImageNet weights
    init_from: str | None = None  # a checkpoint of ours to start from
    channels: int = 96  # of the pyramid and heads
    depth: int = 2  # convolutions in each head
    strides: list[int] = field(default_factory=lambda: [8, 16, 32])
    attribute_weight: float = 0.2  # 0 = no attribute head
    attribute_gradient: float = 0.1  # share of the attribute gradient that reaches the backbone
    score_threshold: float = 0.01
    nms_iou: float = 0.6
    max_detections: int = 100


@dataclass
class Augmentation:
    """Weak = geometry only. Strong = the same geometry, then optics and colour on top."""

    flip: float = 0.5
    scale: list[float] = field(default_factory=lambda: [0.75, 1.33])
    translate: float = 0.1  # share of the image side
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.03
    grey: float = 0.0  # probability
    blur: float = 0.3  # probability
    blur_sigma: float = 1.5  # largest, in pixels of the network input
    noise: float = 0.02  # largest standard deviation, image in 0..1


@dataclass
class Trainer:
    """Budget and optimisation."""

    steps: int = 2000
    epoch_steps: int = 100  # between checkpoints and validations
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of steps
    clip: float = 5.0  # gradient norm
    ema: float = 0.999  # ramped: min(ema, (1 + t) / (10 + t))
    validate_every: int = 5  # epochs between validations on the source; 0 = never
    threads: int = 1  # CPU threads of a job
    workers: int = 0  # data-loader processes; fields are held in memory, so 0 is fastest
    accelerator: str = _choice("auto", "cpu", "gpu")
    precision: str = _choice("auto", "32-true", "bf16-mixed")
    compile: bool = False
    deterministic: bool = True


@dataclass
class Experiment:
    """One sweep: a grid of methods x sources x targets x seeds."""

    name: str = "experiment"
    runs_dir: str = "runs"
    data: Data = field(default_factory=Data)
    detector: Detector = field(default_factory=Detector)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainer: Trainer = field(default_factory=Trainer)
    sources: list[str] | None = None  # default: every domain with labels
    targets: list[str] | None = None  # default: the tests
    tests: list[str] | None = None  # default: every domain
    methods: list[str] = field(default_factory=lambda: ["fair_source_only"])
    adaptations: dict[str, Method] = field(default_factory=dict)  # methods defined in place
    seeds: list[int] = field(default_factory=lambda: [0])
    tracking: str = _choice("none", "wandb")
    executor: str = _choice("local")
    processes: int | None = None  # jobs at a time; default: CPU cores / trainer.threads, or GPUs

    @property
    def folder(self) -> Path:
        """Where the sweep lives: ``runs_dir/name``."""
        return Path(self.runs_dir) / self.name


@dataclass
class Job:
    """One training and its tests. Written to ``config.yaml`` in the job's folder.

    Attributes:
        method_name: how the matrix calls it; no part of the identity.
        source: device it learns from, with labels.
        target: device it looks at without labels, None for source-only.
        tests: devices it is tested on; no part of the identity, so a new one only adds tests.
    """

    method_name: str
    method: Method
    source: str
    target: str | None
    seed: int
    tests: list[str]
    data: Data
    detector: Detector
    augmentation: Augmentation
    trainer: Trainer
    tracking: str = "none"
    sweep: str = ""

    @property
    def hash(self) -> str:
        """Content hash without names, paths, devices and workers (12 hexadecimal digits)."""
        identity = dataclasses.asdict(self)
        identity["method"]["components"] = active_components(self.method)
        for key in ("method_name", "tests", "tracking", "sweep"):
            del identity[key]
        for key in ("threads", "workers", "accelerator", "precision", "compile", "validate_every"):
            del identity["trainer"][key]
        for key in ("root", "cache_dir", "image_cache", "memory_cache_gb", "disk_cache_gb"):
            del identity["data"][key]
        del identity["data"]["split"]["allow_leaks"]
        seen = [self.source] + ([self.target] if self.target else [])
        domains = {name: identity["data"]["domains"][name] for name in seen}
        for domain in domains.values():
            for key in ("root", "annotations"):
                del domain[key]
            if domain["patch_order"] == "auto":  # as before there was this setting
                del domain["patch_order"]
        identity["data"]["domains"] = domains
        identity["version"] = IDENTITY_VERSION
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


# --- files -----------------------------------------------------------------------------------

_GROUPS = ("trainer", "detector", "data", "augmentation")
"""``trainer=smoke`` merges ``configs/trainer/smoke.yaml``; these keys are such groups."""


def shipped(kind: str) -> Path:
    """Return the folder ``configs`` or ``experiments``, of the checkout or of the installation."""
    package = Path(__file__).resolve().parent
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
        raise ConfigError(f"{path}: no such file{did_you_mean(path.name, experiments)}")
    try:
        loaded = OmegaConf.load(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error
    except Exception as error:  # the YAML parser's own hierarchy is not public
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
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
        extended = _load_extended(path.parent / base, (*chain, path))
        merged = typing.cast(DictConfig, OmegaConf.merge(merged, extended))
    return typing.cast(DictConfig, OmegaConf.merge(merged, OmegaConf.create(content)))


# --- checking --------------------------------------------------------------------------------


def _strip_optional(hint: Any) -> Any:
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    is_union = type(None) in typing.get_args(hint)
    return arguments[0] if is_union and arguments else hint


def _problems(schema: type, given: Mapping[str, Any], at: str) -> Iterator[str]:
    """Yield every unknown key and wrong value of ``given`` against a dataclass."""
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in given.items():
        where = f"{at}{key}"
        if key not in fields:
            yield f"{where}: unknown key{did_you_mean(str(key), fields)}"
            continue
        hint = _strip_optional(hints[key])
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                yield from _problems(typing.cast(type, hint), value, f"{where}.")
            else:
                yield f"{where}: expected a section of settings, got {value!r}"
            continue
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1]):
            if not isinstance(value, Mapping):
                yield f"{where}: expected names with settings, got {value!r}"
                continue
            for name, inner in value.items():
                if inner is None:
                    continue
                if isinstance(inner, Mapping):
                    yield from _problems(typing.cast(type, arguments[1]), inner, f"{where}.{name}.")
                else:
                    yield f"{where}.{name}: expected a section of settings, got {inner!r}"
            continue
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            yield f"{where}: unknown value {value!r}{did_you_mean(str(value), choices)}"
            continue
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {key: value})
        except OmegaConfBaseException:
            wanted = getattr(hint, "__name__", str(hint)) if not arguments else str(hint)
            yield f"{where}: expected {wanted}, got {value!r}"


def check_method(name: str, method: Method) -> list[str]:
    """Return every problem in a method's list of components."""
    problems = []
    for position, settings in enumerate(method.components):
        where = f"adaptations.{name}.components[{position}]"
        kind = settings.get("name")
        if kind not in COMPONENTS:
            problems.append(
                f"{where}.name: unknown component {kind!r}{did_you_mean(str(kind), COMPONENTS)}"
            )
            continue
        given = {k: v for k, v in settings.items() if k != "name"}
        problems += _problems(COMPONENTS[str(kind)], given, f"{where}.")
    return problems


def active_components(method: Method) -> list[dict[str, Any]]:
    """Return the components of a method whose strength is not zero."""
    active = []
    for settings in method.components:
        kind = str(settings["name"])
        full = dataclasses.asdict(
            COMPONENTS[kind](**{k: v for k, v in settings.items() if k != "name"})
        )
        if full[STRENGTH[kind]] != 0:
            active.append({"name": kind, **full})
    return active


def _typed(schema: type, given: Mapping[str, Any]) -> Any:
    given = {
        key: ({n: (v or {}) for n, v in value.items()} if key in ("adaptations",) else value)
        for key, value in given.items()
    }
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))


def load_method(name: str, near: Path | None = None) -> Method:
    """Load ``configs/adaptation/NAME.yaml``.

    Raises:
        ConfigError: no such method, or a file with problems.
    """
    path = _find("adaptation", name, near, "methods")
    content = OmegaConf.to_container(_load_extended(path), resolve=True)
    assert isinstance(content, dict)
    given = {str(k): v for k, v in content.items()}
    problems = list(_problems(Method, given, f"{path.name}: "))
    if problems:
        raise ConfigError(problems)
    method: Method = _typed(Method, given)
    return method


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply ``key=value`` overrides.

    Raises:
        ConfigError: with every problem that was found, each with what was expected.
    """
    path = Path(path)
    if not path.exists() and (shipped("experiments") / path.name).is_file():
        path = shipped("experiments") / path.name
    merged = _load_extended(path)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{override!r}: expected key=value")
        if key in _GROUPS:
            piece = _load_extended(_find(key, value, path, key))
        else:
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
    given = {str(k): v for k, v in content.items()}
    domains = given.get("data", {}).get("domains") if isinstance(given.get("data"), dict) else None
    if isinstance(domains, dict):
        given["data"]["domains"] = {n: ({} if d is None else d) for n, d in domains.items()}
    problems = [f"{path}: {p}" for p in _problems(Experiment, given, "")]
    if problems:
        raise ConfigError(problems)
    experiment: Experiment = _typed(Experiment, given)
    complete(experiment, path)
    return experiment


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
    experiment.sources = labelled if experiment.sources is None else experiment.sources
    experiment.tests = list(domains) if experiment.tests is None else experiment.tests
    experiment.targets = experiment.tests if experiment.targets is None else experiment.targets
    for key in ("sources", "tests", "targets"):
        for name in getattr(experiment, key):
            if name not in domains:
                problems.append(f"{key}: unknown device {name!r}{did_you_mean(name, domains)}")
            elif key == "sources" and name not in labelled:
                problems.append(f"sources: {name!r} has labels: test_only, it cannot be trained on")
    for name in experiment.methods:
        try:
            if name not in experiment.adaptations:
                experiment.adaptations[name] = load_method(name, path)
            problems += check_method(name, experiment.adaptations[name])
        except ConfigError as error:
            problems += error.problems
    problems += _check_numbers(experiment)
    if problems:
        raise ConfigError([f"{path}: {p}" if path else p for p in problems])


def _check_numbers(experiment: Experiment) -> list[str]:
    problems = []
    data, trainer, detector = experiment.data, experiment.trainer, experiment.detector
    if min(detector.strides, default=0) < 1:
        problems.append(f"detector.strides: expected numbers above 0, got {detector.strides}")
    elif data.image_size % max(detector.strides) or data.image_size <= 0:
        problems.append(
            f"data.image_size: {data.image_size} is no positive multiple of the largest stride "
            f"{max(detector.strides)}"
        )
    problems += [
        f"trainer.{key}: expected at least 1, got {getattr(trainer, key)}"
        for key in ("steps", "epoch_steps", "batch_size", "threads")
        if getattr(trainer, key) < 1
    ]
    if not 0 < data.split.test < 1 or not 0 <= data.split.validation < 1 - data.split.test:
        problems.append(
            "data.split: expected 0 < test < 1 and 0 <= validation < 1 - test, got "
            f"test={data.split.test}, validation={data.split.validation}"
        )
    if len(experiment.augmentation.scale) != 2 or min(experiment.augmentation.scale) <= 0:
        problems.append("augmentation.scale: expected [smallest, largest], both above 0")
    if not experiment.seeds:
        problems.append("seeds: empty; name at least one")
    if experiment.name in ("", "..") or Path(experiment.name).name != experiment.name:
        problems.append(f"name: {experiment.name!r} cannot be the name of a folder")
    if experiment.processes is not None and experiment.processes < 1:
        problems.append(f"processes: expected at least 1, got {experiment.processes}")
    return problems


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
