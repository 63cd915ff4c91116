"""Jobs on sparse fields: what they may know, what they are called, what measures them."""

from __future__ import annotations

import dataclasses
import json

import adaptation_kit as kit
import numpy as np
import pytest
from job_kit import L_, H, relabel, rows, same_weights
from worker_kit import FAIR

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Data,
    Domain,
    Experiment,
    Selection,
    Sparse,
    TwoStage,
    load_experiment,
    load_method,
    shipped,
)
from da_leukemia.data.fields import FieldIndex
from da_leukemia.data.images import Memory
from da_leukemia.data.preflight import preflight
from da_leukemia.data.sparse import centred_in, patches
from da_leukemia.errors import ConfigError, UserError
from da_leukemia.evaluation import fit_lookup
from da_leukemia.evaluation.records import load_records
from da_leukemia.simulate import simulate
from da_leukemia.sweep import ledger, settled, worker
from da_leukemia.sweep.facts import Facts, read_facts
from da_leukemia.sweep.names import area_of, full_name, reference_of
from da_leukemia.sweep.plan import label, make_plan, reduced, source_model, unique
from da_leukemia.sweep.prediction import Fields

AREA = Sparse(area=0.4)
AT_ONCE = {"burn_in": 0.0, "ramp": 0.0}
TWO_STAGE = {
    "kind": "faster_rcnn",
    "score_threshold": 1e-3,
    "two_stage": TwoStage(anchors=[3.0], proposals=24, sampled=16, hidden=16),
}
FAINT = {"one_stage": 0.011, "faster_rcnn": 2e-3}


# --- what a job may know -----------------------------------------------------------------------


def altered(facts, settings):
    """The same data, had the annotator of the source seen nothing outside the patches."""

    def bare(field):
        if facts.split.part_of(field) == "test":
            return field
        inside = centred_in(field.boxes, patches(field, settings))
        moved = np.where(inside[:, None], field.boxes, 0)[inside]
        kept = {n: getattr(field, n)[inside] for n in ("labels", "attributes")}
        return dataclasses.replace(field, boxes=moved, **kept)

    source = facts.indexes[H]
    index = FieldIndex(H, tuple(bare(f) for f in source), source.findings)
    assert sum(len(f.labels) for f in index) < sum(len(f.labels) for f in source)
    return Facts({**facts.indexes, H: index}, facts.split, facts.devices)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_lies_outside_the_patches_cannot_be_reached(make_job, run, monkeypatch, share):
    """Weights, class lookup, validation: with the forgotten cells deleted, all is the same."""
    method = Method(
        components=[
            {"name": "sparse_teacher", "threshold": 0.011, **AT_ONCE},
            {"name": "cut_paste"},
        ],
        patch_mosaics=share,
    )
    job = make_job(
        method,
        target=None,
        tests=[H],
        data={"sparse": AREA},
        trainer={"validate_every": 1},
        selection=Selection(every=1),
    )
    one = run(job, "one")
    real = read_facts
    monkeypatch.setattr(worker, "read_facts", lambda data: altered(real(data), AREA))
    other = run(job, "other")
    assert same_weights(one, other)
    assert rows(one) == rows(other)
    results = [worker.read_result(folder) for folder in (one, other)]
    assert results[0]["epochs"][0]["source_validation"] is not None
    for key in ("attribute_lookup", "data", "epochs"):
        assert results[0][key] == results[1][key]
    # Where a view is filled with patches, nothing outside is far enough from all of them.
    assert (float(rows(one)[0]["health/outside_cells_per_image"]) > 0) == (share == 0)


