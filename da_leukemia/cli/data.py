"""Commands on images alone: render, measure and check them. Nothing is trained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from da_leukemia.cli.parser import from_home
from da_leukemia.errors import ConfigError, UserError, did_you_mean
from da_leukemia.labels import LABEL_SPACES

if TYPE_CHECKING:
    from da_leukemia.cli.parser import Commands


def add_commands(commands: Commands) -> None:
    """Add ``simulate``, ``calibrate`` and ``data``."""
    _add_simulate(commands)
    _add_calibrate(commands)
    _add_data(commands)


def _add_simulate(commands: Commands) -> None:
    simulate = commands.add_parser(
        "simulate",
        help="render blood smears through simulated devices",
        description="Render blood smears through simulated devices into OUT. Settings and their "
        "defaults: domains=[NAME,...] (all twelve) patients=6 fields_per_patient=10 seed=0 "
        "workers=CORES. A domain may take factors (blur, sampling, illumination, colour, noise, "
        "sharpening, jpeg) from another device, H_100X_C2~blur+noise~L_100X_C2, and have another "
        "sensor, H_100X_C2@400x280.",
    )
    simulate.add_argument("out", type=from_home, metavar="OUT", help="folder to make")
    simulate.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="settings, as above"
    )
    simulate.add_argument(
        "--sparse",
        nargs="?",
        const="0.2",
        metavar="SHARE",
        help="annotate only a patch of each training field, in 16-column text files; SHARE of its "
        "area, 0.2 where none is given",
    )
    simulate.add_argument(
        "--patch-order",
        default="x1y1x2y2",
        metavar="ORDER",
        help="columns of the patch: x1y1x2y2 (as the authors' code reads them, the default) or "
        "x1x2y1y2 (as their README says)",
    )
    simulate.add_argument(
        "--defects",
        action="store_true",
        help="add the release's defects, counted in OUT/simulation.json",
    )
    simulate.set_defaults(command=_simulate, parser=simulate)


def _add_calibrate(commands: Commands) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="measure a device from its own unlabelled fields",
        description="Measure scale, light, colours, sharpness and noise of a device from 10 to 50 "
        "of its own unlabelled fields of view. What cannot be measured is said to be unknown.",
    )
    calibrate.add_argument("folder", type=from_home, help="photographs of one device")
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    calibrate.add_argument(
        "--out",
        type=from_home,
        metavar="FILE",
        help="JSON to write; default: FOLDER/calibration.json",
    )
    calibrate.add_argument(
        "--picture",
        type=from_home,
        metavar="FILE",
        help="drawing of what was measured (PNG, PDF, SVG); default: calibration.pdf beside the "
        "JSON, none with --json",
    )
    calibrate.set_defaults(command=_calibrate, parser=calibrate)


def _add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="look at data sets")
    checks = data.add_subparsers(metavar="VERB", required=True)
    check = checks.add_parser(
        "check",
        help="list every problem of a data set",
        description="List what a data set holds and every problem of it. Exit code 1: at least one "
        "problem is an error.",
    )
    check.add_argument("path", type=from_home, help="folder of one device or of several")
    check.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="auto (the default: found out for each device), coco, yolo, voc, leukemiaattri, "
        "sparse, m5, raabin, cells or images",
    )
    check.add_argument(
        "--label-space",
        metavar="NAME",
        help=f"label space to read into: {', '.join(LABEL_SPACES)}; default: leukemiaattri",
    )
    check.add_argument(
        "--decode",
        default="sample",
        metavar="WHICH",
        help="images to decode, to find damage in the middle of a file: sample (up to 50 of each "
        "device, the default) or all",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(command=_check, parser=check)


def _simulate(arguments: argparse.Namespace) -> int:
    from da_leukemia.machine import cpus
    from da_leukemia.progress import bar
    from da_leukemia.simulate import DOMAINS, simulate

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
    problems += _read_settings(given, settings)
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


def _read_settings(given: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Put what is given in place of the defaults, and return what cannot be used of it."""
    from omegaconf import OmegaConf

    problems = []
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
        tree: Any = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        read = tree[key]
        if key == "domains":
            read = [read] if isinstance(read, str) else read
            fits = isinstance(read, list) and all(isinstance(name, str) for name in read)
        else:
            fits = isinstance(read, int) and not isinstance(read, bool)
        if not fits:
            wanted = "[NAME, ...]" if key == "domains" else "a whole number"
            problems.append(f"{key}: expected {wanted}, got {value!r}")
        settings[key] = read
    return problems


def _check(arguments: argparse.Namespace) -> int:
    from da_leukemia.data.check import DECODE, check, render
    from da_leukemia.labels import get_label_space
    from da_leukemia.machine import cpus
    from da_leukemia.progress import bar

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
    from da_leukemia.calibration.folders import Parts
    from da_leukemia.calibration.measure import calibrate_folder
    from da_leukemia.calibration.record import store
    from da_leukemia.calibration.text import conclusion, table
    from da_leukemia.progress import bar

    parts = Parts.of(arguments.folder)
    parts.refuse_different_cameras()
    with bar("measuring") as progress:
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
