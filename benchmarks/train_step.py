"""One training step of our detector against torchvision's FCOS on the same backbone.

What is compared: forward, loss, backward and AdamW step, in images per second, of

- ours: `OneStageDetector` with the widths of the default settings, white-cell label space,
- ours + attributes: the same with the head for seven attributes (FCOS has nothing like it),
- FCOS: `torchvision.models.detection.FCOS` with its defaults, on torchvision's own pyramid of 256
  channels over the same maps (strides 8, 16, 32) of the same timm network.

All three get the same random images and boxes at the same size, already on the device, and keep
their weights in channels-last order. FCOS batches its list of images inside its step; its size is
set so that nothing is resized, and normalisation is left to the backbone, as in ours.
The detectors take turns in one process, so that a busy machine slows all alike; the median of the
repeats counts.

Ours is narrower by default (96 channels, two convolutions per tower, against 256 and four), and
that is most of the difference: ``--channels 256 --depth 4`` gives it FCOS's widths.
"""

from __future__ import annotations

import argparse
import statistics
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from benchmarks import chip, timed, use
from da_leukemia.config import Detector
from da_leukemia.data.batches import Targets
from da_leukemia.labels import WBC, LabelSpace
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.factory import build_detector

STRIDES = (8, 16, 32)
WIDTH = 256
"""Channels of torchvision's pyramid, its default."""


class PyramidBackbone(nn.Module):
    """The timm network under torchvision's feature pyramid, as FCOS wants it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = Backbone(name, STRIDES)
        self.pyramid = FeaturePyramidNetwork(list(self.body.channels), WIDTH)
        self.out_channels = WIDTH

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return one map per level."""
        maps = self.body(images)
        named = OrderedDict((str(i), m) for i, m in enumerate(maps))
        levels: dict[str, Tensor] = self.pyramid(named)
        return levels


def make_targets(batch: int, size: int, cells: int = 6, space: LabelSpace = WBC) -> Targets:
    """Draw the cells of a batch: ``cells`` boxes of 24 to 80 px per image, of one type."""
    generator = torch.Generator().manual_seed(0)
    side = 24 + 56 * torch.rand(batch, cells, 1, generator=generator)
    low = torch.rand(batch, cells, 2, generator=generator) * (size - side)
    codes = [torch.randint(n, (batch, cells), generator=generator) for n in space.attribute_sizes]
    return Targets(
        torch.cat([low, low + side], -1),
        torch.zeros(batch, cells, dtype=torch.int64),
        torch.stack(codes, -1),
        torch.ones(batch, cells, dtype=torch.bool),
        torch.ones(batch, len(space.classes), dtype=torch.bool),
    )


def ours(
    backbone: str, images: Tensor, targets: Targets, attributes: bool, channels: int, depth: int
) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    settings = Detector(
        backbone=backbone,
        strides=list(STRIDES),
        channels=channels,
        depth=depth,
        attribute_weight=0.2 if attributes else 0.0,
    )
    detector = build_detector(settings, WBC).to(images.device)
    detector = detector.to(memory_format=torch.channels_last)
    given = images.contiguous(memory_format=torch.channels_last)
    return detector, lambda: detector.loss(detector(given), targets)


def theirs(
    backbone: str, images: Tensor, targets: Targets
) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    size = images.shape[-1]
    detector = FCOS(
        PyramidBackbone(backbone),
        num_classes=len(WBC.classes),
        anchor_generator=AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 3),
        min_size=size,
        max_size=size,
        image_mean=[0.0] * 3,  # the backbone normalises
        image_std=[1.0] * 3,
    )
    detector = detector.to(images.device).to(memory_format=torch.channels_last)
    pictures = list(images)
    pairs = zip(targets.boxes, targets.labels, strict=True)
    truths = [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
    return detector, lambda: detector(pictures, truths)


def stepper(
    network: nn.Module, losses: Callable[[], dict[str, Tensor]], device: torch.device, bf16: bool
) -> Callable[[], float]:
    """Return a function that makes one step and returns its seconds, the device's work included."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total = torch.stack([v.float() for v in losses().values()]).sum()
        optimiser.zero_grad()
        torch.autograd.backward(total)
        optimiser.step()

    return timed(step, device)


def measure(
    steppers: dict[str, Callable[[], float]], repeats: int, warmup: int
) -> dict[str, float]:
    """Return the median seconds per step of each, taken in turns."""
    for step in steppers.values():
        for _ in range(warmup):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, step in steppers.items():
            taken[name].append(step())
    return {name: statistics.median(times) for name, times in taken.items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the comparison, print it, and return images per second by name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description="Time a training step of our detector against torchvision's FCOS.",
    )
    parser.add_argument("--backbone", default="mobilenetv4_conv_small", help="a timm network")
    parser.add_argument("--size", type=int, default=320, help="side of the images")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each detector")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock runs")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--channels", type=int, default=Detector.channels, help="width of ours")
    parser.add_argument("--depth", type=int, default=Detector.depth, help="tower depth of ours")
    given = parser.parse_args(arguments)

    device = use(given.device, given.threads)
    torch.manual_seed(0)
    images = torch.rand(given.batch, 3, given.size, given.size).to(device)
    targets = make_targets(given.batch, given.size).to(device)
    width = {"channels": given.channels, "depth": given.depth}
    built = {
        "ours": ours(given.backbone, images, targets, False, **width),
        "ours + attributes": ours(given.backbone, images, targets, True, **width),
        "torchvision FCOS": theirs(given.backbone, images, targets),
    }
    steppers = {
        name: stepper(network, losses, device, given.bf16)
        for name, (network, losses) in built.items()
    }
    seconds = measure(steppers, given.repeats, given.warmup)
    speed = {name: given.batch / s for name, s in seconds.items()}

    print(f"{chip(device)}, torch {torch.__version__}, {'bf16' if given.bf16 else 'float32'}")
    print(
        f"{given.backbone}, {given.batch} images of {given.size} px, "
        f"median of {given.repeats} steps in turns"
    )
    print(f"{'':20}{'images/s':>10}{'ratio':>8}{'parameters':>13}")
    for name, (network, _) in built.items():
        count = sum(p.numel() for p in network.parameters())
        ratio = speed[name] / speed["torchvision FCOS"]
        print(f"{name:20}{speed[name]:10.1f}{ratio:8.2f}{count / 1e6:11.2f} M")
    return speed


if __name__ == "__main__":
    main()
