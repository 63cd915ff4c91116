"""Every shipped preset: it trains, sees no label of the target, and can be switched off."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil

import adaptation_kit as kit
import numpy as np
import pytest
import torch
from job_kit import L_, H, detector_part, relabel, rows, run_in, same_weights, weights
from test_shipped import METHODS

from da_leukemia.adaptation.build import build_components
from da_leukemia.adaptation.settings import COMPONENTS, Method
from da_leukemia.config import (
    Detector,
    Sparse,
    TwoStage,
    active_components,
    load_experiment,
    load_method,
    needs_target,
)
from da_leukemia.config.check import check_fit
from da_leukemia.errors import ConfigError
from da_leukemia.evaluation.records import load_records

PRESETS = [path.stem for path in METHODS]
KINDS = {
    "one_stage": {},
    "faster_rcnn": {
        "kind": "faster_rcnn",
        "score_threshold": 1e-3,
        "two_stage": TwoStage(anchors=[3.0], proposals=24, sampled=16, hidden=16),
    },
}
CASES = [(kind, name) for kind in KINDS for name in PRESETS]
RUNNING = [
    (kind, name)
    for kind, name in CASES
    if not check_fit(name, load_method(name), Detector(**KINDS[kind]))
]
AT_ONCE = {"burn_in": 0.0, "ramp": 0.0}
"""Settings that let a component take part from the first step of an untrained detector."""
ON_PATCHES = {"patch_crops", "sparse_teacher", "sparse_similarity"}
"""Components that do nothing on fields that are annotated whole."""
FAINT = {"one_stage": 0.011, "faster_rcnn": 2e-3}
"""Threshold that untrained scores pass."""


def eager(name, kind="one_stage"):
    """Load a preset; whatever waits for a good detector does not wait."""
    method = load_method(name)
    method.target_labels = 0  # labels that a preset may use have tests of their own (test_sources)
    for given in method.components:
        known = {f.name for f in dataclasses.fields(COMPONENTS[given["name"]])}
        at_once = AT_ONCE | {"threshold": FAINT[kind]}
        if given["name"] == "sparse_similarity":
            at_once["low"] = FAINT[kind]
        given |= {k: v for k, v in at_once.items() if k in known}
        if "probability" in known:
            given["probability"] = 1.0
    return method


def off(method):
    method = copy.deepcopy(method)
    # Regimes, not components; what they are the twins of, see test_longer_twin.
    method.source_free, method.continued, method.learning_rate_factor = False, False, 1.0
    method.outside, method.patch_mosaics = "ignored", 0.0
    for given in method.components:
        given[COMPONENTS[given["name"]].strength] = 0.0
    return method


def found(folder):
    """Return what was found on both devices, whatever the truth there: box by box, with scores."""
    records = [r for d in (H, L_) for r in load_records(folder / "records" / f"{d}.npz")]
    return np.concatenate([np.column_stack([r.boxes, r.scores, r.labels]) for r in records])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folder of finished jobs: a job that several tests want is trained once."""
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def roots(smears, tmp_path_factory):
    """The smears, and the same with the target's labels shuffled and deleted."""
    found = {"as_it_is": smears}
    for name in ("shuffled", "deleted"):
        found[name] = tmp_path_factory.mktemp(name) / "data"
        shutil.copytree(smears, found[name])
        relabel(found[name], L_, drop=name == "deleted")
    return found


@pytest.fixture
def run(make_job, roots, results):
    def run_(method, labels="as_it_is", target=None, kind="one_stage", name="", batch=2):
        data = {"root": str(roots[labels])}
        if name and ON_PATCHES & {given["name"] for given in load_method(name).components}:
            data["sparse"] = Sparse(area=0.4)
        target = L_ if needs_target(method) else target
        job = make_job(
            method,
            target=target,
            tests=[H, L_],
            data=data,
            detector=KINDS[kind],
            trainer={"steps": 2, "batch_size": batch},
        )
        folder = results / f"{job.hash}_{labels}"
        if (folder / "result.json").is_file():
            return folder
        return run_in(folder, job)

    return run_


