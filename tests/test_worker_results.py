"""A job from its order to its result: what it leaves, and what doing it again changes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from job_kit import L_, H, checkpoint, metrics, relabel, rows, same_weights, weights
from PIL import Image
from worker_kit import ADAPTED, FAIR

from da_leukemia import cli
from da_leukemia.config import Domain, load_job, save_job
from da_leukemia.errors import UserError
from da_leukemia.evaluation.records import load_records
from da_leukemia.labels import LINEAGE
from da_leukemia.sweep import ledger, worker
from da_leukemia.sweep.facts import read_facts

# --- what a job leaves -------------------------------------------------------------------------


def test_a_job_leaves_a_whole_result(make_job, run):
    job = make_job(FAIR, target=None)
    folder = run(job)
    result, why = ledger.read_result(folder, job.hash, job.tests)
    assert result is not None, why
    assert (result["method"], result["source"], result["target"]) == ("method", H, None)
    assert result["classes"] == ["wbc"]
    assert result["config"]["trainer"]["steps"] == 4
    assert {"torch", "timm", "evaluator", "python"} <= result["versions"].keys()
    assert result["timings"]["train_s"] > 0
    assert set(result["attribute_lookup"]["classes"]) == {"wbc"}
    assert result["attribute_lookup"]["overall"]["nuclear_chromatin"] in ("open", "coarse")
    assert (folder / "split.json").is_file()
    for device in (H, L_):
        scores = result["tests"][device]["metrics"]
        assert 0 <= scores["ap50"] <= 1
        records = load_records(folder / result["tests"][device]["records"])
        assert len(records) == scores["fields"] > 0
        assert all(r.key.startswith(device) for r in records)
        assert sum(len(r.true_labels) for r in records) == scores["boxes"]
        for view in ("true_boxes", "found", "end_to_end"):
            told = scores["attributes"].get(view)
            assert told is None or told["f1"] is None or 0 <= told["lookup_f1"] <= 1
        assert all(len(r.true_attribute_probs) == len(r.true_labels) for r in records)
        assert scores["attributes"]["true_boxes"]["f1"] == scores["attribute_f1_true_boxes"] > 0
        samples = json.loads((folder / "samples" / f"{device}.json").read_text())
        assert samples
        assert {"image", "name", "truths", "detections"} <= samples[0].keys()
    json.dumps(result)  # numbers, text and None alone


def test_no_patient_is_both_trained_on_and_tested_on(make_job, run):
    folder = run(make_job(FAIR))
    parts = json.loads((folder / "split.json").read_text())["parts"]
    trained = {group for group, part in parts.items() if part != "test"}
    tested = {r.group for d in (H, L_) for r in load_records(folder / "records" / f"{d}.npz")}
    assert tested
    assert not tested & trained


def test_every_epoch_has_a_row_of_losses_and_scores(make_job, run):
    found = rows(run(make_job(ADAPTED, trainer={"validate_every": 1})))
    assert [r["step"] for r in found] == ["2", "4"]
    for row in found:
        for name in ("class", "box", "attribute", "adversarial", "teacher_class", "loss"):
            assert np.isfinite(float(row[f"train/{name}"])), name
        assert 0 <= float(row["val/ap50"]) <= 1
        assert float(row["health/pseudo_boxes_per_image"]) > 0
        assert 0 <= float(row["health/discriminator_accuracy"]) <= 1
    assert float(found[0]["learning_rate"]) > float(found[1]["learning_rate"])


def test_a_row_has_scores_only_where_there_was_a_validation(make_job, run):
    found = rows(run(make_job(FAIR, trainer={"epoch_steps": 1, "validate_every": 2})))
    assert [bool(r["val/ap50"]) for r in found] == [False, True, False, True]


def test_the_budget_is_the_number_of_steps_whatever_the_epochs(make_job, run):
    for steps, epoch_steps in ((5, 2), (2, 100)):
        folder = run(make_job(FAIR, trainer={"steps": steps, "epoch_steps": epoch_steps}))
        assert checkpoint(folder)["global_step"] == steps
        assert rows(folder)[-1]["step"] == str(steps)


def test_a_checkpoint_holds_nothing_that_is_executed(make_job, run):
    folder = run(make_job(ADAPTED))
    content = checkpoint(folder)  # weights_only=True refuses anything but data
    assert content["global_step"] == 4
    assert any(k.startswith("ema.model.") for k in content["state_dict"])
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["MODEL_CARD.md", "last.ckpt"]


@pytest.mark.parametrize("source", [H, f"{H}+{L_}"])
def test_the_lookup_is_learned_from_the_training_fields_of_the_source(make_job, run, source):
    """Relearned from the files by hand; the test fields would say otherwise."""
    folder = run(make_job(FAIR, target=None, source=source, data={"label_space": "lineage"}))
    result = worker.read_result(folder)
    parts = json.loads((folder / "split.json").read_text())["parts"]
    job = load_job(folder / "config.yaml")
    indexes = read_facts(job.data).indexes
    fields = [f for name in source.split("+") for f in indexes[name].fields]
    told = result["attribute_lookup"]["classes"]
    for k, name in enumerate(LINEAGE.classes):
        for a, attribute in enumerate(LINEAGE.attributes):
            seen = [
                codes[a]
                for f in fields
                if parts[f.group] == "train"
                for label, codes in zip(f.labels, f.attributes.tolist(), strict=True)
                if label == k and codes[a] >= 0
            ]
            if seen:
                most = max(range(len(attribute.values)), key=seen.count)
                assert told[name][attribute.name] == attribute.values[most]


def test_what_was_found_is_written_with_its_attributes(make_job, run, tmp_path, capsys):
    folder = run(make_job(FAIR))
    command = ["evaluate", str(folder), "--domain", L_, "--min-score", "0"]
    assert cli.main([*command, "--detections", str(tmp_path / "found.json")]) == 0
    (device,) = json.loads((tmp_path / "found.json").read_text())["devices"].items()
    name, content = device
    assert name == L_
    records = {r.key: r for r in load_records(folder / "records" / f"{L_}.npz")}
    assert {f["field"] for f in content["fields"]} == records.keys()
    for listed in content["fields"]:
        found = listed["detections"]
        assert 0 < len(found) <= len(records[listed["field"]].labels)
        assert found[0]["score"] == pytest.approx(records[listed["field"]].scores.max(), abs=1e-4)
        for values in found[0]["attributes"].values():
            assert sum(values.values()) == pytest.approx(1, abs=0.002)
    slides = {r.group.removeprefix("patient:") for r in records.values()}
    assert {s["slide"] for s in content["slides"]} == slides
    assert "attribute_f1_true_boxes" in capsys.readouterr().out
    assert cli.main([*command, "--detections", "found.txt"]) == 2
    assert cli.main([*command[:-1], "3"]) == 2


# --- again -------------------------------------------------------------------------------------


def test_running_again_changes_nothing(make_job, run):
    job = make_job(FAIR)
    folder = run(job)
    kept = ("result.json", "metrics.csv", "checkpoints/last.ckpt", "split.json")
    before = {name: (folder / name).read_bytes() for name in kept}
    run(job)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content, name


def test_a_new_test_device_is_only_tested(make_job, run, monkeypatch):
    first = make_job(FAIR, target=None, tests=[H])
    folder = run(first)
    before, trained = worker.read_result(folder), weights(folder)
    tested = []
    original = worker.predict_domain
    monkeypatch.setattr(
        worker,
        "predict_domain",
        lambda task, fields, device: tested.append(device) or original(task, fields, device),
    )
    second = make_job(FAIR, target=None, tests=[H, L_])
    assert second.hash == first.hash
    run(second)
    after = worker.read_result(folder)
    assert tested == [L_]
    assert after["tests"].keys() == {H, L_}
    assert after["tests"][H] == before["tests"][H]
    assert after["timings"]["train_s"] == before["timings"]["train_s"]
    assert len(rows(folder)) == 2
    now = weights(folder)
    assert all(torch.equal(now[k], v) for k, v in trained.items())


def test_a_result_of_other_data_is_made_again(make_job, run, smears, tmp_path):
    """The same job on labels that were corrected since: old scores must not stay."""
    root = tmp_path / "data"
    shutil.copytree(smears, root)
    folder = run(make_job(FAIR, target=None, data={"root": str(root)}))
    before = worker.read_result(folder)
    relabel(root, L_, drop=True)
    run(make_job(FAIR, target=None, data={"root": str(root)}), name=folder.name)
    after = worker.read_result(folder)
    assert after["tests"][L_]["metrics"]["boxes"] == 0 < before["tests"][L_]["metrics"]["boxes"]
    assert after["tests"][H]["metrics"] == before["tests"][H]["metrics"]


def ward_phone(root, patients):
    """Write a COCO device; ``patients`` gives the patient of each photograph."""
    (root / "images").mkdir(parents=True)
    images, cells = [], []
    for number, patient in enumerate(patients):
        name = f"images/{patient}_{number}.png"
        Image.new("RGB", (64, 64), (220, 200, 210)).save(root / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 64})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 20, 20]}
        cells.append(box)
    categories = [{"id": 1, "name": "wbc"}]
    content = {"images": images, "annotations": cells, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return Domain(root=str(root), patient_pattern=r"(?P<patient>[a-z0-9]+)_\d+\.png")


def with_phone(make_job, phone):
    first = make_job(FAIR, target=None, tests=[H])
    domains = {**first.data.domains, "phone": phone}
    second = make_job(FAIR, target=None, tests=[H, "phone"], data={"domains": domains})
    assert second.hash == first.hash
    return first, second


def test_a_device_with_patients_of_its_own_is_only_tested(make_job, run, tmp_path):
    phone = ward_phone(tmp_path / "phone", ["a", "b", "c", "d", "e", "f"])
    first, second = with_phone(make_job, phone)
    folder = run(first)
    checkpoint, before = (folder / "checkpoints" / "last.ckpt").read_bytes(), metrics(folder)
    run(second)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert metrics(folder)[H] == before[H]
    assert metrics(folder)["phone"]["boxes"] > 0


def test_nobody_is_tested_on_whom_a_device_added_later_moved_into_the_test(make_job, run, tmp_path):
    """It shares patients in a lopsided way, so that the split comes out otherwise."""
    phone = ward_phone(tmp_path / "phone", ["1"] * 6 + ["2"] * 6)
    first, second = with_phone(make_job, phone)
    folder = run(first)
    old = json.loads((folder / "split.json").read_text())["parts"]
    save_job(second, folder / "config.yaml")
    with pytest.raises(
        UserError, match="changed since this job was trained: training data of H_100X_C2"
    ):
        worker.evaluate_job(folder)
    run(second)
    new = json.loads((folder / "split.json").read_text())["parts"]
    assert new != old  # what this test is about
    fresh = run(second, "fresh")
    assert same_weights(folder, fresh)  # trained anew
    tested = {r.group for d in (H, "phone") for r in load_records(folder / f"records/{d}.npz")}
    assert not tested & {group for group, part in new.items() if part != "test"}


def test_a_finished_job_can_be_tested_again(make_job, run, tmp_path):
    folder = run(make_job(FAIR))
    assert worker.evaluate_job(folder) == metrics(folder)
    assert worker.evaluate_job(folder, [L_]).keys() == {L_}
    with pytest.raises(UserError, match=r"unknown device 'phone'"):
        worker.evaluate_job(folder, ["phone"])
    empty = tmp_path / "empty"
    empty.mkdir()
    save_job(make_job(FAIR), empty / "config.yaml")
    with pytest.raises(UserError, match=r"last\.ckpt: no checkpoint"):
        worker.evaluate_job(empty)
