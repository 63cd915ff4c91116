"""What the tests of scores share: a label space, fields by hand and at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from da_leukemia.evaluation import FieldRecord
from da_leukemia.labels import Attribute, LabelSpace

ALL = tuple(range(5))
SPACE = LabelSpace(
    "two", ("a", "b"), (Attribute("size", ("s", "m", "l")), Attribute("vacuoles", ("no", "yes")))
)
A, B, C, D = ((x, 0, x + 10, 10) for x in (0, 20, 40, 60))


def field(
    truths=(), found=(), key="d/p/f", group="patient:p", regions=None, attributes=None, probs=None
) -> FieldRecord:
    """Truths are (x1, y1, x2, y2, label), detections (x1, y1, x2, y2, label, score)."""
    t = np.array(truths, dtype=np.float64).reshape(-1, 5)
    d = np.array(found, dtype=np.float64).reshape(-1, 6)
    return FieldRecord(
        key=key,
        group=group,
        true_boxes=t[:, :4].astype(np.float32),
        true_labels=t[:, 4].astype(np.int64),
        true_attributes=np.array(
            np.zeros((len(t), 0)) if attributes is None else attributes, dtype=np.int64
        ),
        boxes=d[:, :4].astype(np.float32),
        scores=d[:, 5].astype(np.float32),
        labels=d[:, 4].astype(np.int64),
        attribute_probs=np.array(
            np.zeros((len(d), 0)) if probs is None else probs, dtype=np.float32
        ),
        regions=regions,
    )


def soft(*codes: int) -> list[float]:
    """Probabilities of SPACE that are highest at (size, vacuoles)."""
    size, vacuoles = codes
    return [0.8 if i == size else 0.1 for i in range(3)] + [
        0.9 if i == vacuoles else 0.1 for i in range(2)
    ]


def random_field(rng: np.random.Generator, index: int, most: int = 12) -> FieldRecord:
    """A field of few or many cells, with near, doubled, misnamed and invented detections."""
    n, extra = rng.integers(0, most), rng.integers(0, 6)
    whole = rng.random() < 0.5  # whole pixels make overlaps of exactly one half
    corner, size = rng.uniform(0, 60, (n, 2)), rng.uniform(4, 20, (n, 2))
    truths = np.hstack([corner, corner + size, rng.integers(0, 5, (n, 1))])
    copies = rng.integers(0, 3, n) if rng.random() < 0.9 else np.zeros(n, int)
    near = np.repeat(truths, copies, axis=0)
    near[:, :4] += rng.normal(0, rng.choice([0, 1, 3]), (len(near), 4))
    wrong = rng.random(len(near)) < 0.2
    near[wrong, 4] = rng.integers(0, 5, wrong.sum())
    far = rng.uniform(0, 60, (extra, 5))
    far[:, 2:4] = far[:, :2] + rng.uniform(4, 20, (extra, 2))
    far[:, 4] = rng.integers(0, 5, extra)
    found = np.vstack([near, far])
    if whole:
        truths, found = np.round(truths), np.round(found)
    for boxes in (truths, found):
        boxes[:, 2:4] = np.maximum(boxes[:, 2:4], boxes[:, :2] + 1)
    scores = rng.random((len(found), 1))
    if rng.random() < 0.4:
        scores = np.round(scores, 1)  # many equal scores
    found = np.hstack([found, scores])[rng.permutation(len(found))]
    return field(truths, found, key=f"d//{index}", group=f"g{index // 2}")


def attributed_domain(seed: int, fields: int = 10) -> list[FieldRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for i in range(fields):
        n = int(rng.integers(0, 5))
        truths = [(30 * j, 0, 30 * j + 10, 10, rng.integers(-1, 2)) for j in range(n)]
        found = [(*t[:4], rng.integers(0, 2), rng.random()) for t in truths if rng.random() < 0.7]
        codes = np.stack([rng.integers(-1, 3, n), rng.integers(-1, 2, n)], 1)
        asked = np.hstack([rng.dirichlet(np.ones(3), n), rng.dirichlet(np.ones(2), n)])
        probs = np.hstack([rng.dirichlet(np.ones(k), len(found)) for k in (3, 2)])
        record = field(
            truths, found, key=str(i), group=f"g{i}", attributes=codes.reshape(-1, 2), probs=probs
        )
        records.append(replace(record, true_attribute_probs=asked.astype(np.float32)))
    return records
