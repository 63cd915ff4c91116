"""The command line: parses and delegates. A command imports what it needs, when it needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from da_leukemia import __version__
from da_leukemia.cli import data, jobs, sweep
from da_leukemia.cli.parser import Command, Parser
from da_leukemia.errors import INTERRUPTED, UserError, did_you_mean

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success, 1 a failed job or a data set with errors, 2 wrong usage, settings or data, 130 an
    interruption.
    """
    parser = _make_parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = _take_settings(arguments, rest)
    if unknown:
        chosen: Parser = arguments.parser
        options = [text for action in chosen._actions for text in action.option_strings]
        chosen.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0], options)}")
    command: Command = arguments.command
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


def _make_parser() -> Parser:
    parser = Parser(
        prog="da-leukemia",
        description="Measure and repair the failure of leukemia detectors across devices.",
    )
    parser.add_argument("--version", action="version", version=f"da-leukemia {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for kind in (sweep, jobs, data):
        kind.add_commands(commands)
    return parser
