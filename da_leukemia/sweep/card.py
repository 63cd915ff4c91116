"""The model card beside a kept checkpoint: what it saw, how good it is, what it is for.

After Mitchell et al., "Model cards for model reporting", FAT* 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from da_leukemia.config import devices_of
from da_leukemia.evaluation.bootstrap import Interval, hierarchical_interval
from da_leukemia.evaluation.headline import headline_table
from da_leukemia.evaluation.records import load_records
from da_leukemia.sweep.ledger import written

NAME = "MODEL_CARD.md"

REPLICATES = 300
"""Resamples of the patients for one interval; the report draws more, and seeds too."""

UNKNOWN_LICENCE = "not stated; set `data.domains.DEVICE.licence`"
SIMULATED_LICENCE = "rendered by this package (Apache-2.0), no patient"


class Shown(NamedTuple):
    """What a card says of a kind of model.

    Attributes:
        model: what it is.
        headline: name of the score that has an interval.
        name: the same for people.
        attributes: name of the score of the attributes.
    """

    model: str
    headline: str
    name: str
    attributes: str


DETECTOR = Shown("Detector of white blood cells", "ap50", "AP50", "attribute_f1")
CLASSIFIER = Shown(
    "Classifier of single white blood cells",
    *("balanced_accuracy", "balanced accuracy", "attribute_f1_true_boxes"),
)


def shown_of(result: Mapping[str, Any]) -> Shown:
    """Return what the card of a result says."""
    return CLASSIFIER if result["config"]["detector"].get("kind") == "classifier" else DETECTOR


def write_card(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write the card of a job beside its checkpoint.

    Args:
        folder: of the job, with the records of its tests.
        result: what will be its ``result.json``.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / "checkpoints" / NAME
    text = model_card(result, intervals(folder, result))
    with written(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def intervals(folder: Path, result: Mapping[str, Any]) -> dict[str, Interval]:
    """Return the interval of the headline score by device, over patients or else fields.

    A device without records, or with one patient only, has none.
    """
    found = {}
    for device, test in result["tests"].items():
        path = folder / str(test.get("records") or "")
        if not path.is_file():
            continue
        table = headline_table(load_records(path), test["metrics"], result["classes"])
        if len(set(table.groups)) > 1:
            drawn = hierarchical_interval([table], replicates=REPLICATES)
            interval = drawn[shown_of(result).headline]
            if np.isfinite([interval.low, interval.high]).all():
                found[device] = interval
    return found


def model_card(result: Mapping[str, Any], found: Mapping[str, Interval]) -> str:
    """Return a card as Markdown.

    Args:
        result: whole content of a ``result.json``.
        found: intervals of the headline score by device.
    """
    config, shown = result["config"], shown_of(result)
    sources, target = devices_of(result["source"]), result.get("target")
    domains, data = config["data"]["domains"], result.get("data") or {}
    few = int(config["method"].get("target_labels") or 0)
    origin = result.get("origin") or {}  # of a checkpoint, of whose source nothing was read
    seen = [f"- trained with labels on: {', '.join(sources)} ({_count(data)})"]
    if origin:
        content, before = config["checkpoint"]["sha256"], ", then ".join(origin["history"])
        seen = [f"- from a checkpoint, {sources[0]} (sha256 {content[:16]}): {before}"]
    if target:
        what = f"and the labels of {few} of them" if few else "never its labels"
        seen.append(f"- adapted to: {target} ({data.get('target_images', '?')} images, {what})")
    unseen = [d for d in result["tests"] if d not in (*sources, target)]
    if unseen:
        seen.append(f"- tested on without having seen an image of it: {', '.join(unseen)}")
    detector = config["detector"]
    backbone = detector.get("backbone", "?")
    return "\n".join(
        [
            f"# {result['method']}: {result['source']}{f' to {target}' if target else ''}, "
            f"seed {result['seed']}",
            "",
            f"{shown.model} (da_leukemia {result['versions']['da_leukemia']}, "
            f"backbone {backbone}, {config['trainer']['steps']} steps, images of "
            f"{config['data']['image_size']} px).",
            "",
            "## Devices",
            "",
            *seen,
            "",
            "## Label space",
            "",
            f"`{result['label_space']}`: {', '.join(result['classes'])}.",
            "",
            "## Scores",
            "",
            *_scores(result, found),
            "",
            "## Data",
            "",
            *([f"- {sources[0]}: {origin['licence']}"] if origin else []),
            *(
                f"- {d}: {licence_of(domains.get(d, {}), config)}"
                for d in _named(result, [] if origin else sources)
            ),
            "",
            "A model inherits the conditions of the data that it was trained on.",
            "",
            "## Intended use and limits",
            "",
            "For research on how detectors of blood cells fail when the microscope or the camera "
            "changes. **Not a medical device**: not validated for diagnosis, and no substitute "
            "for a haematologist.",
            "",
            *_limits(result, sources, unseen),
            "",
            "## Where it comes from",
            "",
            f"- job {result['job']}, split {result.get('split', '?')}, data "
            f"{data.get('fingerprint', '?')}",
            f"- code {_code(result.get('code') or {})}",
            f"- trained on {result.get('device', '?')}; every setting: `../config.yaml`, every "
            "number: `../result.json`; again: `da-leukemia reproduce ../result.json`",
            "",
        ]
    )


def _count(data: Mapping[str, Any]) -> str:
    return f"{data.get('train_fields', '?')} fields, {data.get('train_boxes', '?')} cells"


def _named(result: Mapping[str, Any], sources: Sequence[str]) -> list[str]:
    target = [result["target"]] if result.get("target") else []
    return list(dict.fromkeys([*sources, *target, *result["tests"]]))


def licence_of(domain: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the licence of a device of a job's settings."""
    if domain.get("licence"):
        return str(domain["licence"])
    simulated = int(config["data"].get("simulate", {}).get("patients") or 0) > 0
    return SIMULATED_LICENCE if simulated else UNKNOWN_LICENCE


