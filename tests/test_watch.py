from __future__ import annotations

import io
import os

import pytest
from test_sweep_plan import experiment, result

from da_leukemia.sweep import ledger, watch
from da_leukemia.sweep.plan import make_plan


def finish(made, job, ended: float, took: float) -> None:
    path = ledger.job_folder(made.folder, job.hash) / "result.json"
    ledger.write_json(path, result(job.hash, job.tests) | {"timings": {"total_s": took}})
    os.utime(path, (ended, ended))


@pytest.mark.parametrize(
    ("ended", "took", "left", "said"),
    [
        ({"a": 1000.0, "b": 1100.0}, {"a": 100.0, "b": 100.0}, 4, "36 jobs an hour, 7 min left"),
        ({"a": 1100.0}, {"a": 50.0}, 0, "72 jobs an hour"),
        ({"a": -9000.0}, {"a": 50.0}, 3, "no job ended in the last hour"),
        ({}, {}, 0, ""),
    ],
)
def test_the_pace_is_of_the_last_hour(ended, took, left, said):
    assert watch.pace(ended, took, left, now=1100.0) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (700, "12 min"), (12_000, "3 h 20 min"), (7200, "2 h"), (356_400, "4 d 3 h")],
)
def test_durations_are_for_people(seconds, said):
    assert watch.duration(seconds) == said


def test_the_picture_has_states_pace_failures_and_what_runs(tmp_path):
    made = experiment(tmp_path)
    first, second, third, *rest = make_plan(made)
    finish(made, first, 1000.0, 10.0)
    ledger.write_failure(ledger.job_folder(made.folder, second.hash), "ValueError: not finite")
    watcher = watch.Watcher(made)
    with ledger.hold(ledger.job_folder(made.folder, third.hash)):
        watcher.look()
        text = watcher.picture(1090.0)
    assert f"1 done, 1 running, 1 failed, {len(rest)} waiting" in text
    assert "36 jobs an hour" in text
    assert "| ValueError: not finite" in text
    assert "running:\n  fair phone s0" in text
    assert len(watcher.picture(1090.0, lines=12).splitlines()) <= 12
    assert not watcher.finished


def test_a_watch_ends_when_all_is_done_and_sees_what_was_opened_again(tmp_path, monkeypatch):
    made = experiment(tmp_path, methods=["fair"], sources=["scope"])
    (job,) = make_plan(made)
    shown, turns = io.StringIO(), []

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        finish(made, job, 1000.0, 10.0)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert watch.watch(made, "again", shown) == 0
    assert len(turns) == 1
    assert "1 waiting" in shown.getvalue()
    assert shown.getvalue().rstrip().endswith("all done")
    watcher = watch.Watcher(made)
    watcher.look()
    (ledger.job_folder(made.folder, job.hash) / "result.json").unlink()
    watcher.look()
    assert watcher.finished  # not looked at again so soon
    watcher._checked -= watch.RECHECK
    watcher.look()
    assert not watcher.finished
