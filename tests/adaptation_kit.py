"""What the tests of adaptation share: numbers, tiny detectors of both kinds, a step by hand."""

from __future__ import annotations

import functools

import torch

from da_leukemia.adaptation.base import StepContext
from da_leukemia.data.batches import Targets
from da_leukemia.data.views import Draw, generator_for
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.faster_rcnn import FasterRCNN
from da_leukemia.models.one_stage import OneStageDetector

CPU = torch.device("cpu")
KINDS = ("one_stage", "faster_rcnn")
STRIDES = (8, 16, 32)


def draw(step=0):
    return Draw(generator_for(0, step, 2, CPU))


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def number(value):
    return float(value.detach())


def detector(classes=2, sizes=(2, 3), seed=0, kind="one_stage", **settings):
    torch.manual_seed(seed)
    backbone = Backbone("mobilenetv3_small_050", STRIDES)
    if kind == "faster_rcnn":
        settings = {"hidden": 24, "proposals": 32, "sampled": 16} | settings
        return FasterRCNN(backbone, classes, sizes, channels=16, depth=1, **settings)
    return OneStageDetector(backbone, classes, sizes, channels=16, depth=1, **settings)


@functools.cache
def anyone():
    """A detector that reads outputs made by hand; nobody trains it."""
    return detector()


def no_labels(images=2):
    return Targets(
        torch.zeros(images, 4, 4),
        torch.full((images, 4), -1),
        torch.full((images, 4, 0), -1),
        torch.zeros(images, 4, dtype=torch.bool),
        torch.ones(images, 2, dtype=torch.bool),
    )


def context(
    source, target, *, progress=1.0, net=None, teacher=None, weak=None, log=None, labels=None
):
    return StepContext(
        detector=net or anyone(),
        teacher=teacher,
        progress=progress,
        draw=draw(),
        source=source,
        source_targets=labels or no_labels(),
        target=target,
        target_weak=weak,
        log=({} if log is None else log).__setitem__,
    )