def _scores(result: Mapping[str, Any], found: Mapping[str, Interval]) -> list[str]:
    """Return the table of scores; where no device has test labels, what images alone say."""
    shown = shown_of(result)
    if result["tests"]:
        return [
            "On test patients that were never trained on. One seed; 95 % intervals over patients "
            "(fields where a device names none). The report of the sweep has other metrics and "
            "the spread over seeds.",
            "",
            f"| tested on | {shown.name} | 95 % interval | attribute F1 | fields | cells |",
            "|---|---|---|---|---|---|",
            *(_row(shown, d, t["metrics"], found.get(d)) for d, t in result["tests"].items()),
        ]
    lines = ["No device has test labels, so no score is known. What images alone say (0 to 1):", ""]
    for device, scores in (result.get("label_free") or {}).items():
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        lines.append(f"- {device}: {told}")
    return lines


def _row(shown: Shown, device: str, metrics: Mapping[str, Any], interval: Interval | None) -> str:
    def number(name: str) -> str:
        value = metrics.get(name)
        return "-" if value is None else f"{value:.3f}"

    ends = "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
    cells = (number(shown.headline), ends, number(shown.attributes))
    return f"| {device} | {' | '.join(cells)} | {metrics['fields']} | {metrics['boxes']} |"


def _limits(result: Mapping[str, Any], sources: Sequence[str], unseen: Sequence[str]) -> list[str]:
    """Say what the numbers show of the limits."""
    shown = shown_of(result)
    known = {d: t["metrics"].get(shown.headline) for d, t in result["tests"].items()}
    scores = {device: value for device, value in known.items() if value is not None}
    lines = ["- Devices without a score above: expect a loss."]
    own = [scores[d] for d in sources if d in scores]
    others = {d: v for d, v in scores.items() if d not in sources}
    if own and others:
        worst = min(others, key=lambda d: others[d])
        lines.append(
            f"- Weakest on {worst}: {shown.name} {others[worst]:.3f}, against "
            f"{sum(own) / len(own):.3f} on the device it was trained on."
        )
    rare = sorted(
        {
            name
            for t in result["tests"].values()
            for name, entry in t["metrics"]["per_class"].items()
            if int(entry.get("truths") or 0) < 10
        }
    )
    if rare:
        lines.append(f"- Fewer than 10 test cells on some device: {', '.join(rare)}.")
    if result["tests"] and not unseen:
        lines.append("- It was not tested on any device of which it saw nothing.")
    return lines


def _code(code: Mapping[str, Any]) -> str:
    commit = code.get("commit")
    if not commit:
        return "of an installed package, commit unknown"
    return f"{commit}{' with changes that are not committed' if code.get('dirty') else ''}"
