"""What the parsers of all commands share, and the experiment that a command is given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from da_leukemia.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from da_leukemia.config import Experiment

    Commands = argparse._SubParsersAction["Parser"]
    """Where a command adds the parser of its arguments."""

Command = Callable[[argparse.Namespace], int]
"""Takes the arguments of a command, returns its exit code."""

EXPERIMENT_HELP = "experiment file, or the folder of a sweep (runs/NAME)"
OVERRIDE_HELP = "settings that replace the file's, e.g. seeds=[0,1] data.root=PATH trainer=smoke"


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and answers a misspelt command with the nearest one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"unknown {value!r}{did_you_mean(str(value), action.choices)}"
            )


def from_home(text: str) -> Path:
    """Return a path, ``~/`` written out where a quote kept the shell from doing it."""
    return Path.home() / text[2:] if text.startswith("~/") else Path(text)


def takes_experiment(parser: Parser, command: Command, settings: str = OVERRIDE_HELP) -> None:
    """Give a command an experiment and settings that replace the file's.

    Args:
        parser: of the command.
        command: what it runs.
        settings: help on the settings, with an example that fits the command.
    """
    parser.add_argument("experiment", metavar="EXPERIMENT", help=EXPERIMENT_HELP)
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help=settings)
    parser.set_defaults(command=command, parser=parser)


def load(path: str, settings: Sequence[str]) -> Experiment:
    """Read the experiment of a file, or of a sweep's folder.

    Raises:
        UserError: the file or a setting cannot be used; every problem is named.
    """
    from da_leukemia.config import load_experiment

    file = from_home(path)
    if file.is_dir():
        file /= "experiment.yaml"
        if not file.is_file():
            raise UserError(
                f"{path}: holds no experiment.yaml, so it is no sweep; expected a sweep's folder "
                "(runs/NAME) or an experiment file"
            )
    return load_experiment(file, settings)
