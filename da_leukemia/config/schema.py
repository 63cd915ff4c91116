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

    # how the files are laid out and labelled, see docs/bring_your_own_device.md
    format: str = _choice(
        *("coco", "leukemiaattri", "sparse", "m5", "raabin", "voc", "yolo", "cells", "images")
    )
    root: str = ""  # relative to data.root; empty = the domain's name (leukemiaattri: data.root)
    annotations: str = "auto"  # label file relative to root; auto: looked for
    classes: list[str] | None = None  # the classes it labels; null = what its files say
    # all: learned from and scored; test_only: scored, never trained on; none: only adapted to
    labels: str = _choice("all", "test_only", "none")
    # file of `da-leukemia calibrate`, relative to data.root; auto: measured
    calibration: str = "auto"
    patient_pattern: str | None = None  # regex with a group `patient`, over the file name
    patch_order: str = _choice("auto", "x1y1x2y2", "x1x2y1y2")  # columns of a sparse label's patch
    licence: str = ""  # of the photographs and labels, for the model cards
    folders: list[str] | None = None  # format cells: the folders below root that are read
    # cut single cells out of the fields: their true boxes, widened by this share on every side
    crop: float | None = number(None, 0, 2, what="a margin as a share of the box")


@dataclass
class Split:
    """Division by patient (or field where there are none) over all devices at once."""

    # released: train and test as the data set comes; only `validation` is drawn
    kind: str = _choice("patient", "released")
    test: float = number(0.3, above=0, below=1)  # share of a device's fields that is tested on
    validation: float = number(0.1, 0, below=1)  # the same of validation
    seed: int = number(0, least=0)  # of the draw; the same for every seed of the trainings
    allow_leaks: bool = False  # patients or images in two parts are then only a warning
    # by class, too, where a device's labels are `all`; released: of what is carved for validation
    stratify: bool = False


@dataclass
class Simulation:
    """Render the data first. Devices are the keys of `data.domains`. 0 patients = no rendering."""

    patients: int = number(0, least=0)  # each seen through every device; 0 = no rendering
    fields_per_patient: int = number(8, least=1)  # images of a patient, on every device
    seed: int = number(0, least=0)  # another one renders other patients


@dataclass
class Calibration:
    """What a device's calibration is used for; what is unknown leaves its images alone.

    The experiment's ``calibration: [none, default]`` switches these as an axis of the matrix.
    See docs/calibration.md.
    """

    scale: bool = False  # bring devices to a common number of pixels per um
    illumination: bool = False  # even out the lamp
    colour: bool = False  # bring background and red cells to common colours
    # side of the network's view, um, where `scale` is on
    view_um: float = number(100.0, above=0, what="a length in um")
    # [smallest, largest], in place of augmentation.scale where `scale` is on
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
    patches: int = number(1, 1, 64)  # of a field, that together have `area`
    seed: int = number(0, least=0)  # of the places of the patches

    @property
    def whole(self) -> bool:
        """Whether nothing is taken out."""
        return self.area == 1


@dataclass
class Data:
    """Devices, label space and training size."""

    root: str = "data"  # folder of the devices' folders; from where the command is run
    # the types and attributes that are told apart; each device's own names are mapped to it
    label_space: str = field(default="wbc", metadata={"choices": tuple(LABEL_SPACES)})
    # side of the square network input, px, a multiple of the largest stride of the detector; images
    # are fitted into it, aspect kept
    image_size: int = number(320, least=8)
    cache_dir: str = "auto"  # of what was read once; auto: ~/.cache/da_leukemia, "": none
    # where images at training size are kept; disk: in cache_dir, shared by all jobs
    image_cache: str = _choice("memory", "disk", "none")
    # GB of memory that a job keeps images in; those beyond it are decoded each time
    memory_cache_gb: float = number(4.0, least=0)
    # GB of files of image_cache=disk, all experiments together; unused files make room
    disk_cache_gb: float = number(20.0, least=0)
    domains: dict[str, Domain] = field(default_factory=dict)  # the devices, by a name of yours
    split: Split = field(default_factory=Split)
    calibration: Calibration = field(default_factory=Calibration)
    sparse: Sparse = field(default_factory=Sparse)
    simulate: Simulation = field(default_factory=Simulation)


