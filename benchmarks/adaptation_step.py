"""One training step of every preset against the source-only one with the same views.

What is timed: the whole `DetectionTask.training_step` (views of both devices, forward, teacher,
losses), backward, gradient clipping, AdamW step and the moving average, near the end of training,
when every component takes part. A preset's batch has the target images that it says
(`target_images`; ``--target-images`` sets another share for all), so its student sees more images
than that of source-only: beside the ratio of the step times that per image seen by the student is
printed.

The detector's scores are raised so that it takes most locations for cells: components that look at
confident detections have their full work. The presets take turns in one process, so that a busy
machine slows all alike; the median of the repeats counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import chip, timed, use
from benchmarks.train_step import make_targets
from da_leukemia.adaptation.build import build_components
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Augmentation, Detector, Trainer, load_method, needs_target, shipped
from da_leukemia.config.check import check_fit, check_method
from da_leukemia.data.batches import LabelledBatch, UnlabelledBatch
from da_leukemia.labels import WBC
from da_leukemia.models.factory import build_detector
from da_leukemia.tasks.detection import DetectionTask

TWIN = "fair_source_only"


class TimedTask(DetectionTask):
    """The task without a trainer: it is always late in training, and nothing is logged."""

    images = 0
    """Images that the student saw in the last step."""

    @property
    def global_step(self) -> int:
        """Return a step near the end."""
        return int(0.9 * self.settings.steps) // 50 * 50 + 1  # not where losses are checked

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Leave it."""

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """Leave it."""


def make_batch(batch: int, size: int, target: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    fill = torch.full((batch, 3), 220, dtype=torch.uint8)
    index = torch.arange(batch)
    found: dict[str, Any] = {
        "source": LabelledBatch(images[0], fill, index, make_targets(batch, size)).to(device)
    }
    if target:
        found["target"] = UnlabelledBatch(images[1, :target], fill[:target], index[:target]).to(
            device
        )
    return found


def build(method: Method, settings: Detector, device: torch.device) -> TimedTask:
    torch.manual_seed(0)
    detector = build_detector(settings, WBC)
    assert detector.head.score.bias is not None
    nn.init.constant_(detector.head.score.bias, 1.0)
    task = TimedTask(
        detector.to(memory_format=torch.channels_last),
        build_components(method, detector),
        trainer=Trainer(),
        augmentation=Augmentation(),
        strong=method.augmentation == "strong",
        ema=method.ema,
        source_classes=range(len(WBC.classes)),
    )
    task.to(device).train()
    task.detector.register_forward_pre_hook(lambda _, given: _count(task, len(given[0])))
    return task


def _count(task: TimedTask, images: int) -> None:
    task.images = images


def stepper(
    task: TimedTask, batch: dict[str, Any], device: torch.device, bf16: bool
) -> Callable[[], float]:
    """Return a function that makes one step and returns its seconds, the device's work included."""
    optimiser = task.configure_optimizers()["optimizer"]
    parameters = [p for p in task.parameters() if p.requires_grad]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total = task.training_step(batch, 0)
        optimiser.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(parameters, task.settings.clip)
        optimiser.step()
        task.on_train_batch_end()

    return timed(step, device)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Time the presets, print a table, and return each one's ratio to source-only by name."""
    known = sorted(p.stem for p in (shipped("configs") / "adaptation").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptation_step",
        description="Time a training step of every preset as a ratio to source-only.",
    )
    parser.add_argument("presets", nargs="*", default=known, help="names; default: all")
    parser.add_argument("--backbone", default="mobilenetv4_conv_small", help="a timm network")
    parser.add_argument("--size", type=int, default=320, help="side of the images")
    parser.add_argument("--batch", type=int, default=8, help="images of each device per step")
    parser.add_argument(
        "--target-images", type=float, help="in place of the presets' own settings, 0 to 1"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each preset")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock runs")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    given = parser.parse_args(arguments)

    device = use(given.device, given.threads)
    settings = Detector(backbone=given.backbone)
    names = [TWIN, *(p for p in given.presets if p != TWIN)]
    tasks, steppers = {}, {}
    for preset in tuple(names):
        method = load_method(preset)
        if given.target_images is not None and needs_target(method) and not method.source_free:
            method.target_images = given.target_images
        if refused := check_method(preset, method) or check_fit(preset, method, settings):
            print(f"left out: {'; '.join(refused)}")
            names.remove(preset)
            continue
        tasks[preset] = build(method, settings, device)
        target = max(1, round(method.target_images * given.batch)) if needs_target(method) else 0
        batch = make_batch(given.batch, given.size, target, device)
        if method.source_free:
            del batch["source"]
        steppers[preset] = stepper(tasks[preset], batch, device, given.bf16)
    taken: dict[str, list[float]] = {preset: [] for preset in names}
    for repeat in range(given.warmup + given.repeats):
        for preset, step in steppers.items():
            seconds = step()
            if repeat >= given.warmup:
                taken[preset].append(seconds)
    median = {preset: statistics.median(times) for preset, times in taken.items()}

    print(f"{chip(device)}, torch {torch.__version__}, {'bf16' if given.bf16 else 'float32'}")
    print(
        f"{given.backbone}, {given.batch} images of {given.size} px of the source, "
        f"median of {given.repeats} steps in turns"
    )
    print(f"{'':24}{'ms/step':>9}{'ratio':>8}{'images':>8}{'ratio per image':>17}")
    ratios = {preset: seconds / median[TWIN] for preset, seconds in median.items()}
    for preset in names:
        images = tasks[preset].images
        each = ratios[preset] * tasks[TWIN].images / images
        print(f"{preset:24}{1000 * median[preset]:9.1f}{ratios[preset]:8.2f}{images:8}{each:17.2f}")
    return ratios


if __name__ == "__main__":
    main()
