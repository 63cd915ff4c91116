"""Each slide as a haematologist sums it up, as it is and as it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from da_leukemia.config import names_cells
from da_leukemia.errors import counted
from da_leukemia.evaluation.records import load_records
from da_leukemia.evaluation.slides import COUNTED_SCORE, counted_from, summarise
from da_leukemia.labels import LABEL_SPACES, LabelSpace
from da_leukemia.report.contents import Contents
from da_leukemia.report.markup import breakable, escape, table
from da_leukemia.report.samples import choose
from da_leukemia.report.tables import DASH
from da_leukemia.sweep.results import Result

Summed = dict[str, list[dict[str, Any]]]
"""Device -> runs, each with what it is called and its ``slides`` (see `summarise`)."""


def sum_up(contents: Contents) -> Summed:
    """Sum up the slides of every device, as found without and with adaptation.

    The runs are those of the sample pictures. A run without records, or in a label space that is
    not built in, is left out.
    """
    space = LABEL_SPACES.get(contents.experiment.data.label_space)
    if space is None:
        return {}
    threshold = counted_from(names_cells(contents.experiment))
    return {
        test: [
            {
                "method": result.run.method,
                "source": result.run.source,
                "target": result.run.target,
                "seed": result.run.seed,
                "min_score": threshold,
                "slides": summarise(load_records(path), space, threshold),
            }
            for result, path in runs
        ]
        for test, runs in choose(contents, Result.records)
    }


def slides_section(summed: Summed, label_space: str, single_cells: bool = False) -> str:
    """Return for each slide its differential count, blasts, and how the cells of a type look.

    Args:
        summed: see `sum_up`.
        label_space: name of the label space.
        single_cells: what was photographed are cells, not fields.
    """
    space = LABEL_SPACES.get(label_space)
    if space is None or not summed:
        return ""
    blocks = []
    for test, runs in summed.items():
        names = [_name(run) for run in runs]
        told = "; ".join(f"{n}: trained on {r['source']}" for n, r in zip(names, runs, strict=True))
        pages = [
            _slide([run["slides"][i] for run in runs], names, space, i == 0, single_cells)
            for i in range(len(runs[0]["slides"]))
        ]
        blocks.append(
            f"<h3>{breakable(test)}</h3><p class='note'>{escape(told)}.</p>{''.join(pages)}"
        )
    whole, who, rule = (
        ("cells", "classifier", "Every answer counts, also to a cell of no known type.")
        if single_cells
        else (
            "fields",
            "detector",
            f"Detections from a score of {COUNTED_SCORE} count, overlapping ones once.",
        )
    )
    return (
        f"<p>A slide is a patient; where a device names none, all of its {whole}. Count and share "
        "of the cells of known type, with Wilson's 95 % interval: what counting so many cells can "
        f"tell, not what the {who} got wrong. {rule} Blasts are counted with their equivalents "
        "(promonocytes, abnormal promyelocytes). The same as JSON: slides.json.</p>"
        + "".join(blocks)
    )


def _name(run: Mapping[str, Any]) -> str:
    return str(run["method"])


def _slide(
    slides: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    space: LabelSpace,
    opened: bool,
    single_cells: bool,
) -> str:
    truth = slides[0]["true"]
    views = [truth, *(slide["found"] for slide in slides)]
    who = ["true", *names]
    types = [k for k in truth["types"] if any(v["types"][k]["count"] for v in views)]
    rows = [[k.replace("_", " "), *(_share(v["types"][k]) for v in views)] for k in types]
    if truth["blasts"] is not None:
        rows.append(["all blasts", *(_share(v["blasts"]) for v in views)])
    rows.append(["cells counted", *(str(v["cells"]) for v in views)])
    last = len(rows) - 2 if truth["blasts"] is not None else -1
    looks = _looks(views, who, types, space)
    size = [] if single_cells else [counted(slides[0]["fields"], "field")]
    size.append(counted(truth["cells"], "cell"))
    if truth["untyped"]:
        size.append(f"{counted(truth['untyped'], 'cell')} of no known type left out")
    return (
        f"<details{' open' if opened else ''}><summary>slide {escape(slides[0]['slide'])}: "
        f"{', '.join(size)}</summary>"
        + table(["cell type", *who], rows, words=1, best=last)
        + (f"<p class='note'>Per cent of the cells that look so:</p>{looks}" if looks else "")
        + "</details>"
    )


def _share(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return DASH
    low, high = (f"{100 * share[end]:.0f}" for end in ("low", "high"))
    return f"{share['count']}, {100 * share['share']:.0f} % [{low}, {high}]"


def _looks(
    views: Sequence[Mapping[str, Any]], who: Sequence[str], types: Sequence[str], space: LabelSpace
) -> str:
    """Return the attribute profile: a row per type and view, a column per attribute value.

    Of two values the second is shown; the first is the rest.
    """
    shown = [
        (a.name, value)
        for a in space.attributes
        for value in (a.values[1:] if len(a.values) == 2 else a.values)
    ]
    rows = []
    for kind in types:
        for name, view in zip(who, views, strict=True):
            profile = view["attributes"].get(kind)
            if profile is None:
                continue
            cells = [
                DASH if a not in profile else f"{100 * profile[a][value]:.0f}" for a, value in shown
            ]
            most = max(p["cells"] for p in profile.values())
            rows.append([kind.replace("_", " "), name, str(most), *cells])
    if not rows:
        return ""
    header = ["cell type", "", "cells", *(f"{a.replace('_', ' ')}: {v}" for a, v in shown)]
    return table(header, rows, words=2)
