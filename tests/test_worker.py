"""A job from its order to its result: complete, repeatable, resumable to the last bit."""

from __future__ import annotations

import json
import logging
import shutil

import lightning as L
import numpy as np
import pytest
import torch
from job_kit import (
    L_,
    H,
    Stop,
    checkpoint,
    detector_part,
    metrics,
    relabel,
    rows,
    same_weights,
    weights,
)
from PIL import Image

from da_leukemia import cli
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Domain, load_job, save_job
from da_leukemia.errors import ConfigError, DataError, UserError
from da_leukemia.evaluation.records import load_records
from da_leukemia.labels import LINEAGE
from da_leukemia.sweep import ledger, worker
from da_leukemia.sweep.facts import read_facts
from da_leukemia.tasks.divergence import DivergedError, FirstBad

FAIR = Method()
PLAIN = Method(augmentation="weak", ema=False)
ADAPTED = Method(
    components=[
        {"name": "adversarial"},
        {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011},
    ]
)


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


# --- interrupted -------------------------------------------------------------------------------


def interrupted(job, folder, monkeypatch, after):
    """Run a job and stop it dead in the step that follows ``after`` steps."""
    folder.mkdir(exist_ok=True)
    save_job(job, folder / "config.yaml")
    original = worker.DetectionTask.training_step

    def step(self, *arguments):
        if self.global_step == after:
            raise Stop
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(worker.DetectionTask, "training_step", step)
        with pytest.raises(Stop):
            worker.run_job(folder)


