"""Learning from several devices at once, and from few labelled fields of the target."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from job_kit import same_weights

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Trainer
from da_leukemia.data.datamodules import DomainDataModule
from da_leukemia.data.dataset import EpochSampler, ShareSampler, shares
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.few import few_labelled
from da_leukemia.data.preparation import Preparation
from da_leukemia.errors import DataError
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.sweep import worker
from da_leukemia.sweep.facts import read_facts

H, L = "H_100X_C2", "L_100X_C2"
BOTH = f"{H}+{L}"
FEW = Method(target_labels=2)


def module(job, batch_size=5, few=(), how=None, sources=(H, L)):
    indexes, split = read_experiment_data(job.data)
    return DomainDataModule(
        [indexes[name] for name in sources],
        split=split,
        space=LEUKEMIAATTRI,
        how=96 if how is None else how,
        trainer=Trainer(steps=6, epoch_steps=6, batch_size=batch_size),
        few=few,
    )


def devices_in(module, batch):
    part = module.parts["train"]
    return [part.fields[i].domain for i in batch.index.tolist()]


# --- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sources", "few", "share", "parts"),
    [
        (8, 1, False, 0.25, [8]),
        (8, 3, False, 0.25, [3, 3, 2]),
        (8, 1, True, 0.25, [6, 2]),
        (8, 2, True, 0.25, [3, 3, 2]),
        (4, 2, True, 0.9, [1, 1, 2]),
        (3, 2, True, 0.01, [1, 1, 1]),
    ],
)
def test_a_batch_is_divided_among_devices(size, sources, few, share, parts):
    assert shares(size, sources, few, share) == parts
    assert sum(parts) == size


def test_every_batch_holds_every_device(make_job):
    data = module(make_job(Method(), data={"label_space": "leukemiaattri"}))
    for batch in data.train_dataloader()["source"]:
        found = devices_in(data, batch)
        assert (found.count(H), found.count(L)) == (3, 2)
        assert batch.targets.boxes.shape[0] == 5


def test_a_group_goes_through_its_own_fields_before_one_comes_again():
    samplers = [
        EpochSampler(n, 2, 6, seed, 0, windows=w) for n, seed, w in ((3, 0, False), (4, 1, True))
    ]
    seen = list(ShareSampler(samplers, [range(3), range(3, 7)], 7))
    assert len(seen) == 6
    first = [n for batch in seen for n in batch[:2]]
    other = [n for batch in seen for n in batch[2:]]
    assert sorted(first) == sorted([0, 1, 2] * 4)
    # A number's remainder is the field, its quotient which window of it.
    assert sorted(n % 7 for n in other) == sorted([3, 4, 5, 6] * 3)
    assert sorted(n // 7 for n in other) == sorted([0, 1, 2] * 4)


def test_each_device_keeps_its_own_preparation(make_job):
    job = make_job(Method(), data={"label_space": "leukemiaattri"})
    data = module(job, how={H: Preparation(96), L: Preparation(96, illumination=True)})
    part = data.parts["train"]
    assert {part.how(f).illumination for f in part.fields if f.domain == L} == {True}
    assert {part.how(f).illumination for f in part.fields if f.domain == H} == {False}


def test_a_source_of_several_devices_is_trained_and_validated_on_all(make_job, run):
    job = make_job(Method(), source=BOTH, target=None, trainer={"validate_every": 1})
    folder = run(job, "both")
    result = worker.read_result(folder)
    facts = read_facts(job.data)
    each = [facts.trained_on(make_job(Method(), source=s, target=None)) for s in (H, L)]
    assert result["data"]["train_fields"] == sum(f["train_fields"] for f in each)
    assert result["data"]["fingerprint"] not in {f["fingerprint"] for f in each}
    assert set(result["tests"]) == {H, L}
    assert job.hash != make_job(Method(), source=H, target=None).hash


# --- few labelled fields -----------------------------------------------------------------------


def test_more_fields_are_added_to_fewer(make_job):
    indexes, split = read_experiment_data(make_job(FEW).data)
    two, three = (few_labelled(indexes[L], split, n, 0) for n in (2, 3))
    assert [f.key for f in three[:2]] == [f.key for f in two]
    train = {f.key for f in split.select(indexes[L], "train").fields}
    assert {f.key for f in three} <= train
    chosen = {tuple(f.key for f in few_labelled(indexes[L], split, 2, s)) for s in range(6)}
    assert len(chosen) > 1
    with pytest.raises(DataError, match=rf"{L}: {len(train)} training fields, .* asks for 99"):
        few_labelled(indexes[L], split, 99, 0)


def test_every_batch_holds_few_labelled_fields(make_job):
    job = make_job(FEW, data={"label_space": "leukemiaattri"})
    indexes, split = read_experiment_data(job.data)
    few = few_labelled(indexes[L], split, 2, 0)
    data = module(job, batch_size=8, few=few, sources=(H,))
    for batch in data.train_dataloader()["source"]:
        assert devices_in(data, batch).count(L) == 2
        rows = [i for i, d in enumerate(devices_in(data, batch)) if d == L]
        keys = {data.parts["train"].fields[int(batch.index[i])].key for i in rows}
        assert keys <= {f.key for f in few}


def without_labels(root, keep):
    """Delete the labels of a device's fields but those that are kept."""
    gone = 0
    for path in sorted((root / L / "json_labels").rglob("*.json")):
        content = json.loads(path.read_text())
        kept = {i["id"] for i in content["images"] if any(k in i["file_name"] for k in keep)}
        before = len(content["annotations"])
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        gone += before - len(content["annotations"])
        path.write_text(json.dumps(content))
    for path in (root / L).rglob("*.txt"):
        path.unlink()
    return gone


def test_labels_of_other_target_fields_cannot_be_reached(make_job, run, smears, tmp_path):
    job = make_job(FEW)
    facts = read_facts(job.data)
    few = few_labelled(facts.indexes[L], facts.split, 2, 0)
    root = tmp_path / "few_left"
    shutil.copytree(smears, root)
    assert without_labels(root, [f.image.name for f in few])
    bare = tmp_path / "none_left"
    shutil.copytree(smears, bare)
    without_labels(bare, [])
    whole = run(job, "whole")
    assert same_weights(whole, run(make_job(FEW, data={"root": str(root)}), "rest_deleted"))
    assert not same_weights(whole, run(make_job(FEW, data={"root": str(bare)}), "all_deleted"))
    assert not same_weights(whole, run(make_job(Method(), target=None), "source_only"))
    changed = read_facts(make_job(FEW, data={"root": str(bare)}).data).trained_on(job)
    assert changed["few_labelled"] != facts.trained_on(job)["few_labelled"]
    assert np.isfinite(worker.read_result(whole)["tests"][L]["metrics"]["ap50"])
