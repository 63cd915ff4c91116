"""What the tests of executors share: a sweep of one source, a worker of steps, runners, a clock."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from test_sweep_plan import experiment

from da_leukemia.config import Data, Domain, Experiment, Trainer, save_experiment

STEPPED = textwrap.dedent(
    """
    import os, time
    from da_leukemia.config import load_job
    from da_leukemia.sweep.ledger import write_json

    def run_job(folder):
        job = load_job(folder / "config.yaml")
        kept = folder / "checkpoints" / "step.txt"
        kept.parent.mkdir(exist_ok=True)
        first = int(kept.read_text()) if kept.exists() else 0
        with (folder.parent / "journal.txt").open("a") as journal:
            journal.write(f"{folder.name} {first} {os.getpid()} {os.getppid()}\\n")
        print("says it is at", first, flush=True)
        if job.seed == 13:
            raise ValueError("loss is not finite")
        for step in range(first, job.trainer.steps):
            time.sleep(0.1)
            part = kept.with_suffix(".part")
            part.write_text(str(step + 1))
            part.replace(kept)
        tests = {name: {"metrics": {"ap50": job.seed / 10}} for name in job.tests}
        write_json(folder / "result.json", {"job": job.hash, "tests": tests, "seed": job.seed})
    """
)
"""A worker that goes on where it was; `starts` reads its journal."""

RUNNER = textwrap.dedent(
    """
    import sys
    from da_leukemia.config import load_experiment
    from da_leukemia.errors import UserError
    from da_leukemia.sweep import EXECUTOR, conduct

    if __name__ == "__main__":
        conduct.check_data = lambda *a: None
        EXECUTOR.POLL = 0.5
        conduct.report = lambda experiment: None
        try:
            sys.exit(conduct.run_sweep(load_experiment(sys.argv[1]), "stepped:run_job"))
        except UserError as error:
            sys.exit(f"error: {error}")
    """
)


def put_cluster_scripts(folder: Path, executor: str) -> None:
    """Write the worker of steps and a runner in which an executor asks often how jobs stand."""
    (folder / "stepped.py").write_text(STEPPED)
    (folder / "runner.py").write_text(RUNNER.replace("EXECUTOR", executor))


def small_sweep(folder: Path, seeds: list[int], trainer: Trainer, **more: object) -> Experiment:
    """Return a sweep of one method on one of two devices."""
    return experiment(
        folder,
        data=Data(domains={"scope": Domain(), "phone": Domain()}),
        methods=["fair"],
        sources=["scope"],
        seeds=seeds,
        trainer=trainer,
        **more,
    )


def start_runner(made: Experiment, *arguments: str) -> subprocess.Popen[str]:
    """Start the ``runner.py`` beside an experiment's runs in a process of its own."""
    folder = Path(made.runs_dir)
    file = folder / f"{made.name}.yaml"
    save_experiment(made, file)
    return subprocess.Popen(
        [sys.executable, folder / "runner.py", str(file), *arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would theirs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def starts(made: Experiment) -> list[tuple[str, int, int]]:
    """Return job, first step and parent process of each start of `STEPPED`."""
    path = made.folder / "jobs" / "journal.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(x.split()[0], int(x.split()[1]), int(x.split()[3])) for x in lines]


def ended(one: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Wait for a runner; return its exit code and what it said."""
    _, err = one.communicate(timeout=seconds)
    return one.returncode, err


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until something is true, which it must become."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
