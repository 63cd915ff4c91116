"""What attributes cost: a training step with each attribute head against the step without.

Forward, losses, backward and AdamW of the same detector on the same images and boxes, already on
the device, weights in channels-last order; the variants take turns in one process, so that a busy
machine slows all alike. Ratios are of the fastest step of each, since other processes only add; on
a CPU it is the processor's time, not the clock's. Beside it the ratio of the floating-point
operations of convolutions and matrix products, forward and backward, which no neighbour disturbs.

LeukemiaAttri's label space (14 types, seven attributes); ``--cells`` boxes of every image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import chip, timed, use
from benchmarks.train_step import make_targets
from da_leukemia.config import Attributes, Detector
from da_leukemia.data.batches import Targets
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.models.factory import build_detector

NONE = "no attributes"
VARIANTS: dict[str, Attributes | None] = {
    NONE: None,
    "ours": Attributes(),
    "ours, asymmetric": Attributes(loss="asymmetric"),
    "ours, told the type": Attributes(on_type=True),
    "attridet": Attributes(head="attridet", loss="asymmetric"),
}
LIMIT = 1.15
"""What a head may cost at 640 px."""


def stepper(
    settings: Detector, images: torch.Tensor, targets: Targets
) -> tuple[nn.Module, Callable[[], float]]:
    """Return the detector, and a function that makes one step and returns its seconds."""
    device = images.device
    detector = build_detector(settings, LEUKEMIAATTRI).to(device)
    detector = detector.to(memory_format=torch.channels_last).train()
    if detector.attributes is not None:
        detector.attributes.know(torch.full((7, 3), 100))
    given = images.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def step() -> None:
        losses = detector.loss(detector(given), targets)
        total = torch.stack([v.float() for v in losses.values()]).sum()
        optimiser.zero_grad()
        torch.autograd.backward(total)
        optimiser.step()

    return detector, timed(step, device, clock)


def operations(step: Callable[[], float]) -> int:
    """Return the floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the comparison, print it, and return the ratio of each variant."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attribute_heads",
        description="Time a training step with each attribute head against one without.",
    )
    parser.add_argument("--kind", default="one_stage", choices=("one_stage", "faster_rcnn"))
    parser.add_argument("--backbone", default="mobilenetv4_conv_small", help="a timm network")
    parser.add_argument("--size", type=int, default=640, help="side of the images")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--cells", type=int, default=6, help="labelled cells of an image")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's")
    given = parser.parse_args(arguments)

    device = use(given.device, given.threads)
    torch.manual_seed(0)
    images = torch.rand(given.batch, 3, given.size, given.size).to(device)
    targets = make_targets(given.batch, given.size, given.cells, LEUKEMIAATTRI).to(device)
    built = {}
    for variant, attributes in VARIANTS.items():
        settings = Detector(
            kind=given.kind,
            backbone=given.backbone,
            attribute_weight=0.0 if attributes is None else 0.2,
            attributes=attributes or Attributes(),
        )
        built[variant] = stepper(settings, images, targets)
    for _, step in built.values():
        step()
    taken = [{variant: step() for variant, (_, step) in built.items()} for _ in range(given.rounds)]
    fastest = {variant: min(t[variant] for t in taken) for variant in built}
    ratios = {variant: seconds / fastest[NONE] for variant, seconds in fastest.items()}
    work = {variant: operations(step) for variant, (_, step) in built.items()}

    print(f"{chip(device)}, torch {torch.__version__}, {given.kind} on {given.backbone}")
    print(
        f"{given.batch} images of {given.size} px, {given.cells} cells each, {given.rounds} rounds"
    )
    print(f"{'':22}{'s/step':>10}{'ratio':>8}{'operations':>12}{'parameters':>13}")
    for variant, (network, _) in built.items():
        count = sum(p.numel() for p in network.parameters())
        print(
            f"{variant:22}{fastest[variant]:10.3f}{ratios[variant]:8.3f}"
            f"{work[variant] / work[NONE]:12.3f}{count / 1e6:11.2f} M"
        )
    dear = [v for v, ratio in ratios.items() if ratio > LIMIT]
    print(f"above {LIMIT}: {', '.join(dear) or 'none'}")
    return ratios


if __name__ == "__main__":
    main()
