"""Every shipped preset: it trains, sees no label of the target, and can be switched off."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from test_shipped import METHODS
from test_worker import L_, H, detector_part, relabel, rows, same_weights

from da_leukemia.adaptation.settings import COMPONENTS, Method
from da_leukemia.config import active_components, load_method, save_job
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep import worker
from da_leukemia.sweep.plan import needs_target

PRESETS = [path.stem for path in METHODS]
AT_ONCE = {"threshold": 0.011, "burn_in": 0.0, "ramp": 0.0}
"""Settings that let a component take part from the first step of an untrained detector."""


def eager(name):
    """Load a preset; whatever waits for a good detector does not wait."""
    method = load_method(name)
    method.target_labels = 0  # labels that a preset may use have tests of their own (test_sources)
    for given in method.components:
        known = {f.name for f in dataclasses.fields(COMPONENTS[given["name"]])}
        given |= {k: v for k, v in AT_ONCE.items() if k in known}
        if "probability" in known:
            given["probability"] = 1.0
    return method


def off(method):
    method = copy.deepcopy(method)
    method.source_free, method.learning_rate_factor = False, 1.0  # regimes, not components
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
    def run_(method, labels="as_it_is", target=None):
        data = {"root": str(roots[labels])}
        target = L_ if needs_target(method) else target
        job = make_job(method, target=target, tests=[H, L_], data=data, trainer={"steps": 2})
        folder = results / f"{job.hash}_{labels}"
        folder.mkdir(exist_ok=True)
        save_job(job, folder / "config.yaml")
        worker.run_job(folder)
        return folder

    return run_


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_needs_no_label_of_the_target(name, run):
    folder = run(eager(name))
    losses = {k: v for row in rows(folder) for k, v in row.items() if k.startswith("train/")}
    assert losses
    assert all(np.isfinite(float(v)) for v in losses.values() if v)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(v.isfinite().all() for v in state.values())
    blind = run(eager(name), "deleted")
    assert same_weights(folder, blind)
    assert rows(folder) == rows(blind)
    # What is done to the network after training, too.
    np.testing.assert_array_equal(found(folder), found(blind))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_alike_when_the_targets_labels_are_shuffled(name, run):
    folder, blind = run(eager(name)), run(eager(name), "shuffled")
    assert same_weights(folder, blind)
    np.testing.assert_array_equal(found(folder), found(blind))


@pytest.mark.parametrize(
    "name",
    [p for p in PRESETS if load_method(p).components],
)
def test_a_preset_makes_a_difference(name, run):
    method = eager(name)
    twin = Method(augmentation=method.augmentation, ema=method.ema)
    one, other = run(method), run(twin)
    a, b = detector_part(one), detector_part(other)
    trained = any(not torch.equal(a[k], v) for k, v in b.items())
    assert trained or not np.array_equal(found(one), found(other))


@pytest.mark.parametrize("name", PRESETS)
def test_without_strength_a_preset_is_its_source_only_twin(name, make_job, run):
    method = off(eager(name))
    assert active_components(method) == []
    twin = Method(augmentation=method.augmentation, ema=method.ema)
    assert make_job(method).hash == make_job(twin).hash
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
        assert same_weights(run(method, target=L_), run(twin))
