"""What a job writes while it trains: one CSV row per epoch, its progress, and the tracker."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

Track = Callable[[Mapping[str, float], int], None]


class JobLog(L.Callback):
    """Appends every epoch's means to ``metrics.csv`` and keeps ``progress.json`` fresh.

    A resumed run drops the rows of epochs that it trains again, so the file reads as if the run
    had never been interrupted.

    Args:
        folder: of the job.
        steps: total steps.
        track: called with an epoch's metrics and the step.
    """

    def __init__(self, folder: Path, steps: int, track: Track | None = None) -> None:
        self.path = folder / "metrics.csv"
        self.progress = folder / "progress.json"
        self.steps = steps
        self.track = track
        self._last = 0.0

    def _rows(self, before: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [r for r in csv.DictReader(file) if int(r["step"]) <= before]

    def say(self, phase: str, step: int) -> None:
        """Write ``progress.json``; a full disk is met where results are written, not here."""
        temporary = self.progress.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({"phase": phase, "step": step, "steps": self.steps}))
            temporary.replace(self.progress)
        except OSError:
            return

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Refresh the progress about once a second."""
        del args
        if time.monotonic() - self._last > 1:
            self._last = time.monotonic()
            self.say("train", trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row."""
        del pl_module
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            # No validation in this epoch: Lightning still carries the scores of the last one.
            metrics = {k: v for k, v in metrics.items() if not k.startswith("val/")}
        metrics["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        step = trainer.global_step
        rows: list[dict[str, Any]] = [*self._rows(step - 1), {"step": step, **metrics}]
        names = list(dict.fromkeys(["step", *(k for row in rows for k in row)]))
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)
        if self.track is not None:
            self.track(metrics, step)
