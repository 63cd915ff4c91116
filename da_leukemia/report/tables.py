"""The matrix and the gap table as text: for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from da_leukemia.evaluation.label_free import SCORERS
from da_leukemia.report import factors, ranks
from da_leukemia.report.contents import Contents
from da_leukemia.report.gap import Gap, GapSummary, GapTable, gap_closed
from da_leukemia.report.headlines import METRIC_MEANINGS, headlines, metric_name
from da_leukemia.sweep.matrix import Matrix, Row, View
from da_leukemia.sweep.names import FAIR, LONGER, calibration_of

WIDEST = 110
"""Columns of a terminal table before its devices are numbered."""

DASH = "-"
UNSCORED = "no test labels"
"""In a cell that was run where nothing can be scored."""


def _sentence(text: str) -> str:
    """Raise the first letter only: "IoU" must stay as it is."""
    return text[:1].upper() + text[1:]


def caption(view: View) -> str:
    """Say how a view is read."""
    own = f"; in brackets: {view.lender}" if view.borrowed else ""
    return f"{view.method} ({knowledge(view)}{own})"


def knowledge(view: View) -> str:
    """Say what a view's detectors knew of the device that they are tested on."""
    if view.adapted:
        return "adapted to the device it is tested on"
    if calibration_of(view.method):
        return "calibrated with unlabelled images of the device it is tested on"
    return "trained on the row's device alone"


def percent(share: float | None) -> str:
    """Write a share as whole per cent, a missing one as a dash."""
    return DASH if share is None else f"{100 * share:.0f} %"


def score(value: float | None, signed: bool = False) -> str:
    """Write a score with three decimals, a missing one as a dash."""
    if value is None:
        return DASH
    return f"{value:+.3f}" if signed else f"{value:.3f}"


# --- terminal --------------------------------------------------------------------------------


def render_text(matrix: Matrix, metric: str | None = None) -> str:
    """Return the matrix of one metric, the headline's by default, and the gap summary."""
    metric = metric or matrix.headline
    if not matrix.rows and not matrix.unscored:
        return "No result yet: the matrix is empty."
    lines = [f"{metric_name(metric)} (rows: trained on, columns: tested on)"]
    for method in matrix.methods:
        view = matrix.view(method, metric)
        lines += ["", caption(view), *_plain_table(view)]
    lines += ["", *headlines(matrix, gap_closed(matrix, metric)), *matrix.notes]
    return "\n".join(lines)


def _plain_table(view: View) -> list[str]:
    first = max(len(s) for s in (*view.sources, ""))
    names = list(view.tests)
    if first + sum(max(len(t), 7) + 2 for t in names) > WIDEST:
        numbers = {name: str(i) for i, name in enumerate(names, start=1)}
        names = [numbers[name] for name in names]
        rows = [f"{s} [{numbers[s]}]" if s in numbers else s for s in view.sources]
        first = max(len(r) for r in (*rows, ""))
    else:
        rows = list(view.sources)
    blind = {test for _, test in view.unscored}
    least = [len(UNSCORED) if test in blind else 7 for test in view.tests]
    widths = [max(len(name), low) + 2 for name, low in zip(names, least, strict=True)]
    lines = [" " * first + "".join(n.rjust(w) for n, w in zip(names, widths, strict=True))]
    for label, source in zip(rows, view.sources, strict=True):
        cells = [_plain_cell(view, source, test) for test in view.tests]
        shown = "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        lines.append(label.ljust(first) + shown)
    return lines


def _plain_cell(view: View, source: str, test: str) -> str:
    row = view.cells.get((source, test))
    if row is None:
        return f"{UNSCORED if (source, test) in view.unscored else DASH} "
    return f"({row.value:.3f})" if (source, test) in view.borrowed else f"{row.value:.3f} "


# --- Markdown --------------------------------------------------------------------------------


