"""What a plan adds to adapted methods, several sources at once, and few labelled fields."""

from __future__ import annotations

import dataclasses

import pytest

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Domain, Experiment
from da_leukemia.errors import ConfigError
from da_leukemia.sweep.names import reference_of
from da_leukemia.sweep.plan import label, longer_twin, make_plan, source_model

DANN = Method(components=[{"name": "adversarial"}])


def experiment(**settings):
    domains = {name: Domain() for name in ("scope", "cheap", "phone")}
    given = {"data": Data(domains=domains), "methods": ["dann"], "adaptations": {"dann": DANN}}
    return Experiment(**given | settings)


def names(made):
    return [label(job) for job in make_plan(made)]


def test_an_adapted_method_brings_its_twins():
    made = experiment(sources=["scope"], targets=["phone"])
    assert names(made) == [
        "source_only scope s0",
        "fair_source_only scope s0",
        "fair_source_only phone s0",  # the oracle
        "dann scope->phone s0",
    ]
    plain, fair, oracle, adapted = make_plan(made)
    assert (plain.method.augmentation, plain.method.ema) == ("weak", False)
    assert (fair.method.augmentation, fair.method.ema) == ("strong", True)
    assert oracle.method == fair.method
    assert adapted.method.components


@pytest.mark.parametrize(
    ("twins", "left"),
    [
        ([], ["dann scope->phone s0"]),
        (["plain"], ["source_only scope s0", "dann scope->phone s0"]),
        (["fair"], ["fair_source_only scope s0", "dann scope->phone s0"]),
        (["oracle"], ["fair_source_only phone s0", "dann scope->phone s0"]),
    ],
)
def test_each_twin_can_be_left_out(twins, left):
    assert names(experiment(sources=["scope"], targets=["phone"], twins=twins)) == left


def test_source_only_methods_bring_nothing():
    made = experiment(methods=["fair_source_only"], sources=["scope"])
    assert names(made) == ["fair_source_only scope s0"]


def test_what_is_named_is_not_added_again():
    made = experiment(methods=["source_only", "fair_source_only", "dann"])
    assert len(names(made)) == len(set(names(made))) == 3 + 3 + 6


def test_a_recipe_of_its_own_has_a_twin_of_its_own():
    weak = Method("weak", components=[{"name": "stain_jitter"}, {"name": "adversarial"}])
    made = experiment(
        methods=["dann", "odd"],
        adaptations={"dann": DANN, "odd": weak},
        sources=["scope"],
        targets=["phone"],
    )
    jobs = {label(job): job for job in make_plan(made)}
    twin = jobs["fair_source_only:odd scope s0"].method
    assert (twin.augmentation, twin.ema) == ("weak", True)
    assert [c["name"] for c in twin.components] == ["stain_jitter"]
    assert "fair_source_only:odd phone s0" in jobs
    methods = {job.method_name for job in jobs.values()}
    assert reference_of("odd", methods) == "fair_source_only:odd"
    assert reference_of("dann", methods) == "fair_source_only"


@pytest.mark.parametrize("own", [{"outside": "background"}, {"patch_mosaics": 1.0}])
def test_a_twin_sees_its_sparse_source_as_the_method_does(own):
    """Or the gain of the patches would be told as one of adaptation."""
    both = Method(components=[{"name": "adversarial"}], **own)
    further = dataclasses.replace(both, continued=True)
    made = experiment(
        methods=["both"], adaptations={"both": both}, sources=["scope"], targets=["phone"]
    )
    for name in ("scope", "phone"):
        made.data.domains[name].format = "sparse"
    jobs = {label(job): job for job in make_plan(made)}
    for name in ("fair_source_only:both scope s0", "fair_source_only:both phone s0"):
        assert jobs[name].method == Method(**own)
    job = dataclasses.replace(jobs["both scope->phone s0"], method=further)
    assert source_model(job).method == Method(**own)
    assert longer_twin("further", further)[1] == Method(continued=True, **own)


def test_devices_without_labels_for_training_are_no_oracle():
    made = experiment(sources=["scope"], targets=["cheap", "phone"])
    made.data.domains["phone"].labels = "test_only"
    made.data.domains["cheap"].labels = "none"
    assert names(made) == [
        "source_only scope s0",
        "fair_source_only scope s0",
        "dann scope->cheap s0",
        "dann scope->phone s0",
    ]


def test_the_plain_twin_is_not_calibrated_where_the_axis_has_such_runs():
    made = experiment(sources=["scope"], targets=["phone"], calibration=["default", "none"])
    said = [n for n in names(made) if n.startswith("source_only")]
    assert said == ["source_only scope s0"]
    only = experiment(sources=["scope"], targets=["phone"], calibration=["default"])
    said = [n for n in names(only) if n.startswith("source_only")]
    assert said == ["source_only+calibrated scope s0"]


def test_several_sources_at_once_in_one_order():
    made = experiment(sources=["phone+scope", "scope+phone", "cheap"])
    assert names(made)[:2] == ["source_only scope+phone s0", "source_only cheap s0"]
    adapted = [n for n in names(made) if n.startswith("dann")]
    assert adapted == ["dann scope+phone->cheap s0", "dann cheap->scope s0", "dann cheap->phone s0"]


def test_leave_one_out_takes_all_labelled_devices_but_one():
    made = experiment(methods=["fair_source_only"], sources=["leave_one_out"])
    assert [job.source for job in make_plan(made)] == ["cheap+phone", "scope+phone", "scope+cheap"]


def test_few_shot_asks_for_a_target_with_labels():
    few = Method(target_labels=3)
    made = experiment(methods=["few"], adaptations={"few": few}, sources=["scope"])
    assert "few scope->phone s0" in names(made)
    made.data.domains["phone"].labels = "none"
    with pytest.raises(ConfigError, match=r"'phone' has labels: none; take it out of `targets`"):
        make_plan(made)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"twins": ["plane"]}, "twins: unknown value 'plane'; did you mean 'plain'"),
        ({"sources": ["scope+phon"]}, "sources: unknown device 'phon'; did you mean 'phone'"),
        (
            {"adaptations": {"dann": Method(target_share=1.0)}},
            "target_share: expected a number above 0 and",
        ),
        ({"adaptations": {"dann": Method(target_labels=-1)}}, "target_labels: expected at least 0"),
    ],
)
def test_what_cannot_be_is_said(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(experiment(**settings))


def test_a_batch_must_have_a_place_for_every_device():
    made = experiment(sources=["scope+cheap+phone"], methods=["fair_source_only"])
    made.trainer.batch_size = 2
    with pytest.raises(ConfigError, match="batch_size: 2 has no place"):
        make_plan(made)


def test_regimes_change_the_identity_only_where_they_are_used():
    one = make_plan(experiment(sources=["scope"], targets=["phone"], twins=[]))[0]
    other = make_plan(experiment(sources=["scope"], targets=["phone"], twins=["plain"]))[-1]
    assert one.hash == other.hash
    few = Method(target_labels=3, components=DANN.components)
    more = Method(target_labels=4, components=DANN.components)
    hashes = {
        make_plan(experiment(sources=["scope"], targets=["phone"], adaptations={"dann": m}))[
            -1
        ].hash
        for m in (DANN, few, more)
    }
    assert len(hashes) == 3
