"""Jobs on a SLURM that `make test-slurm` starts: arrays, pre-emption, time-outs, ended runners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runner_kit import ended, put_cluster_scripts, small_sweep, start_runner, starts, until

from da_leukemia.config import Experiment, Trainer, save_experiment
from da_leukemia.config.executors import Slurm
from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger
from da_leukemia.sweep.executors import choose
from da_leukemia.sweep.plan import make_plan

pytestmark = pytest.mark.slurm


@pytest.fixture
def lab(tmp_path, monkeypatch):
    put_cluster_scripts(tmp_path, "slurm")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def sweep(folder: Path, seeds: list[int], steps: int = 5, **slurm: object) -> Experiment:
    settings = {"memory_gb": 0.5, "minutes": 10, "partition": "main"}
    trainer = Trainer(steps=steps, accelerator="cpu")
    how = Slurm(**(settings | slurm))  # type: ignore[arg-type]
    return small_sweep(folder, seeds, trainer, executor="slurm", slurm=how)


def queue() -> list[str]:
    command = ["squeue", "-h", "--array", "-o", "%F_%K %T"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return told.replace("_N/A", "").splitlines()


def test_an_array_runs_every_job_once_and_shares_imports(lab):
    made = sweep(lab, list(range(6)), jobs_per_task=2)
    code, err = ended(start_runner(made))
    assert (code, len(ledger.collect(made.folder, make_plan(made)))) == (0, 6), err
    assert sorted(s[1] for s in starts(made)) == [0] * 6
    servers = {parent for _, _, parent in starts(made)}
    assert len(servers) == 3  # one fork server, with the worker imported, for two jobs
    assert "up to 3 SLURM tasks on main" in err


def test_a_failure_is_told_with_its_last_lines(lab):
    made = sweep(lab, [0, 13])
    code, err = ended(start_runner(made))
    assert code == 1
    assert "| ValueError: loss is not finite" in err
    assert "1 of 2 jobs failed" in err


@pytest.mark.parametrize("how", ["signal", "preemption"])
def test_a_task_that_makes_room_goes_on_where_it_was(lab, how):
    made = sweep(lab, [0], steps=80)
    one = start_runner(made)
    until(lambda: (made.folder / "jobs").is_dir() and any(s for s in starts(made)), 30)
    time.sleep(2)
    if how == "signal":
        (task,) = [line.split()[0] for line in queue()]
        subprocess.run(["scancel", "--signal", "USR2", task], check=True)
    else:
        asked = ["-p", "urgent", "-N", "3", "--exclusive", "--mem=0", "-t", "1"]
        subprocess.run(["sbatch", *asked, "-o", "/dev/null", "--wrap", "sleep 3"], check=True)
    code, err = ended(one)
    assert code == 0, err
    assert len(starts(made)) == 2
    assert starts(made)[0][1] == 0
    assert starts(made)[1][1] > 0  # not from the beginning
    assert not list(made.folder.glob("jobs/*/error.txt"))
    assert "failed" not in err


def test_a_task_that_runs_out_of_time_is_requeued(lab):
    made = sweep(lab, [0], steps=600, minutes=1, warning_seconds=30)
    code, err = ended(start_runner(made), 240)
    assert code == 0, err
    assert len(starts(made)) > 1
    assert starts(made)[1][1] > 0


def test_a_runner_that_ended_leaves_the_queue_and_the_next_one_follows_it(lab):
    made = sweep(lab, [0, 1], steps=60)
    one = start_runner(made)
    until(lambda: len(starts(made)) == 2, 30)
    one.send_signal(signal.SIGINT)
    code, err = ended(one)
    assert code == 130
    assert "to end them: scancel" in err
    before = queue()
    code, err = ended(start_runner(made))
    assert code == 0, err
    assert len(before) == 2
    assert len(starts(made)) == 2
    assert len(json.loads((made.folder / "slurm/submitted.json").read_text())) == 2


def test_a_task_that_was_cancelled_is_said(lab):
    made = sweep(lab, [0], steps=600)
    one = start_runner(made)
    until(lambda: len(starts(made)) == 1, 30)
    (task,) = [line.split()[0] for line in queue()]
    subprocess.run(["scancel", task], check=True)
    code, err = ended(one)
    assert code == 1
    assert "ended without a result (CANCELLED" in err or "killed " in err


def test_an_unknown_partition_is_answered_with_the_nearest(lab):
    with pytest.raises(UserError, match=r"slurm\.partition: unknown 'mian'; did you mean 'main'\?"):
        choose(sweep(lab, [0], partition="mian"))


def test_what_sbatch_refuses_is_said(lab):
    made = sweep(lab, [0], memory_gb=900.0)
    code, err = ended(start_runner(made))
    assert code == 1
    assert "error: executor=slurm: sbatch refused the jobs: sbatch: error:" in err
    assert "not available" in err


def test_an_emitted_script_runs_its_shards(lab):
    made = sweep(lab, [0, 1, 2], partition="main", jobs_per_task=2)
    save_experiment(made, lab / "trial.yaml")
    command = [sys.executable, "-m", "da_leukemia", "sweep", "plan", str(lab / "trial.yaml")]
    done = subprocess.run(
        [*command, "--emit", "sbatch"], capture_output=True, text=True, check=True
    )
    calls = lab / "calls.txt"
    (lab / "bin").mkdir()
    (lab / "bin/da-leukemia").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (lab / "bin/da-leukemia").chmod(0o755)
    (made.folder / "slurm").mkdir(parents=True)
    script = lab / "script.sh"
    script.write_text(done.stdout)
    environment = os.environ | {"PATH": f"{lab}/bin:{os.environ['PATH']}"}
    subprocess.run(["sbatch", script], check=True, env=environment)
    until(lambda: calls.is_file() and len(calls.read_text().splitlines()) == 2, 30)
    shards = sorted(line.split()[-1] for line in calls.read_text().splitlines())
    assert shards == ["1/2", "2/2"]
