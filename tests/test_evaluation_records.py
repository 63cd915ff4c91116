"""Records of what was found: drawn again for intervals, kept in files, summed up in a result."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_kit import ALL, SPACE, A, D, attributed_domain, field, random_field, soft

from da_leukemia.evaluation import (
    EVALUATOR_VERSION,
    AttributeTable,
    MatchTable,
    attribute_metrics,
    evaluate,
    hierarchical_interval,
    load_records,
    save_records,
)
from da_leukemia.labels import WBC5

# --- drawn again -------------------------------------------------------------------------------


def test_an_interval_holds_its_score_is_repeatable_and_shrinks_with_more_patients():
    def table(patients: int) -> MatchTable:
        rng = np.random.default_rng(3)
        records = [random_field(rng, i) for i in range(2 * patients)]
        return MatchTable.build(records, ALL)

    few, many = (hierarchical_interval([table(n)], replicates=200)["ap50"] for n in (4, 60))
    assert few.low < few.mean < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert many.low < many.mean < many.high
    assert hierarchical_interval([table(60)], replicates=200)["ap50"] == many
    assert hierarchical_interval([table(60)], replicates=200, rng_seed=1)["ap50"] != many


def test_fields_of_one_patient_are_drawn_together():
    good, bad = field([(*A, 0)], [(*A, 0, 0.9)]), field([(*A, 0)], [])
    fields = [good, good, bad, bad]
    one = MatchTable.build([replace(r, group="patient:1") for r in fields], ALL)
    each = MatchTable.build([replace(r, group=f"field:{i}") for i, r in enumerate(fields)], ALL)
    together = hierarchical_interval([one], replicates=50)["ap50"]
    apart = hierarchical_interval([each], replicates=50)["ap50"]
    assert together.low == together.high == together.mean == one.ap(np.ones(4, np.int64))[0]
    assert apart.low < apart.high


def test_training_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    records = [field([(*A, 0)], [(*A, 0, 0.9)], group=f"g{i}") for i in range(20)]
    blind = [replace(r, scores=r.scores * 0, boxes=r.boxes + 50) for r in records]
    hit, miss = MatchTable.build(records, ALL), MatchTable.build(blind, ALL)
    agree = hierarchical_interval([hit, hit], replicates=100)["ap50"]
    disagree = hierarchical_interval([hit, miss], replicates=100)["ap50"]
    assert (agree.low, agree.mean, agree.high) == (1.0, 1.0, 1.0)
    assert (disagree.low, disagree.mean, disagree.high) == (0.0, 0.5, 1.0)
    third = hierarchical_interval([hit, miss, miss], level=0.9)["ap50"]
    assert third.high == pytest.approx(2 / 3)  # the seed that finds all was drawn twice
    other = MatchTable.build([random_field(rng, 0)], ALL)
    with pytest.raises(ValueError, match="same fields"):
        hierarchical_interval([hit, other])


def test_all_seeds_are_scored_on_the_same_draw_of_patients():
    class FindsHalf:
        """Finds exactly the fields that the other half misses: the mean of both is one half."""

        groups = tuple(f"g{i}" for i in range(20))

        def __init__(self, half: int) -> None:
            self.half = half

        def statistic(self, weights):
            return {"found": weights[self.half :: 2].sum() / weights.sum()}

    halves = [FindsHalf(0), FindsHalf(1)]
    # Half of the replicates draw each seed once and give exactly 0.5; a quarter lies on each side.
    middle = hierarchical_interval(halves, level=0.3, replicates=400)["found"]
    whole = hierarchical_interval(halves, level=0.95, replicates=400)["found"]
    assert middle.low == middle.high == 0.5
    assert whole.low < 0.45
    assert whole.high > 0.55


def test_attributes_are_resampled_by_the_same_bootstrap():
    right = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(0, 1)], probs=[soft(0, 1)])
    wrong = replace(right, attribute_probs=np.array([soft(1, 0)], np.float32))
    records = [replace(r, group=f"g{i}") for i, r in enumerate([right, wrong] * 5)]
    table = AttributeTable.build(records, SPACE)
    weights = np.array([1, 0] * 5)
    assert table.statistic(weights)["attribute_f1"] == 1.0
    assert table.statistic(1 - weights)["attribute_f1"] == 0.0
    interval = hierarchical_interval([table], replicates=200)["attribute_f1"]
    headline = attribute_metrics(records, SPACE)
    assert interval.mean == headline.attribute_f1
    assert interval.low < interval.mean < interval.high


def test_true_boxes_are_resampled_by_the_same_bootstrap():
    records = attributed_domain(2)
    table = AttributeTable.build(records, SPACE, given_boxes=True)
    everything = table.statistic(np.ones(len(records), np.int64))
    assert everything["attribute_f1_true_boxes"] == pytest.approx(table.scores().attribute_f1)
    assert everything.keys().isdisjoint(
        AttributeTable.build(records, SPACE).statistic(np.ones(len(records), np.int64))
    )


def test_a_thousand_replicates_take_seconds():
    rng = np.random.default_rng(0)
    records = [random_field(rng, i, most=25) for i in range(100)]
    table = MatchTable.build(records, ALL)
    start = time.perf_counter()
    hierarchical_interval([table], replicates=1000)
    assert time.perf_counter() - start < 10  # about one second on a quiet machine


# --- kept and summed up ------------------------------------------------------------------------


def test_records_come_back_from_their_file_as_they_were(tmp_path: Path):
    rng = np.random.default_rng(1)
    records = [random_field(rng, i) for i in range(6)]
    records += [
        field(key="d//leer", regions=((0.5, 1, 20, 30.25), (20, 0, 30, 9))),
        field(key="größe/é", group=""),
    ]
    save_records(tmp_path / "a.npz", records)
    back = load_records(tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    for before, after in zip(records, back, strict=True):
        assert (before.key, before.group, before.regions) == (after.key, after.group, after.regions)
        for name in ("true_boxes", "true_labels", "true_attributes", "boxes", "scores", "labels"):
            old, new = getattr(before, name), getattr(after, name)
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
    assert evaluate(back, WBC5, ALL) == evaluate(records, WBC5, ALL)
    save_records(tmp_path / "none.npz", [])
    assert load_records(tmp_path / "none.npz") == []


def test_attributes_survive_the_file_when_some_fields_have_no_boxes(tmp_path: Path):
    full = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(2, 1)], probs=[soft(2, 1)])
    save_records(tmp_path / "a.npz", [field(), full, field()])
    back = load_records(tmp_path / "a.npz")
    np.testing.assert_array_equal(back[1].attribute_probs, full.attribute_probs)
    assert attribute_metrics(back, SPACE).end_to_end == 1.0


def test_what_was_read_at_true_boxes_survives_the_file_and_the_region(tmp_path: Path):
    records = attributed_domain(3)
    save_records(tmp_path / "a.npz", records)
    back = load_records(tmp_path / "a.npz")
    for before, after in zip(records, back, strict=True):
        np.testing.assert_array_equal(before.true_attribute_probs, after.true_attribute_probs)
    assert evaluate(back, SPACE, (0, 1)) == evaluate(records, SPACE, (0, 1))
    unasked = [replace(r, true_attribute_probs=None) for r in records]
    save_records(tmp_path / "b.npz", unasked)
    assert all(r.true_attribute_probs is None for r in load_records(tmp_path / "b.npz"))
    with np.load(tmp_path / "b.npz") as file:  # a file of before there was such a thing
        old = {k: v for k, v in file.items() if k != "true_attribute_probs"}
    np.savez_compressed(tmp_path / "c.npz", **old)
    assert evaluate(load_records(tmp_path / "c.npz"), SPACE, (0, 1)) == evaluate(
        unasked, SPACE, (0, 1)
    )
    part = field([(*A, 0), (*D, 0)], attributes=[(0, 0), (0, 0)], regions=((0, 0, 30, 30),))
    asked = np.array([soft(0, 0), soft(1, 1)], np.float32)
    scores = attribute_metrics([replace(part, true_attribute_probs=asked)], SPACE, given_boxes=True)
    assert scores.attribute_f1 == 1.0  # the wrong one lies outside
    with pytest.raises(ValueError, match="fit together"):
        replace(part, true_attribute_probs=asked[:1])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    save_records(tmp_path / "a.npz", [field(key="old")])

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_records(tmp_path / "a.npz", [field(key="new")])
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert load_records(tmp_path / "a.npz")[0].key == "old"


def test_a_record_that_does_not_fit_together_is_refused():
    whole = field([(*A, 0)], [(*A, 0, 0.9)])
    with pytest.raises(ValueError, match="fit together"):
        replace(whole, scores=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="not a number"):
        replace(whole, scores=np.array([np.nan], np.float32))


def test_a_result_is_json_without_nan():
    keys = {
        *("evaluator_version", "ap50", "ap50_95", "recall", "ece", "fields", "boxes"),
        *("attribute_f1", "attribute_f1_end_to_end", "attribute_balanced_accuracy"),
        *("per_class", "per_attribute", "attributes", "as_released", "reliability"),
        *("attribute_f1_true_boxes", "attribute_balanced_accuracy_true_boxes"),
        *("attribute_balanced_accuracy_end_to_end", "attribute_ece", "attribute_f1_as_released"),
        *("map50_as_released", "map50_95_as_released"),
        *("ap50_without_none", "ap50_95_without_none"),
    }
    attributed = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(2, -1)], probs=[soft(2, 1)])
    for records in ([], [field()], [field([(*A, 1)])], [field([], [(*A, 1, 0.9)])], [attributed]):
        result = evaluate(records, SPACE, labelled=(0, 1))
        assert set(result) == keys
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result["evaluator_version"] == EVALUATOR_VERSION
    assert result["per_attribute"]["size"] == {"f1": 1.0, "balanced_accuracy": 1.0, "truths": 1}
    assert result["per_attribute"]["vacuoles"]["f1"] is None
    assert result["attribute_f1"] == result["ap50"] == result["recall"] == 1.0