@pytest.mark.parametrize("method", [PLAIN, FAIR, ADAPTED], ids=["plain", "fair", "adapted"])
def test_a_run_that_was_killed_twice_ends_as_if_it_had_not(
    make_job, run, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(worker, "slim", lambda *_: None)  # the optimiser is compared too
    job = make_job(method, trainer={"steps": 6, "validate_every": 2})
    whole = run(job, "whole")
    parts = tmp_path / "parts"
    # In the second epoch, so its first step is trained twice; then right at an epoch's start.
    interrupted(job, parts, monkeypatch, after=3)
    assert checkpoint(parts)["global_step"] == 2
    interrupted(job, parts, monkeypatch, after=4)
    assert checkpoint(parts)["global_step"] == 4
    run(job, "parts")
    assert same_weights(whole, parts)
    assert metrics(whole) == metrics(parts)
    assert rows(whole) == rows(parts)
    one, other = checkpoint(whole)["optimizer_states"][0], checkpoint(parts)["optimizer_states"][0]
    for key, state in one["state"].items():
        assert all(torch.equal(v, other["state"][key][k]) for k, v in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", [FAIR, ADAPTED], ids=["fair", "adapted"])
def test_it_does_not_matter_in_which_step_a_run_was_killed(
    make_job, run, tmp_path, monkeypatch, method
):
    """At the start of each epoch and inside it; with a validation that an epoch has or has not."""
    job = make_job(method, trainer={"steps": 8, "epoch_steps": 2, "validate_every": 2})
    whole = run(job, "whole")
    for after in range(1, 8):
        interrupted(job, tmp_path / f"killed{after}", monkeypatch, after=after)
        parts = run(job, f"killed{after}")
        assert same_weights(whole, parts), after
        assert metrics(whole) == metrics(parts), after
        assert rows(whole) == rows(parts), after
        assert (whole / "split.json").read_bytes() == (parts / "split.json").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_over(make_job, run, tmp_path, monkeypatch):
    job = make_job(FAIR)
    whole, parts = run(job, "whole"), tmp_path / "parts"
    interrupted(job, parts, monkeypatch, after=1)
    run(job, "parts")
    assert same_weights(whole, parts)


def test_a_checkpoint_that_was_cut_off_is_trained_again(make_job, run):
    """``kill -9`` while it is copied to another file system, or a disk that was full."""
    job = make_job(FAIR)
    whole = run(job, "whole")
    folder = run(job, "cut")
    (folder / "result.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    run(job, "cut")
    assert same_weights(whole, folder)
    assert metrics(whole) == metrics(folder)


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


# --- what must make no difference --------------------------------------------------------------


OFF = [
    [{"name": "adversarial", "weight": 0.0}],
    [{"name": "fourier", "probability": 0.0}, {"name": "histogram", "probability": 0.0}],
    [{"name": "mean_teacher", "weight": 0.0}, {"name": "adversarial", "weight": 0.0}],
]


def test_adaptation_of_no_weight_is_the_fair_source_only_to_the_last_bit(make_job, run):
    budget = {"steps": 6}
    twin = run(make_job(FAIR, target=None, trainer=budget), "twin")
    for number, components in enumerate(OFF):
        job = make_job(Method(components=components), target=L_, trainer=budget)
        adapted = run(job, f"off{number}")
        assert same_weights(twin, adapted)
        assert metrics(twin) == metrics(adapted)


def test_training_is_the_same_when_the_targets_labels_are_shuffled_or_deleted(
    make_job, run, smears, tmp_path
):
    roots = {"as_it_is": smears}
    for name in ("shuffled", "deleted"):
        roots[name] = tmp_path / name
        shutil.copytree(smears, roots[name])
        relabel(roots[name], L_, drop=name == "deleted")
    method = Method(components=[*ADAPTED.components, {"name": "fourier"}, {"name": "histogram"}])
    folders = {
        name: run(make_job(method, data={"root": str(root)}), name) for name, root in roots.items()
    }
    for name in ("shuffled", "deleted"):
        assert same_weights(folders["as_it_is"], folders[name])
        assert rows(folders["as_it_is"]) == rows(folders[name])
    scores = {n: metrics(f)[L_] for n, f in folders.items()}
    assert scores["deleted"]["boxes"] == 0 < scores["as_it_is"]["boxes"]
    # The test can see a leak: the source's labels do matter.
    own = tmp_path / "own"
    shutil.copytree(smears, own)
    relabel(own, H)
    assert not same_weights(
        folders["as_it_is"], run(make_job(method, data={"root": str(own)}), "own")
    )


def test_a_run_is_repeatable_and_its_seed_matters(make_job, run):
    one = run(make_job(ADAPTED), "one")
    assert same_weights(one, run(make_job(ADAPTED), "two"))
    assert not same_weights(one, run(make_job(ADAPTED, seed=1), "three"))


def test_every_adaptation_makes_a_difference(make_job, run):
    short = {"tests": [H], "trainer": {"steps": 2}}
    twin = detector_part(run(make_job(FAIR, **short), "twin"))
    for number, component in enumerate(
        (
            *ADAPTED.components,
            {"name": "fourier", "probability": 1.0},
            {"name": "histogram", "probability": 1.0},
        )
    ):
        folder = run(make_job(Method(components=[component]), **short), f"on{number}")
        state = detector_part(folder)
        assert any(not torch.equal(state[k], v) for k, v in twin.items()), component


def seen_by_the_student(job, run, name, monkeypatch):
    """Run a job and return the source's indices and the student's images of every step."""
    indices, images = [], []
    original = worker.DetectionTask.training_step

    def step(self, batch, batch_idx):
        indices.append(batch["source"].index.tolist())
        hook = self.detector.register_forward_pre_hook(lambda _, x: images.append(x[0].clone()))
        loss = original(self, batch, batch_idx)
        hook.remove()
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(worker.DetectionTask, "training_step", step)
        return run(job, name), indices, images


def test_the_source_is_seen_alike_with_and_without_a_target(make_job, run, monkeypatch):
    twin, order, alone = seen_by_the_student(make_job(FAIR), run, "twin", monkeypatch)
    _, same, beside = seen_by_the_student(make_job(ADAPTED), run, "adapted", monkeypatch)
    assert order == same
    for one, both in zip(alone, beside, strict=True):
        assert len(both) == 2 * len(one)
        assert torch.equal(both[: len(one)], one)
    assert int(weights(twin)["ema.updates"]) == 4  # the average follows every step


def test_epochs_go_on_in_the_stream_of_fields_also_after_an_interruption(
    make_job, run, tmp_path, monkeypatch
):
    job = make_job(FAIR, trainer={"steps": 8})
    folder, order, _ = seen_by_the_student(job, run, "whole", monkeypatch)
    fields = worker.read_result(folder)["data"]["train_fields"]
    stream = [i for batch in order for i in batch]
    assert sorted(stream[:fields]) == list(range(fields))  # nobody twice in the first pass
    interrupted(job, tmp_path / "parts", monkeypatch, after=4)
    _, rest, _ = seen_by_the_student(job, run, "parts", monkeypatch)
    assert rest == order[4:]


def test_source_target_and_components_draw_different_numbers():
    from da_leukemia.tasks import detection

    assert len({detection._SOURCE, detection._TARGET, detection._COMPONENTS}) == 3


# --- start weights, precision, divergence ------------------------------------------------------


def test_a_job_can_start_from_the_tested_weights_of_another(make_job, run):
    first = run(make_job(FAIR), "first")
    given = weights(first)
    job = make_job(FAIR, detector={"init_from": str(first / "checkpoints" / "last.ckpt")})
    task = worker.build_task(job)
    for name, value in task.detector.state_dict().items():
        assert torch.equal(value, given[f"ema.model.{name}"]), name
    assert torch.equal(task.ema.network.head.score.weight, task.detector.head.score.weight)
    run(job, "second")


def test_start_weights_of_another_label_space_fit_but_for_the_last_layer(make_job, run):
    path = run(make_job(FAIR), "first") / "checkpoints" / "last.ckpt"
    job = make_job(FAIR, detector={"init_from": str(path)}, data={"label_space": "lineage"})
    task = worker.build_task(job)
    given = weights(path.parent.parent)
    own = task.detector.state_dict()
    assert own["head.score.weight"].shape[0] == 4
    key = "backbone.body.conv_stem.weight"
    assert torch.equal(own[key], given[f"ema.model.{key}"])


def test_start_weights_that_cannot_be_used_are_refused(make_job, tmp_path):
    cases = {"none.ckpt": "no such file", "text.ckpt": "no checkpoint of ours"}
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    cases["other.pt"] = "no checkpoint of ours"
    torch.save({"state_dict": {"model.fc": torch.zeros(3)}}, tmp_path / "foreign.ckpt")
    cases["foreign.ckpt"] = "none of its weights fit"
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=rf"detector\.init_from.*{name}: {message}"):
            worker.build_task(make_job(FAIR, detector={"init_from": str(tmp_path / name)}))


def test_bf16_trains(make_job, run):
    job = make_job(ADAPTED, trainer={"precision": "bf16-mixed", "steps": 2})
    folder = run(job)
    state = weights(folder)
    assert all(v.dtype != torch.bfloat16 and v.isfinite().all() for v in state.values())
    assert job.hash == make_job(ADAPTED, trainer={"steps": 2}).hash  # where, not what


def test_a_diverging_loss_is_named_and_the_last_checkpoint_kept(
    make_job, run, tmp_path, monkeypatch, caplog
):
    original = worker.DetectionTask._adaptation_losses

    def poisoned(self, *arguments):
        losses = original(self, *arguments)
        return losses | {
            "adversarial": losses["adversarial"] * (torch.nan if self.global_step == 3 else 1)
        }

    job = make_job(ADAPTED)
    named = r"step 3: the loss of adversarial is not finite\. The checkpoint of step 2 is kept"
    with monkeypatch.context() as patched:
        patched.setattr(worker.DetectionTask, "_adaptation_losses", poisoned)
        with pytest.raises(DivergedError, match=named):
            run(job, "bad")
    folder = tmp_path / "bad"
    assert checkpoint(folder)["global_step"] == 2
    assert not (folder / "result.json").exists()
    with caplog.at_level(logging.WARNING):
        worker.evaluate_job(folder)
    assert "its training has not ended: step 2 of" in caplog.text
    run(job, "bad")  # the checkpoint is good to go on from
    assert same_weights(folder, run(job, "good"))


def test_the_loss_that_was_bad_first_is_named_however_late_it_is_asked():
    watch = FirstBad()
    one, bad = torch.tensor(1.0), torch.tensor(torch.inf)
    watch.note({"class": one, "mmd": one})
    assert watch.complaint() is None
    watch.note({"class": one, "mmd": bad})
    watch.note({"class": bad, "mmd": bad})
    watch.note({"class": one, "mmd": one})
    assert watch.complaint() == "the loss of mmd is not finite"


def test_a_gradient_that_overflows_stops_before_it_reaches_the_weights(
    make_job, run, tmp_path, monkeypatch
):
    original = worker.DetectionTask._adaptation_losses

    def steep(self, *arguments):
        losses = original(self, *arguments)
        if self.global_step == 3:  # a root at zero is finite, its slope is not
            losses["adversarial"] = losses["adversarial"] + (losses["adversarial"] * 0).sqrt()
        return losses

    monkeypatch.setattr(worker.DetectionTask, "_adaptation_losses", steep)
    with pytest.raises(DivergedError, match=r"step 3: the gradient is not finite; .*adversarial 0"):
        run(make_job(ADAPTED), "bad")
    assert checkpoint(tmp_path / "bad")["global_step"] == 2


def test_the_end_of_an_epoch_names_the_loss_where_no_step_was_asked(
    make_job, run, tmp_path, monkeypatch
):
    """As on a GPU, where an epoch may end before the losses are looked at."""
    original = worker.DetectionTask._adaptation_losses

    def poisoned(self, *arguments):
        losses = original(self, *arguments)
        return losses | {
            "adversarial": losses["adversarial"] * (torch.nan if self.global_step == 2 else 1)
        }

    monkeypatch.setattr(worker.DetectionTask, "_adaptation_losses", poisoned)
    monkeypatch.setattr(worker.DetectionTask, "_asks", False)
    with pytest.raises(DivergedError, match=r"step 4: the loss of adversarial is not finite\."):
        run(make_job(ADAPTED), "bad")
    assert checkpoint(tmp_path / "bad")["global_step"] == 2


def test_weights_that_are_no_numbers_are_never_kept(make_job, run, tmp_path, monkeypatch):
    """A gradient can overflow where the loss is still finite, in an epoch's last step."""
    original = worker.DetectionTask.on_train_batch_end

    def poisoned(self, *arguments):
        if self.global_step == 4:
            with torch.no_grad():
                self.detector.head.score.weight.fill_(torch.nan)
        original(self, *arguments)

    monkeypatch.setattr(worker.DetectionTask, "on_train_batch_end", poisoned)
    with pytest.raises(DivergedError, match=r"step 4.*weights"):
        run(make_job(FAIR, trainer={"steps": 6}), "bad")
    assert checkpoint(tmp_path / "bad")["global_step"] == 2


def test_a_job_without_the_target_in_its_data_is_refused_before_training(make_job, run):
    with pytest.raises(DataError, match=r"no such folder"):
        run(make_job(FAIR, data={"root": "/nonexistent"}), "nowhere")


def test_jobs_with_a_gpu_setting_run_where_there_is_none(make_job, run):
    job = make_job(FAIR, trainer={"accelerator": "auto", "precision": "auto", "steps": 2})
    assert worker.read_result(run(job))["device"]


def test_the_modules_work_with_a_plain_trainer(make_job, tmp_path):
    """What the guide promises to people who bring their own loop."""
    from da_leukemia.data.datamodules import AdaptationDataModule
    from da_leukemia.data.experiment import read_experiment_data
    from da_leukemia.labels import WBC

    job = make_job(ADAPTED)
    indexes, split = read_experiment_data(job.data)
    data = AdaptationDataModule(
        indexes[H], target=indexes[L_], split=split, space=WBC, how=96, trainer=job.trainer
    )
    trainer = L.Trainer(
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(worker.build_task(job), datamodule=data)
    assert trainer.global_step == 2
    assert np.isfinite(float(trainer.callback_metrics["train/loss"]))
