"""What a component does to the finished network counts on its target, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch
from job_kit import L_, H, run_in, weights

from da_leukemia.adaptation.settings import Method
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep import worker


def run(job, folder):
    run_in(folder, job)
    scores = {}
    for device in (H, L_):
        records = load_records(folder / "records" / f"{device}.npz")
        scores[device] = np.concatenate([r.scores for r in records])
    return scores, weights(folder)


def test_the_network_is_finished_for_the_target_alone(make_job, tmp_path):
    plain, weights = run(make_job(Method(), target=None), tmp_path / "plain")
    job = make_job(Method(components=[{"name": "adabn"}]))
    finished, others = run(job, tmp_path / "adabn")
    assert all(torch.equal(weights[k], others[k]) for k in weights)  # it acts after training
    np.testing.assert_array_equal(finished[H], plain[H])
    assert not np.array_equal(finished[L_], plain[L_])
    again = worker.evaluate_job(tmp_path / "adabn")
    assert again[L_] == worker.read_result(tmp_path / "adabn")["tests"][L_]["metrics"]
