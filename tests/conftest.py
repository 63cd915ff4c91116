"""What several rooms' tests share: one thread, and smears rendered once per session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from da_leukemia.config import Data, Detector, Domain, Job, Trainer
from da_leukemia.simulate import simulate

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

_CACHE = tempfile.TemporaryDirectory(prefix="da_leukemia_tests_")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # tests leave nothing in the user's own cache

DEVICES = ("H_100X_C2", "L_100X_C2")


@pytest.fixture(scope="session")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients, two fields each, through a high-cost and a low-cost microscope."""
    out = tmp_path_factory.mktemp("smears") / "data"
    return simulate(out, domains=DEVICES, patients=6, fields_per_patient=2, seed=0)


@pytest.fixture(scope="session")
def make_job(smears: Path) -> Callable[..., Job]:
    """Return a maker of jobs that take about a second; arguments replace settings.

    ``method`` is required; ``data``, ``detector`` and ``trainer`` are dictionaries of settings.
    """
    from da_leukemia.config import Augmentation

    def make(method, *, target=DEVICES[1], seed=0, data=None, detector=None, trainer=None, **rest):
        tiny_data = {
            "root": str(smears),
            "image_size": 96,
            "domains": {name: Domain(format="leukemiaattri") for name in DEVICES},
        }
        tiny_network = {"backbone": "mobilenetv3_small_050", "channels": 16, "depth": 1}
        budget = {"steps": 4, "epoch_steps": 2, "batch_size": 2, "validate_every": 0}
        budget |= {"accelerator": "cpu"}
        settings = {
            "method_name": "method",
            "source": DEVICES[0],
            "tests": list(DEVICES),
            "augmentation": Augmentation(),
        }
        return Job(
            method=method,
            target=target,
            seed=seed,
            data=Data(**(tiny_data | (data or {}))),
            detector=Detector(**(tiny_network | (detector or {}))),
            trainer=Trainer(**(budget | (trainer or {}))),
            **(settings | rest),
        )

    return make


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Return what runs a job in a folder of its own (or the one named) and returns the folder."""
    from job_kit import run_in

    return lambda job, name=None: run_in(tmp_path / (name or job.hash), job)
