"""What must make no difference to the last bit: a kill, a second run, labels of the target."""

from __future__ import annotations

import shutil

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
from worker_kit import ADAPTED, FAIR

from da_leukemia.adaptation.settings import Method
from da_leukemia.config import save_job
from da_leukemia.sweep import worker

PLAIN = Method(augmentation="weak", ema=False)


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
