"""What an experiment is: its settings with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from da_leukemia.adaptation.settings import Method
from da_leukemia.bounds import Bounds, number, share
from da_leukemia.config.executors import Ray, Slurm
from da_leukemia.config.published import Published
from da_leukemia.labels import LABEL_SPACES


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": (default, *choices)})


@dataclass
class Domain:
    """One device: where its photographs are and what of its labels may be used."""

    format: str = _choice(
        *("coco", "leukemiaattri", "sparse", "m5", "raabin", "voc", "yolo", "cells", "images")
    )
    root: str = ""  # relative to data.root; empty = the domain's name (leukemiaattri: data.root)
    annotations: str = "auto"  # label file relative to root
    classes: list[str] | None = None  # the classes it labels; null = what its files say
    # test_only: scored, never trained on; none: only adapted to
    labels: str = _choice("all", "test_only", "none")
    calibration: str = (
        "auto"  # file of `da-leukemia calibrate`, relative to data.root; auto: measured
    )
    patient_pattern: str | None = None  # regex with a group `patient`, over the file name
    patch_order: str = _choice("auto", "x1y1x2y2", "x1x2y1y2")  # columns of a sparse label's patch
    licence: str = ""  # of the photographs and labels, for the model cards
    folders: list[str] | None = None  # format cells: the folders below root that are read
    # cut single cells out of the fields: their true boxes, widened by this share on every side
    crop: float | None = number(None, 0, 2, what="a margin as a share of the box")


@dataclass
class Split:
    """Division by patient (or field where there are none) over all devices at once."""

    kind: str = _choice("patient", "released")
    test: float = number(0.3, above=0, below=1)
    validation: float = number(0.1, 0, below=1)
    seed: int = number(0, least=0)
    allow_leaks: bool = False  # patients or images in two parts are then only a warning
    # by class, too, where a device's labels are `all`; released: of what is carved for validation
    stratify: bool = False


@dataclass
class Simulation:
    """Render the data first. Devices are the keys of `data.domains`. 0 patients = no rendering."""

    patients: int = number(0, least=0)
    fields_per_patient: int = number(8, least=1)
    seed: int = number(0, least=0)


@dataclass
class Calibration:
    """What a device's calibration is used for; what is unknown leaves its images alone.

    The experiment's ``calibration: [none, default]`` switches these as an axis of the matrix.
    See docs/calibration.md.
    """

    scale: bool = False  # bring devices to a common number of pixels per um
    illumination: bool = False  # even out the lamp
    colour: bool = False  # bring background and red cells to common colours
    # side of the network's view, um, where the scale is applied
    view_um: float = number(100.0, above=0, what="a length in um")
    # then for augmentation.scale
    jitter: list[float] = field(
        default_factory=lambda: [0.8, 1.25], metadata={"bounds": Bounds(above=0)}
    )
    images: int = number(50, least=1)  # unlabelled training images of a device that are measured

    @property
    def used(self) -> tuple[str, ...]:
        """What is switched on."""
        return tuple(name for name in CALIBRATED if getattr(self, name))


CALIBRATED = ("scale", "illumination", "colour")

CALIBRATIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "default": CALIBRATED,
    **{name: (name,) for name in CALIBRATED},
}
"""What each value of the axis `calibration` switches on."""


@dataclass
class Sparse:
    """Annotate only random patches of the fields that are learned from; tests stay whole.

    The experiment's ``sparse: [0.05, 0.2, 1]`` sets the area as an axis of the matrix.
    See docs/sparse.md.
    """

    # share of each field that is annotated; 1 = as the data set is
    area: float = number(1.0, above=0, most=1, what="a share of the area")
    patches: int = number(1, 1, 64)  # of a field, that together have this area
    seed: int = number(0, least=0)  # of their places

    @property
    def whole(self) -> bool:
        """Whether nothing is taken out."""
        return self.area == 1


@dataclass
class Data:
    """Devices, label space and training size."""

    root: str = "data"
    label_space: str = field(default="wbc", metadata={"choices": tuple(LABEL_SPACES)})
    # square network input; images are fitted into it, aspect kept
    image_size: int = number(320, least=8)
    cache_dir: str = "auto"  # of what was read once; auto: ~/.cache/da_leukemia, "": none
    image_cache: str = _choice("memory", "disk", "none")  # of images at training size
    # of a data set; images beyond it are decoded each time
    memory_cache_gb: float = number(4.0, least=0)
    disk_cache_gb: float = number(20.0, least=0)  # of all experiments; unused files make room
    domains: dict[str, Domain] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    calibration: Calibration = field(default_factory=Calibration)
    sparse: Sparse = field(default_factory=Sparse)
    simulate: Simulation = field(default_factory=Simulation)


@dataclass
class TwoStage:
    """What only Faster R-CNN has. Its other constants are torchvision's."""

    # sides, in strides of a level
    anchors: list[float] = field(
        default_factory=lambda: [3.0, 4.5], metadata={"bounds": Bounds(above=0)}
    )
    proposals: int = number(128, least=1)  # of an image, that the second stage looks at
    sampled: int = number(64, least=1)  # of them, that it learns from
    hidden: int = number(256, least=1)  # width of its two layers


