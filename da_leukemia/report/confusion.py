"""Of single cells: which type is taken for which, and what leaving the unsure ones out brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from da_leukemia.config import devices_of
from da_leukemia.files import write_csv
from da_leukemia.report.contents import Contents
from da_leukemia.report.depth import by_place, runs_of
from da_leukemia.report.figures import COLOURS, colour
from da_leukemia.report.markup import escape
from da_leukemia.sweep.matrix import Row
from da_leukemia.sweep.results import Result

PLACE = ("method", "source", "target", "test", "seeds")
FILES = ("confusion.csv", "abstention.csv", "confusion.png", "abstention.png")


class Point(NamedTuple):
    """Accuracy where only a share of the cells is answered, the surest ones.

    Attributes:
        coverage: that share.
        accuracy: of those, mean over seeds.
        start: least probability which is answered, mean over seeds.
    """

    coverage: float
    accuracy: float
    start: float


@dataclass(frozen=True)
class Answers:
    """What a method answered in one cell of the matrix.

    Attributes:
        row: the cell.
        classes: names of the types.
        counts: ``(C, C)`` cells by truth (row) and answer (column), summed over seeds.
        abstention: by rising coverage; empty where no cell was scored.
        seeds: runs that are in it.
    """

    row: Row
    classes: Sequence[str]
    counts: NDArray[np.int64]
    abstention: Sequence[Point]
    seeds: int


def answers_of(row: Row, results: Sequence[Result]) -> Answers | None:
    """Put the answers of a cell's runs together; None where nobody classified single cells."""
    told = [m for r in results if (m := r.metrics(row.test)).get("confusion")]
    if not told:
        return None
    curves = [m["abstention"] for m in told if m.get("abstention")]
    points = [
        Point(
            each[0]["coverage"],
            fmean(p["accuracy"] for p in each),
            fmean(p["from"] for p in each),
        )
        for each in zip(*curves, strict=True)
    ]
    counts = np.sum([np.asarray(m["confusion"], np.int64) for m in told], axis=0)
    return Answers(row, results[0].content["classes"], counts, points, len(told))


def all_answers(contents: Contents) -> list[Answers]:
    """Return the answers of every cell of the matrix that is tested where it adapted, or not."""
    placed = by_place(contents.results)
    rows = contents.matrix.on_target(contents.matrix.headline)
    found = (answers_of(row, runs_of(row, placed)) for row in rows)
    return [answers for answers in found if answers is not None]


# --- page ------------------------------------------------------------------------------------


def told_of(points: Sequence[Point]) -> str:
    """Say what an abstention curve shows."""
    half = min(points, key=lambda p: abs(p.coverage - 0.5))
    return (
        f"Right among the cells that are answered, the surest first; {half.accuracy:.2f} if "
        f"{100 * half.coverage:.0f} % are (from a probability of {half.start:.2f}), "
        f"{points[-1].accuracy:.2f} if all are."
    )


