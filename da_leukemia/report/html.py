"""The page: one HTML file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from da_leukemia.errors import counted
from da_leukemia.report.attributes import attributes_section
from da_leukemia.report.contents import Contents
from da_leukemia.report.figures import colour, top_of_scale
from da_leukemia.report.headlines import (
    METRIC_MEANINGS,
    headlines,
    metric_name,
    reference_method,
)
from da_leukemia.report.health import health_section
from da_leukemia.report.markup import breakable, escape
from da_leukemia.report.sections import (
    details_section,
    devices_section,
    gap_section,
    missing_section,
    samples_section,
    settings_section,
)
from da_leukemia.report.selection import selection_section
from da_leukemia.report.slides import Summed, slides_section
from da_leukemia.report.tables import knowledge, missing_sentence, percent, score
from da_leukemia.sweep.matrix import View

MANY = 6
"""Devices from which a heat map gets a line of its own."""


def page(contents: Contents, summed: Summed) -> str:
    """Return the whole report as one HTML document.

    Args:
        contents: what is reported.
        summed: the slides, see `sum_up`.
    """
    sections = [
        ("matrices", "Trained on one device, tested on another", _matrices(contents)),
        ("gap", "How much of the loss adaptation wins back", gap_section(contents)),
        (
            "selection",
            "Which epoch is reported, and what another choice would give",
            selection_section(contents),
        ),
        ("health", "The health of adaptation", health_section(contents)),
        ("types", "By cell type and attribute", details_section(contents)),
        ("attributes", "Attributes, by both evaluations", attributes_section(contents)),
        ("slides", "Slide by slide", slides_section(summed, contents.experiment.data.label_space)),
        ("devices", "The devices as they were measured", devices_section(contents)),
        ("samples", "What the detectors see", samples_section(contents)),
        ("missing", "Runs without a result", missing_section(contents)),
        ("settings", "Settings and versions", settings_section(contents)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    style = resources.files("da_leukemia.report").joinpath("style.css").read_text("utf-8")
    parts = [f'<h2 id="{name}">{escape(title)}</h2>\n{body}' for name, title, body in shown]
    name = escape(contents.experiment.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: cross-device matrix</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{_head(contents, links)}\n" + "\n".join(parts) + "\n"
        "<footer>Written by da_leukemia. The same numbers: matrix.csv, matrix.md, matrix.tex, "
        "matrix.png, slides.json; where epochs were recorded, selection.csv.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


# --- head ------------------------------------------------------------------------------------


def _head(contents: Contents, links: str) -> str:
    experiment, matrix, gap = contents.experiment, contents.matrix, contents.gap
    size = [
        counted(len(experiment.data.domains), "device"),
        counted(len(experiment.methods), "method"),
        counted(len(experiment.seeds), "seed"),
        f"label space {escape(experiment.data.label_space)}",
    ]
    cells = experiment.detector.kind == "classifier"
    what = "classifier of single cells" if cells else "detector of white blood cells"
    about = (
        f"A {what} is trained on the photographs of one device and tested on every device. "
        f"{', '.join(size)}."
    )
    lines = [f"<h1>{breakable(experiment.name)}</h1>", f'<p class="soft">{about}</p>']
    lines += [f"<nav>{links}</nav>", _figures(contents)]
    said = [f"<li>{escape(s)}</li>" for s in (*headlines(matrix, gap), *gap.notes)]
    lines += [f'<ul class="said">{"".join(said)}</ul>']
    warnings = [s for s in (missing_sentence(contents), *matrix.notes) if s]
    lines += [f'<p class="warn">{escape(warning)}</p>' for warning in warnings]
    return "\n".join(lines)


def _figures(contents: Contents) -> str:
    method, best = reference_method(contents.matrix), contents.gap.best
    headline = contents.matrix.headline
    cards: list[tuple[str, str]] = []
    if method is not None:
        view = contents.matrix.view(method, headline)
        name = metric_name(headline)
        for same, where in ((True, "on the device it was trained on"), (False, "on another one")):
            if (mean := view.mean(same)) is not None:
                cards.append((score(mean), f"{name} {where}, not adapted"))
    if best is not None:
        mean = contents.matrix.view(best.method, headline).mean(same=False)
        cards.append((score(mean), f"{metric_name(headline)} on another one with {best.method}"))
        cards.append((percent(best.ratio_of_means), "of the gap to the oracle closed"))
    shown = "".join(
        f"<div><b>{escape(big)}</b><span>{breakable(small)}</span></div>" for big, small in cards
    )
    return f'<div class="figures">{shown}</div>' if cards else ""


# --- matrices --------------------------------------------------------------------------------


def _matrices(contents: Contents) -> str:
    parts = []
    for metric in contents.matrix.metrics:
        views = [contents.matrix.view(m, metric) for m in contents.matrix.methods]
        views = [v for v in views if v.cells]
        body = _metric(metric, views)
        if metric == contents.matrix.headline:
            parts.append(body)
        else:
            name = escape(metric_name(metric))
            parts.append(f"<details><summary>{name}</summary>{body}</details>")
    return "\n".join(parts)


def _metric(metric: str, views: Sequence[View]) -> str:
    rows = [row for view in views for row in view.cells.values()]
    top = top_of_scale(row.value for row in rows)
    stops = ", ".join(colour(top * i / 8, top)[0] for i in range(9))
    seeds = sorted({row.seeds for row in rows})
    many = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    means = "One seed." if seeds == [1] else f"Mean over {many} seeds."
    if any(row.low is not None for row in rows):
        means += (
            " Below it the 95 % interval of a bootstrap over seeds and patients (fields where a "
            "device names none)."
        )
    grey = " Grey: not adapted (fair_source_only)." if any(v.borrowed for v in views) else ""
    about = f"{metric_name(metric)}: {METRIC_MEANINGS.get(metric, metric)}. {means}{grey}"
    wide = " wide" if views and len(views[0].tests) >= MANY else ""
    return (
        f"<p>{escape(about)} Rows: trained on. Columns: tested on.</p>\n"
        f'<div class="scale">0 <i style="background:linear-gradient(90deg,{stops})"></i> '
        f'{top:.1f}</div>\n<div class="grid{wide}">'
        + "\n".join(_heat(view, top) for view in views)
        + "</div>"
    )


def _heat(view: View, top: float) -> str:
    head = "".join(f'<th scope="col">{breakable(test)}</th>' for test in view.tests)
    lines = []
    for source in view.sources:
        cells = "".join(_heat_cell(view, source, test, top) for test in view.tests)
        lines.append(f'<tr><th scope="row">{breakable(source)}</th>{cells}</tr>')
    note = knowledge(view)
    many = " many" if len(view.tests) >= MANY else ""
    return (
        f'<div class="card"><h3>{breakable(view.method)}</h3><p class="note">{note}</p>'
        f'<div class="scroll"><table class="heat{many}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def _heat_cell(view: View, source: str, test: str, top: float) -> str:
    row = view.cells.get((source, test))
    if row is None:
        return '<td class="none">no run</td>'
    span = "" if row.low is None else f"<small>{row.low:.2f}-{row.high:.2f}</small>"
    title = f"{view.method}, trained on {source}, tested on {test}: {row.value:.4f}"
    title += f", {counted(row.seeds, 'seed')}, {counted(row.fields, 'field')}"
    if (source, test) in view.borrowed:
        look = 'class="own"'
    else:
        fill, ink = colour(row.value, top)
        look = f'style="background:{fill};color:{ink}"'
    return f'<td {look} title="{escape(title)}">{row.value:.2f}{span}</td>'