def test_validation_and_class_lookup_know_the_annotated_cells_alone(make_job):
    data = {"label_space": "leukemiaattri", "sparse": Sparse(0.1)}
    job = make_job(FAIR, data=data)
    facts = read_facts(job.data)
    fields = Fields(job, facts, dict.fromkeys((H, L_), 96), Memory())
    seen = facts.split.select(facts.learned(job, H), "train").fields
    columns = [[getattr(f, n) for f in seen] for n in ("labels", "attributes")]
    expected = fit_lookup(*(np.concatenate(c) for c in columns))
    np.testing.assert_array_equal(fields.lookup.table, expected.table)
    everything = Fields(make_job(FAIR, data=data | {"sparse": Sparse()}), facts, {}, Memory())
    assert not np.array_equal(everything.lookup.table, expected.table)

    def sparse(device, part):
        return {f.annotated_regions is not None for f in fields.part(device, part).fields}

    assert sparse(H, "validation") == sparse(H, "train") == {True}
    assert sparse(H, "test") == sparse(L_, "train") == {False}


def test_training_is_sparse_and_testing_is_whole(make_job, run):
    whole, sparse = (
        run(make_job(FAIR, target=None, tests=[H], data=data)) for data in ({}, {"sparse": AREA})
    )
    assert not same_weights(whole, sparse)
    one, other = (worker.read_result(folder) for folder in (whole, sparse))
    assert 0 < other["data"]["train_boxes"] < 0.8 * one["data"]["train_boxes"]
    assert other["data"]["fingerprint"] != one["data"]["fingerprint"]
    assert other["tests"][H]["metrics"]["boxes"] == one["tests"][H]["metrics"]["boxes"]
    assert all(r.regions is None for r in load_records(sparse / "records" / f"{H}.npz"))
    # Run again: it is done.
    before = (sparse / "result.json").read_bytes()
    worker.run_job(sparse)
    assert (sparse / "result.json").read_bytes() == before


def test_a_target_is_not_made_sparse_and_a_source_is(make_job):
    job = make_job(FAIR, data={"sparse": AREA})
    facts = read_facts(job.data)
    assert facts.learned(job, L_) is facts.indexes[L_]
    learned = facts.learned(job, H)
    assert learned is facts.learned(job, H)
    assert {f.annotated_regions is None for f in facts.split.select(learned, "test")} == {True}
    assert {f.annotated_regions is None for f in facts.split.select(learned, "train")} == {False}


def test_the_whole_area_is_the_job_of_a_project_without_the_setting(make_job):
    plain = make_job(FAIR)
    assert plain.hash == make_job(FAIR, data={"sparse": Sparse(patches=3, seed=5)}).hash
    hashes = {
        make_job(method, data={"sparse": given}).hash
        for method in (FAIR, Method(outside="background"))
        for given in (Sparse(), AREA, Sparse(0.4, seed=1), Sparse(0.4, patches=2))
    }
    assert len(hashes) == 8


# --- with adaptation ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kit.KINDS)
def test_a_sparse_source_and_an_unlabelled_target_work_together(
    kind, make_job, run, smears, tmp_path
):
    faint = {"threshold": FAINT[kind], **AT_ONCE}
    method = Method(
        components=[
            {"name": "sparse_teacher", **faint},
            {"name": "sparse_similarity", "low": FAINT[kind], "high": 0.9, **AT_ONCE},
            {"name": "mean_teacher", **faint},
            {"name": "confmix", **faint},
            {"name": "cut_paste"},
            {"name": "prototypes", "threshold": FAINT[kind]},
            {"name": "adversarial"},
            {"name": "instance_adversarial", "threshold": FAINT[kind]},
        ]
    )
    detector = TWO_STAGE if kind == "faster_rcnn" else {}
    found = []
    for root in (smears, tmp_path / "blind"):
        if root != smears:
            import shutil

            shutil.copytree(smears, root)
            relabel(root, L_, drop=True)
        data = {"sparse": AREA, "root": str(root)}
        job = make_job(method, tests=[H], data=data, detector=detector, trainer={"steps": 2})
        found.append(run(job, root.name))
    assert same_weights(*found)
    (row,) = rows(found[0])
    for name in ("outside_class", "outside_similarity", "teacher_class", "mixed_class", "class"):
        assert np.isfinite(float(row[f"train/{name}"])), name
    assert float(row["health/outside_cells_per_image"]) > 0
    assert float(row["health/uncertain_cells_per_image"]) > 0


# --- the axis ----------------------------------------------------------------------------------


def experiment(**settings):
    domains = {"scope": Domain(), "phone": Domain()}
    return Experiment(**{"data": Data(domains=domains), **settings})


