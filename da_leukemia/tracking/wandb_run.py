"""Weights & Biases as a witness: it is told what happened and never stops or long delays a run.

A run goes online only if there are credentials, nobody asked for offline, and the server answers;
otherwise it is written into the sweep's folder, from where ``wandb sync`` can send it later. Every
error of wandb is reported once and ends the tracking, not the training.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment, Job
from da_leukemia.evaluation import DETAILS
from da_leukemia.sweep.plan import label
from da_leukemia.tracking.connection import (
    has_credentials,
    is_reachable,
    server_address,
    warn_once,
)

PROJECT = "da-leukemia"
INIT_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 10


class TrackedRun:
    """A run that never raises. After the first error it stays silent.

    Attributes:
        offline: whether it is written to the sweep's folder only.
        broken: whether an error ended it.
    """

    def __init__(self, run: Any, offline: bool) -> None:
        self._run = run
        self.offline = offline
        self.broken = False

    @property
    def active(self) -> bool:
        """Whether what is logged still goes anywhere."""
        return self._run is not None

    def _try(self, act: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            with _quiet():
                act(self._run)
        except Exception as error:
            self._run, self.broken = None, True
            warn_once(f"tracking was switched off: {type(error).__name__}: {error}")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at a training step; those that are not finite are left out.

        Args:
            metrics: name -> value, for example ``train/loss``.
            step: training step; wandb drops a step below the last one.
        """
        known = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
        self._try(lambda run: run.log(known, step=step))

    def log_epochs(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Log what was found out about each kept epoch after training, over the training step.

        Args:
            records: see `sweep.epochs.record_epochs`.
        """

        def act(run: Any) -> None:
            run.define_metric("epochs/step")
            run.define_metric("epochs/*", step_metric="epochs/step")
            for record in records:
                run.log({f"epochs/{k}": v for k, v in _flatten(record)})

        if records:
            self._try(act)

    def log_samples(self, files: Iterable[Path], single_cells: bool = False) -> None:
        """Log the sample fields of a job, drawn with their boxes, types and attributes.

        Args:
            files: ``samples/DOMAIN.json`` of the job, or pictures that are logged as they are.
            single_cells: the samples are single cells, logged with the answer and the truth.
        """
        files = list(files)

        def act(run: Any) -> None:
            media = {
                f"samples/{f.stem}": images for f in files if (images := _images(f, single_cells))
            }
            if media:
                run.log(media)

        self._try(act)

    def log_checkpoint(self, path: Path, name: str) -> None:
        """Log a checkpoint as an artifact of type ``model``; nothing where there is no such file.

        Args:
            path: the file.
            name: of the artifact.
        """

        def act(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(_plain(name), type="model")
            artifact.add_file(str(path))
            run.log_artifact(artifact)

        if path.is_file():
            self._try(act)

    def finish(self, summary: Mapping[str, Any] | None = None, failed: bool = False) -> None:
        """Write the summary and end the run.

        Args:
            summary: nested scores; numbers that are not finite are left out.
            failed: mark the run as failed.
        """
        flat = dict(_flatten(summary or {}))

        def act(run: Any) -> None:
            run.summary.update(flat)
            run.finish(exit_code=1 if failed else 0)

        self._try(act)
        self._run = None


def start_job(job: Job, folder: Path) -> TrackedRun | None:
    """Start, or resume, the run of a job.

    Args:
        job: its hash is the run's id, its sweep the group.
        folder: the job's folder ``runs/NAME/jobs/HASH``; the run is written to ``runs/NAME/wandb``.

    Returns:
        None if wandb is disabled or cannot be used at all.
    """
    return _start(
        folder.resolve().parent.parent,
        id=job.hash,
        name=label(job),
        group=job.sweep or None,
        job_type="adapted" if job.target else "source-only",
        tags=[job.method_name],
        config={**dataclasses.asdict(job), "job": job.hash},
    )


def finish_job(tracked: TrackedRun, result: Mapping[str, Any], folder: Path) -> None:
    """Log what is known at the end of a job, and end its run.

    Args:
        tracked: the job's run.
        result: as in ``result.json``; its ``config.tracking_checkpoints`` asks for the weights.
        folder: the job's.
    """
    tracked.log_epochs(result.get("epochs", []))
    tracked.log_samples(
        sorted((folder / "samples").glob("*.json")),
        result["config"]["detector"]["kind"] == "classifier",
    )
    if result["config"].get("tracking_checkpoints"):
        name = f"{result['method']}-{result['source']}-{result['target'] or 'none'}"
        tracked.log_checkpoint(
            folder / "checkpoints" / "last.ckpt", f"{name}-s{result['seed']}-{result['job']}"
        )
    tracked.finish(
        {
            f"{device}/{key}": value
            for device, test in result["tests"].items()
            for key, value in test["metrics"].items()
            if key not in DETAILS
        }
    )


def log_summary(experiment: Experiment, report_folder: Path) -> TrackedRun | None:
    """Log the matrix as table and picture and the report as artifact, in a run of its own.

    Prints the line that would send offline runs to a server.

    Args:
        experiment: the sweep; its run is ``NAME-summary``.
        report_folder: where `write_report` wrote.

    Returns:
        None if wandb is disabled or cannot be used at all.
    """
    sweep = experiment.folder.resolve()
    tracked = _start(
        sweep,
        id=f"{_plain(experiment.name)}-summary",
        name=f"{experiment.name} summary",
        group=experiment.name,
        job_type="summary",
        config=dataclasses.asdict(experiment),
    )
    if tracked is None:
        return None

    def act(run: Any) -> None:
        import wandb

        content: dict[str, Any] = {}
        table = report_folder / "matrix.csv"
        if table.is_file():
            content["matrix"] = _table(table)
        picture = report_folder / "matrix.png"
        if picture.is_file():
            content["matrix_picture"] = wandb.Image(str(picture))
        if content:
            run.log(content)
        page = report_folder / "index.html"
        if page.is_file():
            artifact = wandb.Artifact(f"{_plain(experiment.name)}-report", type="report")
            artifact.add_file(str(page))
            run.log_artifact(artifact)

    tracked._try(act)
    tracked.finish()
    if line := sync_line(experiment.folder):
        print(f"Weights & Biases was written offline. To send it: {line}")
    return tracked


def sync_line(sweep: Path) -> str | None:
    """Return the command that sends a sweep's offline runs, None where there are none."""
    runs = sweep / "wandb" / "wandb"
    if not any(runs.glob("offline-run-*")):
        return None
    return f"wandb sync {runs}/offline-run-*"


# --- starting --------------------------------------------------------------------------------


def _start(sweep: Path, **about: Any) -> TrackedRun | None:
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return None
    try:
        folder = sweep / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        _keep_inside(folder)
        import wandb  # noqa: F401  (an installation without it is an error to report here)
    except Exception as error:
        warn_once(f"no tracking: {type(error).__name__}: {error}")
        return None
    online = (
        mode not in ("offline", "dryrun") and has_credentials() and is_reachable(server_address())
    )
    for attempt in ["online", "offline"] if online else ["offline"]:
        try:
            with _quiet():
                return TrackedRun(_init(folder, attempt, about), attempt == "offline")
        except Exception as error:
            warn_once(f"{attempt} tracking failed: {type(error).__name__}: {error}")
            _forget_attempts()
    return None


def _forget_attempts() -> None:
    """End wandb's service process, which would still hold the id of a run that did not start."""
    with contextlib.suppress(Exception), _quiet():
        import wandb

        wandb.teardown()


def _init(folder: Path, mode: str, about: Mapping[str, Any]) -> Any:
    import wandb

    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
    }
    known = getattr(wandb.Settings, "model_fields", wanted)
    settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in known})
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
        resume="allow",
        settings=settings,
        **about,
    )


