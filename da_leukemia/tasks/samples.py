"""A few test fields with what was found on them, for the report and the tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    if not len(probabilities):
        return {}
    ends = np.cumsum(space.attribute_sizes)[:-1]
    out = {}
    for attribute, part in zip(space.attributes, np.split(probabilities, ends), strict=True):
        best = int(np.argmax(part))
        out[attribute.name] = [attribute.values[best], round(float(part[best]), 3)]
    return out
