from __future__ import annotations

import io

from test_sweep_plan import experiment

from da_leukemia.sweep import ledger
from da_leukemia.sweep.plan import make_plan
from da_leukemia.sweep.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_runs_how_far_and_what_failed(tmp_path):
    job, other, *_ = make_plan(experiment(tmp_path))
    ledger.write_json(tmp_path / "progress.json", {"phase": "train", "step": 45, "steps": 100})
    shown = Terminal()
    with Progress(3, 1, shown) as progress:
        progress.finished(other, 2.0, failed=True)
        progress.show([(job, tmp_path)])
    last = shown.getvalue().split("\r")[-1]
    assert "2/3" in last
    assert "1 failed, fair scope s0 45%" in last
    assert "FAILED fair cheap s0 (2 s)" in shown.getvalue()


def test_without_a_terminal_every_end_is_one_line(tmp_path):
    job, other, *_ = make_plan(experiment(tmp_path))
    shown = io.StringIO()
    with Progress(2, 0, shown) as progress:
        progress.show([(job, tmp_path)])
        progress.finished(job, 3.2)
        progress.finished(other, None)
    assert shown.getvalue().splitlines() == [
        "[1/2] done fair scope s0 (3 s)",
        "[2/2] done fair cheap s0 (by another runner)",
    ]