@pytest.mark.parametrize(("kind", "name"), RUNNING)
def test_a_preset_trains_and_needs_no_label_of_the_target(kind, name, run):
    folder = run(eager(name, kind), kind=kind, name=name)
    losses = {k: v for row in rows(folder) for k, v in row.items() if k.startswith("train/")}
    assert losses
    assert all(np.isfinite(float(v)) for v in losses.values() if v)
    assert all(v.isfinite().all() for v in weights(folder).values())
    blind = run(eager(name, kind), "deleted", kind=kind, name=name)
    assert same_weights(folder, blind)
    assert rows(folder) == rows(blind)
    # What is done to the network after training, too.
    np.testing.assert_array_equal(found(folder), found(blind))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), RUNNING)
def test_a_preset_trains_alike_when_the_targets_labels_are_shuffled(kind, name, run):
    folder = run(eager(name, kind), kind=kind, name=name)
    blind = run(eager(name, kind), "shuffled", kind=kind, name=name)
    assert same_weights(folder, blind)
    np.testing.assert_array_equal(found(folder), found(blind))


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, n in RUNNING if load_method(n).components]
)
def test_a_preset_makes_a_difference(kind, name, run):
    method = eager(name, kind)
    twin = Method(augmentation=method.augmentation, ema=method.ema)
    one, other = run(method, kind=kind, name=name), run(twin, kind=kind, name=name)
    a, b = detector_part(one), detector_part(other)
    trained = any(not torch.equal(a[k], v) for k, v in b.items())
    assert trained or not np.array_equal(found(one), found(other))


@pytest.mark.parametrize(("kind", "name"), RUNNING)
def test_without_strength_a_preset_is_its_source_only_twin(kind, name, make_job, run):
    method = off(eager(name, kind))
    assert active_components(method) == []
    twin = Method(augmentation=method.augmentation, ema=method.ema)
    hashes = {make_job(m, detector=KINDS[kind]).hash for m in (method, twin)}
    assert len(hashes) == 1
    # Trained with the target at hand, once for each kind of twin.
    if name in {"source_only", "fair_source_only"}:
        return
    first = next(
        p
        for p in PRESETS
        if load_method(p).components
        and (load_method(p).augmentation, load_method(p).ema) == (method.augmentation, method.ema)
    )
    if name == first:
        assert same_weights(run(method, target=L_, kind=kind), run(twin, kind=kind))


FEWER = [
    *(
        ("one_stage", p)
        for p in ("da_faster", "mmd", "prototypes", "aldi_pp", "mic", "daca", "fda")
    ),
    ("faster_rcnn", "adaptive_teacher"),
]


@pytest.mark.parametrize(("kind", "name"), FEWER)
def test_a_preset_trains_beside_fewer_images_of_the_target(kind, name, run, make_job):
    method = dataclasses.replace(eager(name, kind), target_images=1.0)
    fewer = dataclasses.replace(method, target_images=0.5)
    folder = run(fewer, kind=kind, batch=4)  # two for four: one would fit any number
    assert all(np.isfinite(float(v)) for row in rows(folder) for v in row.values() if v)
    assert not same_weights(folder, run(method, kind=kind, batch=4))
    twins = {make_job(off(m), detector=KINDS[kind]).hash for m in (method, fewer)}
    assert len(twins) == 1


def test_a_preset_that_cannot_run_on_a_detector_says_so_before_anything_starts(tmp_path):
    cells = {(kind, "adabn_balanced") for kind in KINDS}
    assert set(CASES) - set(RUNNING) == {("faster_rcnn", "harmonious_teacher"), *cells}
    path = tmp_path / "two.yaml"
    path.write_text(
        "data: {domains: {one: {}, other: {}}}\n"
        "methods: [dann, harmonious_teacher]\n"
        "detector: {kind: faster_rcnn}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_experiment(path)
    (why,) = refused.value.problems
    assert re.search("harmonious_teacher.*faster_rcnn.*dense.*one_stage", why)
    given = load_method("harmonious_teacher")
    with pytest.raises(ConfigError, match="distillation: harmony"):
        build_components(given, kit.detector(kind="faster_rcnn"))
    given.components[0]["weight"] = 0.0  # switched off, it is nobody's matter
    assert build_components(given, kit.detector(kind="faster_rcnn")) == []
