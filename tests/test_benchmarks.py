"""The benchmarks run, and leave out what cannot be timed. How fast things are is no test."""

from __future__ import annotations

import copy

import adaptation_kit as kit
import torch

from benchmarks import adaptation_step, freed_memory
from da_leukemia.labels import WBC


def test_presets_that_the_detector_refuses_are_left_out_of_the_table(capsys, monkeypatch):
    small = kit.detector(len(WBC.classes), WBC.attribute_sizes)
    monkeypatch.setattr(adaptation_step, "build_detector", lambda *_: copy.deepcopy(small))
    sizes = ["--size", "64", "--batch", "2", "--repeats", "1", "--warmup", "0", "--threads", "1"]
    presets = ["dann", "adabn_balanced", "recommended_source_free"]
    ratios = adaptation_step.main([*presets, *sizes, "--device", "cpu"])
    assert list(ratios) == ["fair_source_only", "dann", "recommended_source_free"]
    assert ratios["fair_source_only"] == 1
    said = capsys.readouterr().out
    assert "left out: methods: 'adabn_balanced' cannot run on detector.kind=one_stage" in said
    assert torch.get_num_threads() == 1


def test_a_step_is_timed_with_and_without_kept_memory(capsys):
    sizes = ["--size", "128", "--batch", "4", "--repeats", "2", "--warmup", "1"]
    ratio = freed_memory.main(sizes)["ratio"]
    said = capsys.readouterr().out.splitlines()
    back, kept = (line.rsplit(maxsplit=2) for line in said[2:4])
    assert (back[0], kept[0]) == ("given back", "kept")
    # How few pages are asked for is no matter of chance in tests/test_machine.py alone.
    assert min(float(back[2]), float(kept[2])) >= 0
    assert ratio > 0
    assert said[-1] == f"given back / kept: {ratio:.2f}"
