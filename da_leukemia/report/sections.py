"""The sections of the page below the matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from da_leukemia.calibration.record import Calibration, Quantity
from da_leukemia.config import devices_of
from da_leukemia.report.contents import Contents
from da_leukemia.report.gap import GapTable
from da_leukemia.report.markup import breakable, escape, table
from da_leukemia.report.tables import (
    DASH,
    EQUAL_HEADER,
    EQUAL_MEANING,
    EQUAL_TITLE,
    GAP_HEADER,
    SUMMARY_HEADER,
    UNSCORED_HEADER,
    UNSCORED_MEANING,
    gap_cells,
    missing_sentence,
    refusals,
    score,
    summary_cells,
    unscored_rows,
)

LISTED = 200
"""Things of one kind that are listed on the page; the other files have all of them."""


def gap_section(contents: Contents) -> str:
    """Gap closed: by method, by pair, and why some are not given."""
    gap = contents.gap
    if not gap.gaps:
        return ""
    told = "".join(f"<li>{escape(reason)}</li>" for reason in refusals(gap, contents.shown))
    parts = [
        "<p>Gap closed = (score - fair source-only) / (oracle - fair source-only). Fair "
        "source-only has the same steps (a method that starts from it takes more: see equal "
        "length), augmentation and averaging of weights and saw no image "
        "of the tested device; adapted and calibrated runs saw unlabelled ones; the oracle is the "
        "same recipe trained on the tested device's own labels. The ratio of means is the one to "
        "quote; in brackets 95 % intervals.</p>",
        _gap_tables(gap, contents.shown),
        f"<p>Not given:</p><ul class='said'>{told}</ul>" if told else "",
    ]
    if contents.added is not None:
        parts += [
            "<h3>What adaptation adds to the calibration</h3>",
            "<p>The same against twins of the same calibration.</p>",
            _gap_tables(contents.added, contents.shown),
        ]
    if contents.equal is not None:
        why = "".join(f"<li>{escape(r)}</li>" for r in refusals(contents.equal, contents.shown))
        parts += [
            f"<h3>{EQUAL_TITLE}</h3>",
            f"<p>{escape(EQUAL_MEANING.replace('`', ''))}</p>",
            _gap_tables(contents.equal, contents.shown, EQUAL_HEADER),
            f"<p>Not given:</p><ul class='said'>{why}</ul>" if why else "",
        ]
    return "".join(parts)


def _gap_tables(gap: GapTable, shown: Sequence[str], header: Sequence[str] = GAP_HEADER) -> str:
    order = [s.method for s in gap.summaries]
    best = order.index(gap.best.method) if gap.best is not None else -1
    drawn = [g for g in gap.gaps if g.method in shown]
    pairs = table(header, [gap_cells(g) for g in drawn], words=3)
    opened = " open" if len(drawn) <= 12 else ""
    return (
        table(SUMMARY_HEADER, [summary_cells(s) for s in gap.summaries], words=1, best=best)
        + f"<details{opened}><summary>Every pair</summary>{pairs}"
        "<p class='soft'>Behind a gain: its 95 % interval, fair and adapted run scored on the same "
        "resampled patients or fields. p: a paired randomization test over patients, adjusted for "
        "all pairs of the table (Holm).</p></details>"
    )


def unscored_section(contents: Contents) -> str:
    """What images alone say of runs for devices without labels."""
    if not contents.matrix.unscored:
        return ""
    rows = unscored_rows(contents.matrix)
    return f"<p>{escape(UNSCORED_MEANING)}</p>{table(UNSCORED_HEADER, rows, words=3)}"


DEVICES_HEADER = (
    *("device", "red cell, px", "px per um", "light lost", "background", "edge, px", "noise"),
    "left alone",
)


def devices_section(contents: Contents) -> str:
    """What the calibration found out about each device, and what it could not."""
    found: dict[str, Calibration] = {}
    for result in contents.results:
        told = result.content.get("devices") or {}
        found |= {name: Calibration.from_dict(device) for name, device in told.items()}
    names = [name for name in contents.experiment.data.domains if name in found]
    if not names:
        return ""
    notes = [f"<li>{escape(f'{n}: {note}')}</li>" for n in names for note in found[n].notes]
    return (
        "<p>Measured on unlabelled training images of each device, its 90 % interval in brackets; "
        "no label and no test image was used. What is unknown is left as it was.</p>"
        + table(DEVICES_HEADER, [_device_cells(name, found[name]) for name in names], words=1)
        + (f"<ul class='said'>{''.join(notes)}</ul>" if notes else "")
    )


def _device_cells(name: str, device: Calibration) -> list[str]:
    def number(quantity: Quantity, places: int) -> str:
        return DASH if quantity.value is None else f"{quantity.value:.{places}f}"

    red, clear = device.red_cell_px, device.background
    size = f"{red.width:.0f} x {red.height:.0f} [{red.low:.0f}, {red.high:.0f}]" if red else DASH
    levels = " ".join(f"{q.value:.0f}" for q in clear) if clear else DASH
    known = {
        "scale": device.px_per_um_x.known,
        "light": device.illumination is not None,
        "colour": clear is not None,
    }
    return [
        *(name, size),
        f"{number(device.px_per_um_x, 2)} x {number(device.px_per_um_y, 2)}",
        *(number(device.illumination_fall, 2), levels),
        f"{number(device.edge_x, 1)} x {number(device.edge_y, 1)}",
        number(device.noise, 2),
        ", ".join(what for what, is_known in known.items() if not is_known) or "nothing",
    ]


def details_section(contents: Contents) -> str:
    """Scores by cell type and by attribute."""
    parts = []
    of_types = ("per_class", "ap50", "Cell type (AP50)")
    if contents.matrix.headline == "balanced_accuracy":
        of_types = ("per_class", "f1", "Cell type (F1)")
    for section, key, title in (
        of_types,
        ("per_attribute", "f1", "Attribute (macro-F1 on found cells)"),
    ):
        rows, header = _breakdown(contents, section, key, title.split(" (")[0])
        if rows:
            parts.append(f"<h3>{escape(title)}</h3>{table(header, rows, words=1)}")
    if not parts:
        return ""
    return (
        "<p>Means over seeds and pairs of devices. <i>Same</i>: tested on the device it was "
        "trained on. <i>Other</i>: tested on another one, adapted to it where the method adapts."
        "</p>" + "<br>".join(parts)
    )


def _breakdown(
    contents: Contents, section: str, key: str, what: str
) -> tuple[list[list[str]], list[str]]:
    values: dict[str, dict[tuple[str, bool], list[float]]] = {}
    truths: dict[str, dict[str, int]] = {}
    for result in contents.results:
        run = result.run
        if run.method not in contents.shown:
            continue
        for test in [run.target] if run.target else result.content["tests"]:
            if test not in result.content["tests"]:
                continue
            for name, entry in (result.metrics(test).get(section) or {}).items():
                truths.setdefault(name, {})[test] = int(entry.get("truths") or 0)
                if entry.get(key) is not None:
                    place = values.setdefault(name, {})
                    place.setdefault((run.method, test in devices_of(run.source)), []).append(
                        entry[key]
                    )
    there = {place for places in values.values() for place in places}
    columns = [(m, same) for same in (True, False) for m in contents.shown if (m, same) in there]
    header = [what, "cells", *(f"{m}, {'same' if s else 'other'}" for m, s in columns)]
    rows = []
    for name, counted in truths.items():
        found: list[float | None] = []
        for method, same in columns:
            scores = values.get(name, {}).get((method, same))
            found.append(fmean(scores) if scores else None)
        rows.append([name, str(sum(counted.values())), *(score(v) for v in found)])
    return rows, header


# --- the rest --------------------------------------------------------------------------------


def missing_section(contents: Contents) -> str:
    """The runs without a result and why."""
    if not contents.missing:
        return ""
    items = []
    for missing in contents.missing[:LISTED]:
        text = f"{breakable(str(missing.run))} <span class='soft'>job {escape(missing.job)}</span>"
        if missing.failure is not None:
            why = escape(missing.failure)
            text += f"<details><summary>failed</summary><pre>{why}</pre></details>"
        items.append(f"<li>{text}</li>")
    listed = f"<ul class='said'>{''.join(items)}</ul>"
    if len(contents.missing) > LISTED:
        listed += f"<p>And {len(contents.missing) - LISTED} more, all in matrix.md.</p>"
    if len(items) > 20:
        summary = f"The first {LISTED}" if len(contents.missing) > LISTED else f"All {len(items)}"
        listed = f"<details><summary>{summary}</summary>{listed}</details>"
    return f"<p>{escape(missing_sentence(contents))}</p>{listed}"


def code_text(code: Mapping[str, Any]) -> str:
    """Say which commit made a result; nothing where that is unknown."""
    commit = code.get("commit")
    return f"{commit[:12]}{', with changes' if code.get('dirty') else ''}" if commit else ""


def settings_section(contents: Contents) -> str:
    """How to make the report again, versions and settings."""
    experiment = contents.experiment
    file = experiment.folder / "experiment.yaml"
    facts: dict[str, dict[str, None]] = {}

    def note(what: str, value: object) -> None:
        if value not in (None, ""):
            facts.setdefault(what, {})[str(value)] = None

    trained, seen = 0.0, {}
    most = {"process_mb": 0.0, "gpu_mb": 0.0}
    for result in contents.results:
        content = result.content
        versions = content.get("versions") or {}
        if id(versions) not in seen:  # results share what is equal in them
            seen[id(versions)] = versions
            for name, version in versions.items():
                note(name, version)
        note("data fingerprint", (content.get("data") or {}).get("fingerprint"))
        note("split", content.get("split"))
        note("seed", content.get("seed"))
        note("device", content.get("device"))
        note("code", code_text(content.get("code") or {}))
        memory = content.get("memory") or {}
        for name in most:
            most[name] = max(most[name], float(memory.get(name) or 0.0))
        trained += float((content.get("timings") or {}).get("train_s") or 0.0)
        for test in content["tests"]:
            note("evaluator", result.metrics(test).get("evaluator_version"))
    rows = [[what, ", ".join(values)] for what, values in facts.items()]
    if trained:
        rows.append(["training time, all runs", f"{trained / 60:.1f} min"])
    names = {"process_mb": "peak memory of a run", "gpu_mb": "peak memory of its GPU"}
    rows += [[names[n], f"{mb:.0f} MB"] for n, mb in most.items() if mb]
    settings = escape(OmegaConf.to_yaml(OmegaConf.structured(experiment)))
    commands = f"da-leukemia sweep run {file}\nda-leukemia sweep report {file}"
    return (
        f"<p>To make this report again:</p><pre>{escape(commands)}</pre>"
        + (table(["", ""], rows, words=2) if rows else "")
        + f"<details><summary>The resolved experiment</summary><pre>{settings}</pre></details>"
    )
