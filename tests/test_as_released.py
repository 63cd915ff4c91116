"""The released rules against the same rules written out cell by cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_kit import SPACE, field, soft

from da_leukemia.evaluation import attribute_metrics, evaluate
from da_leukemia.evaluation.as_released import as_released, released_attributes, released_map
from da_leukemia.evaluation.detection import detection_metrics
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LEUKEMIAATTRI, WBC5

SIZES = LEUKEMIAATTRI.attribute_sizes
A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (80, 80, 90, 90)


def iou(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def random_fields(seed, count=12):
    """Draw cells and detections that overlap, with types, missing attributes and empty fields."""
    rng = np.random.default_rng(seed)
    fields = []
    for i in range(count):
        n, extra = int(rng.integers(0, 6)), int(rng.integers(0, 5))
        corner = rng.uniform(0, 60, (n, 2))
        boxes = np.hstack([corner, corner + rng.uniform(10, 30, (n, 2))])
        labels = rng.integers(0, 14, n)
        codes = np.stack([rng.integers(0, s, n) for s in SIZES], 1)
        codes[rng.random(codes.shape) < 0.05] = -1
        codes[labels == 0] = -1
        copies = np.repeat(np.arange(n), rng.integers(0, 3, n))
        places = rng.uniform(0, 60, (extra, 2))
        found = np.concatenate(
            [
                boxes[copies] + rng.normal(0, 3, (len(copies), 4)),
                np.hstack([places, places + rng.uniform(10, 30, (extra, 2))]),
            ]
        )
        named = np.concatenate([labels[copies], rng.integers(0, 14, extra)])
        probs = np.concatenate([rng.dirichlet(np.ones(s), len(found)) for s in SIZES], axis=1)
        fields.append(
            FieldRecord(
                key=f"d/p/{i}",
                group=f"patient:{i // 3}",
                true_boxes=boxes.astype(np.float32),
                true_labels=labels,
                true_attributes=codes,
                boxes=found.astype(np.float32),
                scores=rng.permutation(len(found)).astype(np.float32) / 100 + 0.001 * i + 0.01,
                labels=named,
                attribute_probs=probs.astype(np.float32),
            )
        )
    return fields


def attribute_f1_by_hand(fields):
    """One cell after the other: the best box on the field, whatever it is; F1 from counts."""
    rows = []
    for f in fields:
        ranked = np.argsort(-f.scores)
        for box, codes in zip(f.true_boxes, f.true_attributes, strict=True):
            if (codes[1:] < 0).any() or not len(ranked):
                continue
            overlaps = [iou(box, f.boxes[d]) for d in ranked]
            best = ranked[overlaps.index(max(overlaps))]
            probs = f.attribute_probs[best, SIZES[0] :].reshape(6, 2)
            said = [int(yes > no) for no, yes in probs]
            rows.append((codes[1:].tolist(), said))
    scores = []
    for a in range(6):
        pairs = [(t[a], s[a]) for t, s in rows]
        hit = pairs.count((1, 1))
        wrong = pairs.count((0, 1)) + pairs.count((1, 0))
        scores.append(2 * hit / (2 * hit + wrong) if hit + wrong else 0.0)
    return scores, len(rows)


def map_by_hand(fields):
    """Field by field, threshold by threshold, class by class."""
    thresholds = np.linspace(0.5, 0.95, 10)
    rows = []  # (score, class, right at each threshold)
    for f in fields:
        right = np.zeros((len(f.labels), 10), bool)
        for level, threshold in enumerate(thresholds):
            taken = set()
            for d in np.argsort(-f.scores):
                own = [n for n in range(len(f.true_labels)) if f.true_labels[n] == f.labels[d]]
                own = [n for n in own if iou(f.true_boxes[n], f.boxes[d]) >= threshold]
                if own:
                    choice = max(own, key=lambda n: iou(f.true_boxes[n], f.boxes[d]))
                    if choice not in taken:  # no second choice
                        taken.add(choice)
                        right[d, level] = True
        rows += list(zip(f.scores.tolist(), f.labels.tolist(), right, strict=True))
    rows.sort(key=lambda r: -r[0])
    truths = np.concatenate([f.true_labels for f in fields])
    ap = []
    for k in sorted(set(truths.tolist())):
        hits = np.array([r[2] for r in rows if r[1] == k], dtype=float).reshape(-1, 10)
        for level in range(10):
            precision, recall, good = [1.0], [0.0], 0.0
            for seen, hit in enumerate(hits[:, level], start=1):
                good += hit
                precision.append(good / seen)
                recall.append(good / (truths == k).sum())
            precision.append(0.0)
            recall.append(1.0)
            best = [max(precision[i:]) for i in range(len(precision))]
            y = [float(np.interp(i / 100, recall, best)) for i in range(101)]
            ap.append(sum((y[i] + y[i + 1]) / 200 for i in range(100)) if len(hits) else 0.0)
    ap = np.array(ap).reshape(-1, 10)
    return ap[:, 0].mean(), ap.mean()


@pytest.mark.parametrize("seed", range(8))
def test_attribute_f1_is_the_released_rule_cell_by_cell(seed):
    fields = random_fields(seed)
    f1, cells = attribute_f1_by_hand(fields)
    scores = released_attributes(fields, LEUKEMIAATTRI)
    assert list(scores.f1) == [a.name for a in LEUKEMIAATTRI.attributes[1:]]
    np.testing.assert_allclose(list(scores.f1.values()), f1, rtol=0, atol=1e-12)
    assert scores.cells == cells > 0
    assert cells + scores.dropped + scores.without_prediction == sum(
        len(f.true_labels) for f in fields
    )
    assert as_released(fields, LEUKEMIAATTRI)["attribute_f1"] == pytest.approx(np.mean(f1))


@pytest.mark.parametrize("seed", range(8))
def test_map_is_that_of_yolov5_box_by_box(seed):
    fields = random_fields(seed, count=25)
    np.testing.assert_allclose(released_map(fields), map_by_hand(fields), rtol=0, atol=1e-9)
    coco = detection_metrics(fields, LEUKEMIAATTRI.classes, range(14))
    assert released_map(fields)[0] != pytest.approx(coco.ap50, abs=1e-3)  # another definition


def test_a_miss_costs_nothing_as_released_and_all_in_the_strict_evaluation():
    """The only detection lies far off, yet it lends its attributes to the cell that was missed."""
    record = field([(*A, 0)], [(*FAR, 1, 0.01)], attributes=[(0, 1)], probs=[soft(0, 1)])
    assert released_attributes([record], SPACE).f1 == {"vacuoles": 1.0}
    assert attribute_metrics([record], SPACE).end_to_end == 0.0


def test_of_equally_far_detections_the_surest_lends_its_attributes():
    found = [(*FAR, 1, 0.1), (70, 70, 75, 75, 0, 0.8)]
    record = field([(*A, 0)], found, attributes=[(0, 1)], probs=[soft(0, 0), soft(0, 1)])
    assert released_attributes([record], SPACE).f1["vacuoles"] == 1.0
    swapped = replace(record, scores=record.scores[::-1].copy())
    assert released_attributes([swapped], SPACE).f1["vacuoles"] == 0.0


def test_a_detection_of_any_type_and_score_lends_to_several_cells():
    found = [(5, 0, 25, 10, 1, 0.002)]
    record = field([(*A, 0), (*B, 0)], found, attributes=[(0, 1), (0, 1)], probs=[soft(0, 1)])
    scores = released_attributes([record], SPACE)
    assert (scores.f1["vacuoles"], scores.cells) == (1.0, 2)


def test_missing_sizes_do_not_drop_a_cell_but_any_binary_attribute_does():
    truths = [(*A, 0), (*B, 0)]
    found = [(*A, 0, 0.9), (*B, 0, 0.8)]
    record = field(truths, found, attributes=[(-1, 1), (2, -1)], probs=[soft(0, 1)] * 2)
    scores = released_attributes([record], SPACE)
    assert (scores.cells, scores.dropped) == (1, 1)


def test_f1_is_zero_without_a_positive_and_constant_truth_is_told():
    record = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(0, 0)], probs=[soft(0, 0)])
    scores = as_released([record], SPACE)
    assert scores["per_attribute"] == {"vacuoles": {"f1": 0.0, "positives": 0}}
    strict = evaluate([record], SPACE, (0, 1))["attributes"]["found"]["per_attribute"]["vacuoles"]
    assert (strict["f1"], strict["values"]) == (1.0, 1)


def test_without_anything_to_score_there_is_no_number():
    nothing = as_released([], SPACE)
    assert (nothing["map50"], nothing["map50_95"], nothing["attribute_f1"]) == (None, None, None)
    bare = as_released([field([(*A, 0)], [(*A, 0, 0.9)])], WBC5)
    assert bare["map50"] == pytest.approx(0.995)
    assert bare["attribute_f1"] is None


def test_a_box_may_not_choose_again_after_its_best_is_taken():
    """COCO lets the second detection take the neighbour; YOLOv5 does not."""
    close = (2, 0, 12, 10)
    record = field([(*A, 0), (*close, 0)], [(*A, 0, 0.9), (0, 0, 11, 10, 0, 0.8)])
    assert detection_metrics([record], ("a", "b"), (0, 1)).ap50 == 1.0
    assert released_map([record])[0] < 0.63


def test_a_detection_chooses_the_box_of_its_highest_iou():
    """Each of two crowded cells is found exactly; their neighbours overlap by two thirds."""
    close = (2, 0, 12, 10)
    record = field([(*A, 0), (*close, 0)], [(*A, 0, 0.9), (*close, 0, 0.8)])
    assert released_map([record]) == pytest.approx((0.995, 0.995))


def test_artefacts_are_scored_and_ignored_side_by_side():
    """A missed artefact and a false one cost among 14 classes and nothing among 13."""
    record = field(
        [(*A, 1), (*B, 0), (*FAR, 0)],
        [(*A, 1, 0.9), (40, 40, 50, 50, 0, 0.95), (20, 0, 30, 9, 1, 0.99)],
        attributes=np.full((3, 7), -1),
        probs=np.full((3, 15), 0.5),
    )
    found = evaluate([record], LEUKEMIAATTRI, range(14))
    assert found["ap50"] < 0.3
    assert found["ap50_without_none"] == 1.0
    assert evaluate([record], WBC5, range(5))["ap50_without_none"] is None
