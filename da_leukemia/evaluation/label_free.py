"""How good a detector seems on a device, judged without a label: scores to choose an epoch by.

Every score is in [0, 1], higher is better, and defined for a detector that finds nothing: 0, the
worst. All of them weigh a detection by its confidence instead of cutting at a threshold, so that a
young network with low scores is judged, too. None of them sees a label; whether one follows the
true average precision is an empirical question that the report answers for each sweep.

Flatness and prototype separation follow the idea of Yu et al. (Towards Unsupervised Model Selection
for Domain Adaptive Object Detection, NeurIPS 2024); the definitions here are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SCORERS = {
    "agreement": "detections stay when the image is flipped, a little lighter and of more contrast",
    "flatness": "detections stay when every weight is disturbed a little",
    "confidence": "detections are sure: mean score, every detection weighing its score",
    "separation": "features of cells of each type and of the ground lie apart and close together",
}
"""The label-free scorers and what makes each of them high."""


@dataclass(frozen=True)
class Found:
    """Detections of ``N`` views, ``K`` places each.

    Attributes:
        boxes: ``(N, K, 4)`` x1, y1, x2, y2 in pixels of the view.
        scores: ``(N, K)`` in 0..1, 0 where the place is empty.
        labels: ``(N, K)`` class indices.
    """

    boxes: Floats
    scores: Floats
    labels: Ints


def agreement(one: Found, other: Found) -> float:
    """Return how far two sets of detections of the same views are the same.

    A detection is confirmed by that of its type in the other set with the greatest product of IoU
    and likeness of the scores (the smaller over the larger). The result is the mean confirmation of
    both sets' detections, each weighing the square of its score; 0 where there is none.
    """
    product = _iou(one.boxes, other.boxes)
    product *= one.labels[:, :, None] == other.labels[:, None, :]
    low = np.minimum(one.scores[:, :, None], other.scores[:, None, :])
    high = np.maximum(one.scores[:, :, None], other.scores[:, None, :])
    product *= low / np.maximum(high, 1e-12)
    weights = np.concatenate([one.scores.ravel(), other.scores.ravel()]).astype(np.float64) ** 2
    confirmed = np.concatenate(
        [product.max(2, initial=0).ravel(), product.max(1, initial=0).ravel()]
    )
    return float((weights * confirmed).sum() / max(weights.sum(), 1e-12))


def confidence(found: Found) -> float:
    """Return the mean score of the detections, each weighing its score; 0 where there is none."""
    scores = found.scores.astype(np.float64)
    return float((scores**2).sum() / max(scores.sum(), 1e-12))


def separation(features: Floats, groups: Ints, weights: Floats) -> float:
    """Return the share of the features' spread that lies between the groups.

    Groups are the cell types and the ground. However often a type is found it weighs the same, once
    its scores add up to 1; below that it weighs their sum, so that a type that nobody believes in
    is no group. 0 where fewer than two groups have a member.

    Args:
        features: ``(M, D)``; their length plays no part.
        groups: ``(M,)``, the type that the detector gave it, or one more number for the ground.
        weights: ``(M,)`` at least 0, the detector's score.
    """
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = features / np.maximum(length, 1e-12)
    member = np.zeros((groups.max(initial=0) + 1, len(groups)))
    member[groups, np.arange(len(groups))] = weights
    total = member.sum(1)
    there = total > 0
    if there.sum() < 2:
        return 0.0
    member = member[there] / total[there, None]
    share = np.minimum(total[there], 1.0)
    share /= share.sum()
    means = member @ unit
    between = float(share @ ((means - share @ means) ** 2).sum(1))
    distance = (unit**2).sum(1)[None] - 2 * means @ unit.T + (means**2).sum(1)[:, None]
    within = float(share @ (member * distance.clip(0)).sum(1))
    return between / max(between + within, 1e-12)


def _iou(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Return the IoU ``(N, K, L)`` of all pairs of boxes within each view."""
    a, b = one.astype(np.float64)[:, :, None], other.astype(np.float64)[:, None]
    size = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    common = size.prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (a, b))
    iou: NDArray[np.float64] = common / np.maximum(area_a + area_b - common, 1e-12)
    return iou
