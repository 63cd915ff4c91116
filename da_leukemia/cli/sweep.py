"""Commands on a whole sweep: run, plan, status, report, export."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from da_leukemia.cli.parser import load, takes_experiment
from da_leukemia.errors import UserError, counted

if TYPE_CHECKING:
    from da_leukemia.cli.parser import Commands


def add_commands(commands: Commands) -> None:
    """Add ``sweep`` and its verbs."""
    sweep = commands.add_parser("sweep", help="train and test a grid of methods and devices")
    verbs = sweep.add_subparsers(metavar="VERB", required=True)
    run = verbs.add_parser("run", help="run what is not done yet, then report")
    plan = verbs.add_parser("plan", help="show the jobs and which of them would run")
    status = verbs.add_parser("status", help="show done, running, failed and waiting jobs")
    report = verbs.add_parser("report", help="write the report on what is done")
    for verb, command in ((run, _run), (plan, _plan), (status, _status), (report, _report)):
        takes_experiment(verb, command)
    status.add_argument("--json", action="store_true", help="print JSON")
    export = verbs.add_parser("export", help="log a finished sweep to a tracker")
    export.add_argument("tracker", choices=("wandb",), metavar="TRACKER", help="wandb")
    takes_experiment(export, _export)
    export.add_argument("--again", action="store_true", help="also log jobs that it knows already")
    part = run.add_mutually_exclusive_group()
    part.add_argument("--shard", metavar="I/N", help="run the I-th of N equal parts; no report")
    part.add_argument(
        "--job", action="append", metavar="HASH", help="run this job; may be repeated; no report"
    )
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--emit",
        choices=("commands", "sbatch"),
        metavar="FORM",
        help="print what is left as `commands`, one a line, or as an `sbatch` script",
    )
    status.add_argument("--watch", action="store_true", help="show it live until all is done")


def _run(arguments: argparse.Namespace) -> int:
    experiment = load(arguments.experiment, arguments.settings)
    from da_leukemia.sweep.conduct import run_sweep
    from da_leukemia.sweep.shards import named, shard

    if arguments.shard is not None:
        return run_sweep(experiment, part=lambda jobs: shard(jobs, arguments.shard))
    if arguments.job:
        return run_sweep(experiment, part=lambda jobs: named(jobs, arguments.job))
    return run_sweep(experiment)


def _plan(arguments: argparse.Namespace) -> int:
    from da_leukemia.sweep.status import as_json, missing_folders, plan_text

    experiment = load(arguments.experiment, arguments.settings)
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

    experiment = load(arguments.experiment, arguments.settings)
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

    report(load(arguments.experiment, arguments.settings))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from da_leukemia.progress import bar
    from da_leukemia.tracking.export import export_sweep

    experiment = load(arguments.experiment, arguments.settings)
    with bar("logging") as progress:
        done = export_sweep(experiment, again=arguments.again, progress=progress)
    print(
        f"{counted(done.logged, 'job')} logged, {done.tracked} known before, "
        f"{done.unfinished} without a result"
    )
    for name in done.failed:
        print(f"not logged to the end: {name}", file=sys.stderr)
    return 1 if done.failed else 0
