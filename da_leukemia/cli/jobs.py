"""Commands on one job: train it, test it again, run it again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.cli.parser import from_home, load, takes_experiment
from da_leukemia.errors import INTERRUPTED, UserError

if TYPE_CHECKING:
    from da_leukemia.cli.parser import Commands, Parser
    from da_leukemia.config import Experiment, Job
    from da_leukemia.labels import LabelSpace
    from da_leukemia.predict import Prediction
    from da_leukemia.tasks.export import Found

_CHOICES = {"source": "sources", "target": "targets", "method": "methods", "seed": "seeds"}
"""Settings of `train` that choose a job -> the experiment's list that they narrow."""

TRAIN_HELP = (
    "what chooses the job, e.g. source=A method=dann target=B, and settings that replace the file's"
)


def add_commands(commands: Commands) -> None:
    """Add ``train``, ``evaluate``, ``predict`` and ``reproduce``."""
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_reproduce(commands)


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train and test one job of an experiment in this process",
        description="Train and test one job of an experiment in this process. source=, target=, "
        "method= and seed= choose it; the folder is the same as in the sweep.",
    )
    takes_experiment(train, _train, TRAIN_HELP)


def _add_evaluate(commands: Commands) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="test a trained job again",
        description="Test the checkpoint of a trained job on its test devices again and print the "
        "scores. The job's folder is left as it is.",
    )
    evaluate.add_argument("folder", type=from_home, help="a job's folder, runs/NAME/jobs/HASH")
    evaluate.add_argument(
        "--domain",
        action="append",
        default=[],
        metavar="NAME",
        help="device to test on; may be repeated; default: all test devices of the job",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON, with every score")
    _takes_detections(evaluate)
    evaluate.set_defaults(command=_evaluate, parser=evaluate)


def _add_predict(commands: Commands) -> None:
    predict = commands.add_parser(
        "predict",
        help="find the cells on photographs of your own",
        description="Find the cells on every photograph of a folder with a trained detector. "
        "Nothing but the checkpoint is needed: no experiment, no label.",
    )
    predict.add_argument(
        "checkpoint",
        type=from_home,
        metavar="CHECKPOINT",
        help="last.ckpt of a finished job, or its folder",
    )
    predict.add_argument(
        "photographs",
        type=from_home,
        metavar="PHOTOS",
        help="folder of photographs of one device, or one",
    )
    _takes_detections(predict)
    predict.add_argument(
        "--pictures",
        type=from_home,
        metavar="FOLDER",
        help="draw what was found on each photograph, into this folder",
    )
    predict.add_argument(
        "--calibration",
        type=from_home,
        metavar="FILE",
        help="of the device, as `da-leukemia calibrate` writes it; default: measured from PHOTOS, "
        "where the detector uses one",
    )
    predict.set_defaults(command=_predict, parser=predict)


def _takes_detections(parser: Parser) -> None:
    """Give a command the options of `_write_detections`."""
    parser.add_argument(
        "--detections",
        type=from_home,
        metavar="FILE",
        help="write every detection with its attributes: .csv, or .json with a summary per slide "
        "and images on which nothing was found",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=None,
        metavar="SCORE",
        help="detections below it are not written and not counted; default: 0.3, for single cells "
        "0, since each has an answer",
    )


def _add_reproduce(commands: Commands) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="run a finished job again and compare its metrics",
        description="Run the job of a result.json again in a fresh folder. Exit code 0: every "
        "metric is the same; 1: they differ, and how is listed.",
    )
    reproduce.add_argument("result", type=from_home, help="a job's result.json, or its folder")
    reproduce.add_argument(
        "--out", type=from_home, metavar="FOLDER", help="where to run; must be empty"
    )
    reproduce.set_defaults(command=_reproduce, parser=reproduce)