def test_the_axis_multiplies_every_method_and_says_the_area():
    made = experiment(
        methods=["sparse_naive", "fair_source_only", "mean_teacher"],
        sparse=[0.05, 0.125, 1.0],
        calibration=["none", "scale"],
    )
    made.twins = ["fair"]
    jobs = make_plan(made)
    # On whole fields the naive arm is source-only: one training, two rows.
    assert (len(jobs), len(unique(jobs))) == (3 * 2 * (2 + 2 + 2), 3 * 2 * (2 + 2 + 2) - 2 * 2)
    names = {j.method_name for j in jobs}
    assert {
        "sparse_naive~5%",
        "fair_source_only~12.5%+scale",
        "mean_teacher",
        "mean_teacher+scale",
    } <= names
    assert label(jobs[0]) == "sparse_naive~5% scope s0"
    assert {j.data.sparse.area for j in jobs if "~5%" in j.method_name} == {0.05}
    assert area_of("mean_teacher~12.5%+scale") == 0.125
    assert area_of("mean_teacher+scale") == 1
    assert full_name("fda", area=1.0) == "fda"


ARMS = ("fair_source_only", "sparse_naive", "sparse_pseudo", "sparse_recommended")


def test_on_whole_fields_the_arms_for_sparse_ones_are_source_only_to_the_last_bit(make_job, run):
    """As they are written: nothing but what they do makes them one."""
    faint = {"sparse_teacher": {"threshold": 0.011}, "sparse_similarity": {"low": 0.011}}
    folders = []
    for arm in ARMS:
        method = load_method(arm)
        method.components = [{**c, **faint[c["name"]], **AT_ONCE} for c in method.components]
        job = make_job(method, target=None, tests=[H], trainer={"steps": 2})
        folders.append(run(job))
        assert reduced(job).hash == folders[0].name
    assert len({folder.name for folder in folders}) == len(ARMS)
    for folder in folders[1:]:
        assert same_weights(folders[0], folder)
        assert worker.read_result(folder)["tests"] == worker.read_result(folders[0])["tests"]


def test_arms_for_sparse_fields_are_one_training_on_whole_ones_alone():
    made = experiment(methods=[*ARMS, "sla_det_paper"], sources=["scope"], sparse=[0.2, 1.0])
    jobs = make_plan(made)
    hashes = {job.method_name: job.hash for job in jobs}
    assert len({hashes[f"{arm}~20%"] for arm in ARMS}) == len(ARMS)
    assert len({hashes[arm] for arm in ARMS}) == 1
    assert hashes["sla_det_paper"] != hashes[ARMS[0]], "it sees whole fields without augmentation"
    assert len(unique(jobs)) == len(ARMS) + 1 + 2
    # Crops of patches alone do nothing there; what else a method does counts.
    for component, same in (({"name": "patch_crops"}, True), ({"name": "mixstyle"}, False)):
        made.adaptations["mine"] = Method(components=[component], patch_mosaics=0.5)
        made.methods = ["fair_source_only", "mine"]
        hashes = {job.method_name: job.hash for job in make_plan(made)}
        assert (hashes["mine"] == hashes["fair_source_only"]) is same
    # A data set that was annotated in patches is not whole at any area.
    made.data.domains["scope"].format, made.methods = "sparse", list(ARMS)
    assert len({j.hash for j in make_plan(made) if j.data.sparse.whole}) == len(ARMS)


def test_few_labelled_fields_of_a_target_annotated_in_patches_are_not_whole():
    few = {"few": Method(outside="background", target_labels=2)}
    made = experiment(methods=["few"], adaptations=few, sources=["scope"], targets=["phone"])
    adapted = [j for j in make_plan(made) if j.target]
    assert {j.method.outside for j in adapted} == {"ignored"}
    made.data.domains["phone"].format = "sparse"
    (job,) = (j for j in make_plan(made) if j.target)
    assert job.method.outside == "background"
    assert source_model(job).hash in {j.hash for j in make_plan(made)}


