"""What a method only reads on the target costs no gradient, and changes none."""

from __future__ import annotations

import copy

import adaptation_kit as kit
import pytest
import torch

from benchmarks import adaptation_step
from da_leukemia.config import Detector, load_method
from da_leukemia.labels import WBC

ALIGNING = ("dann", "cdan", "da_faster", "sada", "epm", "mmd", "coral", "prototypes")


@pytest.fixture
def step(monkeypatch):
    """Make a training step of a preset; return what the head was asked for, and all gradients."""

    def step_(name, kind, always=None, bf16=False):
        small = kit.detector(len(WBC.classes), (), kind=kind)
        monkeypatch.setattr(adaptation_step, "build_detector", lambda *_: copy.deepcopy(small))
        method = load_method(name)
        for component in method.components if name in ALIGNING else ():
            component.update(
                {k: 0.0 for k in ("threshold", "burn_in", "ramp") if k in component or k == "ramp"}
            )
        task = adaptation_step.build(method, Detector(), torch.device("cpu"))
        asked = []
        forward = task.detector.forward

        def spy(images, learned=None):
            asked.append((len(images), learned))
            return forward(images, learned if always is None else len(images))

        monkeypatch.setattr(task.detector, "forward", spy)
        batch = adaptation_step.make_batch(3, 64, 3, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = task.training_step(batch, 0)
        total.backward()
        return asked, {n: p.grad for n, p in task.named_parameters() if p.grad is not None}

    return step_


@pytest.mark.parametrize("kind", ["one_stage", "faster_rcnn"])
@pytest.mark.parametrize("name", ALIGNING)
def test_alignment_reads_the_head_without_teaching_it(step, name, kind):
    asked, gradients = step(name, kind)
    assert asked == [(6, 3)]
    _, whole = step(name, kind, always=True)
    assert gradients.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(gradients[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("kind", ["one_stage", "faster_rcnn"])
def test_in_half_precision_the_head_still_learns_from_the_source(step, kind):
    _, gradients = step("dann", kind, bf16=True)
    _, whole = step("dann", kind, always=True, bf16=True)
    assert gradients.keys() == whole.keys()
    for key, value in whole.items():
        if key.startswith("detector.head"):
            torch.testing.assert_close(gradients[key], value, rtol=0.05, atol=0.05, msg=key)
    assert any(g.abs().sum() > 0 for k, g in gradients.items() if k.startswith("detector.head"))


@pytest.mark.parametrize("name", ["mean_teacher", "aldi_pp", "adaptive_teacher", "confmix", "mic"])
def test_what_learns_from_the_target_teaches_the_head(step, name):
    asked, _ = step(name, "one_stage")
    assert all(learned is None for _, learned in asked)
    assert len(asked) >= 1
