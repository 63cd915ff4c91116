"""Attributes by both evaluations, what they add to the cell type, and whether scores are honest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from da_leukemia.config import devices_of
from da_leukemia.evaluation.as_released import MAX_DETECTIONS, NMS_IOU, SCORE_THRESHOLD
from da_leukemia.report.contents import Contents
from da_leukemia.report.markup import escape, table
from da_leukemia.report.tables import DASH, score
from da_leukemia.sweep.results import Result

VIEWS = (
    ("true_boxes", "strict, on true boxes"),
    ("found", "strict, on found cells"),
    ("end_to_end", "strict, end to end"),
)
ATTRIBUTES_HEADER = (
    *("method", "device", "evaluation", "F1", "balanced accuracy"),
    *("lookup F1", "gain in F1", "lookup bal. acc.", "gain in bal. acc."),
)
DETECTION_HEADER = (
    *("method", "device", "mAP50 as released", "mAP50-95 as released", "AP50", "AP50-95"),
    *("AP50 without none", "AP50-95 without none"),
)
_DETECTION = (
    *("map50_as_released", "map50_95_as_released", "ap50", "ap50_95"),
    *("ap50_without_none", "ap50_95_without_none"),
)
_COMPARED = (
    *("f1", "balanced_accuracy", "lookup_f1", "gain_f1"),
    *("lookup_balanced_accuracy", "gain_balanced_accuracy"),
)

Tested = list[tuple[Result, str]]


def attributes_section(contents: Contents) -> str:
    """Scores by both evaluations, of attributes and of detection, and reliability plots."""
    rows: list[list[str]] = []
    detection: list[list[str]] = []
    plots: list[str] = []
    for method, same, tested in _groups(contents):
        place = "same" if same else "other"
        rows += list(_attribute_rows(method, place, tested))
        values = [_mean(tested, name) for name in _DETECTION]
        if values[0] is not None:
            detection.append([method, place, *(score(v) for v in values)])
        plots += reliability_plots(f"{method}, {place} device", tested)
    if not rows and not detection:
        return ""
    parts = [
        "<p>Means over seeds and pairs of devices. <i>Same</i>: tested on the device it was "
        "trained on. <i>Other</i>: on another one, adapted to it where the method adapts. <i>As "
        "released</i> follows AttriDet's test script and stands beside its published numbers "
        "only; <i>strict</i> is one-to-one at IoU 0.5. The lookup says for each cell type what "
        "was most frequent in the source's training labels; on true boxes it is told the true "
        "type, elsewhere it takes the detected one. The gain is what the attribute head adds to "
        "it.</p>"
    ]
    if rows:
        parts.append(table(ATTRIBUTES_HEADER, rows, words=3))
    if detection:
        parts += [
            f"<p>Detection by both evaluations. {escape(_settings(contents))}</p>",
            table(*_without_empty(DETECTION_HEADER, detection), words=2),
        ]
    if unlearned := _unlearned(contents):
        parts.append(f"<p>{escape(unlearned)}</p>")
    if plots:
        parts += [
            "<p>Reliability: of the detections (attribute answers) with about this score, how "
            "many are right. On the line the detector is as sure as it should be, below it too "
            "sure. The wider a dot, the more answers.</p>",
            f"<div class='plots'>{''.join(plots)}</div>",
        ]
    return "".join(parts)


def _unlearned(contents: Contents) -> str:
    """Say which attributes some runs have no answer to, and why."""
    sources: dict[str, dict[str, None]] = {}
    for result in contents.results:
        for name, told in (result.content.get("attributes_learned") or {}).items():
            if told["answered"]:
                continue
            cells = {value: n for value, n in (told["cells"] or {}).items() if n}
            why = "not read by this head"
            if told["cells"] is not None and len(cells) < 2:
                value, number = next(iter(cells.items()), ("unknown", 0))
                why = f"{value} on all {number} training cells" if number else "never labelled"
            sources.setdefault(f"{name} ({why})", {})[result.run.source] = None
    told = [f"{what}, trained on {', '.join(names)}" for what, names in sources.items()]
    return f"Not learned, so without answer and score: {'; '.join(told)}." if told else ""


def _without_empty(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Drop columns without any value: most label spaces have no class "none"."""
    kept = [i for i in range(len(header)) if any(row[i] != DASH for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _groups(contents: Contents) -> Iterator[tuple[str, bool, Tested]]:
    groups: dict[tuple[str, bool], Tested] = {}
    for result in contents.results:
        run, trained_on = result.run, devices_of(result.run.source)
        for test in [run.target] if run.target else result.content["tests"]:
            if test in result.content["tests"]:
                groups.setdefault((run.method, test in trained_on), []).append((result, test))
    for method in contents.shown:
        for same in (True, False):
            if (method, same) in groups:
                yield method, same, groups[method, same]


def _mean(tested: Tested, *path: str) -> float | None:
    """Return the mean of a score over the tests that have it; results of older versions may not."""
    values = [v for r, t in tested if (v := _within(r.metrics(t), path)) is not None]
    return fmean(values) if values else None


def _within(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = (tree or {}).get(key)
    return tree


def _attribute_rows(method: str, place: str, tested: Tested) -> Iterator[list[str]]:
    released = _mean(tested, "attribute_f1_as_released")
    if released is not None:
        yield [method, place, "as released", score(released), *[DASH] * 5]
    for key, title in VIEWS:
        if _mean(tested, "attributes", key, "f1") is not None:
            means = {name: _mean(tested, "attributes", key, name) for name in _COMPARED}
            shown = (score(v, signed=name.startswith("gain")) for name, v in means.items())
            yield [method, place, title, *shown]


def _settings(contents: Contents) -> str:
    """Say whether the detector ran with the settings of the released script."""
    names = ("score_threshold", "nms_iou", "max_detections")
    wanted = (SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS)
    used = {
        tuple((r.content.get("config") or {}).get("detector", {}).get(n) for n in names)
        for r in contents.results
    }
    said = (
        f"The released script keeps up to {MAX_DETECTIONS} detections from a score of "
        f"{SCORE_THRESHOLD} after suppression at IoU {NMS_IOU}"
    )
    if used == {wanted}:
        return f"{said}; so do these runs."
    listed = "; ".join(", ".join(f"{n}={v}" for n, v in zip(names, u, strict=True)) for u in used)
    return f"{said}; these runs: {listed}. For published numbers set the same."


# --- reliability -----------------------------------------------------------------------------


def pool(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Put reliability tables together: counts are added, means weighted by them."""
    known = [t for t in tables if sum(t["count"])]
    if not known:
        return None
    counts = [sum(c) for c in zip(*(t["count"] for t in known), strict=True)]

    def mean(name: str) -> list[float | None]:
        sums = [0.0] * len(counts)
        for t in known:
            for i, (value, n) in enumerate(zip(t[name], t["count"], strict=True)):
                sums[i] += (value or 0.0) * n
        return [s / n if n else None for s, n in zip(sums, counts, strict=True)]

    confidence, precision = mean("confidence"), mean("precision")
    gaps = [
        abs(c - p) * n
        for c, p, n in zip(confidence, precision, counts, strict=True)
        if c is not None and p is not None
    ]
    return {
        "count": counts,
        "confidence": confidence,
        "precision": precision,
        "ece": sum(gaps) / sum(counts),
    }


def reliability_plots(title: str, tested: Tested) -> Iterator[str]:
    """Yield reliability plots of types and of attributes, over all of some tests."""
    for key in ("types", "attributes"):
        tables = [_within(r.metrics(t), ("reliability", key)) for r, t in tested]
        pooled = pool([t for t in tables if t is not None])
        if pooled is not None:
            yield _plot(pooled, f"{title}: {key}")


SIDE = 150
"""Pixels of a reliability plot."""


def _plot(pooled: Mapping[str, Any], title: str) -> str:
    most = max(pooled["count"])
    dots = []
    for x, y, n in zip(pooled["confidence"], pooled["precision"], pooled["count"], strict=True):
        if n:
            radius = 2 + 5 * (n / most) ** 0.5
            dots.append(
                f'<circle cx="{x * SIDE:.1f}" cy="{(1 - y) * SIDE:.1f}" r="{radius:.1f}">'
                f"<title>{n} at {x:.2f}: {y:.2f} right</title></circle>"
            )
    told = f"{title}. ECE {pooled['ece']:.3f} of {sum(pooled['count'])}."
    return (
        f'<figure><svg viewBox="-22 -8 {SIDE + 32} {SIDE + 32}" role="img" '
        f'aria-label="{escape(told)}"><rect width="{SIDE}" height="{SIDE}"/>'
        f'<line x1="0" y1="{SIDE}" x2="{SIDE}" y2="0"/>{"".join(dots)}'
        f'<text x="0" y="{SIDE + 14}">0</text><text x="{SIDE}" y="{SIDE + 14}">1</text>'
        f'<text x="{SIDE / 2}" y="{SIDE + 14}">score</text>'
        f'<text x="-10" y="{SIDE / 2}" transform="rotate(-90 -10 {SIDE / 2})">right</text>'
        f"</svg><figcaption>{escape(told)}</figcaption></figure>"
    )
