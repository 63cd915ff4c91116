"""The command line: parses and delegates. A command imports what it needs, when it needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia import __version__
from da_leukemia.errors import UserError, counted, did_you_mean

if TYPE_CHECKING:
    from da_leukemia.config import Experiment, Job

USAGE_ERROR, INTERRUPTED = 2, 130

EXPERIMENT_HELP = "experiment file, or the folder of a sweep (runs/NAME)"
OVERRIDE_HELP = "settings that replace the file's, e.g. seeds=[0,1] data.root=PATH trainer=smoke"


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and answers a misspelt command with the nearest one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"unknown {value!r}{did_you_mean(str(value), action.choices)}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success, 1 a failed job or a data set with errors, 2 wrong usage, settings or data.
    """
    parser = _make_parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = _take_settings(arguments, rest)
    if unknown:
        chosen: _Parser = arguments.parser
        options = [text for action in chosen._actions for text in action.option_strings]
        chosen.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0], options)}")
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except UserError as error:
        print(_error_text(error), file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head`; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _error_text(error: UserError) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return "\n".join(f"error: {line}" if line[:1].strip() else line for line in lines)


def _take_settings(arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Add ``key=value`` that followed an option to the settings, return what is left."""
    unknown = []
    for text in rest:
        if hasattr(arguments, "settings") and not text.startswith("-") and "=" in text:
            arguments.settings.append(text)
        else:
            unknown.append(text)
    return unknown


# --- what may be said ------------------------------------------------------------------------


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="da-leukemia",
        description="Measure and repair the failure of leukemia detectors across devices.",
    )
    parser.add_argument("--version", action="version", version=f"da-leukemia {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sweep = commands.add_parser("sweep", help="train and test a grid of methods and devices")
    verbs = sweep.add_subparsers(metavar="VERB", required=True)
    run = verbs.add_parser("run", help="run what is not done yet, then report")
    plan = verbs.add_parser("plan", help="show the jobs and which of them would run")
    status = verbs.add_parser("status", help="show what is done, runs, failed and waits")
    report = verbs.add_parser("report", help="write the report of what is done")
    for verb, command in ((run, _run), (plan, _plan), (status, _status), (report, _report)):
        _takes_experiment(verb, command)
    for verb in (plan, status):
        verb.add_argument("--json", action="store_true", help="for programs")
    export = verbs.add_parser("export", help="tell a tracker of a finished sweep afterwards")
    export.add_argument("tracker", choices=("wandb",), metavar="TRACKER", help="wandb")
    _takes_experiment(export, _export)
    export.add_argument("--again", action="store_true", help="also jobs that it knows already")
    part = run.add_mutually_exclusive_group()
    part.add_argument("--shard", metavar="I/N", help="run the I-th of N equal parts; no report")
    part.add_argument(
        "--job", action="append", metavar="HASH", help="run this job; may be repeated; no report"
    )
    plan.add_argument(
        "--emit",
        choices=("commands", "sbatch"),
        metavar="FORM",
        help="print what is left as `commands`, one a line, or as an `sbatch` script",
    )
    status.add_argument("--watch", action="store_true", help="live, until all is done")

    train = commands.add_parser(
        "train",
        help="train and test one job of an experiment, here",
        description="Train and test one job of an experiment in this process. source=, target=, "
        "method= and seed= choose it; the folder is the same as in the sweep.",
    )
    _takes_experiment(train, _train)

    evaluate = commands.add_parser("evaluate", help="test a trained job again")
    evaluate.add_argument("folder", type=Path, help="a job's folder, runs/NAME/jobs/HASH")
    evaluate.add_argument(
        "--domain", action="append", default=[], metavar="NAME", help="device; may be repeated"
    )
    evaluate.add_argument("--json", action="store_true", help="for programs")
    evaluate.add_argument(
        "--detections",
        type=Path,
        metavar="FILE",
        help="write every detection with its attributes, .csv, or .json with a summary per slide",
    )
    evaluate.add_argument(
        "--min-score",
        type=float,
        default=None,
        metavar="SCORE",
        help="detections below are not written and not counted (0.3; of single cells 0: each has "
        "an answer)",
    )
    evaluate.set_defaults(command=_evaluate, parser=evaluate)

    reproduce = commands.add_parser(
        "reproduce",
        help="run a finished job again and compare its metrics",
        description="Run the job of a result.json again in a fresh folder. Exit code 0: every "
        "metric is the same; 1: they differ, and how is listed.",
    )
    reproduce.add_argument("result", type=Path, help="a job's result.json, or its folder")
    reproduce.add_argument("--out", type=Path, metavar="FOLDER", help="where to run; must be empty")
    reproduce.set_defaults(command=_reproduce, parser=reproduce)

    simulate = commands.add_parser(
        "simulate",
        help="render blood smears through simulated devices",
        description="Render blood smears through simulated devices into OUT. Settings: "
        "domains=[NAME,...] patients=6 fields_per_patient=10 seed=0 workers=CORES. A domain may "
        "take factors (blur, sampling, illumination, colour, noise, sharpening, jpeg) from another "
        "device: H_100X_C2~blur+noise~L_100X_C2",
    )
    simulate.add_argument("out", type=Path, help="folder to make")
    simulate.add_argument("settings", nargs="*", default=[], metavar="key=value")
    simulate.add_argument(
        "--sparse",
        nargs="?",
        const="0.2",
        metavar="SHARE",
        help="annotate a patch of SHARE (0.2) of each training field, in 16-column text alone",
    )
    simulate.add_argument(
        "--patch-order",
        default="x1y1x2y2",
        metavar="ORDER",
        help="columns of the patch: x1y1x2y2 (as the authors' code) or x1x2y1y2 (as their README)",
    )
    simulate.add_argument(
        "--defects",
        action="store_true",
        help="put the release's defects in, counted in OUT/simulation.json",
    )
    simulate.set_defaults(command=_simulate, parser=simulate)

    calibrate = commands.add_parser(
        "calibrate",
        help="measure a device from its own unlabelled fields",
        description="Measure scale, light, colours, sharpness and noise of a device from 10 to 50 "
        "of its own unlabelled fields of view. What cannot be told is said to be unknown.",
    )
    calibrate.add_argument("folder", type=Path, help="photographs of one device")
    calibrate.add_argument("--json", action="store_true", help="for programs")
    calibrate.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON to write; default: FOLDER/calibration.json"
    )
    calibrate.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="drawing of what was measured (PNG, PDF, SVG); default: calibration.pdf beside the "
        "JSON, none with --json",
    )
    calibrate.set_defaults(command=_calibrate, parser=calibrate)

    data = commands.add_parser("data", help="look at data sets")
    checks = data.add_subparsers(metavar="VERB", required=True)
    check = checks.add_parser("check", help="list every problem of a data set")
    check.add_argument("path", type=Path, help="folder of the data set")
    check.add_argument("--format", default="auto", metavar="NAME", help="auto, or a known format")
    check.add_argument("--label-space", metavar="NAME", help="label space to read into")
    check.add_argument(
        "--decode",
        default="sample",
        metavar="WHICH",
        help="images to decode, to find damage in the middle of a file: sample (up to 50 of each "
        "device, the default) or all",
    )
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(command=_check, parser=check)
    return parser


def _takes_experiment(parser: argparse.ArgumentParser, command: object) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help=EXPERIMENT_HELP)
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help=OVERRIDE_HELP)
    parser.set_defaults(command=command, parser=parser)


def _load(path: str, settings: Sequence[str]) -> Experiment:
    from da_leukemia.config import load_experiment

    file = Path(path)
    return load_experiment(file / "experiment.yaml" if file.is_dir() else file, settings)


# --- sweep -----------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    experiment = _load(arguments.experiment, arguments.settings)
    from da_leukemia.sweep.conduct import run_sweep
    from da_leukemia.sweep.parts import named, shard

    if arguments.shard is not None:
        return run_sweep(experiment, part=lambda jobs: shard(jobs, arguments.shard))
    if arguments.job:
        return run_sweep(experiment, part=lambda jobs: named(jobs, arguments.job))
    return run_sweep(experiment)


def _plan(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.status import as_json, missing_folders, plan_text

    experiment = _load(arguments.experiment, arguments.settings)
    if arguments.emit:
        from da_leukemia.sweep import emit

        write = emit.sbatch if arguments.emit == "sbatch" else emit.commands
        print(write(experiment, arguments.experiment, arguments.settings))
        return 0
    print(json.dumps(as_json(experiment), indent=1) if arguments.json else plan_text(experiment))
    if missing := missing_folders(experiment):  # as `sweep run` will say
        sys.stdout.flush()
        raise UserError("\n".join(missing))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.conduct import again
    from da_leukemia.sweep.status import as_json, status_text

    experiment = _load(arguments.experiment, arguments.settings)
    if arguments.watch:
        from da_leukemia.sweep.watch import watch

        return watch(experiment, again(arguments.experiment, arguments.settings))
    if arguments.json:
        print(json.dumps(as_json(experiment), indent=1))
    else:
        print(status_text(experiment, again(arguments.experiment, arguments.settings)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.conduct import report

    report(_load(arguments.experiment, arguments.settings))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.conduct import bar
    from da_leukemia.tracking.export import export_sweep

    experiment = _load(arguments.experiment, arguments.settings)
    with bar("logging") as progress:
        done = export_sweep(experiment, again=arguments.again, progress=progress)
    print(
        f"{counted(done.logged, 'job')} logged, {done.tracked} known before, "
        f"{done.unfinished} without a result"
    )
    for name in done.failed:
        print(f"not logged to the end: {name}", file=sys.stderr)
    return 1 if done.failed else 0


# --- one job ---------------------------------------------------------------------------------

_CHOICES = {"source": "sources", "target": "targets", "method": "methods", "seed": "seeds"}
"""Settings of `train` that choose a job -> the experiment's list that they narrow."""


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
    experiment = _load(arguments.experiment, [*settings, *narrowed])
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
    least: float | None = arguments.min_score
    if least is not None and not 0 <= least <= 1:
        raise UserError(f"--min-score: expected a score from 0 to 1, got {least}")
    if arguments.detections is not None:
        from da_leukemia.tasks.export import check_name

        check_name(arguments.detections)
    from da_leukemia.sweep.worker import examine_job

    tested = examine_job(folder, arguments.domain)
    if arguments.detections is not None:
        from da_leukemia.config import load_job
        from da_leukemia.evaluation.slides import counted_from
        from da_leukemia.labels import get_label_space
        from da_leukemia.tasks.export import write_detections

        job = load_job(folder / "config.yaml")
        space = get_label_space(job.data.label_space)
        if least is None:
            least = counted_from(job.detector.kind == "classifier")
        found = {device: (t.records, t.fields) for device, t in tested.items()}
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
    metrics = {device: t.metrics for device, t in tested.items()}
    print(json.dumps(metrics, indent=1) if arguments.json else _scores(metrics))
    return 0


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


# --- data ------------------------------------------------------------------------------------


def _simulate(arguments: argparse.Namespace) -> int:
    from omegaconf import OmegaConf

    from da_leukemia.errors import ConfigError
    from da_leukemia.simulate import DOMAINS, simulate
    from da_leukemia.sweep.conduct import bar
    from da_leukemia.sweep.local import cpus

    settings: dict[str, Any] = {
        "domains": list(DOMAINS),
        "patients": 6,
        "fields_per_patient": 10,
        "seed": 0,
        "workers": cpus(),
    }
    problems = []
    given, sparse = list(arguments.settings), None
    share: str | None = arguments.sparse
    if share is not None and "=" in share:  # `--sparse patients=3`: the share was left out
        given, share = [*given, share], "0.2"
    if share is not None:
        try:
            sparse = float(share)
        except ValueError:
            problems.append(f"--sparse: expected a share such as 0.2, got {share!r}")
    for text in given:
        key, separator, value = text.partition("=")
        if not separator:
            problems.append(f"{text!r}: expected key=value")
            continue
        if key not in settings:
            option = "--" + key.replace("_", "-")
            known = option in ("--sparse", "--patch-order", "--defects")
            hint = f"; write {option}" if known else did_you_mean(key, settings)
            problems.append(f"{key}: unknown key{hint}")
            continue
        read = OmegaConf.to_container(OmegaConf.from_dotlist([text]))[key]  # type: ignore[index]
        if key == "domains":
            read = [read] if isinstance(read, str) else read
            fits = isinstance(read, list) and all(isinstance(name, str) for name in read)
        else:
            fits = isinstance(read, int) and not isinstance(read, bool)
        if not fits:
            wanted = "[NAME, ...]" if key == "domains" else "a whole number"
            problems.append(f"{key}: expected {wanted}, got {value!r}")
        settings[key] = read
    if problems:
        raise ConfigError(problems)
    with bar("rendering") as progress:
        out = simulate(
            arguments.out,
            **settings,
            sparse=sparse,
            patch_order=arguments.patch_order,
            defects=arguments.defects,
            progress=progress,
        )
        print(out)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from da_leukemia.data.check import DECODE, check, render
    from da_leukemia.labels import LABEL_SPACES, get_label_space
    from da_leukemia.sweep.conduct import bar
    from da_leukemia.sweep.local import cpus

    space = {}
    if arguments.label_space is not None:
        if arguments.label_space not in LABEL_SPACES:
            hint = did_you_mean(arguments.label_space, LABEL_SPACES)
            raise UserError(f"--label-space: unknown {arguments.label_space!r}{hint}")
        space["space"] = get_label_space(arguments.label_space)
    if arguments.decode not in DECODE:
        raise UserError(
            f"--decode: unknown {arguments.decode!r}{did_you_mean(arguments.decode, DECODE)}"
        )
    with bar("decoding") as progress:
        report = check(
            arguments.path,
            arguments.format,
            **space,
            decode=arguments.decode,
            workers=cpus(),
            progress=progress,
        )
    print(json.dumps(report.to_dict(), indent=1) if arguments.json else render(report))
    return report.exit_code


def _calibrate(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from da_leukemia.calibration.folders import Parts
    from da_leukemia.calibration.measure import calibrate_folder
    from da_leukemia.calibration.record import store
    from da_leukemia.calibration.text import conclusion, table

    parts = Parts.of(arguments.folder)
    parts.refuse_different_cameras()
    with tqdm(desc="measuring", disable=None, leave=False) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        measured = calibrate_folder(arguments.folder, progress)
    if measured.mixed and parts.several:
        raise parts.refusal("their red cells differ in size")
    calibration = measured.calibration
    print(json.dumps(calibration.to_dict(), indent=1) if arguments.json else table(calibration))
    path = store(calibration, arguments.folder, arguments.out)
    # A PDF: an image among the device's images would be read as one of them.
    picture = arguments.picture or (None if arguments.json else path.with_suffix(".pdf"))
    if picture is not None:
        from da_leukemia.calibration.picture import draw

        try:
            draw(measured, picture)
        except (OSError, ValueError) as error:  # no such folder, or an ending it cannot write
            raise UserError(f"--picture: cannot write {picture}: {error}") from error
    if not arguments.json:
        print(f"written: {path}, {picture}")
        print(conclusion(calibration, measured.mixed))
    if parts.several:
        print(f"measured as one device; {parts.if_each_is_one}", file=sys.stderr)
    return 0