@dataclass
class TwoStage:
    """What only Faster R-CNN has. Its other constants are torchvision's."""

    # sides of the anchors of each level, in strides of that level
    anchors: list[float] = field(
        default_factory=lambda: [3.0, 4.5], metadata={"bounds": Bounds(above=0)}
    )
    proposals: int = number(128, least=1)  # of an image, that the second stage looks at
    sampled: int = number(64, least=1)  # proposals of an image that the second stage learns from
    hidden: int = number(256, least=1)  # width of the second stage's two layers


@dataclass
class Attributes:
    """How attributes are learned; `attribute_weight` and `attribute_gradient` stand beside it."""

    head: str = _choice("ours", "attridet")  # attridet: AttriDet's CNN, binary attributes only
    # class_balanced: rare values weigh more; asymmetric: AttriDet's. See docs/attributes.md
    loss: str = _choice("cross_entropy", "class_balanced", "asymmetric")
    on_type: bool = False  # the predicted cell type as a second opinion


@dataclass
class Classifier:
    """What only the classifier of single cells has. See docs/cells.md."""

    # what is done about rare types, see docs/cells.md
    loss: str = _choice("cross_entropy", "class_balanced", "logit_adjusted", "focal")
    # class_balanced: of the effective number of cells of a class
    beta: float = number(0.999, 0, below=1)
    # logit_adjusted: factor of the logarithm of a class's share
    tau: float = number(1.0, 0, below=10)
    gamma: float = number(2.0, 0, below=10)  # focal: exponent
    sampling: str = _choice("natural", "balanced")  # balanced: every class equally often
    smoothing: float = number(0.0, 0, below=1)  # share of a label that is spread over all classes
    # cells whose copies have other labels: learned as shares of these, as each says, not at all
    conflicts: str = _choice("soft", "own", "skip")


@dataclass
class Detector:
    """A multi-task detector: ours, or torchvision's Faster R-CNN, on any timm backbone.

    Kind `classifier` names single cells (domains of format `cells`, or with `crop`).
    """

    kind: str = _choice("one_stage", "faster_rcnn", "classifier")  # which network
    backbone: str = "mobilenetv4_conv_small"  # name of a timm model
    pretrained: bool = False  # download ImageNet weights
    # batch: the backbone's own; group: GroupNorm for its BatchNorm; frozen: BatchNorm as loaded
    # (classifier)
    norm: str = _choice("batch", "group", "frozen")
    init_from: str | None = None  # a checkpoint of ours to start from; what fits by shape is taken
    channels: int = number(96, least=1)  # of the pyramid and heads; a multiple of 8
    # convolutions in each head (faster_rcnn: in that of the proposals)
    depth: int = number(2, least=0)
    # of the levels of the pyramid, in px of the network input; the backbone must have them
    strides: list[int] = field(
        default_factory=lambda: [8, 16, 32], metadata={"bounds": Bounds(least=1)}
    )
    attribute_weight: float = number(0.2, least=0)  # factor of the loss; 0 = no attribute head
    # share of the attribute gradient that reaches the backbone
    attribute_gradient: float = share(0.1)
    attributes: Attributes = field(default_factory=Attributes)
    score_threshold: float = share(0.01)  # detections below are not given
    nms_iou: float = share(0.6)  # of boxes of one type that overlap more, the best is kept
    max_detections: int = number(100, least=1)  # of an image, the best ones
    two_stage: TwoStage = field(default_factory=TwoStage)  # for kind faster_rcnn
    classifier: Classifier = field(default_factory=Classifier)  # for kind classifier


@dataclass
class Augmentation:
    """Weak = geometry only. Strong = the same geometry, then optics and colour on top."""

    flip: float = share(0.5)  # probability, of each axis
    # [smallest, largest] factor of the image's size
    scale: list[float] = field(
        default_factory=lambda: [0.75, 1.33], metadata={"bounds": Bounds(above=0)}
    )
    translate: float = share(0.1)  # largest, as a share of the image side
    brightness: float = share(0.25)  # factor of 1 - this to 1 + this
    contrast: float = share(0.25)  # the same about the image's mean
    saturation: float = share(0.25)  # the same about each pixel's grey
    hue: float = number(0.03, 0, 0.5)  # largest turn, as a share of the colour circle
    grey: float = share(0.0)  # probability of no colour at all
    blur: float = share(0.3)  # probability
    blur_sigma: float = number(1.5, 0, 20)  # largest, in pixels of the network input
    noise: float = share(0.02)  # largest standard deviation, image in 0..1


