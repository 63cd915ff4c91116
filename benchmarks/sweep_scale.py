"""How long a sweep of 20,000 jobs takes to plan, check, show and report, and a runner per job.

    python -m benchmarks.sweep_scale [--jobs 20000] [--overhead 40]

The results are synthetic, without records, so the report draws no intervals. Writing them is not
counted. The overhead of the runner is measured with a worker that does nothing but write a result:
its whole life, from the runner's decision to the next one, in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import (
    Data,
    Domain,
    Experiment,
    Job,
    complete,
    load_experiment,
    load_job,
    save_experiment,
)
from da_leukemia.evaluation import FieldRecord, evaluate
from da_leukemia.labels import LABEL_SPACES
from da_leukemia.sweep import conduct, ledger, outdated, settled
from da_leukemia.sweep.executors import Local
from da_leukemia.sweep.plan import make_plan, unique
from da_leukemia.sweep.status import plan_text, status_text

DEVICES = 12
SEEDS = 5
SPACE = LABEL_SPACES["leukemiaattri"]


def experiment(folder: Path, jobs: int) -> Experiment:
    """Twelve devices, five seeds, and as many methods as give that number of jobs."""
    pairs = DEVICES * (DEVICES - 1) * SEEDS
    devices = {f"device_{i}": Domain() for i in range(DEVICES)}
    methods = {"fair_source_only": Method()}
    for i in range(max(1, round((jobs - DEVICES * SEEDS) / pairs))):
        methods[f"dann_{i}"] = Method(
            components=[{"name": "adversarial", "weight": 0.01 * (i + 1)}]
        )
    made = Experiment(
        name="scale",
        runs_dir=str(folder),
        data=Data(label_space=SPACE.name, domains=devices),
        methods=list(methods),
        adaptations=methods,
        seeds=list(range(SEEDS)),
    )
    complete(made)
    return made


def metrics() -> dict[str, Any]:
    """What `evaluation.evaluate` gives of one device: all scores and tables of a real result."""
    rng = np.random.default_rng(0)
    sizes, fields = SPACE.attribute_sizes, []
    for i in range(20):
        n, kinds = int(rng.integers(2, 6)), len(SPACE.classes)
        corner = rng.uniform(0, 400, (n, 2))
        truth = np.hstack([corner, corner + 60]).astype(np.float32)
        labels = rng.integers(0, kinds, n)
        probabilities = rng.random((2 * n, sum(sizes))).astype(np.float32)
        fields.append(
            FieldRecord(
                key=f"field{i}",
                group=f"patient{i // 4}",
                true_boxes=truth,
                true_labels=labels,
                true_attributes=np.stack([rng.integers(0, s, n) for s in sizes], axis=1),
                boxes=np.concatenate([truth + 2, truth + 90]).astype(np.float32),
                scores=rng.uniform(0.1, 1, 2 * n).astype(np.float32),
                labels=np.concatenate([labels, rng.integers(0, kinds, n)]),
                attribute_probs=probabilities,
                true_attribute_probs=probabilities[:n],
            )
        )
    return evaluate(fields, SPACE, range(len(SPACE.classes)))


def write_results(made: Experiment) -> int:
    """Write a result for every job; returns bytes of one."""
    size, base = 0, metrics()

    @functools.cache
    def test(score: float) -> str:
        return json.dumps({**base, "ap50": score, "ap50_95": score / 2}, indent=1)

    for job_hash, job in unique(make_plan(made)).items():
        folder = ledger.job_folder(made.folder, job_hash)
        folder.mkdir(parents=True)
        content = {
            "version": ledger.RESULT_VERSION,
            "job": job_hash,
            "method": job.method_name,
            "source": job.source,
            "target": job.target,
            "seed": job.seed,
            "label_space": SPACE.name,
            "classes": list(SPACE.classes),
            "epochs": [],
            "config": asdict(job),
            "versions": {"da_leukemia": "0.1.0", "torch": "2.15.0", "python": "3.11"},
            "data": {"fingerprint": "0123456789abcdef"},
            "split": "0123456789abcdef",
            "devices": {},
            "timings": {"train_s": 12.5, "test_s": 1.5, "total_s": 14.0},
            "device": "cpu",
        }
        tests = ",\n".join(
            f'"{name}": {{"records": "records/{name}.npz", "fingerprint": "0123456789abcdef", '
            f'"metrics": {test(0.5 + 0.01 * job.seed + 0.02 * (i % 5))}}}'
            for i, name in enumerate(job.tests)
        )
        text = f'{json.dumps(content, indent=1)[:-2]},\n"tests": {{{tests}}}}}\n'
        (folder / ledger.RESULT).write_text(text)
        size = len(text)
    return size


@contextlib.contextmanager
def timed(what: str, times: dict[str, float]) -> Iterator[None]:
    begun, worked = time.perf_counter(), time.process_time()
    yield
    took, times[what] = time.perf_counter() - begun, time.process_time() - worked
    print(f"{what:10} {took:7.2f} s {times[what]:7.2f} s {memory():6.0f} MB", flush=True)


def memory() -> float:
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def facts() -> Any:
    """Data that did not change."""
    return SimpleNamespace(
        trained_on=lambda job: {"fingerprint": "0123456789abcdef"},
        tested_on=lambda job, device: "0123456789abcdef",
    )


def scale(folder: Path, jobs: int) -> None:
    made = experiment(folder, jobs)
    size = write_results(made)
    made.folder.mkdir(exist_ok=True)
    file = folder / "scale.yaml"
    save_experiment(made, file)
    times: dict[str, float] = {}
    print("             by the clock  processor  memory")
    with timed("load", times):
        made = load_experiment(file)
    with timed("plan", times):
        entries = [(job, job.hash) for job in make_plan(made)]
    ledger.write_plan(made, entries)
    with timed("check", times):
        settled.check(made, entries)
        outdated.find(made.folder, unique(job for job, _ in entries), facts())
    del entries
    with timed("show", times):
        plan_text(made)
        status_text(made, "again")
    with timed("report", times), contextlib.redirect_stdout(io.StringIO()):
        conduct.report(made)
    total = sum(times.values())
    print(f"{len(made.methods)} methods, {jobs} jobs, results of {size / 1000:.0f} kB each")
    print(f"total              {total:9.2f} s {memory():6.0f} MB")
    page = made.folder / "report" / "index.html"
    print(f"the page has {page.stat().st_size / 1e6:.1f} MB")


# --- the runner's overhead -------------------------------------------------------------------


def do_nothing(folder: Path) -> None:
    """Write a result: the worker of the overhead's measurement."""
    job: Job = load_job(folder / "config.yaml")
    tests = {name: {"metrics": {"ap50": 0.5}} for name in job.tests}
    ledger.write_json(folder / ledger.RESULT, {"job": job.hash, "tests": tests})


def overhead(folder: Path, jobs: int) -> None:
    made = experiment(folder, jobs)
    made.name = "overhead"
    some = dict(list(unique(make_plan(made)).items())[:jobs])
    worker = "benchmarks.sweep_scale:do_nothing"
    made.processes = 1
    runner = Local(made)
    runner.run({}, made.folder, worker)  # starts the fork server
    with contextlib.redirect_stderr(io.StringIO()):
        begun = time.perf_counter()
        runner.run(some, made.folder, worker)
        took = time.perf_counter() - begun
    print(f"runner     {took / len(some):6.3f} s a job ({len(some)} jobs, one after the other)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--overhead", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep_scale_") as folder:
        overhead(Path(folder), arguments.overhead)
        scale(Path(folder), arguments.jobs)


if __name__ == "__main__":
    main()
