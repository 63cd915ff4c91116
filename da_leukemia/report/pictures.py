"""The section of sample pictures: fields as the detectors see them, cells as they are named."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from da_leukemia.config import names_cells
from da_leukemia.errors import counted
from da_leukemia.report.contents import Contents
from da_leukemia.report.markup import breakable, escape
from da_leukemia.report.samples import (
    MIN_SCORE,
    Finding,
    Sample,
    choose,
    draw,
    first_sample,
    portrait,
    samples_of,
)
from da_leukemia.sweep.results import Result


def samples_section(contents: Contents) -> str:
    """Sample fields, or single cells, of every device."""
    if names_cells(contents.experiment):
        return _answers_section(contents)
    blocks = []
    for test, samples in choose(contents, first_sample):
        figures = "".join(_sample(r, sample, test in r.content["tests"]) for r, sample in samples)
        blocks.append(f'<h3>{breakable(test)}</h3><div class="pair">{figures}</div>')
    if not blocks:
        return ""
    return (
        "<p>White dashes: the true boxes. Coloured boxes: detections, dark for a low score and "
        f"yellow for a high one; those below {MIN_SCORE} are left out, of two on one cell the "
        "better is drawn. Under each picture the "
        "attributes of every cell and how sure the detector is of each; what is wrong has the "
        "truth behind it.</p>" + "".join(blocks)
    )


def _answers_section(contents: Contents) -> str:
    """Sample cells of every device, each once, with what every run says it is."""
    blocks = []
    for test, runs in choose(contents, lambda r, t: samples_of(r, t, single_cells=True) or None):
        said = [(r.run.method, {s.name: s for s in samples}) for r, samples in runs]
        cells = {name: sample for _, samples in said for name, sample in samples.items()}
        figures = "".join(
            _cell(sample, [(method, samples.get(name)) for method, samples in said])
            for name, sample in cells.items()
        )
        run = runs[0][0].run
        blocks.append(
            f"<h3>{breakable(test)}</h3><p class='note'>Trained on {escape(run.source)}, seed "
            f"{run.seed}.</p><div class='answers'>{figures}</div>"
        )
    if not blocks:
        return ""
    return (
        "<p>Cells of the test part, of every type by turns. In bold what the cell is; below it the "
        "likeliest type by each method and its probability, in red where it is wrong.</p>"
        + "".join(blocks)
    )


def _cell(sample: Sample, said: Sequence[tuple[str, Sample | None]]) -> str:
    try:
        data = base64.b64encode(portrait(sample)).decode()
    except OSError as error:
        return f'<figure><figcaption class="warn">{escape(error)}</figcaption></figure>'
    truth = str(sample.truths[0]["type"]) if sample.truths else "unknown"
    lines = "".join(f"<li>{breakable(method)}: {_answer(s, truth)}</li>" for method, s in said)
    name = truth.replace("_", " ")
    return (
        f'<figure title="{escape(sample.name)}">'
        f'<img alt="{escape(f"{sample.name}: {name}")}" src="data:image/jpeg;base64,{data}">'
        f'<figcaption><b>{escape(name)}</b></figcaption><ol class="found">{lines}</ol></figure>'
    )


def _answer(sample: Sample | None, truth: str) -> str:
    if sample is None or not sample.findings:  # of a run that kept sure answers alone
        return "not kept"
    answer = sample.findings[0]
    text = escape(f"{answer.type.replace('_', ' ')} {answer.score:.2f}")
    wrong = truth not in ("unknown", answer.type)
    return f'<span class="neg">{text}</span>' if wrong else text


def _sample(result: Result, sample: Sample, labelled: bool) -> str:
    try:
        data = base64.b64encode(draw(sample)).decode()
    except OSError as error:
        return f'<figure><figcaption class="warn">{escape(error)}</figcaption></figure>'
    run = result.run
    goal = f", adapted to {run.target}" if run.target else ", not adapted"
    found = "".join(_finding(f) for f in sample.findings)
    truth = f"{counted(len(sample.truths), 'true cell')}, " if labelled else ""
    alt = f"{sample.name}: {truth}{len(sample.findings)} found"
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption><b>{breakable(run.method)}</b>, trained on "
        f"{breakable(run.source + goal)}, seed {run.seed}. {escape(alt)}.</figcaption>"
        f'<ol class="found">{found}</ol></figure>'
    )


def _finding(finding: Finding) -> str:
    truth = finding.truth
    told = f"<b>{finding.number}</b> {escape(finding.title)}"
    if truth is None:
        told += ' <span class="neg">(no such cell)</span>'
    elif truth.get("type") != finding.type:
        told += f' <span class="neg">(truth: {escape(truth.get("type"))})</span>'
    known: dict[str, Any] = (truth or {}).get("attributes") or {}
    said = []
    for name, (value, sure) in finding.attributes.items():
        words = f"{escape(name.replace('_', ' '))} {escape(value)} {100 * sure:.0f}&nbsp;%"
        right = known.get(name)
        if right is not None and right != value:
            words += f' <span class="neg">({escape(right)})</span>'
        said.append(words)
    return f"<li>{told}{': ' if said else ''}{', '.join(said)}</li>"