@dataclass
class Attributes:
    """How attributes are learned; `Detector` has their weight and their gradient."""

    head: str = _choice("ours", "attridet")  # attridet: AttriDet's CNN, binary attributes only
    loss: str = _choice("cross_entropy", "class_balanced", "asymmetric")
    on_type: bool = False  # the predicted cell type as a second opinion


@dataclass
class Classifier:
    """What only the classifier of single cells has. See docs/cells.md."""

    loss: str = _choice("cross_entropy", "class_balanced", "logit_adjusted", "focal")
    # class_balanced: of the effective number of cells of a class
    beta: float = number(0.999, 0, below=1)
    # logit_adjusted: factor of the logarithm of a class's share
    tau: float = number(1.0, 0, below=10)
    gamma: float = number(2.0, 0, below=10)  # focal: exponent
    sampling: str = _choice("natural", "balanced")  # balanced: every class equally often
    smoothing: float = number(0.0, 0, below=1)  # share of a label that is spread over all classes
    conflicts: str = _choice("soft", "own", "skip")  # a cell whose copies have other labels


@dataclass
class Detector:
    """A multi-task detector: ours, or torchvision's Faster R-CNN, on any timm backbone.

    Kind `classifier` names single cells (domains of format `cells`, or with `crop`).
    """

    kind: str = _choice("one_stage", "faster_rcnn", "classifier")
    backbone: str = "mobilenetv4_conv_small"
    pretrained: bool = False  # download ImageNet weights
    # group: GroupNorm for the backbone's BatchNorm; frozen: BatchNorm as loaded (classifier)
    norm: str = _choice("batch", "group", "frozen")
    init_from: str | None = None  # a checkpoint of ours to start from
    channels: int = number(96, least=1)  # of the pyramid and heads
    # convolutions in each head (faster_rcnn: in that of the proposals)
    depth: int = number(2, least=0)
    strides: list[int] = field(
        default_factory=lambda: [8, 16, 32], metadata={"bounds": Bounds(least=1)}
    )
    attribute_weight: float = number(0.2, least=0)  # 0 = no attribute head
    # share of the attribute gradient that reaches the backbone
    attribute_gradient: float = share(0.1)
    attributes: Attributes = field(default_factory=Attributes)
    score_threshold: float = share(0.01)
    nms_iou: float = share(0.6)
    max_detections: int = number(100, least=1)
    two_stage: TwoStage = field(default_factory=TwoStage)  # for kind faster_rcnn
    classifier: Classifier = field(default_factory=Classifier)  # for kind classifier


@dataclass
class Augmentation:
    """Weak = geometry only. Strong = the same geometry, then optics and colour on top."""

    flip: float = share(0.5)
    scale: list[float] = field(
        default_factory=lambda: [0.75, 1.33], metadata={"bounds": Bounds(above=0)}
    )
    translate: float = share(0.1)  # share of the image side
    brightness: float = share(0.25)
    contrast: float = share(0.25)
    saturation: float = share(0.25)
    hue: float = number(0.03, 0, 0.5)  # share of the colour circle
    grey: float = share(0.0)  # probability
    blur: float = share(0.3)  # probability
    blur_sigma: float = number(1.5, 0, 20)  # largest, in pixels of the network input
    noise: float = share(0.02)  # largest standard deviation, image in 0..1


@dataclass
class Trainer:
    """Budget and optimisation."""

    steps: int = number(2000, least=1)
    epoch_steps: int = number(100, least=1)  # between checkpoints and validations
    batch_size: int = number(8, least=1)
    learning_rate: float = number(1e-3, above=0, most=10)
    weight_decay: float = number(0.01, 0, 10)
    warmup: float = share(0.05)  # share of steps
    clip: float = number(5.0, least=0)  # gradient norm
    ema: float = share(0.999)  # ramped: min(ema, (1 + t) / (10 + t))
    validate_every: int = number(5, least=0)  # epochs between validations on the source; 0 = never
    threads: int = number(1, least=1)  # CPU threads of a job
    # data-loader processes; fields are held in memory, so 0 is fastest
    workers: int = number(0, least=0)
    accelerator: str = _choice("auto", "cpu", "gpu")
    precision: str = _choice("auto", "32-true", "bf16-mixed")
    compile: bool = False
    deterministic: bool = True