def test_a_sweep_that_trained_the_arms_apart_goes_on(tmp_path):
    made = experiment(methods=list(ARMS), sources=["scope"], runs_dir=str(tmp_path))
    now = [(job, job.hash) for job in make_plan(made)]
    apart = [dataclasses.replace(job, method=load_method(job.method_name)) for job, _ in now]
    before = [(job, job.hash) for job in apart]
    assert len({h for _, h in before}) == len(ARMS)
    ledger.write_plan(made, before)
    for job, job_hash in before:
        result = {"job": job_hash, "tests": {}, "config": dataclasses.asdict(job)}
        ledger.write_json(ledger.job_folder(made.folder, job_hash) / "result.json", result)
    settled.check(made, now)
    assert settled.keep_old_plan(made, now) == ""
    made.trainer.steps += 1
    with pytest.raises(UserError, match="finished jobs were trained with other settings"):
        settled.check(made, [(job, job.hash) for job in make_plan(made)])


def test_a_method_is_measured_against_the_same_area():
    names = {"fair_source_only", "fair_source_only~20%", "fair_source_only~20%+scale"}
    assert reference_of("mean_teacher~20%", names) == "fair_source_only~20%"
    assert reference_of("mean_teacher~20%+scale", names) == "fair_source_only~20%+scale"
    assert reference_of("mean_teacher", names) == "fair_source_only"
    own = "fair_source_only:aldi_pp~20%"
    assert reference_of("aldi_pp~20%", names | {own}) == own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"sparse": [20]},
            r"sparse\[0\]: expected a share of the area above 0 .*, got 20; did you mean 0\.2\?",
        ),
        ({"data": {"sparse": {"patches": 4}}}, r"data\.sparse: patches and seed mean nothing"),
        ({"sparse": []}, "sparse: empty"),
        ({"data": {"sparse": {"area": 0.0}}}, r"data\.sparse\.area: expected a share"),
        (
            {"data": {"sparse": {"patches": 0}}},
            r"data\.sparse\.patches: expected a whole number from 1 to",
        ),
        ({"data": {"sparse": {"aera": 0.1}}}, r"data\.sparse\.aera: unknown key.*area"),
        ({"data": {"sparse": {"area": 0.1}}, "sparse": [0.2]}, "axis `sparse`.*use one of them"),
        ({"adaptations": {"x": {"outside": "ignore"}}}, r"outside: unknown value.*ignored"),
    ],
)
def test_wrong_settings_are_said(settings, said, tmp_path):
    path = tmp_path / "wrong.yaml"
    data = {"domains": {"one": {}}} | settings.pop("data", {})
    path.write_text(json.dumps({"data": data, **settings}))
    with pytest.raises(ConfigError, match=said):
        load_experiment(path)


# --- the shipped experiment --------------------------------------------------------------------


def test_the_experiment_for_the_released_data_runs_on_simulated_ones(tmp_path, run):
    root = simulate(
        tmp_path / "smears", domains=["H_40X_C2"], patients=4, fields_per_patient=2, sparse=0.3
    )
    made = load_experiment(
        shipped("experiments") / "sla_det_sparse.yaml",
        [
            *(f"data.root={root}", f"runs_dir={tmp_path}", "data.image_size=128", "seeds=[0]"),
            *("trainer=smoke", "trainer.steps=2", "trainer.epoch_steps=2", "trainer.batch_size=2"),
            *("trainer.accelerator=cpu", "trainer.workers=0", "detector.channels=16"),
            "detector.backbone=mobilenetv3_small_050",
        ],
    )
    indexes, split = preflight(made)
    assert all(f.annotated_regions for f in split.select(indexes["H_40X_C2"], "train"))
    assert not any(f.annotated_regions for f in split.select(indexes["H_40X_C2"], "test"))
    jobs = make_plan(made)
    assert len({job.hash for job in jobs}) == len(jobs) == len(made.methods)
    for job in jobs:
        scores = worker.read_result(run(job))["tests"]["H_40X_C2"]["metrics"]
        assert scores["boxes"] == sum(
            len(f.labels) for f in split.select(indexes["H_40X_C2"], "test")
        )