@dataclass
class Trainer:
    """Budget and optimisation."""

    steps: int = number(2000, least=1)  # optimiser steps of a training
    epoch_steps: int = number(100, least=1)  # length of an epoch; a checkpoint after each
    batch_size: int = number(8, least=1)  # labelled images in a step
    # of AdamW, at its highest: a linear warm-up, then a cosine down to 1 %
    learning_rate: float = number(1e-3, above=0, most=10)
    weight_decay: float = number(0.01, 0, 10)  # of AdamW; not of biases and norms
    warmup: float = share(0.05)  # share of `steps` over which the learning rate rises
    clip: float = number(5.0, least=0)  # largest norm of the gradient; 0 = any
    # what stays of the averaged weights in a step; at step t min(ema, (1 + t) / (10 + t))
    ema: float = share(0.999)
    validate_every: int = number(5, least=0)  # epochs between validations on the source; 0 = never
    threads: int = number(1, least=1)  # CPU threads of a job
    # data-loader processes; fields are held in memory, so 0 is fastest
    workers: int = number(0, least=0)
    accelerator: str = _choice("auto", "cpu", "gpu")  # auto: a GPU where there is one
    precision: str = _choice("auto", "32-true", "bf16-mixed")  # auto: bf16 on GPUs that have it
    compile: bool = False  # torch.compile the detector: slow to start, then faster
    deterministic: bool = True  # algorithms that give the same numbers again, where torch has them


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

    path: str = ""  # the file, checkpoints/last.ckpt of a finished job
    sha256: str = ""  # of the file; written down when it is first read, from then on it must fit


@dataclass
class Experiment:
    """One sweep: a grid of methods x sources x targets x seeds."""

    name: str = "experiment"  # of the sweep's folder; another name is another sweep
    runs_dir: str = "runs"  # where the folders of sweeps are
    data: Data = field(default_factory=Data)
    detector: Detector = field(default_factory=Detector)
    # an axis like methods: what each changes of `detector`, by name; empty: that one alone
    detectors: dict[str, Detector] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    trainer: Trainer = field(default_factory=Trainer)
    selection: Selection = field(default_factory=Selection)
    # trained detectors that are adapted without their source's data, by a name of yours
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    # trained on: a device, several at once as `a+b`, `leave_one_out`, or a checkpoint's name; null:
    # the checkpoints, or without any every domain with labels
    sources: list[str] | None = None
    # adapted to; null: the tests, and the domains with labels: none
    targets: list[str] | None = None
    tests: list[str] | None = None  # scored on; null: every domain with labels
    # names of `adaptations` or of files in configs/adaptation, see docs/adaptation.md
    methods: list[str] = field(default_factory=lambda: ["fair_source_only"])
    # added for adapted methods, see docs/adaptation.md; any of plain, fair, longer, oracle
    twins: list[str] = field(default_factory=lambda: list(TWINS))
    # an axis like methods: any of none, default, scale, illumination, colour; null:
    # data.calibration as it is
    calibration: list[str] | None = None
    # annotated area, an axis like methods; null: data.sparse as it is
    sparse: list[float] | None = field(
        default=None, metadata={"bounds": Bounds(above=0, most=1, what="a share of the area")}
    )
    adaptations: dict[str, Method] = field(default_factory=dict)  # methods defined in place
    # of weights and batches; each is a repetition of all trainings
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"bounds": Bounds(least=0, most=2**32 - 1)}
    )
    # tables whose numbers the report prints ours beside: names of configs/published
    published: list[str] = field(default_factory=list)
    # those tables written out, or others in place
    published_tables: dict[str, Published] = field(default_factory=dict)
    tracking: str = _choice("none", "wandb")  # where metrics are sent, beside the folder
    tracking_checkpoints: bool = False  # send each job's weights as an artifact
    executor: str = _choice("local", "slurm", "ray")  # what runs the jobs, see docs/clusters.md
    slurm: Slurm = field(default_factory=Slurm)
    ray: Ray = field(default_factory=Ray)
    # what to do about finished jobs that were trained on other data
    changed_data: str = _choice("stop", "retrain")
    # what to do where changed settings let finished jobs leave the matrix
    changed_settings: str = _choice("stop", "accept")
    # jobs at a time on this machine; null: CPU cores / trainer.threads, or GPUs
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
