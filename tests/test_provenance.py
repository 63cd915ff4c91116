"""What a finished job leaves besides scores: where it comes from, a card, a slim checkpoint."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch
from job_kit import checkpoint, run_in
from test_matrix_support import SPACE, make_experiment, make_result

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import save_job
from da_leukemia.evaluation import hierarchical_interval
from da_leukemia.evaluation.detection import MatchTable
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep import worker
from da_leukemia.sweep.card import REPLICATES, intervals, model_card
from da_leukemia.sweep.plan import make_plan
from da_leukemia.sweep.provenance import code_version, peak_memory

H, L_ = "H_100X_C2", "L_100X_C2"


@pytest.fixture
def job_folder(make_job, tmp_path):
    """A trained job that was tested on the device it learned from."""
    job = make_job(Method(), target=None, tests=[H])
    return run_in(tmp_path / "job", job)


def test_a_job_leaves_a_slim_checkpoint_that_more_tests_and_cards_come_from(make_job, job_folder):
    content = checkpoint(job_folder)
    assert [o["state"] for o in content["optimizer_states"]] == [{}]
    assert all(o["param_groups"] for o in content["optimizer_states"])
    weights = sum(v.numel() * v.element_size() for v in content["state_dict"].values())
    size = (job_folder / "checkpoints" / "last.ckpt").stat().st_size
    assert size < 1.2 * weights + 200_000

    result = json.loads((job_folder / "result.json").read_text())
    assert result["code"].keys() == {"commit", "dirty"}
    assert result["memory"]["process_mb"] > 50
    assert (job_folder / result["split_file"]).is_file()
    card = (job_folder / "checkpoints" / "MODEL_CARD.md").read_text()
    assert f"| {H} | {result['tests'][H]['metrics']['ap50']:.3f} |" in card
    assert f"| {L_} |" not in card

    save_job(make_job(Method(), target=None, tests=[H, L_]), job_folder / "config.yaml")
    worker.run_job(job_folder)
    after = checkpoint(job_folder)["state_dict"]
    assert all(torch.equal(v, after[k]) for k, v in content["state_dict"].items())
    again = worker.evaluate_job(job_folder)
    metrics = {d: t["metrics"] for d, t in worker.read_result(job_folder)["tests"].items()}
    assert again == metrics
    card = (job_folder / "checkpoints" / "MODEL_CARD.md").read_text()
    assert f"| {L_} | {metrics[L_]['ap50']:.3f} |" in card
    assert f"tested on without having seen an image of it: {L_}" in card


# --- the card --------------------------------------------------------------------------------


@pytest.fixture
def adapted(tmp_path):
    experiment = make_experiment(tmp_path, methods=["fair_source_only", "dann"])
    job = next(j for j in make_plan(experiment) if j.target == "phone" and j.source == "microscope")
    job.data.domains["phone"].licence = "CC BY 4.0"
    return experiment.folder / "jobs" / job.hash, make_result(experiment, job)


def test_a_card_says_what_was_seen_how_good_it_is_and_what_it_is_not_for(adapted):
    folder, result = adapted
    found = intervals(folder, result)
    text = model_card({**result, "code": {"commit": "abc123", "dirty": True}}, found)
    assert "trained with labels on: microscope" in text
    assert "adapted to: phone" in text
    assert "never its labels" in text
    assert "without having seen an image of it: low_cost" in text
    assert all(name in text for name in SPACE.classes)
    for device, test in result["tests"].items():
        ends = found[device]
        said = f"| {device} | {test['metrics']['ap50']:.3f} | {ends.low:.3f} to {ends.high:.3f} |"
        assert said in text
    assert "- phone: CC BY 4.0" in text
    assert "- microscope: not stated; set `data.domains.DEVICE.licence`" in text
    assert "Not a medical device" in text
    worst = min(("low_cost", "phone"), key=lambda d: result["tests"][d]["metrics"]["ap50"])
    assert f"Weakest on {worst}" in text
    assert "code abc123 with changes that are not committed" in text
    assert result["job"] in text


def test_the_intervals_are_those_of_the_bootstrap(adapted):
    folder, result = adapted
    records = load_records(folder / "records" / "phone.npz")
    table = MatchTable.build(records, range(len(SPACE.classes)))
    direct = hierarchical_interval([table], replicates=REPLICATES)["ap50"]
    assert intervals(folder, result)["phone"] == direct
    (folder / "records" / "phone.npz").unlink()
    assert "phone" not in intervals(folder, result)


def test_simulated_data_have_a_licence_and_rare_types_are_named(adapted):
    _, result = adapted
    result["config"]["data"]["simulate"]["patients"] = 4
    result["tests"]["phone"]["metrics"]["per_class"]["monocyte"]["truths"] = 3
    text = model_card(result, {})
    assert "- low_cost: rendered by this package" in text
    assert "- phone: CC BY 4.0" in text
    assert "Fewer than 10 test cells on some device:" in text
    assert "monocyte" in text.partition("Fewer than 10")[2].splitlines()[0]


# --- code and memory -------------------------------------------------------------------------


def git(folder, *words):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert code_version(package) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert code_version.__wrapped__(package) == {"commit": None, "dirty": None}  # not tracked
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version.__wrapped__(package) == {"commit": commit, "dirty": False}
    (tmp_path / "notes.txt").write_text("beside the package")
    assert code_version.__wrapped__(package)["dirty"] is False
    (package / "__init__.py").write_text("changed = 1")
    assert code_version.__wrapped__(package) == {"commit": commit, "dirty": True}


def test_peak_memory_never_falls():
    before = peak_memory()["process_mb"]
    block = np.ones(60_000_000 // 8)
    del block
    assert peak_memory()["process_mb"] >= before > 0
