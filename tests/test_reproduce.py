from __future__ import annotations

import json

import pytest

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import save_job
from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger, reproduce, worker


@pytest.fixture
def finished(make_job, tmp_path):
    """A sweep's folder with one job that is done."""
    job = make_job(Method(), target=None)
    folder = ledger.job_folder(tmp_path / "sweep", job.hash)
    folder.mkdir(parents=True)
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    return folder / "result.json"


def test_the_same_code_and_data_give_every_digit_again(finished, capsys):
    before = {f: f.read_bytes() for f in finished.parent.rglob("*") if f.is_file()}
    assert cli.main(["reproduce", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "the metrics agree" in out
    assert "same code version, packages, device and data" in out
    assert {f: f.read_bytes() for f in finished.parent.rglob("*") if f.is_file()} == before
    assert len(list(finished.parents[2].glob("reproduced/*/jobs/*/result.json"))) == 1


def test_what_differs_is_listed_and_the_exit_code_is_1(finished, capsys, tmp_path):
    content = json.loads(finished.read_text())
    content["versions"]["torch"] = "1.0"
    content["data"]["fingerprint"] = "another"
    device = content["tests"]["L_100X_C2"]
    device["metrics"]["ap50"], device["fingerprint"] = 2.0, "other"
    finished.write_text(json.dumps(content))
    assert cli.main(["reproduce", str(finished.parent), "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "the metrics DIFFER in 1 of" in out
    assert "L_100X_C2 ap50: 2.0 -> " in out
    assert "versions torch: 1.0 -> " in out
    assert "data fingerprint: another -> " in out
    assert "test data of L_100X_C2" in out
    assert (tmp_path / "out/jobs").is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: "{", "not a whole result"),
        (lambda c: "[]", "no result of a job"),
        (lambda c: json.dumps(c | {"version": 9}), "written in format 9"),
        (lambda c: json.dumps(c | {"config": None}), "does not say how it was made"),
        (
            lambda c: json.dumps(c | {"config": c["config"] | {"stpes": 3}}),
            "config.stpes: unknown key",
        ),
    ],
)
def test_what_is_no_result_is_said(finished, change, said):
    finished.write_text(change(json.loads(finished.read_text())))
    with pytest.raises(UserError, match=said):
        reproduce.read(finished)


def test_a_missing_file_and_a_used_folder_are_said(tmp_path, capsys):
    assert cli.main(["reproduce", str(tmp_path / "nothing.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        reproduce.fresh_folder(tmp_path / "result.json", tmp_path)


@pytest.mark.parametrize(
    ("before", "now", "agrees"),
    [
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"a": 1.0}, {"a": 1.0 + 1e-12}, False),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": None}, {"a": 0.0}, False),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, {}, False),
    ],
)
def test_metrics_agree_when_every_value_does(before, now, agrees):
    one, other = ({"tests": {"d": {"metrics": m}}} for m in (before, now))
    assert reproduce.compare(one, other).agrees is agrees


def test_a_device_that_was_not_tested_is_no_agreement():
    one = {"tests": {"d": {"metrics": {"a": 1}}, "e": {"metrics": {"a": 1}}}}
    assert reproduce.compare(one, {"tests": {"d": {"metrics": {"a": 1}}}}).scores == [
        "e: not tested"
    ]
