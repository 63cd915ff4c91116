"""The matrix as tables, pictures and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from da_leukemia.config import Experiment
from da_leukemia.report.areas import areas_markdown, draw_areas
from da_leukemia.report.confusion import write_confusion
from da_leukemia.report.contents import Contents, gather
from da_leukemia.report.factors import write_factors
from da_leukemia.report.figures import draw_matrix
from da_leukemia.report.gap import gap_closed
from da_leukemia.report.html import page
from da_leukemia.report.latex import latex
from da_leukemia.report.published import published_markdown, write_published
from da_leukemia.report.ranks import write_ranks
from da_leukemia.report.selection import selection_markdown, write_selection
from da_leukemia.report.slides import sum_up
from da_leukemia.report.tables import markdown, missing_sentence, render_text
from da_leukemia.sweep.matrix import write_matrix
from da_leukemia.sweep.results import Result

__all__ = [
    "Contents",
    "gap_closed",
    "gather",
    "missing_sentence",
    "render_text",
    "write_contents",
    "write_report",
]


def write_report(
    experiment: Experiment,
    results: Iterable[Result | Mapping[str, Any]],
    folder: Path,
) -> Path:
    """Gather and write a report; return the path of its page.

    Args:
        experiment: a complete one, as `load_experiment` gives it.
        results: parsed result files of this experiment (see `ledger.collect`), in any order; any
            number of them may be missing, and the report says which.
        folder: where to write, created where needed. ``intervals.json`` there keeps the bootstrap
            intervals, so that a second report takes no time.

    Raises:
        UserError: results that do not belong together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return write_contents(gather(experiment, results, cache=folder / "intervals.json"), folder)


def write_contents(contents: Contents, folder: Path) -> Path:
    """Write ``matrix.{csv,md,tex,png,svg}``, ``slides.json`` and ``index.html``; return its path.

    Where there is something to put into them, also ``selection.csv`` (what each rule of choice
    picks in each run), ``ranks.svg`` (the critical-difference plot), ``factors.csv`` (what each
    optical factor costs), ``areas.png`` (scores against the annotated area), ``published.csv``
    (every published number, theirs and ours), and of single cells ``confusion`` and ``abstention``
    as ``.csv`` and ``.png``.

    Args:
        contents: what is reported.
        folder: where to write, created where needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_matrix(contents.matrix, folder / "matrix.csv")
    write_selection(contents, folder / "selection.csv")
    write_published(contents, folder / "published.csv")
    (folder / "matrix.md").write_text(
        markdown(contents)
        + "\n".join(
            [
                *areas_markdown(contents),
                *published_markdown(contents),
                *selection_markdown(contents),
                "",
            ]
        ),
        encoding="utf-8",
    )
    (folder / "matrix.tex").write_text(latex(contents), encoding="utf-8")
    draw_matrix(contents, folder / "matrix.png", folder / "matrix.svg")
    draw_areas(contents, folder / "areas.png")
    write_confusion(contents, folder)
    write_ranks(contents.ranks, folder / "ranks.svg")
    write_factors(contents.costs, contents.matrix.headline, folder / "factors.csv")
    index = folder / "index.html"
    summed = sum_up(contents)
    (folder / "slides.json").write_text(json.dumps(summed, indent=1) + "\n", encoding="utf-8")
    index.write_text(page(contents, summed), encoding="utf-8")
    return index