def markdown(contents: Contents) -> str:
    """Return the report's numbers as Markdown."""
    matrix, gap = contents.matrix, contents.gap
    lines = [f"# {contents.experiment.name}: cross-device matrix", ""]
    lines += [f"- {said}" for said in (*headlines(matrix, gap), *matrix.notes, *gap.notes)]
    lines += [f"- {said}" for said in [missing_sentence(contents)] if said]
    for metric in matrix.metrics:
        lines += ["", f"## {metric_name(metric)}", ""]
        if metric in METRIC_MEANINGS:
            lines += [f"{_sentence(METRIC_MEANINGS[metric])}. Rows: trained on.", ""]
        for method in matrix.methods:
            view = matrix.view(method, metric)
            if not view.empty:
                lines += [caption(view), "", *_markdown_view(view), ""]
    if matrix.unscored:
        lines += ["", f"## {UNSCORED_TITLE}", "", UNSCORED_MEANING, ""]
        lines += markdown_rows(UNSCORED_HEADER, unscored_rows(matrix))
    if gap.gaps:
        lines += ["", f"## Gap closed ({metric_name(gap.metric)})", ""]
        lines += markdown_rows(GAP_HEADER, [gap_cells(g) for g in gap.gaps])
        lines += ["", *markdown_rows(SUMMARY_HEADER, [summary_cells(s) for s in gap.summaries])]
        lines += ["", *[f"- {reason}" for reason in refusals(gap)]]
    if contents.added is not None:
        lines += ["", "## What adaptation adds to the calibration", ""]
        lines += markdown_rows(GAP_HEADER, [gap_cells(g) for g in contents.added.gaps])
        rows = [summary_cells(s) for s in contents.added.summaries]
        lines += ["", *markdown_rows(SUMMARY_HEADER, rows)]
    if contents.equal is not None:
        lines += ["", f"## {EQUAL_TITLE}", "", EQUAL_MEANING, ""]
        lines += markdown_rows(EQUAL_HEADER, [gap_cells(g) for g in contents.equal.gaps])
        rows = [summary_cells(s) for s in contents.equal.summaries]
        lines += ["", *markdown_rows(SUMMARY_HEADER, rows)]
        lines += ["", *[f"- {reason}" for reason in refusals(contents.equal)]]
    if contents.ranks is not None:
        lines += [
            "",
            f"## Average ranks ({metric_name(contents.ranks.metric)})",
            "",
            ranks.HOW_TO_READ,
        ]
        lines += ["", *markdown_rows(ranks.RANKS_HEADER, ranks.rank_rows(contents.ranks)), ""]
        lines += [f"- {note}" for note in contents.ranks.notes]
    if contents.costs:
        lines += ["", "## What each optical factor costs", "", factors.HOW_TO_READ, ""]
        lines += markdown_rows(factors.FACTORS_HEADER, factors.factor_rows(contents.costs))
    if contents.missing:
        lines += ["", "## Missing", "", *[f"- {m.run} (job {m.job})" for m in contents.missing]]
    return "\n".join(lines).rstrip() + "\n"


def missing_sentence(contents: Contents) -> str | None:
    """Say how much of the plan has no result; None when all is there."""
    if not contents.missing:
        return None
    failed = sum(m.failure is not None for m in contents.missing)
    said = f"{len(contents.missing)} of {contents.planned} runs have no result"
    return f"{said}, {failed} of them failed." if failed else f"{said} yet."


UNSCORED_TITLE = "Devices without test labels"
UNSCORED_MEANING = (
    "No true score can be given there. What can be said from images alone (0 to 1, higher is "
    "better, means over seeds; docs/selection.md says what they are worth): compare the adapted "
    "run with its twin, and look at its detections."
)
UNSCORED_HEADER = ("method", "trained on", "device", *SCORERS)


def unscored_rows(matrix: Matrix) -> list[list[str]]:
    """Return the runs on devices without labels under `UNSCORED_HEADER`."""
    return [
        [u.method, u.source, u.device, *(score(u.scores.get(name)) for name in SCORERS)]
        for u in matrix.unscored
    ]


