"""Runners are killed at random moments; the matrix comes out the same to the last byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from test_matrix_support import make_experiment

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Domain, Experiment, save_experiment
from da_leukemia.sweep import ledger
from da_leukemia.sweep.plan import make_plan, unique

pytestmark = pytest.mark.chaos

KILLS = 30
SEED = int(os.environ.get("CHAOS_SEED", "0"))

# Learns for some steps, keeps its state after every fourth, and gives what only a training gives
# that lost no step and did none twice: a sum that depends on the order of all of them.
WORKER = textwrap.dedent(
    """
    import hashlib, json, os, time
    from da_leukemia.config import load_job
    from da_leukemia.sweep.ledger import write_json
    from test_matrix_support import plain_metrics

    STEPS = 24

    def run_job(folder):
        job = load_job(folder / "config.yaml")
        kept = folder / "checkpoints" / "state.json"
        state = {"step": 0, "sum": job.hash}
        if kept.exists():
            state = json.loads(kept.read_text())
        while state["step"] < STEPS:
            time.sleep(0.01)
            told = f"{state['sum']} {state['step']}".encode()
            state = {"step": state["step"] + 1, "sum": hashlib.sha256(told).hexdigest()}
            if state["step"] % 4 == 0:
                write_json(kept, state)
        value = int(state["sum"][:8], 16) / 2**32
        tests = {d: {"metrics": plain_metrics(value + i)} for i, d in enumerate(job.tests)}
        write_json(folder / "result.json", {
            "version": 1, "job": job.hash, "method": job.method_name, "source": job.source,
            "target": job.target, "seed": job.seed, "label_space": job.data.label_space,
            "classes": [], "tests": tests, "sum": state["sum"]})
    """
)

RUNNER = textwrap.dedent(
    """
    import sys
    from da_leukemia.config import load_experiment
    from da_leukemia.sweep import conduct, local
    from da_leukemia.sweep.attempt import WORKER

    if __name__ == "__main__":
        local.POLL = 0.05
        worker = sys.argv[2]
        if worker != WORKER:
            conduct.check_data = lambda *a: None
        sys.exit(conduct.run_sweep(load_experiment(sys.argv[1]), worker))
    """
)


def runner(made: Experiment, worker: str) -> subprocess.Popen[bytes]:
    folder = Path(made.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_experiment(made, folder / "trial.yaml")
    (folder / "runner.py").write_text(RUNNER)
    (folder / "chaos_worker.py").write_text(WORKER)
    path = f"{folder}:{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, folder / "runner.py", folder / "trial.yaml", worker],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("ab"),
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    mine = children(pid)
    return mine + [d for child in mine for d in descendants(child)]


def torment(made: Experiment, worker: str, kills: int, longest: float) -> int:
    """Kill runners, or a process below one, at random moments; return how often it hit."""
    luck = random.Random(SEED)
    hits = 0
    one, other = runner(made, worker), None
    while hits < kills:
        if one.poll() is not None:  # it was done too soon: open some jobs again
            done = sorted(made.folder.glob("jobs/*/result.json"))
            for path in luck.sample(done, max(1, len(done) // 2)):
                path.unlink()
                for kept in path.parent.glob("checkpoints/*"):
                    kept.unlink()
            one = runner(made, worker)
        if other is None or other.poll() is not None:
            other = runner(made, worker)  # two at a time, so that claims are fought for
        time.sleep(luck.uniform(0.0, longest))
        victim = luck.choice([one, other])
        if victim.poll() is not None:
            continue
        below = descendants(victim.pid)
        kind = luck.random()
        if kind < 0.6 or not below:
            victim.kill()
            victim.wait()
        elif kind < 0.8:
            victim.send_signal(signal.SIGTERM)
        else:
            try:
                os.kill(luck.choice(below), signal.SIGKILL)
            except ProcessLookupError:
                continue
        hits += 1
        if one.poll() is not None:
            one = runner(made, worker)
    for left in (one, other):
        if left is not None and left.poll() is None:
            left.kill()
            left.wait()
    return hits


def ended(made: Experiment, worker: str) -> dict[str, bytes]:
    """Run until all is done, as a user would: by the same command again."""
    for _ in range(5):
        if runner(made, worker).wait(600) == 0:
            break
    else:
        pytest.fail((Path(made.runs_dir) / "stderr.txt").read_text()[-3000:])
    names = ("matrix.csv", "matrix.md", "matrix.tex")
    return {name: (made.folder / "report" / name).read_bytes() for name in names}


def no_process_is_left(made: Experiment) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        jobs = unique(make_plan(made))
        states = {ledger.examine(made.folder, job, h).state for h, job in jobs.items()}
        if "running" not in states:
            return True
        time.sleep(0.1)
    return False


def test_thirty_kills_do_not_change_the_matrix(tmp_path):
    methods = {"fair_source_only": Method(), "dann": Method(components=[{"name": "adversarial"}])}

    def made(where: str) -> Experiment:
        experiment = make_experiment(tmp_path / where, methods=list(methods), seeds=(0, 1, 2))
        experiment.adaptations, experiment.processes = dict(methods), 2
        experiment.trainer.accelerator = "cpu"
        return experiment

    worker = "chaos_worker:run_job"
    calm = ended(made("calm"), worker)
    wild = made("wild")
    assert torment(wild, worker, KILLS, longest=1.5) == KILLS
    assert no_process_is_left(wild)
    assert ended(wild, worker) == calm
    for path in wild.folder.glob("jobs/*/result.json"):
        twin = made("calm").folder / path.relative_to(wild.folder)
        assert path.read_bytes() == twin.read_bytes()


def test_real_trainings_that_are_killed_end_with_the_same_weights(make_job, tmp_path):
    job = make_job(Method(), trainer={"steps": 12})

    def made(where: str) -> Experiment:
        devices = ("H_100X_C2", "L_100X_C2")
        return Experiment(
            name="real",
            runs_dir=str(tmp_path / where),
            data=job.data,
            detector=job.detector,
            trainer=job.trainer,
            methods=["fair_source_only"],
            adaptations={"fair_source_only": Method()},
            sources=[devices[0]],
            tests=list(devices),
            seeds=[0, 1],
            processes=2,
        )

    assert made("x").data.domains["H_100X_C2"] == Domain(format="leukemiaattri")
    worker = "da_leukemia.sweep.worker:run_job"
    calm = ended(made("calm"), worker)
    wild = made("wild")
    torment(wild, worker, kills=6, longest=12.0)
    assert ended(wild, worker) == calm
    import torch

    for path in wild.folder.glob("jobs/*/checkpoints/last.ckpt"):
        twin = made("calm").folder / path.relative_to(wild.folder)
        one, other = (torch.load(p, weights_only=True)["state_dict"] for p in (path, twin))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
