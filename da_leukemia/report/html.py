"""The page: one HTML file that needs no network, and no script but for comfort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from urllib.parse import quote

from da_leukemia.config import devices_of, names_cells
from da_leukemia.errors import counted
from da_leukemia.report.areas import areas_section
from da_leukemia.report.attributes import attributes_section
from da_leukemia.report.cells import anchor, cells_section
from da_leukemia.report.contents import Contents
from da_leukemia.report.depth import Depth
from da_leukemia.report.factors import factors_section
from da_leukemia.report.figures import colour, top_of_scale
from da_leukemia.report.headlines import (
    METRIC_MEANINGS,
    headlines,
    metric_name,
    reference_method,
)
from da_leukemia.report.health import health_section
from da_leukemia.report.markup import breakable, escape
from da_leukemia.report.pictures import samples_section
from da_leukemia.report.published import published_section
from da_leukemia.report.ranks import ranks_section
from da_leukemia.report.sections import (
    details_section,
    devices_section,
    gap_section,
    missing_section,
    settings_section,
    unscored_section,
)
from da_leukemia.report.selection import selection_section
from da_leukemia.report.slides import Summed, slides_section
from da_leukemia.report.tables import (
    UNSCORED,
    UNSCORED_TITLE,
    knowledge,
    missing_sentence,
    percent,
    score,
)
from da_leukemia.sweep.matrix import View

MANY = 6
"""Devices from which a heat map gets a line of its own."""


def page(contents: Contents, summed: Summed) -> str:
    """Return the whole report as one HTML document.

    Args:
        contents: what is reported.
        summed: the slides, see `sum_up`.
    """
    headline = contents.matrix.headline
    space, cells = contents.experiment.data.label_space, names_cells(contents.experiment)
    sections = [
        ("matrices", "Trained on one device, tested on another", _matrices(contents)),
        ("published", "Beside published numbers", published_section(contents)),
        ("areas", "What a share of the annotation is worth", areas_section(contents)),
        ("cells", "Behind the cells", cells_section(contents)),
        ("unlabelled", UNSCORED_TITLE, unscored_section(contents)),
        ("gap", "How much of the loss adaptation wins back", gap_section(contents)),
        (
            "ranks",
            "Which method is better, over all changes of device",
            ranks_section(contents.ranks),
        ),
        (
            "factors",
            "What each optical factor costs",
            factors_section(contents.costs, headline),
        ),
        (
            "selection",
            "Which epoch is reported, and what another choice would give",
            selection_section(contents),
        ),
        ("health", "The health of adaptation", health_section(contents)),
        ("types", "By cell type and attribute", details_section(contents)),
        ("attributes", "Attributes, by both evaluations", attributes_section(contents)),
        ("slides", "Slide by slide", slides_section(summed, space, cells)),
        ("devices", "The devices as they were measured", devices_section(contents)),
        (
            "samples",
            "What the classifiers answer" if cells else "What the detectors see",
            samples_section(contents),
        ),
        ("missing", "Runs without a result", missing_section(contents)),
        ("settings", "Settings and versions", settings_section(contents)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    home = resources.files("da_leukemia.report")
    style, script = (home.joinpath(n).read_text("utf-8") for n in ("style.css", "page.js"))
    parts = [f'<h2 id="{name}">{escape(title)}</h2>\n{body}' for name, title, body in shown]
    name = escape(contents.experiment.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: cross-device matrix</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{_head(contents, links)}\n" + "\n".join(parts) + "\n"
        "<footer>Written by da_leukemia. The same numbers: matrix.csv, matrix.md, matrix.tex, "
        "matrix.png, matrix.svg, slides.json; where there is something to tell, selection.csv, "
        "ranks.svg, factors.csv.</footer>\n"
        '</main>\n<p class="readout" role="status" hidden></p>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


# --- head ------------------------------------------------------------------------------------


def _head(contents: Contents, links: str) -> str:
    experiment, matrix = contents.experiment, contents.matrix
    summaries = tuple(s for s in contents.gap.summaries if s.method in contents.shown)
    gap = replace(contents.gap, summaries=summaries)
    used = {row.test for row in matrix.rows} | _learned_from(contents)
    size = [
        counted(len(used), "device"),
        counted(len(experiment.methods), "method"),
        counted(len(experiment.seeds), "seed"),
        f"label space {escape(experiment.data.label_space)}",
    ]
    what = (
        "classifier of single cells" if names_cells(experiment) else "detector of white blood cells"
    )
    about = (
        f"A {what} is trained on the photographs of one device and {_tested(contents, used)}. "
        f"{', '.join(size)}."
    )
    lines = [f"<h1>{breakable(experiment.name)}</h1>", f'<p class="soft">{about}</p>']
    lines += [f"<nav>{links}</nav>", _figures(contents)]
    said = [f"<li>{escape(s)}</li>" for s in (*headlines(matrix, gap), *gap.notes)]
    lines += [f'<ul class="said">{"".join(said)}</ul>']
    warnings = [s for s in (missing_sentence(contents), contents.left_out, *matrix.notes) if s]
    lines += [f'<p class="warn">{escape(warning)}</p>' for warning in warnings]
    return "\n".join(lines)


def _learned_from(contents: Contents) -> set[str]:
    """Return the devices whose images are learned from, with labels or without."""
    runs = [*(r.run for r in contents.results), *(m.run for m in contents.missing)]
    learned = {d for run in runs for d in devices_of(run.source)} | {run.target for run in runs}
    return learned & set(contents.experiment.data.domains)  # a checkpoint is no device


def _tested(contents: Contents, used: set[str]) -> str:
    tested = {row.test for row in contents.matrix.rows}
    if not tested:
        return "could be tested on none" if contents.results else "not tested yet"
    if len(used) == 1:
        return "tested on the same device"
    return f"tested on {'every device' if tested == used else counted(len(tested), 'device')}"


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
    parts = [_switch(contents)]
    opened = {(d.row.method, d.row.source, d.row.test): d for d in contents.depths}
    for metric in contents.matrix.metrics:
        views = [contents.matrix.view(m, metric) for m in contents.shown]
        views = [v for v in views if not v.empty]
        name, mark = escape(metric_name(metric)), f'class="metric" data-metric="{escape(metric)}"'
        if metric == contents.matrix.headline:
            parts.append(f"<div {mark}>{_metric(metric, views, opened)}</div>")
        else:
            body = _metric(metric, views, {})
            parts.append(f"<details {mark}><summary>{name}</summary>{body}</details>")
    return "\n".join(parts)


def _switch(contents: Contents) -> str:
    """Return the choice of metric, by kind of evaluation, and method; hidden without a script."""
    groups: dict[str, list[str]] = {}
    for metric in contents.matrix.metrics:
        kind = "as released" if metric.endswith("as_released") else "strict"
        chosen = " selected" if metric == contents.matrix.headline else ""
        option = f'<option value="{escape(metric)}"{chosen}>{escape(metric_name(metric))}</option>'
        groups.setdefault(kind, []).append(option)
    metrics = "".join(
        f'<optgroup label="{kind} evaluation">{"".join(o)}</optgroup>' for kind, o in groups.items()
    )
    methods = "".join(f"<option>{escape(m)}</option>" for m in contents.shown)
    return (
        f'<div class="switch" hidden><label>Metric <select>{metrics}</select></label>'
        f'<label>Method <select><option value="">all, side by side</option>{methods}</select>'
        f"</label><span>Label space {escape(contents.experiment.data.label_space)}</span></div>"
    )


Opened = Mapping[tuple[str, str, str], Depth]
"""(method, source, test) -> what stands behind a cell, for those that can be opened."""


def _metric(metric: str, views: Sequence[View], opened: Opened) -> str:
    rows = [row for view in views for row in view.cells.values()]
    top = top_of_scale(row.value for row in rows)
    stops = ", ".join(colour(top * i / 8, top)[0] for i in range(9))
    seeds = sorted({row.seeds for row in rows})
    many = " to ".join(str(n) for n in dict.fromkeys((*seeds[:1], *seeds[-1:])))
    means = "One seed." if seeds == [1] else f"Mean over {many} seeds." if seeds else ""
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
        + "\n".join(_heat(view, top, opened) for view in views)
        + "</div>"
    )


def _heat(view: View, top: float, opened: Opened) -> str:
    head = "".join(f'<th scope="col">{breakable(test)}</th>' for test in view.tests)
    lines = []
    for source in view.sources:
        cells = "".join(_heat_cell(view, source, test, top, opened) for test in view.tests)
        lines.append(f'<tr><th scope="row">{breakable(source)}</th>{cells}</tr>')
    note = knowledge(view)
    many = " many" if len(view.tests) >= MANY else ""
    return (
        f'<div class="card" data-method="{escape(view.method)}">'
        f'<h3>{breakable(view.method)}</h3><p class="note">{note}</p>'
        f'<div class="scroll"><table class="heat{many}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def _heat_cell(view: View, source: str, test: str, top: float, opened: Opened) -> str:
    row = view.cells.get((source, test))
    if row is None:
        why = UNSCORED if (source, test) in view.unscored else "no run"
        return f'<td class="none">{why}</td>'
    span = "" if row.low is None else f"<small>{row.low:.2f}-{row.high:.2f}</small>"
    depth = opened.get((row.method, source, test))
    title = f"{row.method}, trained on {source}, tested on {test}: {row.value:.4f}"
    title += "" if row.low is None else f" [{row.low:.4f}, {row.high:.4f}]"
    title += f", {counted(row.seeds, 'seed')}, {counted(row.fields, 'field')}"
    title += "" if depth is None else f", {counted(depth.cells, 'cell')}"
    if (source, test) in view.borrowed:
        look = 'class="own"'
    else:
        fill, ink = colour(row.value, top)
        look = f'style="background:{fill};color:{ink}"'
    shown = f"{row.value:.2f}{span}"
    if depth is None:
        return f'<td {look} tabindex="0" title="{escape(title)}">{shown}</td>'
    goal = escape(quote(anchor(row.method, source, test)))
    return f'<td {look} title="{escape(title)}"><a href="#{goal}">{shown}</a></td>'
