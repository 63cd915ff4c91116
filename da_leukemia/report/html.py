"""The page: one HTML file that needs no network and no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from da_leukemia.report.contents import HEADLINE, Contents
from da_leukemia.report.figures import colour, top_of_scale
from da_leukemia.report.headlines import (
    METRIC_MEANINGS,
    headlines,
    metric_name,
    reference_method,
)
from da_leukemia.report.samples import MIN_SCORE, Finding, Sample, choose, draw
from da_leukemia.report.tables import (
    GAP_HEADER,
    SUMMARY_HEADER,
    caption,
    gap_cells,
    missing_sentence,
    percent,
    refusals,
    score,
    summary_cells,
)
from da_leukemia.sweep.matrix import View

MANY = 6
"""Devices from which a heat map gets a line of its own."""


def page(contents: Contents) -> str:
    """Return the whole report as one HTML document."""
    sections = [
        ("matrices", "Trained on one device, tested on another", _matrices(contents)),
        ("gap", "How much of the loss adaptation wins back", _gap(contents)),
        ("types", "By cell type and attribute", _details(contents)),
        ("samples", "What the detectors see", _samples(contents)),
        ("missing", "Runs without a result", _missing(contents)),
        ("settings", "Settings and versions", _settings(contents)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{_t(title)}</a>' for name, title, _ in shown)
    style = resources.files("da_leukemia.report").joinpath("style.css").read_text("utf-8")
    parts = [f'<h2 id="{name}">{_t(title)}</h2>\n{body}' for name, title, body in shown]
    name = _t(contents.experiment.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: cross-device matrix</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{_head(contents, links)}\n" + "\n".join(parts) + "\n"
        "<footer>Written by da_leukemia. The same numbers: matrix.csv, matrix.md, matrix.tex, "
        "matrix.png.</footer>\n</main>\n</body>\n</html>\n"
    )


def _t(text: object) -> str:
    return html.escape(str(text))


def _name(text: str) -> str:
    """Escape a name and let it break after underscores."""
    return _t(text).replace("_", "_<wbr>")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# --- head ------------------------------------------------------------------------------------


def _head(contents: Contents, links: str) -> str:
    experiment, matrix, gap = contents.experiment, contents.matrix, contents.gap
    devices = len(experiment.data.domains)
    about = (
        f"A detector of white blood cells is trained on the photographs of one device and tested "
        f"on every device. {_count(devices, 'device')}, {_count(len(experiment.methods), 'method')}"
        f", {_count(len(experiment.seeds), 'seed')}, label space {_t(experiment.data.label_space)}."
    )
    lines = [f"<h1>{_name(experiment.name)}</h1>", f'<p class="soft">{about}</p>']
    lines += [f"<nav>{links}</nav>", _figures(contents)]
    said = [f"<li>{_t(s)}</li>" for s in (*headlines(matrix, gap), *gap.notes)]
    lines += [f'<ul class="said">{"".join(said)}</ul>']
    warnings = [s for s in (missing_sentence(contents), *matrix.notes) if s]
    lines += [f'<p class="warn">{_t(warning)}</p>' for warning in warnings]
    return "\n".join(lines)


def _figures(contents: Contents) -> str:
    method, best = reference_method(contents.matrix), contents.gap.best
    cards: list[tuple[str, str]] = []
    if method is not None:
        view = contents.matrix.view(method, HEADLINE)
        name = metric_name(HEADLINE)
        for same, where in ((True, "on the device it was trained on"), (False, "on another one")):
            if (mean := view.mean(same)) is not None:
                cards.append((score(mean), f"{name} {where}, not adapted"))
    if best is not None:
        mean = contents.matrix.view(best.method, HEADLINE).mean(same=False)
        cards.append((score(mean), f"{metric_name(HEADLINE)} on another one with {best.method}"))
        cards.append((percent(best.ratio_of_means), "of the gap to the oracle closed"))
    shown = "".join(
        f"<div><b>{_t(big)}</b><span>{_name(small)}</span></div>" for big, small in cards
    )
    return f'<div class="figures">{shown}</div>' if cards else ""


# --- matrices --------------------------------------------------------------------------------


def _matrices(contents: Contents) -> str:
    parts = []
    for metric in contents.matrix.metrics:
        views = [contents.matrix.view(m, metric) for m in contents.matrix.methods]
        views = [v for v in views if v.cells]
        body = _metric(metric, views)
        if metric == HEADLINE:
            parts.append(body)
        else:
            name = _t(metric_name(metric))
            parts.append(f"<details><summary>{name}</summary>{body}</details>")
    return "\n".join(parts)


def _metric(metric: str, views: Sequence[View]) -> str:
    rows = [row for view in views for row in view.cells.values()]
    top = top_of_scale(row.value for row in rows)
    stops = ", ".join(colour(top * i / 8, top)[0] for i in range(9))
    seeds = sorted({row.seeds for row in rows})
    counted = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    means = "One seed." if seeds == [1] else f"Mean over {counted} seeds."
    if any(row.low is not None for row in rows):
        means += " Below it the 95 % interval of a bootstrap over seeds and patients."
    grey = " Grey: not adapted (fair_source_only)." if any(v.borrowed for v in views) else ""
    about = f"{metric_name(metric)}: {METRIC_MEANINGS.get(metric, metric)}. {means}{grey}"
    wide = " wide" if views and len(views[0].tests) >= MANY else ""
    return (
        f"<p>{_t(about)} Rows: trained on. Columns: tested on.</p>\n"
        f'<div class="scale">0 <i style="background:linear-gradient(90deg,{stops})"></i> '
        f'{top:.1f}</div>\n<div class="grid{wide}">'
        + "\n".join(_heat(view, top) for view in views)
        + "</div>"
    )


def _heat(view: View, top: float) -> str:
    head = "".join(f'<th scope="col">{_name(test)}</th>' for test in view.tests)
    lines = []
    for source in view.sources:
        cells = "".join(_heat_cell(view, source, test, top) for test in view.tests)
        lines.append(f'<tr><th scope="row">{_name(source)}</th>{cells}</tr>')
    note = _t(caption(view).removeprefix(view.method).strip(" ()"))
    many = " many" if len(view.tests) >= MANY else ""
    return (
        f'<div class="card"><h3>{_name(view.method)}</h3><p class="note">{note}</p>'
        f'<div class="scroll"><table class="heat{many}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def _heat_cell(view: View, source: str, test: str, top: float) -> str:
    row = view.cells.get((source, test))
    if row is None:
        return '<td class="none">no run</td>'
    span = "" if row.low is None else f"<small>{row.low:.2f}-{row.high:.2f}</small>"
    title = f"{view.method}, trained on {source}, tested on {test}: {row.value:.4f}"
    title += f", {_count(row.seeds, 'seed')}, {_count(row.fields, 'field')}"
    if (source, test) in view.borrowed:
        look = 'class="own"'
    else:
        fill, ink = colour(row.value, top)
        look = f'style="background:{fill};color:{ink}"'
    return f'<td {look} title="{_t(title)}">{row.value:.2f}{span}</td>'


# --- tables ----------------------------------------------------------------------------------


def _list(header: Sequence[str], rows: Iterable[Sequence[str]], words: int, best: int = -1) -> str:
    """Return a table whose first ``words`` columns are text and the others numbers."""
    kinds = ["" if i < words else ' class="n"' for i in range(len(header))]
    head = "".join(f"<th{k} scope='col'>{_t(h)}</th>" for k, h in zip(kinds, header, strict=True))
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{k}>{_name(c)}</td>" for k, c in zip(kinds, row, strict=True))
        lines.append(f"<tr{' class=best' if i == best else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="list"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _gap(contents: Contents) -> str:
    gap = contents.gap
    if not gap.gaps:
        return ""
    order = [s.method for s in gap.summaries]
    best = order.index(gap.best.method) if gap.best is not None else -1
    told = "".join(f"<li>{_t(reason)}</li>" for reason in refusals(gap))
    pairs = _list(GAP_HEADER, [gap_cells(g) for g in gap.gaps], words=3)
    opened = " open" if len(gap.gaps) <= 12 else ""
    return (
        "<p>Gap closed = (adapted - fair source-only) / (oracle - fair source-only). Fair "
        "source-only has the same steps, augmentation and averaging of weights and saw no image "
        "of the tested device; the oracle is the same recipe trained on the tested device's own "
        "labels. The ratio of means is the one to quote.</p>"
        + _list(SUMMARY_HEADER, [summary_cells(s) for s in gap.summaries], words=1, best=best)
        + f"<details{opened}><summary>Every pair</summary>{pairs}"
        "<p class='soft'>In brackets behind a gain: its 95 % interval, fair and adapted run "
        "scored on the same resampled patients.</p></details>"
        + (f"<p>Not given:</p><ul class='said'>{told}</ul>" if told else "")
    )


def _details(contents: Contents) -> str:
    parts = []
    for section, key, title in (
        ("per_class", "ap50", "Cell type (AP50)"),
        ("per_attribute", "f1", "Attribute (macro-F1 on found cells)"),
    ):
        rows, header = _breakdown(contents, section, key, title.split(" (")[0])
        if rows:
            parts.append(f"<h3>{_t(title)}</h3>{_list(header, rows, words=1)}")
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
    reference = reference_method(contents.matrix)
    values: dict[str, dict[tuple[str, bool], list[float]]] = {}
    truths: dict[str, dict[str, int]] = {}
    for result in contents.results:
        run = result.run
        for test in result.content["tests"]:
            if run.target not in ("", test):
                continue
            for name, entry in (result.metrics(test).get(section) or {}).items():
                truths.setdefault(name, {})[test] = int(entry.get("truths") or 0)
                if entry.get(key) is not None:
                    place = values.setdefault(name, {})
                    place.setdefault((run.method, run.source == test), []).append(entry[key])
    columns = [(reference, True)] if reference else []
    columns += [(method, False) for method in contents.matrix.methods]
    header = [what, "cells", *(f"{m}, {'same' if s else 'other'}" for m, s in columns)]
    rows = []
    for name, counted in truths.items():
        found: list[float | None] = []
        for method, same in columns:
            scores = values.get(name, {}).get((str(method), same))
            found.append(fmean(scores) if scores else None)
        rows.append([name, str(sum(counted.values())), *(score(v) for v in found)])
    return rows, header


# --- samples ---------------------------------------------------------------------------------


def _samples(contents: Contents) -> str:
    blocks = []
    for test, samples in choose(contents):
        figures = "".join(_sample(sample) for sample in samples)
        blocks.append(f'<h3>{_name(test)}</h3><div class="pair">{figures}</div>')
    if not blocks:
        return ""
    return (
        "<p>White dashes: the true boxes. Coloured boxes: detections, dark for a low score and "
        f"yellow for a high one; those below {MIN_SCORE} are left out. Under each picture the "
        "attributes of every detection; what is wrong is marked with the truth behind it.</p>"
        + "".join(blocks)
    )


def _sample(sample: Sample) -> str:
    try:
        data = base64.b64encode(draw(sample)).decode()
    except OSError as error:
        return f'<figure><figcaption class="warn">{_t(error)}</figcaption></figure>'
    run = sample.result.run
    goal = f", adapted to {run.target}" if run.target else ", not adapted"
    found = "".join(_finding(f) for f in sample.findings)
    alt = f"{sample.name}: {len(sample.truths)} true cells, {len(sample.findings)} detections"
    return (
        f'<figure><img alt="{_t(alt)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption><b>{_name(run.method)}</b>, trained on {_name(run.source)}{_name(goal)}, "
        f"seed {run.seed}. {_t(alt)}.</figcaption>"
        f'<ol class="found">{found}</ol></figure>'
    )


def _finding(finding: Finding) -> str:
    truth = finding.truth
    told = f"<b>{finding.number}</b> {_t(finding.type)} {finding.score:.2f}"
    if truth is None:
        told += ' <span class="neg">(no such cell)</span>'
    elif truth.get("type") != finding.type:
        told += f' <span class="neg">(truth: {_t(truth.get("type"))})</span>'
    known: dict[str, Any] = (truth or {}).get("attributes") or {}
    said = []
    for name, (value, _) in finding.attributes.items():
        words = f"{_t(name.replace('_', ' '))} {_t(value)}"
        right = known.get(name)
        if truth is not None and right is not None and right != value:
            words += f' <span class="neg">({_t(right)})</span>'
        said.append(words)
    return f"<li>{told}{': ' if said else ''}{', '.join(said)}</li>"


# --- the rest --------------------------------------------------------------------------------


def _missing(contents: Contents) -> str:
    if not contents.missing:
        return ""
    items = []
    for missing in contents.missing:
        text = f"{_name(str(missing.run))} <span class='soft'>job {_t(missing.job)}</span>"
        if missing.failure is not None:
            text += f"<details><summary>failed</summary><pre>{_t(missing.failure)}</pre></details>"
        items.append(f"<li>{text}</li>")
    listed = f"<ul class='said'>{''.join(items)}</ul>"
    if len(items) > 20:
        listed = f"<details><summary>All {len(items)}</summary>{listed}</details>"
    return f"<p>{_t(missing_sentence(contents))}</p>{listed}"


def _settings(contents: Contents) -> str:
    experiment = contents.experiment
    file = experiment.folder / "experiment.yaml"
    facts: dict[str, dict[str, None]] = {}

    def note(what: str, value: object) -> None:
        if value not in (None, ""):
            facts.setdefault(what, {})[str(value)] = None

    trained = 0.0
    for result in contents.results:
        content = result.content
        for name, version in (content.get("versions") or {}).items():
            note(name, version)
        note("data fingerprint", (content.get("data") or {}).get("fingerprint"))
        note("device", content.get("device"))
        trained += float((content.get("timings") or {}).get("train_s") or 0.0)
        for test in content["tests"]:
            note("evaluator", result.metrics(test).get("evaluator_version"))
    rows = [[what, ", ".join(values)] for what, values in facts.items()]
    if trained:
        rows.append(["training time, all runs", f"{trained / 60:.1f} min"])
    settings = OmegaConf.to_yaml(OmegaConf.structured(experiment))
    commands = f"da-leukemia sweep run {file}\nda-leukemia sweep report {file}"
    return (
        f"<p>To make this report again:</p><pre>{_t(commands)}</pre>"
        + (_list(["", ""], rows, words=2) if rows else "")
        + f"<details><summary>The resolved experiment</summary><pre>{_t(settings)}</pre></details>"
    )