def confusion_table(answers: Answers) -> str:
    """Return the counts as a table to open; types that are neither there nor said are left out."""
    counts = answers.counts
    truths, said = _there(counts)
    names = [str(name).replace("_", " ") for name in answers.classes]
    head = "".join(f"<th scope='col'><span>{escape(names[k])}</span></th>" for k in said)
    lines = []
    for i in truths:
        total = counts[i].sum()
        cells = "".join(_cell(int(counts[i, k]), int(total), k == i) for k in said)
        lines.append(f"<tr><th scope='row'>{escape(names[i])}</th>{cells}</tr>")
    seeds = "" if answers.seeds == 1 else f", {answers.seeds} seeds added"
    return (
        "<details><summary>Which type is taken for which</summary><p class='note'>Cells by true "
        f"type (rows) and answer (columns){seeds}; coloured by the share of the row.</p>"
        "<div class='scroll'><table class='confusion'><thead><tr><th></th>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _there(counts: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Return the types that some cell is of, and those that are there or said."""
    of, said = counts.sum(1), counts.sum(0)
    return np.flatnonzero(of).tolist(), np.flatnonzero(of + said).tolist()


def _cell(count: int, total: int, right: bool) -> str:
    if not count:
        return "<td></td>"
    fill, ink = colour(round(count / total, 2), 1.0)
    kind = " class='right'" if right else ""
    return f"<td{kind} style='background:{fill};color:{ink}'>{count}</td>"


# --- files -----------------------------------------------------------------------------------


def write_confusion(contents: Contents, folder: Path) -> None:
    """Write `FILES`: every cell of the matrix as numbers, methods as pictures; none without cells.

    ``confusion.csv`` has a line for each true type and answer that some cell has.
    """
    found = all_answers(contents)
    if not found:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return
    _write(folder / "confusion.csv", ("truth", "answer", "cells", "share"), map(_counted, found))
    _write(folder / "abstention.csv", ("coverage", "accuracy", "from"), map(_points, found))
    shown = [answers for answers in found if answers.row.method in contents.shown]
    _draw_confusion(shown, folder / "confusion.png")
    _draw_abstention(shown, folder / "abstention.png")


Lines = Iterator[list[object]]


def _write(path: Path, columns: Sequence[str], blocks: Iterator[tuple[Answers, Lines]]) -> None:
    rows = ([*a.row[:4], a.seeds, *line] for a, lines in blocks for line in lines)
    write_csv(path, [*PLACE, *columns], rows)


def _counted(answers: Answers) -> tuple[Answers, Lines]:
    counts, names = answers.counts, answers.classes
    return answers, (
        [names[i], names[k], int(counts[i, k]), round(float(counts[i, k] / counts[i].sum()), 6)]
        for i, k in np.argwhere(counts)
    )


def _points(answers: Answers) -> tuple[Answers, Lines]:
    return answers, (
        [p.coverage, round(p.accuracy, 6), round(p.start, 6)] for p in answers.abstention
    )


def _apart(found: Sequence[Answers]) -> dict[bool, dict[str, list[Answers]]]:
    """Return by whether the device is the one trained on, and by method."""
    apart: dict[bool, dict[str, list[Answers]]] = {False: {}, True: {}}
    for answers in found:
        row = answers.row
        apart[row.test in devices_of(row.source)].setdefault(row.method, []).append(answers)
    return apart


def _draw_confusion(found: Sequence[Answers], path: Path) -> None:
    """Draw for each method the share of each true type that gets each answer, over all pairs."""
    from matplotlib.figure import Figure

    apart = _apart(found)
    pooled = apart[False] or apart[True]
    where = "another device" if apart[False] else "the device trained on"
    sums = {method: np.sum([a.counts for a in each], axis=0) for method, each in pooled.items()}
    everything = np.sum(list(sums.values()), axis=0)
    truths, said = _there(everything)
    names = [str(name).replace("_", " ") for name in found[0].classes]
    across, wide, high = min(3, len(sums)), _panel(len(said)), _panel(len(truths))
    down = -(-len(sums) // across)
    figure = Figure(figsize=(across * (wide + 1.5), down * (high + 1.7)), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(sums) :]:
        axes.set_axis_off()
    for axes, (method, all_counts) in zip(panels.flat, sums.items(), strict=False):
        counts = all_counts[np.ix_(truths, said)]
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(np.where(counts, shares, np.nan), COLOURS, vmin=0, vmax=1)
        for i, k in np.argwhere(counts):
            ink = colour(round(float(shares[i, k]), 2), 1.0)[1]
            axes.text(k, i, f"{shares[i, k]:.2f}", ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(len(said)), [names[k] for k in said], rotation=90, fontsize=8)
        axes.set_yticks(range(len(truths)), [names[i] for i in truths], fontsize=8)
        axes.set_xlabel("answer", fontsize=9, color="#555555")
        axes.set_ylabel("true type", fontsize=9, color="#555555")
        axes.set_title(f"{method}\n{counts.sum()} cells on {where}", loc="left", fontsize=9)
    figure.savefig(path, dpi=160, metadata={"Software": "da_leukemia"})


def _panel(types: int) -> float:
    """Return the side of a panel, inches."""
    return max(2.6, 0.42 * types)


def _draw_abstention(found: Sequence[Answers], path: Path) -> None:
    """Draw accuracy over the share of cells that are answered, mean over pairs, by method."""
    from matplotlib.figure import Figure

    drawn = {same: methods for same, methods in _apart(found).items() if methods}
    figure = Figure(figsize=(4.6 * len(drawn), 3.6), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (same, methods) in zip(panels, drawn.items(), strict=True):
        for method, each in methods.items():
            curves = [a.abstention for a in each if a.abstention]
            points = list(zip(*curves, strict=True))
            coverage = [p[0].coverage for p in points]
            accuracy = [fmean(q.accuracy for q in p) for p in points]
            axes.plot(coverage, accuracy, marker="o", markersize=4, label=method)
        axes.set_xlabel("share of cells that are answered, the surest first")
        axes.set_ylabel("accuracy of the answers")
        title = "on the device trained on" if same else "on another device"
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=160, metadata={"Software": "da_leukemia"})
