"""What a component does to the finished network counts on its target, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import save_job
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep import worker

H, L_ = "H_100X_C2", "L_100X_C2"


def run(job, folder):
    folder.mkdir()
    save_job(job, folder / "config.yaml")
    worker.run_job(folder)
    scores = {}
    for device in (H, L_):
        records = load_records(folder / "records" / f"{device}.npz")
        scores[device] = np.concatenate([r.scores for r in records])
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return scores, weights


def test_the_network_is_finished_for_the_target_alone(make_job, tmp_path):
    plain, weights = run(make_job(Method(), target=None), tmp_path / "plain")
    job = make_job(Method(components=[{"name": "adabn"}]))
    finished, others = run(job, tmp_path / "adabn")
    assert all(torch.equal(weights[k], others[k]) for k in weights)  # it acts after training
    np.testing.assert_array_equal(finished[H], plain[H])
    assert not np.array_equal(finished[L_], plain[L_])
    again = worker.evaluate_job(tmp_path / "adabn")
    assert again[L_] == worker.read_result(tmp_path / "adabn")["tests"][L_]["metrics"]