METRICS = (
    *("balanced_accuracy", "accuracy", "macro_f1"),  # of single cells
    *("ap50", "ap50_95", "recall", "attribute_f1", "attribute_f1_end_to_end"),
    *("attribute_balanced_accuracy", "ece"),
    *("attribute_f1_true_boxes", "attribute_ece", "ap50_without_none"),
    *("map50_as_released", "attribute_f1_as_released"),
    *("aurc", "open_set_auroc"),  # of single cells
)
"""Scores of a result that the matrix is made of, in the order of the report."""

SOURCES_MARK = "+"
"""Between the devices of a source that is several."""

NAME_MARKS = ":~+@"
"""What joins a method with all that it was run with (see `sweep.names`): no name may hold it."""

LEAVE_ONE_OUT = "leave_one_out"
"""In `Experiment.sources`: all devices with labels but one, for each of them."""

TWINS = ("plain", "fair", "longer", "oracle")
"""What adapted methods are compared with (see `sweep.plan`)."""


def devices_of(source: str) -> tuple[str, ...]:
    """Return the devices of a source: ``a+b`` learns from two."""
    return tuple(source.split(SOURCES_MARK))


@dataclass
class Selection:
    """Weights kept while training, from which an epoch is chosen afterwards. See docs/selection.md.

    Decides nothing about the training and is no part of a job's identity.
    """

    every: int = number(0, least=0)  # epochs between two that are kept; 0 = nothing is recorded
    # unlabelled training images of a device that the label-free scorers see
    images: int = number(24, least=1)
    keep: bool = False  # leave the weights in the job's folder, epochs/00005.pt


@dataclass
class Checkpoint:
    """A trained detector that is a source by itself: of what it learned from, nothing is needed.

    In a file ``name: PATH`` will do. See docs/adaptation.md.
    """

    path: str = ""
    sha256: str = ""  # of the file; written down when it is first read, from then on it must fit


@dataclass
class Experiment:
    """One sweep: a grid of methods x sources x targets x seeds."""

    name: str = "experiment"
    runs_dir: str = "runs"
    data: Data = field(default_factory=Data)
    detector: Detector = field(default_factory=Detector)
    # an axis like methods: what each changes of `detector`, by name; default: that one alone
    detectors: dict[str, Detector] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainer: Trainer = field(default_factory=Trainer)
    selection: Selection = field(default_factory=Selection)
    # trained detectors that are adapted without their source's data, by a name of yours
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    # a device, several at once as `a+b`, `leave_one_out`, or a checkpoint's name; default: the
    # checkpoints, or without any every domain with labels
    sources: list[str] | None = None
    targets: list[str] | None = None  # default: the tests
    tests: list[str] | None = None  # default: every domain
    methods: list[str] = field(default_factory=lambda: ["fair_source_only"])
    twins: list[str] = field(default_factory=lambda: list(TWINS))  # added for adapted methods
    calibration: list[str] | None = None  # an axis like methods; default: data.calibration
    # annotated area, an axis like methods; default: data.sparse
    sparse: list[float] | None = field(
        default=None, metadata={"bounds": Bounds(above=0, most=1, what="a share of the area")}
    )
    adaptations: dict[str, Method] = field(default_factory=dict)  # methods defined in place
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"bounds": Bounds(least=0, most=2**32 - 1)}
    )
    # tables whose numbers the report prints ours beside: names of configs/published
    published: list[str] = field(default_factory=list)
    published_tables: dict[str, Published] = field(
        default_factory=dict
    )  # those, or others in place
    tracking: str = _choice("none", "wandb")
    tracking_checkpoints: bool = False  # send each job's weights as an artifact
    executor: str = _choice("local", "slurm", "ray")
    slurm: Slurm = field(default_factory=Slurm)
    ray: Ray = field(default_factory=Ray)
    changed_data: str = _choice("stop", "retrain")  # where finished jobs were trained on other data
    changed_settings: str = _choice("stop", "accept")  # where finished jobs would leave the matrix
    # jobs at a time; default: CPU cores / trainer.threads, or GPUs
    processes: int | None = number(None, least=1)

    @property
    def folder(self) -> Path:
        """Where the sweep lives: ``runs_dir/name``."""
        return Path(self.runs_dir) / self.name


def chosen_detectors(experiment: Experiment) -> dict[str, Detector]:
    """Return the detectors that are trained, by where their settings stand."""
    named = {f"detectors.{name}": settings for name, settings in experiment.detectors.items()}
    return named or {"detector": experiment.detector}


def sparsities(experiment: Experiment) -> list[Sparse]:
    """Return the values of the axis `sparse` as settings."""
    settings = experiment.data.sparse
    if experiment.sparse is None:
        return [settings]
    return [replace(settings, area=area) for area in dict.fromkeys(experiment.sparse)]


def names_cells(experiment: Experiment) -> bool:
    """Whether single cells are named (kind ``classifier``), not fields searched."""
    return any(d.kind == "classifier" for d in chosen_detectors(experiment).values())
