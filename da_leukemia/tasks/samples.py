"""A few test fields with what was found on them, for the report and the tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LabelSpace


def sample_fields(
    records: Sequence[FieldRecord],
    fields: Mapping[str, FieldOfView],
    space: LabelSpace,
    count: int = 2,
    threshold: float = 0.3,
) -> list[dict[str, Any]]:
    """Choose fields with many cells and spell out truths and detections.

    The choice depends on the truth only, so every method shows the same fields of a device.
    """
    order = sorted(records, key=lambda r: (-min(len(r.true_labels), 8), r.key))
    return [_spell(r, fields[r.key], space, threshold) for r in order[:count]]


def _type(label: int, space: LabelSpace) -> str:
    return space.classes[label] if label >= 0 else "unknown"


def _spell(
    record: FieldRecord, field: FieldOfView, space: LabelSpace, threshold: float
) -> dict[str, Any]:
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
    for row in np.argsort(-record.scores):
        if record.scores[row] < threshold:
            break
        detections.append(
            {
                "box": [round(float(v), 1) for v in record.boxes[row]],
                "score": round(float(record.scores[row]), 3),
                "type": _type(int(record.labels[row]), space),
                "attributes": _attributes(record.attribute_probs[row], space),
            }
        )
    return {
        "image": str(field.image.resolve()),
        "name": field.key,
        "truths": truths,
        "detections": detections,
    }


def _attributes(probabilities: Any, space: LabelSpace) -> dict[str, list[Any]]:
    spelt = spell_attributes(probabilities, space)
    return {name: likeliest(values) for name, values in spelt.items()}


def likeliest(values: Mapping[str, Any]) -> list[Any]:
    """Return the value of highest probability, and that probability."""
    value, probability = max(values.items(), key=lambda pair: pair[1])
    return [value, probability]


def spell_attributes(
    probabilities: NDArray[np.float32], space: LabelSpace
) -> dict[str, dict[str, float]]:
    """Return the probability of each value of each attribute of one detection, by name.

    Args:
        probabilities: ``(S,)``; empty from a detector without attributes.
        space: label space of the detection.
    """
    if not len(probabilities):
        return {}
    parts = np.split(probabilities, np.cumsum(space.attribute_sizes)[:-1])
    return {
        attribute.name: {
            value: round(float(p), 3) for value, p in zip(attribute.values, part, strict=True)
        }
        for attribute, part in zip(space.attributes, parts, strict=True)
    }