GAP_HEADER = (
    *("method", "trained on", "tested on", "fair source-only", "score", "oracle"),
    *("gain", "p", "gap closed"),
)
EQUAL_HEADER = (
    *GAP_HEADER[:3],
    "longer source-only",
    *GAP_HEADER[4:-1],
    "gap closed beyond it",
)
EQUAL_TITLE = "Against source-only of equal length"
EQUAL_MEANING = (
    f"A method that starts from a finished source-only run has taken more steps than {FAIR}. Its "
    f"`{LONGER}` went on from the same weights on the source, for as many steps as the method took "
    "on the target. The gap is still that between fair source-only and the oracle, which took "
    "fewer steps: shares here are the part of it that longer training alone does not close."
)
SUMMARY_HEADER = (
    *("method", "pairs", "gap closed (ratio of means)", "gap closed (mean of ratios)"),
    *("mean gain", "negative transfer", "worst cell"),
)


def gap_cells(gap: Gap) -> list[str]:
    """Return a pair's cells under `GAP_HEADER`."""
    gain = score(gap.gain, signed=True)
    p = DASH
    if gap.paired is not None:
        gain += f" [{gap.paired.low:+.3f}, {gap.paired.high:+.3f}]"
        p = f"{gap.paired.p:.3f}" if math.isfinite(gap.paired.p) else DASH
    return [
        *(gap.method, gap.source, gap.target, score(gap.fair), score(gap.adapted)),
        *(score(gap.oracle), gain, p, percent(gap.closed)),
    ]


def summary_cells(summary: GapSummary) -> list[str]:
    """Return a method's cells under `SUMMARY_HEADER`."""
    worst = summary.worst
    return [
        summary.method,
        str(
            summary.pairs if summary.whole == summary.pairs else f"{summary.whole}/{summary.pairs}"
        ),
        _share(summary),
        percent(summary.mean_of_ratios),
        score(summary.mean_gain, signed=True),
        f"{summary.negative} of {summary.compared} ({summary.harmed} significant)",
        f"{worst.source} to {worst.target}: {score(worst.adapted)}",
    ]


def _share(summary: GapSummary) -> str:
    if summary.share_low is None or summary.share_high is None:
        return percent(summary.ratio_of_means)
    low, high = percent(summary.share_low), percent(summary.share_high)
    return f"{percent(summary.ratio_of_means)} [{low}, {high}]"


def refusals(gap: GapTable, methods: Collection[str] | None = None) -> list[str]:
    """Return why gaps of some methods (all by default) were refused, with the pairs concerned."""
    pairs: dict[str, list[str]] = {}
    for g in gap.gaps:
        if g.reason is not None and (methods is None or g.method in methods):
            pairs.setdefault(f"{g.method}: {g.reason}", []).append(f"{g.source} to {g.target}")
    return [f"{reason} ({', '.join(names)})." for reason, names in pairs.items()]


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown."""
    lines = [_markdown_line(header), _markdown_line(["---"] * len(header))]
    return lines + [_markdown_line(row) for row in rows]


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def view_rows(view: View, cell: Callable[[Row, bool], str]) -> list[list[str]]:
    """Return a row for each source: its name, then what ``cell`` makes of each test."""
    return [
        [source]
        + [
            cell(view.cells[source, test], (source, test) in view.borrowed)
            if (source, test) in view.cells
            else UNSCORED
            if (source, test) in view.unscored
            else DASH
            for test in view.tests
        ]
        for source in view.sources
    ]


def _markdown_view(view: View) -> list[str]:
    def cell(row: Row, borrowed: bool) -> str:
        value = f"({row.value:.3f})" if borrowed else f"{row.value:.3f}"
        return value if row.low is None else f"{value} [{row.low:.3f}, {row.high:.3f}]"

    return markdown_rows(["", *view.tests], view_rows(view, cell))
