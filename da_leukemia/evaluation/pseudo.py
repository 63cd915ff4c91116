"""How good pseudo-labels are, told with labels that training never sees: a diagnostic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.matching import judged, match
from da_leukemia.evaluation.records import FieldRecord


def pseudo_label_quality(
    records: Sequence[FieldRecord],
    thresholds: NDArray[np.float64],
    classes: Sequence[str],
    labelled: Sequence[int],
) -> dict[str, Any] | None:
    """Compare what a teacher takes for cells with the hidden labels.

    A pseudo-label is right if it is matched one to one to a cell of its type at IoU 0.5.

    Args:
        records: the teacher's detections on the target's training fields, with their hidden labels.
        thresholds: ``(C,)`` score from which a detection is a pseudo-label of its type.
        classes: names of all types.
        labelled: indices of those that the target labels; only they are judged.

    Returns:
        ``threshold`` (mean over types), ``boxes_per_image``, ``precision`` (None without a
        pseudo-label), ``recall`` and by type the counts ``pseudo``, ``right`` and ``true``; None
        where there is no hidden label.
    """
    wanted = sorted(set(labelled))
    taught = []
    for record in records:
        sure = (record.scores >= thresholds[record.labels]) & np.isin(record.labels, wanted)
        kept = replace(
            record,
            boxes=record.boxes[sure],
            scores=record.scores[sure],
            labels=record.labels[sure],
            attribute_probs=record.attribute_probs[sure],
        )
        taught.append(judged(kept))
    true = _counts([r.true_labels for r in taught], len(classes))
    if not true[wanted].sum():
        return None
    labels = np.concatenate([r.labels for r in taught])
    matches = match(taught, [0.5], by_class=True)
    right = _counts([labels[matches.detection[matches.truth[0] >= 0]]], len(classes))
    pseudo = _counts([labels], len(classes))
    total = int(pseudo.sum())
    return {
        "threshold": float(thresholds[wanted].mean()),
        "boxes_per_image": total / len(records),
        "precision": float(right.sum() / total) if total else None,
        "recall": float(right.sum() / true[wanted].sum()),
        "per_class": {
            classes[k]: {"pseudo": int(pseudo[k]), "right": int(right[k]), "true": int(true[k])}
            for k in wanted
        },
    }


def _counts(labels: Sequence[NDArray[np.int64]], classes: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate(labels), minlength=classes)
