"""Results read in part: the report must not see a difference."""

from __future__ import annotations

import json
import math

import pytest
from test_matrix_support import DEVICES, make_sweep

from da_leukemia.config import METRICS
from da_leukemia.report import write_report
from da_leukemia.sweep import ledger
from da_leukemia.sweep.partial import brief, lean
from da_leukemia.sweep.plan import make_plan


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of one seed whose results lie on disk."""
    experiment, results = make_sweep(tmp_path_factory.mktemp("sweep"), seeds=(0,))
    for result in results:
        folder = ledger.job_folder(experiment.folder, result["job"])
        ledger.write_json(folder / ledger.RESULT, result)
    return experiment, results


def test_a_report_of_parts_is_that_of_whole_results(sweep, tmp_path):
    experiment, results = sweep
    write_report(experiment, results, tmp_path / "whole")
    write_report(
        experiment, ledger.collect(experiment.folder, make_plan(experiment)), tmp_path / "parts"
    )
    for name in ("matrix.csv", "matrix.md", "matrix.tex", "slides.json", "index.html"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_of_a_test_on_another_device_only_the_headline_is_read(sweep):
    _, results = sweep
    adapted = next(r for r in results if r["target"] == "phone")
    read = lean("phone", DEVICES)(json.dumps(adapted).encode())
    whole = adapted["tests"]["low_cost"]["metrics"]
    few = read["tests"]["low_cost"]["metrics"]
    for name in (*METRICS, "fields", "evaluator_version"):
        assert few.get(name) == few[name] == whole.get(name)
    assert few.get("per_class") is None
    own = read["tests"]["phone"]["metrics"]
    assert own["per_class"] == adapted["tests"]["phone"]["metrics"]["per_class"]
    assert "as_released" not in own


def test_scores_that_no_part_knows_are_kept_where_it_matters(sweep):
    """Another task may measure other things; on the device it is for nothing is forgotten."""
    adapted = next(r for r in sweep[1] if r["target"] == "phone")
    metrics = {**adapted["tests"]["phone"]["metrics"], "kappa": 0.5}
    changed = {**adapted, "tests": {"phone": {**adapted["tests"]["phone"], "metrics": metrics}}}
    read = lean("phone", ("phone",))(json.dumps(changed).encode())
    assert read["tests"]["phone"]["metrics"]["kappa"] == 0.5


def test_what_the_quick_reader_refuses_is_read_the_slow_way(sweep, tmp_path):
    """JSON knows no NaN, but older results have it."""
    result = {**sweep[1][0], "timings": {"total_s": math.nan}}
    (tmp_path / ledger.RESULT).write_text(json.dumps(result))
    found, note = ledger.read_result(tmp_path, result["job"], (), brief)
    assert found is not None
    assert note == ""
    assert math.isnan(found["timings"]["total_s"])


@pytest.mark.parametrize("text", ['{"job": "', "[]", "{}", '{"tests": 3}', '{"tests": {"a": 1}}'])
def test_half_a_result_is_none_for_every_reader(tmp_path, text):
    (tmp_path / ledger.RESULT).write_text(text)
    whole = ledger.read_result(tmp_path, "x", ())
    for reader in (brief, lean(None, ("a",))):
        assert ledger.read_result(tmp_path, "x", (), reader) == whole
    assert whole[0] is None
