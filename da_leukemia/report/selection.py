"""The section about choosing an epoch: every rule side by side, and how well each judge ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from da_leukemia.config import devices_of
from da_leukemia.errors import counted
from da_leukemia.evaluation.label_free import SCORERS
from da_leukemia.files import write_csv
from da_leukemia.report.contents import Contents
from da_leukemia.report.headlines import metric_within
from da_leukemia.report.markup import escape, table
from da_leukemia.report.tables import DASH, markdown_rows, score
from da_leukemia.sweep.selection import (
    CONSENSUS,
    LAST,
    ORACLE,
    SELECTIONS,
    VALIDATION,
    Choice,
    choices,
    correlations,
    selected,
)

COLUMNS = ("method", "source", "target", "seed", "test", "selection", "epoch")
"""Of ``selection.csv``, before the headline metric, which has its own name."""

NOT_LEGAL = " (not a legal choice)"

HOW_TO_READ = (
    "Runs were recorded at several epochs, and each rule picks one of them without training again. "
    "The table shows the mean {metric} of the epochs that a rule picks, over cells: a run on one "
    "device that it was not trained on. A rule is worth using where it beats last and its rank "
    "correlation to the truth is high (Spearman; 1: it ranks as the truth does, 0: no better than "
    "chance, below 0: it misleads), both within runs, over the epochs of one training, and between "
    "runs, over the last epochs of all trainings that are tested on one device. The label-free "
    "rules see unlabelled training images of the tested device and nothing else of it."
)
RULES = {
    LAST: "no choice: the epoch at which the budget ends",
    VALIDATION: "the best {metric} on the source's validation part",
    **{name: f"label-free: {meaning}" for name, meaning in SCORERS.items()},
    CONSENSUS: f"label-free: the mean of the ranks that the {len(SCORERS)} scorers give",
    ORACLE: "the best true {metric}: no legal choice, it only shows how much a choice could matter",
}
CHOICE_HEADER = ("method", "cells", *(s + NOT_LEGAL * (s == ORACLE) for s in SELECTIONS))


def _told(contents: Contents, found: Sequence[Choice]) -> str:
    """Say what was recorded and what was not."""
    recorded = {c.run for c in found}
    total = len(contents.results)
    if not recorded:
        return (
            "No epoch was recorded: only the last one of each run is known. To compare rules of "
            "choice, run the experiment under another name with selection.every=1 (or another "
            "number of epochs between two records)."
        )
    said = f"Recorded: {len(recorded)} of {counted(total, 'run')}."
    if len(recorded) < total:
        said += " The others were trained without selection.every and are not in these tables."
    return said


def _choice_rows(found: Sequence[Choice]) -> list[list[str]]:
    rows = []
    for method, scores in selected(found).items():
        count = sum(
            c.run.method == method and c.test not in devices_of(c.run.source) for c in found
        )
        rows.append([method, str(count), *(score(scores[rule]) for rule in SELECTIONS)])
    return rows


def _correlation_rows(found: Sequence[Choice], metric: str) -> tuple[list[str], list[list[str]]]:
    tests = sorted({c.test for c in found})
    header = [f"rank correlation to true {metric}", "within runs", "between runs"]
    header += [f"between runs on {test}" for test in tests]
    rows = []
    for judge, value in correlations(found).items():
        within = DASH
        if value.within is not None:
            within = f"{score(value.within, signed=True)} ({counted(value.cells, 'cell')})"
        between = [value.mean_between, *(value.between.get(test) for test in tests)]
        rows.append([judge, within, *(score(v, signed=True) for v in between)])
    return header, rows


def selection_section(contents: Contents) -> str:
    """The section of the page; nothing where there is no result at all."""
    if not contents.results:
        return ""
    found = choices(contents.results)
    told = f"<p>{escape(_told(contents, found))}</p>"
    if not found:
        return told
    metric = metric_within(contents.matrix.headline)
    rules = "".join(
        f"<li><b>{n}</b>: {escape(meaning.format(metric=metric))}.</li>"
        for n, meaning in RULES.items()
    )
    return (
        f"<p>{escape(HOW_TO_READ.format(metric=metric))}</p><ul class='said'>{rules}</ul>{told}"
        + table(CHOICE_HEADER, _choice_rows(found), words=1)
        + "<br>"
        + table(*_correlation_rows(found, metric), words=1)
    )


def selection_markdown(contents: Contents) -> list[str]:
    """The same as lines of Markdown."""
    if not contents.results:
        return []
    found = choices(contents.results)
    lines = ["", "## Selection", "", _told(contents, found)]
    if found:
        metric = metric_within(contents.matrix.headline)
        rules = (f"- `{n}`: {told.format(metric=metric)}." for n, told in RULES.items())
        lines += ["", HOW_TO_READ.format(metric=metric), "", *rules]
        lines += ["", *markdown_rows(CHOICE_HEADER, _choice_rows(found))]
        lines += ["", *markdown_rows(*_correlation_rows(found, metric))]
    return lines


def write_selection(contents: Contents, path: Path) -> None:
    """Write a line for each run, test device and rule; no file where nothing was recorded."""
    found = choices(contents.results)
    if not found:
        path.unlink(missing_ok=True)
        return
    rows = [
        [*choice.run, choice.test, rule, choice.epochs[place], round(choice.truth[place], 6)]
        for choice in found
        for rule in SELECTIONS
        if (place := choice.place(rule)) is not None
    ]
    write_csv(path, [*COLUMNS, contents.matrix.headline], rows)
