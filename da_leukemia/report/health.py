"""The section about the health of adaptation: what components logged, as small curves."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from da_leukemia.report.contents import Contents
from da_leukemia.report.markup import breakable, escape, table
from da_leukemia.report.tables import DASH, percent
from da_leukemia.sweep.results import Result

Curve = list[tuple[int, float]]
"""(step, value), by rising step."""

PREFIX = "health/"

FIGURES = {
    "pseudo_boxes_per_image": ("pseudo-boxes per image", "cells that the teacher teaches"),
    "teacher_positives_per_image": (
        "taught places per image",
        "places where the teacher sees a cell",
    ),
    "pseudo_precision": (
        "precision of pseudo-labels",
        "share of pseudo-labels that are right, told with hidden labels after training",
    ),
    "pseudo_recall": (
        "recall of pseudo-labels",
        "share of the target's cells that have a pseudo-label, told after training",
    ),
    "class_shift": (
        "class shift",
        "share of pseudo-labels to be moved for the source's class histogram",
    ),
    "threshold_min": ("threshold, smallest", "of the adaptive thresholds of the classes"),
    "threshold_mean": ("threshold", "score from which a detection is a pseudo-label"),
    "threshold_max": ("threshold, largest", "of the adaptive thresholds of the classes"),
    "unsupervised_ratio": (
        "unsupervised : supervised loss",
        "far above 1 the pseudo-labels decide what is learned",
    ),
    "disagreement": (
        "teacher-student disagreement",
        "mean distance of class scores where the teacher sees a cell",
    ),
    "doubtful_share": ("doubtful share", "of all places, or of all images, that teach nothing"),
    "discriminator_accuracy": (
        "discriminator accuracy",
        "0.5: the devices cannot be told apart in the features",
    ),
    "instance_accuracy": ("discriminator accuracy, cells", "the same for the features of cells"),
}
"""What is logged: how it is called and what it means. Others are shown under their own name."""

MOST_RATIO = 10.0
"""Unsupervised : supervised loss from which a run is named."""

NAMED, DRAWN = 20, 30
"""Runs that are named, and lines that are drawn in one picture; the mean is over all."""

_WIDE, _HIGH, _POINTS = 230, 84, 60


def curves(result: Result) -> dict[str, Curve]:
    """Return the health of one run over its steps, nothing where its job folder is gone."""
    found: dict[str, Curve] = defaultdict(list)
    path = result.folder / "metrics.csv" if result.folder is not None else None
    if path is not None and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name.startswith(PREFIX) and value and math.isfinite(float(value)):
                        found[name.removeprefix(PREFIX)].append((int(row["step"]), float(value)))
    fixed = "threshold_mean" not in found
    for record in result.content.get("epochs") or []:
        pseudo: Mapping[str, Any] = record.get("pseudo") or {}
        names = {"pseudo_precision": "precision", "pseudo_recall": "recall"}
        names |= {"threshold_mean": "threshold"} if fixed else {}
        for name, key in names.items():
            if pseudo.get(key) is not None:
                found[name].append((int(record["step"]), float(pseudo[key])))
    known = [n for n in FIGURES if n in found]
    return {n: found[n] for n in [*known, *sorted(found.keys() - FIGURES.keys())]}


def health_section(contents: Contents) -> str:
    """Curves by method, what is conspicuous, and the pseudo-labels by type."""
    by_method: dict[str, dict[str, list[tuple[str, Curve]]]] = {}
    told = []
    for result in contents.results:
        if result.run.method not in contents.shown:
            continue
        name = str(result.run)
        for figure, curve in curves(result).items():
            of_method = by_method.setdefault(result.run.method, {})
            of_method.setdefault(figure, []).append((name, curve))
            told += _conspicuous(name, figure, curve)
    if not by_method:
        return ""
    parts = [
        "<p>Means over each epoch of training. A thin line is one run, the thick one their mean. "
        "Nothing here reaches training; precision and recall of pseudo-labels, which need the "
        "hidden labels, are told after training, of the epochs that <code>selection.every</code> "
        "keeps.</p>"
    ]
    if len(told) > NAMED:
        told[NAMED:] = [f"And {len(told) - NAMED} more of the like."]
    if told:
        parts.append(f"<ul class='said'>{''.join(f'<li>{escape(s)}</li>' for s in told)}</ul>")
    for method, figures in by_method.items():
        drawn = "".join(_card(figure, lines) for figure, lines in figures.items())
        types = _types([r for r in contents.results if r.run.method == method])
        parts.append(f'<h3>{breakable(method)}</h3><div class="curves">{drawn}</div>{types}')
    return "\n".join(parts)


def _conspicuous(name: str, figure: str, curve: Curve) -> list[str]:
    if figure == "pseudo_boxes_per_image" and curve[-1][1] == 0:
        return [f"{name}: no pseudo-label in the last epoch, so self-training taught nothing."]
    highest = max(value for _, value in curve)
    if figure == "unsupervised_ratio" and highest > MOST_RATIO:
        return [f"{name}: the unsupervised loss was {highest:.0f} times the supervised one."]
    return []


def _card(figure: str, lines: Sequence[tuple[str, Curve]]) -> str:
    title, meaning = FIGURES.get(figure, (figure.replace("_", " "), ""))
    return (
        f'<figure class="curve" title="{escape(meaning)}"><figcaption>{escape(title)}'
        f"</figcaption>{_svg(title, lines)}</figure>"
    )


def _svg(title: str, lines: Sequence[tuple[str, Curve]]) -> str:
    values = [v for _, curve in lines for _, v in curve]
    steps = [s for _, curve in lines for s, _ in curve]
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1.0
    first, last = min(steps), max(steps)

    def drawn(curve: Curve, kind: str, name: str) -> str:
        points = [
            (
                _WIDE * (s - first) / max(last - first, 1),
                _HIGH * (high - v) / (high - low),
            )
            for s, v in _thinned(curve)
        ]
        if len(points) == 1:  # a line of no length is not drawn
            points = [(0.0, points[0][1]), (float(_WIDE), points[0][1])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline class="{kind}" points="{path}"><title>{escape(name)}</title></polyline>'

    at: dict[int, list[float]] = defaultdict(list)
    for _, curve in lines:
        for step, value in curve:
            at[step].append(value)
    mean = [(step, fmean(at[step])) for step in sorted(at)]
    thin = [drawn(curve, "one", name) for name, curve in lines[:DRAWN]] if len(lines) > 1 else []
    told = f"{title}: from {mean[0][1]:.3g} at step {first} to {mean[-1][1]:.3g} at step {last}"
    return (
        f'<svg viewBox="-34 -8 {_WIDE + 42} {_HIGH + 26}" role="img" aria-label="{escape(told)}">'
        f'<path class="axis" d="M0 0V{_HIGH}H{_WIDE}"/>'
        f'<text x="-4" y="4" text-anchor="end">{high:.3g}</text>'
        f'<text x="-4" y="{_HIGH}" text-anchor="end">{low:.3g}</text>'
        f'<text x="0" y="{_HIGH + 13}">step {first}</text>'
        f'<text x="{_WIDE}" y="{_HIGH + 13}" text-anchor="end">{last}</text>'
        f"{''.join(thin)}{drawn(mean, 'mean', told)}</svg>"
    )


def _thinned(curve: Curve) -> Curve:
    every = -(-len(curve) // _POINTS)
    return [p for i, p in enumerate(curve) if i % every == 0 or i == len(curve) - 1]


TYPES_HEADER = ("type", "source's labels", "pseudo-labels", "hidden labels", "precision", "recall")


def _types(results: Iterable[Result]) -> str:
    """Return the pseudo-labels of the last recorded epochs by type, all runs of a method added."""
    sums: dict[str, dict[str, int]] = {}
    for result in results:
        told = [r["pseudo"] for r in result.content.get("epochs") or [] if r.get("pseudo")]
        for name, counts in (told[-1]["per_class"] if told else {}).items():
            mine = sums.setdefault(name, defaultdict(int))
            for key, count in counts.items():
                mine[key] += count
    if not sums:
        return ""
    total = {key: sum(s[key] for s in sums.values()) for key in ("source", "pseudo", "true")}
    rows = []
    for name, s in sums.items():
        shares = [percent(s[k] / total[k]) if total[k] else DASH for k in total]
        right = [s["right"] / s[k] if s[k] else None for k in ("pseudo", "true")]
        rows.append([name, *shares, *(percent(r) for r in right)])
    return (
        "<details><summary>Pseudo-labels by type</summary><p>Shares of each type among the "
        "source's training labels, the pseudo-labels and the target's hidden labels, at the last "
        f"recorded epoch, all runs added.</p>{table(TYPES_HEADER, rows, words=1)}</details>"
    )