def _train(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.conduct import run_one
    from da_leukemia.sweep.ledger import job_folder

    chosen: dict[str, str] = {}
    settings = []
    for text in arguments.settings:
        key, _, value = text.partition("=")
        if key in _CHOICES:
            chosen[key] = value
        else:
            settings.append(text)
    narrowed = [f"{_CHOICES[key]}=[{value}]" for key, value in chosen.items() if value]
    experiment = load(arguments.experiment, [*settings, *narrowed])
    job = _choose(experiment, chosen)
    folder = job_folder(experiment.folder, job.hash)
    print(f"{folder}", file=sys.stderr)
    try:
        result = run_one(experiment, job)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    print(_scores({name: test["metrics"] for name, test in result["tests"].items()}))
    return 0


def _choose(experiment: Experiment, chosen: dict[str, str]) -> Job:
    from da_leukemia.sweep.plan import label, make_plan

    jobs = make_plan(experiment)
    if "target" in chosen:
        fitting = [job for job in jobs if (job.target or "") == chosen["target"]]
        if not fitting:
            raise UserError(
                f"target={chosen['target']}: {', '.join(experiment.methods)} does not fit it; "
                "source-only methods take no target, all others need one"
            )
        jobs = fitting
    if len(jobs) > 1:
        listed = "\n".join(f"  {label(job)}" for job in jobs)
        raise UserError(
            f"choose one job with source=, target=, method= and seed=; these fit:\n{listed}"
        )
    return jobs[0]


def _evaluate(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    if not (folder / "config.yaml").is_file():
        jobs = sorted(path.parent.name for path in folder.glob("jobs/*/config.yaml"))
        raise UserError(
            f"{folder}: no job's folder (there is no config.yaml in it)"
            + (f"; it has {len(jobs)} in {folder / 'jobs'}: {', '.join(jobs[:6])}" if jobs else "")
        )
    _check_detections(arguments)
    from da_leukemia.sweep.worker import examine_job

    tested = examine_job(folder, arguments.domain)
    if arguments.detections is not None:
        from da_leukemia.config import load_job
        from da_leukemia.labels import get_label_space

        job = load_job(folder / "config.yaml")
        found = {device: (t.records, t.fields) for device, t in tested.items()}
        space = get_label_space(job.data.label_space)
        _write_detections(arguments, found, space, job.detector.kind == "classifier")
    metrics = {device: t.metrics for device, t in tested.items()}
    print(json.dumps(metrics, indent=1) if arguments.json else _scores(metrics))
    return 0


def _check_detections(arguments: argparse.Namespace) -> None:
    """Refuse what `_takes_detections` cannot be, before anything is computed."""
    least: float | None = arguments.min_score
    if least is not None and not 0 <= least <= 1:
        raise UserError(f"--min-score: expected a score from 0 to 1, got {least}")
    if arguments.detections is not None:
        from da_leukemia.tasks.export import check_name

        check_name(arguments.detections)


def _write_detections(
    arguments: argparse.Namespace, found: Found, space: LabelSpace, single_cells: bool
) -> None:
    """Write what was found, if that is asked for; say on what device nothing was."""
    from da_leukemia.evaluation.slides import counted_from
    from da_leukemia.tasks.export import write_detections

    least: float | None = arguments.min_score
    least = counted_from(single_cells) if least is None else least
    if arguments.detections is not None:
        write_detections(arguments.detections, found, space, least)
        print(f"written: {arguments.detections}", file=sys.stderr)
    for device, (records, _) in found.items():
        surest = max((float(r.scores.max(initial=0.0)) for r in records), default=0.0)
        if surest < least:
            print(
                f"{device}: nothing was found with a score of {least} or more; "
                f"the surest find has {surest:.3f} (see --min-score)",
                file=sys.stderr,
            )


_NAMED = 5
"""Photographs that are named of those on which nothing was found."""


def _predict(arguments: argparse.Namespace) -> int:
    _check_detections(arguments)
    _check_pictures(arguments.pictures, arguments.photographs)
    from collections import Counter

    from da_leukemia.calibration.record import load as load_calibration
    from da_leukemia.errors import counted as number_of
    from da_leukemia.evaluation.slides import counted, counted_from
    from da_leukemia.predict import predict
    from da_leukemia.progress import bar

    given = None if arguments.calibration is None else load_calibration(arguments.calibration)
    with bar("looking") as progress:
        found = predict(arguments.checkpoint, arguments.photographs, given, progress)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    least = arguments.min_score
    least = counted_from(found.single_cells) if least is None else least
    types: Counter[str] = Counter()
    empty = []
    for field, record in zip(found.fields, found.records, strict=True):
        kept = counted(record, least)
        types.update(found.space.classes[int(label)] for label in record.labels[kept])
        empty += [] if len(kept) else [field.image.name]
    cells = number_of(types.total(), "cell")
    print(f"{found.device}: {cells} on {number_of(len(found.fields), 'photograph')}")
    width = max(map(len, types), default=0)
    for name, number in types.most_common():
        print(f"  {name:<{width}}  {number}")
    if empty:
        more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        print(f"none on {', '.join(empty[:_NAMED])}{more}")
    told = {found.device: (found.records, found.fields)}
    _write_detections(arguments, told, found.space, found.single_cells)
    if arguments.pictures is not None:
        _draw(found, arguments.pictures, least)
        print(f"drawn: {arguments.pictures}", file=sys.stderr)
    return 0


def _check_pictures(folder: Path | None, photographs: Path) -> None:
    """Refuse a folder whose files are photographs, or would be taken for some the next time."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--pictures: {folder}: is a file; expected a folder")
    seen = (photographs.parent if photographs.is_file() else photographs).resolve()
    if folder.resolve().is_relative_to(seen):
        raise UserError(
            f"--pictures: {folder}: lies in {seen}, whose photographs it could overwrite and whose "
            "drawings would be looked at the next time; name a folder elsewhere"
        )


def _draw(found: Prediction, folder: Path, least: float) -> None:
    """Draw what was found on each photograph."""
    from da_leukemia.files import write_whole
    from da_leukemia.report.samples import draw, sample_of
    from da_leukemia.tasks.samples import spell_field

    for field, record in zip(found.fields, found.records, strict=True):
        entry = spell_field(record, field, found.space, least)
        path = folder / f"{field.name}.jpg"
        try:
            sample = sample_of(entry, found.single_cells, None, least)
            picture = draw(sample, legend=any(f.attributes for f in sample.findings))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, picture)
        except OSError as error:
            raise UserError(f"--pictures: {path}: {error.strerror or error}") from error


def _reproduce(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.conduct import reproduce

    return reproduce(arguments.result, arguments.out)


def _scores(tests: dict[str, dict[str, Any]]) -> str:
    """Return the single numbers as a table: a line for each, a column for each device."""
    names = list(
        dict.fromkeys(
            name
            for metrics in tests.values()
            for name, value in metrics.items()
            if isinstance(value, int | float)
        )
    )
    width = max(map(len, names), default=0)
    widths = [max(len(domain), 7) for domain in tests]
    lines = ["  ".join([" " * width, *(d.rjust(w) for d, w in zip(tests, widths, strict=True))])]
    for name in names:
        cells = [_number(metrics.get(name)) for metrics in tests.values()]
        cells = [cell.rjust(w) for cell, w in zip(cells, widths, strict=True)]
        lines.append("  ".join([name.ljust(width), *cells]))
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) else "-"
