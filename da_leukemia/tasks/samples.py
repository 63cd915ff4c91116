"""A few test fields with what was found on them, for the report and the tracker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.evaluation.slides import counted_from
from da_leukemia.labels import LabelSpace, is_cell
from da_leukemia.models.base import AnyDetector

FIELDS, CELLS = 2, 12
"""How many fields, or single cells, are shown of a device."""


def sample_fields(
    records: Sequence[FieldRecord],
    fields: Mapping[str, FieldOfView],
    space: LabelSpace,
    single_cells: bool = False,
) -> list[dict[str, Any]]:
    """Choose fields with many cells, or single cells of all types; spell out truths and answers.

    The choice depends on the truth only, so every method shows the same fields of a device.

    Args:
        records: of one device.
        fields: by key.
        space: label space of the records.
        single_cells: the fields are single cells; of each the likeliest type is the answer.
    """
    threshold = counted_from(single_cells)
    if single_cells:
        return [
            spell_field(r, fields[r.key], space, threshold, 1) for r in _by_turns(records)[:CELLS]
        ]
    order = sorted(records, key=lambda r: (-min(len(r.true_labels), 8), r.key))
    return [spell_field(r, fields[r.key], space, threshold) for r in order[:FIELDS]]


def _by_turns(records: Sequence[FieldRecord]) -> list[FieldRecord]:
    """Order cells so that every type has its turn, those of unknown type last."""
    seen: Counter[int] = Counter()
    places = []
    for record in sorted(records, key=lambda r: r.key):
        kind = int(record.true_labels[0]) if len(record.true_labels) else -1
        seen[kind] += 1
        places.append((kind < 0, seen[kind], kind, record.key, record))
    return [place[-1] for place in sorted(places, key=lambda p: p[:-1])]


def _type(label: int, space: LabelSpace) -> str:
    return space.classes[label] if label >= 0 else "unknown"


def spell_field(
    record: FieldRecord,
    field: FieldOfView,
    space: LabelSpace,
    threshold: float,
    most: int | None = None,
) -> dict[str, Any]:
    """Spell out truths and answers of a field, for JSON.

    Args:
        record: of the field.
        field: the field.
        space: label space of the record.
        threshold: detections below this score are left out.
        most: detections, the best ones; None for all.
    """
    truths = [
        {
            "box": [round(float(v), 1) for v in box],
            "type": _type(int(label), space),
            "attributes": {
                a.name: a.values[code]
                for a, code in zip(space.attributes, codes.tolist(), strict=True)
                if code >= 0
            },
        }
        for box, label, codes in zip(
            record.true_boxes, record.true_labels, record.true_attributes, strict=True
        )
    ]
    detections = []
    for row in np.argsort(-record.scores, kind="stable")[:most]:
        if record.scores[row] < threshold:
            break
        detections.append(
            {
                "box": [round(float(v), 1) for v in record.boxes[row]],
                "score": round(float(record.scores[row]), 3),
                "type": _type(int(record.labels[row]), space),
                "attributes": _attributes(
                    record.attribute_probs[row], int(record.labels[row]), space
                ),
            }
        )
    return {
        "image": str(field.image.resolve()),
        "name": field.key,
        "truths": truths,
        "detections": detections,
    }


def _attributes(probabilities: Any, label: int, space: LabelSpace) -> dict[str, list[Any]]:
    spelt = spell_attributes(probabilities, label, space)
    return {name: likeliest(values) for name, values in spelt.items()}


def likeliest(values: Mapping[str, Any]) -> list[Any]:
    """Return the value of highest probability, and that probability."""
    value, probability = max(values.items(), key=lambda pair: pair[1])
    return [value, probability]


def spell_attributes(
    probabilities: NDArray[np.float32], label: int, space: LabelSpace
) -> dict[str, dict[str, float]]:
    """Return the probability of each value of each attribute of one detection, by name.

    An attribute that the detector has no answer to is left out, and so are all of a detection that
    is no cell ("none"): an artefact has no nucleus to describe.

    Args:
        probabilities: ``(S,)``; empty from a detector without attributes.
        label: class of the detection.
        space: its label space.
    """
    if not len(probabilities) or (label >= 0 and not is_cell(space.classes[label])):
        return {}
    parts = np.split(probabilities, np.cumsum(space.attribute_sizes)[:-1])
    return {
        attribute.name: {
            value: round(float(p), 3) for value, p in zip(attribute.values, part, strict=True)
        }
        for attribute, part in zip(space.attributes, parts, strict=True)
        if part.max() > 0
    }


def learned_attributes(detector: AnyDetector, space: LabelSpace) -> dict[str, Any] | None:
    """Return what a trained detector knows of each attribute, None without an attribute head.

    By name: ``answered``, whether detections carry an answer, and ``cells``, the training cells
    of each value (None where nobody counted).
    """
    head = detector.attributes
    if head is None:
        return None
    read = set(head.read)
    counts, answers = head.counts.tolist(), head.answers.tolist()
    return {
        attribute.name: {
            "answered": column in read and answers[column],
            "cells": None
            if min(counts[column]) < 0
            else dict(zip(attribute.values, counts[column], strict=False)),
        }
        for column, attribute in enumerate(space.attributes)
    }
