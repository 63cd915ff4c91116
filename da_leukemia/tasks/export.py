"""Detections as a file: type, score, and the attributes that say why."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from da_leukemia.data.fields import FieldOfView
from da_leukemia.errors import UserError
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.evaluation.slides import COUNTED_SCORE, counted, summarise
from da_leukemia.files import write_whole
from da_leukemia.labels import LabelSpace
from da_leukemia.tasks.samples import likeliest, spell_attributes

Found = Mapping[str, tuple[Sequence[FieldRecord], Sequence[FieldOfView]]]
"""Device -> records and their fields, in the same order."""


def check_name(path: Path) -> None:
    """Refuse a file name that says nothing of the format, before anything is computed.

    Raises:
        UserError: it ends neither in .json nor in .csv.
    """
    if path.suffix not in (".json", ".csv"):
        raise UserError(f"{path}: detections are written as .json or .csv; name the file so")


def write_detections(
    path: Path, found: Found, space: LabelSpace, threshold: float = COUNTED_SCORE
) -> None:
    """Write what was found on each field, in pixels of the stored images.

    JSON holds, by device, ``fields`` (image, patient, and its detections, each with box, score,
    type and the probability of every value of every attribute) and ``slides`` (see `summarise`).
    CSV has a row per detection, with the likeliest value of each attribute and its probability.

    Args:
        path: file to write or replace.
        found: what was found.
        space: label space of the records.
        threshold: detections below this score are left out; of detections that are one cell the
            most confident one stays.

    Raises:
        UserError: the name ends neither in .json nor in .csv, or cannot be written to.
    """
    check_name(path)
    fields = {
        device: [
            _field(record, field, space, threshold)
            for record, field in zip(records, images, strict=True)
        ]
        for device, (records, images) in found.items()
    }
    if path.suffix == ".csv":
        text = _csv(fields, space)
    else:
        content = {
            "label_space": space.name,
            "min_score": threshold,
            "devices": {
                device: {"fields": listed, "slides": _slides(*found[device], space, threshold)}
                for device, listed in fields.items()
            },
        }
        text = json.dumps(content, indent=1) + "\n"
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _slides(
    records: Sequence[FieldRecord],
    fields: Sequence[FieldOfView],
    space: LabelSpace,
    threshold: float,
) -> list[dict[str, Any]]:
    """Sum up the slides; where nothing is labelled, nobody knows what is true."""
    known = any(field.labelled_classes for field in fields)
    slides = summarise(records, space, threshold)
    return slides if known else [{**slide, "true": None} for slide in slides]


def _field(
    record: FieldRecord, field: FieldOfView, space: LabelSpace, threshold: float
) -> dict[str, Any]:
    return {
        "field": record.key,
        "patient": field.patient,
        "image": str(field.image.resolve()),
        "detections": [
            {
                "box": [round(float(v), 1) for v in record.boxes[row]],
                "type": space.classes[int(record.labels[row])],
                "score": round(float(record.scores[row]), 4),
                "attributes": spell_attributes(
                    record.attribute_probs[row], int(record.labels[row]), space
                ),
            }
            for row in counted(record, threshold)
        ],
    }


def _csv(fields: Mapping[str, Sequence[Mapping[str, Any]]], space: LabelSpace) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [a.name for a in space.attributes]
    place = ("device", "field", "patient", "image", "x1", "y1", "x2", "y2", "type", "score")
    columns = [column for name in names for column in (name, f"{name}_probability")]
    writer.writerow([*place, *columns])
    for device, listed in fields.items():
        for field in listed:
            for found in field["detections"]:
                said: list[Any] = []
                for name in names:
                    values = found["attributes"].get(name, {"": None})
                    said += likeliest(values)
                where = (device, field["field"], field["patient"], field["image"])
                writer.writerow([*where, *found["box"], found["type"], found["score"], *said])
    return out.getvalue()
