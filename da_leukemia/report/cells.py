"""The section that opens the cells of the matrix: what a score is made of."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice

from da_leukemia.errors import counted
from da_leukemia.report.attributes import reliability_plots
from da_leukemia.report.confusion import answers_of, confusion_table, told_of
from da_leukemia.report.contents import Contents
from da_leukemia.report.depth import MOST_BRIEF, MOST_CELLS, Curve, Depth
from da_leukemia.report.markup import breakable, escape, table
from da_leukemia.report.moved import Moved, crop, moved
from da_leukemia.report.samples import MIN_SCORE, portrait
from da_leukemia.report.tables import score
from da_leukemia.sweep.ledger import RESULT, job_folder
from da_leukemia.sweep.results import Result

PICTURES = 6
"""Crops of moved cells that are drawn for one cell of the matrix, and no more than
`MOST_PICTURES` on a page."""

MOST_PICTURES = 120

TYPES = {
    "ap50": {"ap50": "AP50", "ap50_95": "AP50-95"},
    "balanced_accuracy": {"f1": "F1", "recall": "recall", "precision": "precision"},
}
"""By headline: what is told of each cell type, and its title."""

ATTRIBUTES_HEADER = ("attribute", "cells", "F1", "balanced accuracy")


def anchor(method: str, source: str, test: str) -> str:
    """Return the id of an opened cell."""
    return f"cell {method} {source} {test}".replace(" ", "--")


def cells_section(contents: Contents) -> str:
    """One block to open for each cell of the methods that are drawn."""
    if not contents.depths:
        return ""
    left, blocks = MOST_PICTURES, []
    for depth in contents.depths:
        if not depth.whole:
            continue
        changes = list(moved(depth))
        drawn = list(islice((c for c in changes if c.gained), min(PICTURES, left)))
        left -= len(drawn)
        blocks.append(_block(contents, depth, changes, drawn))
    brief: dict[str, list[str]] = {}
    for depth in contents.depths:
        if not depth.whole:
            brief.setdefault(depth.row.method, []).append(_block(contents, depth, [], []))
    for method, others in brief.items():
        blocks.append(
            f"<details><summary>{breakable(method)}: {counted(len(others), 'further cell')}, "
            f"numbers alone</summary>{''.join(others)}</details>"
        )
    return f"<p>{_about(sum(map(len, brief.values())))}</p>{''.join(blocks)}"


def _about(brief: int) -> str:
    said = (
        "Each cell of the methods that are drawn, to be opened; a cell of the headline matrices "
        "leads here. All numbers are means over seeds, of counts the first."
    )
    if brief:
        said += (
            f" {MOST_CELLS} cells open whole: those of the reference and of the method that closes "
            "most of the gap come first, and of them those with the lowest scores. The others open "
            "with their numbers alone, below by method."
        )
    if brief == MOST_BRIEF:
        said += f" Of more than {MOST_BRIEF} others those with the lowest scores."
    return said


def _block(contents: Contents, depth: Depth, changes: list[Moved], drawn: list[Moved]) -> str:
    row = depth.row
    runs = "".join(
        f"<li>seed {r.run.seed}: {score(r.metrics(row.test).get(row.metric))}, "
        f"<code>da-leukemia reproduce {escape(_path(contents, r))}</code></li>"
        for r in depth.results
    )
    span = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
    about = (
        f"{counted(row.seeds, 'seed')}, {counted(row.fields, 'test field')}, "
        f"{counted(depth.cells, 'cell')}."
    )
    parts = [f"<p class='note'>{about}</p>", _tables(depth)]
    if depth.whole:
        parts += [*_plots(depth), _moved(depth, changes, drawn)]
    parts.append(f"<ul class='said runs'>{runs}</ul>")
    title = f"{breakable(row.method)}: {breakable(row.source)} to {breakable(row.test)}"
    return (
        f'<details class="depth" id="{escape(anchor(row.method, row.source, row.test))}">'
        f"<summary>{title} <b>{row.value:.3f}</b>{span}</summary>{''.join(parts)}</details>"
    )


def _plots(depth: Depth) -> Iterator[str]:
    row = depth.row
    plots = list(reliability_plots("reliability", [(r, row.test) for r in depth.results]))
    if depth.curve:
        half = next((y for x, y in depth.curve if x >= 0.5), 0.0)
        told = (
            "Precision over recall at IoU 0.5, mean over cell types; "
            f"{half:.2f} at a recall of one half."
        )
        plots.insert(0, _plot(depth.curve, told, "recall", "precision"))
    answers = answers_of(row, depth.results)
    if answers is not None and answers.abstention:
        points = [(p.coverage, p.accuracy) for p in answers.abstention]
        plots.insert(0, _plot(points, told_of(answers.abstention), "answered", "right"))
    if plots:
        yield f"<div class='plots'>{''.join(plots)}</div>"
    if answers is not None:
        yield confusion_table(answers)


def _path(contents: Contents, result: Result) -> str:
    return str((result.folder or job_folder(contents.experiment.folder, result.job)) / RESULT)


def _tables(depth: Depth) -> str:
    metrics = [r.metrics(depth.row.test) for r in depth.results]

    def rows(section: str, *keys: str) -> list[list[str]]:
        found = [m.get(section) or {} for m in metrics]
        listed = []
        for name, first in found[0].items():
            values = []
            for key in keys:
                known = [v for m in found if (v := (m.get(name) or {}).get(key)) is not None]
                values.append(sum(known) / len(known) if known else None)
            listed.append(
                [name.replace("_", " "), str(first.get("truths") or 0), *map(score, values)]
            )
        return listed

    told = TYPES[depth.row.metric]
    types = rows("per_class", *told)
    looks = rows("per_attribute", "f1", "balanced_accuracy")
    shown = [(("cell type", "cells", *told.values()), types), (ATTRIBUTES_HEADER, looks)]
    return f'<div class="pair">{"".join(table(h, r, words=1) for h, r in shown if r)}</div>'


_SIDE = 150


def _plot(curve: Curve, told: str, across: str, up: str) -> str:
    points = " ".join(f"{x * _SIDE:.1f},{(1 - y) * _SIDE:.1f}" for x, y in curve)
    return (
        f'<figure><svg viewBox="-22 -8 {_SIDE + 32} {_SIDE + 32}" role="img" '
        f'aria-label="{escape(told)}"><rect width="{_SIDE}" height="{_SIDE}"/>'
        f'<polyline class="curve" points="{points}"/>'
        f'<text x="0" y="{_SIDE + 14}">0</text><text x="{_SIDE}" y="{_SIDE + 14}">1</text>'
        f'<text x="{_SIDE / 2}" y="{_SIDE + 14}">{across}</text>'
        f'<text x="-10" y="{_SIDE / 2}" transform="rotate(-90 -10 {_SIDE / 2})">{up}</text>'
        f"</svg><figcaption>{escape(told)}</figcaption></figure>"
    )


def _moved(depth: Depth, changes: list[Moved], drawn: list[Moved]) -> str:
    if not depth.twins or not changes:
        return ""
    gained = sum(c.gained for c in changes)
    were, are = ("misnamed", "named") if depth.single_cells else ("missed", "found")
    where = "Of the sample cells" if depth.single_cells else "In the sample fields"
    rule = "" if depth.single_cells else f" (detections from a score of {MIN_SCORE})"
    said = (
        f"{where} {counted(gained, 'cell')} moved from {were} to {are} by adaptation, "
        f"{len(changes) - gained} from {are} to {were}{rule}."
    )
    figures = []
    for change in drawn:
        truth = change.sample.truths[change.truth]
        name = str(truth.get("type", "cell")).replace("_", " ")
        try:
            picture = portrait(change.sample) if depth.single_cells else crop(change)
            data = base64.b64encode(picture).decode()
        except OSError as error:
            figures.append(f"<figcaption class='warn'>{escape(error)}</figcaption>")
            continue
        alt = f"{name} in {change.sample.name}, {are} after adaptation"
        figures.append(
            f'<figure><img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
        )
    return f"<p class='note'>{escape(said)}</p><div class='crops'>{''.join(figures)}</div>"
