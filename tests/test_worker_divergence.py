"""A job that diverges names the loss that was bad first and keeps its last good checkpoint."""

from __future__ import annotations

import logging

import pytest
import torch
from job_kit import checkpoint, same_weights
from worker_kit import ADAPTED, FAIR

from da_leukemia.sweep import worker
from da_leukemia.tasks.divergence import DivergedError, FirstBad


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