def _keep_inside(folder: Path) -> None:
    """Keep tables, artifacts and caches beside the runs, for wandb puts them into the home folder.

    They cannot be given to `wandb.init`, so they are set for the process.
    """
    for name in ("DATA", "CACHE", "ARTIFACT"):
        place = folder / name.lower()
        place.mkdir(exist_ok=True)
        os.environ[f"WANDB_{name}_DIR"] = str(place)
    os.environ["WANDB_SILENT"] = "true"
    # Its own error reports go to the same server, and wait for it at the end of the process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


# --- content ---------------------------------------------------------------------------------


def _images(path: Path, single_cells: bool) -> list[Any]:
    """Return the pictures of one sample file for `wandb`; none where it cannot be read."""
    import io

    import wandb
    from PIL import Image

    from da_leukemia.report.samples import draw, portrait, read_samples

    if path.suffix != ".json":
        return [wandb.Image(str(path))]
    images = []
    for sample in read_samples(path, single_cells):
        caption = sample.name
        if single_cells:
            truth = sample.truths[0]["type"] if sample.truths else "unknown"
            said = sample.findings[0].title if sample.findings else "no answer"
            caption += f": {said} (truth: {truth})"
        data = portrait(sample) if single_cells else draw(sample, legend=True)
        images.append(wandb.Image(Image.open(io.BytesIO(data)), caption=caption))
    return images


def _table(path: Path) -> Any:
    import wandb

    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    numbers = {header.index(n) for n in ("value", "low", "high", "seeds", "fields")}
    data = [
        [(float(v) if v else None) if i in numbers else v for i, v in enumerate(row)]
        for row in rows
    ]
    return wandb.Table(columns=[*header], data=data)


def _plain(name: str) -> str:
    """Leave only what wandb allows in ids and artifact names."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value)):
            yield f"{prefix}{key}", value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what wandb says on its logger; ``silent`` covers the rest."""
    logger = logging.getLogger("wandb")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
