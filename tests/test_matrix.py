"""The matrix is a pure function of the results, and a gap is given only where it is fair."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
from test_matrix_support import DEVICES, SPACE, make_records, make_sweep

from da_leukemia.errors import UserError
from da_leukemia.evaluation import MatchTable, hierarchical_interval
from da_leukemia.evaluation.paired import holm
from da_leukemia.report.contents import as_results
from da_leukemia.report.gains import gains
from da_leukemia.report.gap import gap_closed
from da_leukemia.report.headlines import gap_sentence
from da_leukemia.report.intervals import Bootstrap
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.matrix import COLUMNS, read_matrix, write_matrix
from da_leukemia.sweep.names import FAIR
from da_leukemia.sweep.results import Result


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("sweep"), devices=DEVICES[:2])


@pytest.fixture(scope="module")
def bootstrap():
    """Remembers between tests what it has drawn."""
    return Bootstrap()


def content(method, source, target, values, seed=0, **more):
    tests = {t: {"metrics": {"ap50": v, "fields": 4}} for t, v in values.items()}
    run = {"method": method, "source": source, "target": target, "seed": seed, "tests": tests}
    return Result({**run, "job": f"{method}{source}{target}{seed}", **more})


TWINS = [
    content(FAIR, "a", None, {"a": 0.9, "b": 0.4, "c": 0.5}),
    content(FAIR, "b", None, {"a": 0.5, "b": 0.8, "c": 0.1}),
    content("dann", "a", "b", {"a": 0.8, "b": 0.6, "c": 0.2}),
    content("dann", "b", "a", {"a": 0.4, "b": 0.7, "c": 0.2}),
    content("dann", "a", "c", {"a": 0.7, "b": 0.4, "c": 0.6}),
]


def test_a_gain_is_told_where_no_share_of_the_gap_can_be():
    results = [
        content(FAIR, "a", "", {"a": 0.9, "b": 0.4, "c": 0.5}),
        content("dann", "a", "b", {"b": 0.6}),
        content("dann", "a", "c", {"c": 0.6}),
    ]
    (summary,) = gap_closed(build_matrix(results)).summaries
    said = gap_sentence(summary)
    assert said.startswith("dann: +0.150 beside fair_source_only on average over 2 pairs; no share")
    alone = gap_sentence(replace(summary, mean_gain=None))
    assert alone.startswith("dann: no share of the gap can be given (")


def test_a_value_is_the_mean_over_seeds_and_nothing_else():
    results = [content("m", "a", None, {"a": v}, seed=s) for s, v in enumerate([0.1, 0.4, 0.7])]
    (row,) = build_matrix(results).rows
    assert row.value == pytest.approx(0.4)
    assert (row.seeds, row.fields, row.low, row.high, row.target) == (3, 4, None, None, "")


def test_a_metric_without_a_value_has_no_row():
    result = content("m", "a", None, {"a": 0.5})
    result.content["tests"]["a"]["metrics"]["attribute_f1"] = None
    assert [r.metric for r in build_matrix([result]).rows] == ["ap50"]


def test_intervals_are_those_of_a_direct_bootstrap(sweep, bootstrap):
    experiment, contents = sweep
    results = as_results(experiment, contents)
    matrix = build_matrix(results, intervals=bootstrap)
    row = matrix.cell(FAIR, "microscope", "", "low_cost", "ap50")
    tables = [
        MatchTable.build(make_records("low_cost", 0.45, s, f"{FAIR}microscope"), range(4))
        for s in experiment.seeds
    ]
    direct = hierarchical_interval(tables)["ap50"]
    assert row.value == pytest.approx(direct.mean, abs=1e-5)
    assert (row.low, row.high) == pytest.approx((direct.low, direct.high), abs=1e-6)
    assert row.low < row.value < row.high
    recorded = matrix.cell(FAIR, "microscope", "", "low_cost", "attribute_f1")
    assert recorded.low is not None
    ece = matrix.cell(FAIR, "microscope", "", "low_cost", "ece")
    assert ece.low is None


def test_the_gain_is_scored_on_the_same_patients(sweep):
    experiment, contents = sweep
    results = as_results(experiment, contents)
    found = gains(Bootstrap(), results, "ap50")
    gaps = gap_closed(build_matrix(results), gains=found).gaps
    assert {(g.source, g.target) for g in gaps} == {
        ("microscope", "low_cost"),
        ("low_cost", "microscope"),
    }
    assert all(g.paired.low <= g.gain <= g.paired.high for g in gaps)
    one = [r for r in results if (r.run.method, r.run.seed) != (FAIR, 1)]
    assert gains(Bootstrap(), one, "ap50") == {}


def test_p_of_a_pair_is_adjusted_for_all_pairs(sweep, monkeypatch):
    results = as_results(*sweep)
    alone = {"low_cost": 0.02, "microscope": 0.04}
    monkeypatch.setattr(
        "da_leukemia.report.gains._test", lambda runs, test, metric: {metric: (alone[test], 0.0)}
    )
    found = gains(Bootstrap(), results, "ap50")
    assert len(found) > 1
    assert [g.p for g in found.values()] == holm([alone[pair[2]] for pair in found])
    table = gap_closed(build_matrix(results), gains=found)
    assert all(g.paired.p > alone[g.target] for g in table.gaps if g.target == "low_cost")
    for gap in table.gaps:
        sure = replace(gap, paired=gap.paired._replace(p=0.04))
        assert replace(sure, adapted=gap.fair - 0.1).harmed
        assert not replace(sure, adapted=gap.fair + 0.1).harmed
        assert not replace(gap, adapted=gap.fair - 0.1, paired=gap.paired._replace(p=0.06)).harmed


def test_without_records_there_is_no_interval(sweep, tmp_path):
    _, contents = sweep
    matrix = build_matrix([Result(c, tmp_path) for c in contents], intervals=Bootstrap())
    assert all(row.low is None for row in matrix.rows)


def test_records_of_another_training_give_no_interval(sweep):
    experiment, contents = sweep
    contents = copy.deepcopy([c for c in contents if c["method"] == FAIR])
    for c in contents:
        c["tests"]["low_cost"]["metrics"]["ap50"] = 0.123
    matrix = build_matrix(as_results(experiment, contents), intervals=Bootstrap())
    assert {r.low is None for r in matrix.rows if r.test == "low_cost"} == {True}


def test_the_cache_is_keyed_by_the_records(sweep, tmp_path):
    experiment, contents = sweep
    results = [r for r in as_results(experiment, contents) if r.run.method == FAIR]
    cache = tmp_path / "intervals.json"
    first = Bootstrap(cache)
    matrix = build_matrix(results, intervals=first)
    first.save()
    second = Bootstrap(cache)
    second._draw = None  # it must not be needed
    assert build_matrix(results, intervals=second) == matrix
    cache.write_text("{cut off")
    assert build_matrix(results, intervals=Bootstrap(cache)).rows == matrix.rows


def test_csv_has_the_agreed_columns_and_reads_back_the_same(sweep, bootstrap, tmp_path):
    experiment, contents = sweep
    matrix = build_matrix(as_results(experiment, contents), intervals=bootstrap)
    write_matrix(matrix, tmp_path / "matrix.csv")
    header = (tmp_path / "matrix.csv").read_text().splitlines()[0]
    assert header == "method,source,target,test,metric,value,low,high,seeds,fields"
    assert tuple(header.split(",")) == COLUMNS
    assert read_matrix(tmp_path / "matrix.csv").rows == matrix.rows


def test_the_order_of_the_results_does_not_matter(sweep, tmp_path):
    experiment, contents = sweep
    results = as_results(experiment, contents)
    written = []
    for i in range(3):
        random.Random(i).shuffle(results)
        write_matrix(build_matrix(results), tmp_path / f"{i}.csv")
        written.append((tmp_path / f"{i}.csv").read_bytes())
    assert len(set(written)) == 1


def test_a_csv_with_other_columns_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected the columns"):
        read_matrix(tmp_path / "m.csv")


def test_two_jobs_for_one_place_are_an_error():
    first = content("m", "a", None, {"a": 0.5})
    second = Result({**first.content, "job": "another"})
    with pytest.raises(UserError, match="two jobs claim this place"):
        build_matrix([first, second])


def test_an_adapted_method_is_shown_where_it_adapted_to():
    view = build_matrix(TWINS).view("dann")
    assert view.cells["a", "b"].value == 0.6
    assert view.cells["a", "a"].value == 0.9
    assert view.borrowed == {("a", "a"), ("b", "b")}
    assert ("b", "c") not in view.cells


def test_gap_closed_by_hand():
    table = gap_closed(build_matrix(TWINS))
    gaps = {(g.source, g.target): g for g in table.gaps}
    assert gaps["a", "b"].closed == pytest.approx((0.6 - 0.4) / (0.8 - 0.4))
    assert gaps["b", "a"].closed == pytest.approx((0.4 - 0.5) / (0.9 - 0.5))
    (summary,) = table.summaries
    assert summary.ratio_of_means == pytest.approx((0.2 - 0.1) / (0.4 + 0.4))
    assert summary.mean_of_ratios == pytest.approx((0.5 - 0.25) / 2)
    assert (summary.pairs, summary.refused, summary.compared, summary.negative) == (3, 1, 3, 1)
    assert (summary.worst.source, summary.worst.target) == ("b", "a")


def test_a_gap_is_refused_without_an_oracle_or_a_twin():
    gaps = {(g.source, g.target): g for g in gap_closed(build_matrix(TWINS)).gaps}
    assert gaps["a", "c"].closed is None
    assert gaps["a", "c"].reason == "no oracle: no fair_source_only run trained on c"
    lonely = gap_closed(build_matrix([r for r in TWINS if r.run != TWINS[0].run]))
    reasons = {(g.source, g.target): g.reason for g in lonely.gaps}
    assert reasons["a", "b"] == "no fair_source_only run trained on a"
    assert lonely.summaries[0].ratio_of_means is None
    assert lonely.best is None


def test_a_gap_is_refused_when_the_oracle_is_not_above():
    weak = [content(FAIR, "b", None, {"a": 0.5, "b": 0.4}), TWINS[0], TWINS[2]]
    table = gap_closed(build_matrix(weak))
    assert table.gaps[0].closed is None
    assert "is not above" in table.gaps[0].reason
    assert table.summaries[0].reason == "the oracles are not above fair source-only on average"


def test_a_plain_oracle_stands_in_and_is_named():
    results = [TWINS[0], TWINS[2], content("source_only", "b", None, {"b": 0.7})]
    table = gap_closed(build_matrix(results))
    assert table.gaps[0].oracle == 0.7
    assert "plain source_only" in table.notes[0]


def test_a_twin_of_another_recipe_is_no_twin():
    config = {"trainer": {"steps": 100, "threads": 1}, "method": {"ema": True, "components": []}}
    other = {"trainer": {"steps": 200, "threads": 2}, "method": {"ema": True, "components": [1]}}
    fair = [Result({**r.content, "config": config}) for r in TWINS[:2]]
    adapted = Result({**TWINS[2].content, "config": other})
    table = gap_closed(build_matrix([*fair, adapted]))
    assert table.gaps[0].closed is None
    assert "trainer.steps is 200, in fair_source_only 100" in table.gaps[0].reason
    assert "threads" not in table.gaps[0].reason


def test_mixed_data_and_uneven_seeds_are_said():
    first = content("m", "a", None, {"a": 0.5}, data={"fingerprint": "x"})
    second = content("m", "a", None, {"a": 0.5}, seed=1, data={"fingerprint": "y"})
    third = content("m", "b", None, {"a": 0.5}, data={"fingerprint": "y"})
    notes = " ".join(build_matrix([first, second, third]).notes)
    assert "2 different states of the data" in notes
    assert "1 to 2 seeds" in notes


def test_rows_are_plain_numbers(sweep):
    experiment, contents = sweep
    for row in build_matrix(as_results(experiment, contents)).rows:
        assert not any(isinstance(v, np.generic) for v in row)
    assert SPACE.name == contents[0]["label_space"]
