"""Jobs on a Ray cluster of two nodes that `make test-ray` has this file start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from runner_kit import ended, put_cluster_scripts, small_sweep, start_runner, starts, until

from da_leukemia.config import Experiment, Trainer
from da_leukemia.config.executors import Ray
from da_leukemia.errors import UserError
from da_leukemia.sweep import ledger
from da_leukemia.sweep.plan import make_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ray")
    put_cluster_scripts(made, "ray_tasks")
    return made


@pytest.fixture(scope="module")
def cluster(folder):
    """Two nodes of two CPUs on this machine; gives the address and the second node's remover."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}:{before}"  # of the workers, too
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    os.environ["PYTHONPATH"] = before


def sweep(folder: Path, name: str, seeds: list[int], steps: int = 5, **ray: object) -> Experiment:
    trainer = Trainer(steps=steps, accelerator="cpu")
    how = Ray(**ray)  # type: ignore[arg-type]
    return small_sweep(folder, seeds, trainer, name=name, executor="ray", ray=how)


def test_a_cluster_that_is_not_there_is_said_at_once(folder, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, err = ended(start_runner(sweep(folder, "nowhere", [0], address="127.0.0.1:1")))
    assert code == 1
    assert "no cluster at 127.0.0.1:1" in err
    assert "ray start --head" in err


def test_jobs_run_once_on_both_nodes_and_share_imports(folder, cluster):
    made = sweep(folder, "both", list(range(8)), address=cluster.address)
    code, err = ended(start_runner(made))
    assert (code, len(ledger.collect(made.folder, make_plan(made)))) == (0, 8), err
    assert sorted(s[1] for s in starts(made)) == [0] * 8
    assert len({server for _, _, server in starts(made)}) < 8
    assert "2 Ray nodes, 4 CPUs" in err


def test_a_failure_is_told_with_its_last_lines(folder, cluster):
    made = sweep(folder, "failing", [0, 13], address=cluster.address)
    code, err = ended(start_runner(made))
    assert code == 1
    assert "| ValueError: loss is not finite" in err
    assert "1 of 2 jobs failed" in err


def test_no_node_that_is_large_enough_is_said(folder, cluster):
    code, err = ended(start_runner(sweep(folder, "large", [0], address=cluster.address, cpus=64)))
    assert code == 1
    assert "no node has 64 CPUs and 0 GPUs" in err


def test_a_worker_that_dies_is_replaced_and_the_job_goes_on(folder, cluster):
    made = sweep(folder, "killed", [0], steps=60, address=cluster.address)
    one = start_runner(made)
    until(lambda: bool(starts(made)), 150)
    time.sleep(2)
    server = starts(made)[0][2]
    worker = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    code, err = ended(one, 400)
    assert code == 0, err
    assert len(starts(made)) == 2
    assert starts(made)[1][1] > 0  # not from the beginning
    assert not list(made.folder.glob("jobs/*/error.txt"))


def test_an_interruption_ends_the_jobs(folder, cluster):
    made = sweep(folder, "stopped", [0], steps=600, address=cluster.address)
    one = start_runner(made)
    until(lambda: bool(starts(made)), 150)
    one.send_signal(signal.SIGINT)
    code, err = ended(one, 400)
    assert code == 130, err
    (job,) = make_plan(made)
    until(lambda: ledger.examine(made.folder, job).state == "waiting", 60)


def test_a_node_that_is_lost_does_not_lose_its_jobs(folder, cluster):
    made = sweep(folder, "lost", [0, 1, 2, 3], steps=100, address=cluster.address)
    one = start_runner(made)
    until(lambda: len(starts(made)) == 4, 150)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    code, err = ended(one, 400)
    assert code == 0, err
    assert len(ledger.collect(made.folder, make_plan(made))) == 4
    assert len(starts(made)) > 4


def test_a_cluster_of_its_own_is_started_where_that_is_asked(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made = sweep(folder, "own", [0], start=True)
    code, err = ended(start_runner(made))
    assert code == 0, err
    assert "1 Ray node" in err


def test_where_nothing_is_installed_the_extra_is_named(folder, monkeypatch):
    from da_leukemia.sweep import executors

    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'da-leukemia\[ray\]'"):
        executors.choose(sweep(folder, "none", [0]))
