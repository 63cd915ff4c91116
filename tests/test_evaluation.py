from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from da_leukemia.evaluation import (
    EVALUATOR_VERSION,
    AttributeTable,
    FieldRecord,
    MatchTable,
    attribute_metrics,
    evaluate,
    fit_lookup,
    hierarchical_interval,
    load_records,
    save_records,
)
from da_leukemia.evaluation.detection import DetectionScores, detection_metrics
from da_leukemia.evaluation.reliability import BINS, attribute_reliability, reliability
from da_leukemia.labels import WBC5, Attribute, LabelSpace

CLASSES = WBC5.classes
ALL = tuple(range(5))
SPACE = LabelSpace(
    "two", ("a", "b"), (Attribute("size", ("s", "m", "l")), Attribute("vacuoles", ("no", "yes")))
)


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


def random_domain(seed: int) -> list[FieldRecord]:
    rng = np.random.default_rng(seed)
    return [random_field(rng, i) for i in range(rng.integers(1, 7))]


def pycocotools_scores(records, labelled) -> tuple[float, float, float, np.ndarray, np.ndarray]:
    """AP50, AP, recall at IoU 0.5, AP50 and AP per class; NaN where COCO says -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": i + 1, "width": 100, "height": 100} for i in range(len(records))]
    categories = [{"id": k, "name": str(k)} for k in ALL]
    truths, found = [], []
    for i, r in enumerate(records, start=1):
        for box, label in zip(r.true_boxes.tolist(), r.true_labels.tolist(), strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            common = {"image_id": i, "category_id": label, "bbox": [x, y, w, h], "area": w * h}
            truths.append({"id": len(truths) + 1, "iscrowd": 0, **common})
        for box, label, score in zip(
            r.boxes.tolist(), r.labels.tolist(), r.scores.tolist(), strict=True
        ):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            common = {"image_id": i, "category_id": label, "bbox": [x, y, w, h], "area": w * h}
            found.append({"id": len(found) + 1, "iscrowd": 0, "score": score, **common})
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        for coco, boxes in ((gt, truths), (dt, found)):
            coco.dataset = {"images": images, "categories": categories, "annotations": boxes}
            coco.createIndex()
        run = COCOeval(gt, dt, "bbox")
        run.params.catIds = sorted(labelled)
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"][..., 0, -1], run.eval["recall"][..., 0, -1]

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else np.nan

    scored = precision[0, 0] > -1
    per_class = np.where(scored, precision.mean(axis=1), np.nan)
    return mean(precision[0]), mean(precision), mean(recall[0]), per_class[0], per_class.mean(0)


def assert_same_as_reference(records, labelled) -> None:
    expected = pycocotools_scores(records, labelled)
    ours: DetectionScores = detection_metrics(records, CLASSES, labelled)
    names = [CLASSES[k] for k in sorted(labelled)]
    found = (
        ours.ap50,
        ours.ap50_95,
        ours.recall,
        np.array([ours.ap50_per_class[n] for n in names]),
        np.array([ours.ap_per_class[n] for n in names]),
    )
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=0, atol=1e-6)
    table = MatchTable.build(records, labelled)
    np.testing.assert_allclose(
        table.ap(np.ones(len(records), np.int64)), expected[:2], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("block", range(5))
def test_scores_are_those_of_pycocotools_on_random_domains(block):
    for seed in range(50 * block, 50 * (block + 1)):
        labelled = ALL if seed % 3 else (1, 3, 4)
        assert_same_as_reference(random_domain(seed), labelled)


def test_scores_are_those_of_pycocotools_at_the_edges():
    cell, hit = (10, 10, 20, 20, 1), (10, 10, 20, 20, 1, 0.9)
    rng = np.random.default_rng(0)
    crowd = [(*hit[:4], 1, s) for s in np.linspace(0.1, 0.9, 150)]  # the limit of 100 cuts
    assert_same_as_reference([field([cell], [])], ALL)
    assert_same_as_reference([field([], [hit])], ALL)
    assert_same_as_reference([field([], [])], ALL)
    assert_same_as_reference([field([cell], []), field([], [hit])], ALL)
    assert_same_as_reference([field([cell, cell], [hit, hit, hit])], ALL)
    assert_same_as_reference([field([cell, (12, 10, 22, 20, 1)], crowd)], ALL)
    for _ in range(3):  # more than 100 detections, of which the good ones come last
        scores = rng.permutation(150) / 150
        late = [(*rng.uniform(0, 5, 2), *rng.uniform(6, 9, 2), 1, s) for s in scores]
        assert_same_as_reference([field([cell], [*late, (*hit[:5], 0.3)])], ALL)


def test_a_domain_without_fields_has_no_score():
    scores = detection_metrics([], CLASSES, ALL)
    assert np.isnan([scores.ap50, scores.ap50_95, scores.recall]).all()
    assert np.isnan(MatchTable.build([], ALL).ap(np.zeros(0, np.int64))).all()


def test_a_resample_scores_as_if_the_fields_had_been_photographed_again():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        records = [  # equal scores only between fields, see MatchTable
            replace(r, scores=rng.permutation(len(r.scores)).astype(np.float32) / 100)
            for r in random_domain(1000 + seed)
        ]
        weights = rng.integers(0, 4, len(records))
        resample = [r for r, w in zip(records, weights, strict=True) for _ in range(w)]
        if not resample:
            continue
        np.testing.assert_allclose(
            MatchTable.build(records, ALL).ap(weights),
            pycocotools_scores(resample, ALL)[:2],
            rtol=0,
            atol=1e-6,
        )


def test_finding_a_cell_of_unknown_type_is_neither_right_nor_wrong():
    known, unknown = (10, 10, 20, 20, 1), (40, 10, 50, 20, -1)
    on_known, on_unknown = (10, 10, 20, 20, 1, 0.5), (41, 10, 51, 20, 1, 0.9)
    empty_spot = (70, 70, 80, 80, 1, 0.9)
    alone = detection_metrics([field([known], [on_known])], CLASSES, ALL)
    excused = detection_metrics([field([known, unknown], [on_known, on_unknown])], CLASSES, ALL)
    blamed = detection_metrics([field([known, unknown], [on_known, empty_spot])], CLASSES, ALL)
    for name in ("ap50", "ap50_95", "recall", "detections"):
        assert getattr(excused, name) == getattr(alone, name)
    assert blamed.ap50 == pytest.approx(0.5)


def test_a_small_box_inside_a_cell_of_unknown_type_is_not_excused():
    known, unknown = (10, 10, 20, 20, 1), (40, 10, 60, 30, -1)
    found = [(10, 10, 20, 20, 1, 0.5), (45, 15, 50, 20, 1, 0.9)]
    assert detection_metrics([field([known, unknown], found)], CLASSES, ALL).ap50 < 0.6


def test_a_known_cell_beside_an_unknown_one_keeps_its_detection():
    known, unknown = (10, 10, 30, 30, 1), (14, 10, 34, 30, -1)
    right = field([known, unknown], [(10, 10, 30, 30, 1, 0.9)])
    misnamed = field([known, unknown], [(10, 10, 30, 30, 0, 0.9), (10, 10, 30, 30, 1, 0.8)])
    assert detection_metrics([right], CLASSES, ALL).ap50 == 1.0
    assert detection_metrics([misnamed], CLASSES, ALL).detections == 2


def test_what_lies_outside_the_annotated_region_is_not_judged():
    cell = (10, 10, 20, 20, 1)
    found = [(10, 10, 20, 20, 1, 0.5), (70, 10, 80, 20, 1, 0.9), (45, 10, 55, 20, 1, 0.8)]
    whole = detection_metrics([field([cell], found)], CLASSES, ALL)
    patch = detection_metrics([field([cell], found, regions=((0, 0, 50, 50),))], CLASSES, ALL)
    assert whole.ap50 == pytest.approx(1 / 3)
    assert patch.ap50 == 1.0  # the box centred on the border (x = 50) is outside: half-open


def test_a_find_on_the_edge_of_a_region_goes_with_its_cell():
    region = ((0, 0, 50, 50),)
    cell, find = (44.5, 10, 54.5, 20, 1), (45.5, 10, 55.5, 20, 1, 0.9)  # centred at 49.5 and 50.5
    scores = detection_metrics([field([cell], [find], regions=region)], CLASSES, ALL)
    assert (scores.ap50, scores.truths_per_class[CLASSES[1]]) == (1.0, 1)
    # Rounded to the other side it is learned all the same (`TOLERANCE`), so it is scored.
    rounded, inner = (45.5, 10, 55.5, 20, 1), (44.5, 10, 54.5, 20, 1, 0.9)
    scores = detection_metrics([field([rounded], [inner], regions=region)], CLASSES, ALL)
    assert (scores.ap50, scores.truths_per_class[CLASSES[1]]) == (1.0, 1)
    # A box farther off is a stray: it is not scored, and a find of it is no fault.
    stray, own = (47, 10, 57, 20, 1), (5, 5, 15, 15, 1)
    found = [(44.5, 10, 54.5, 20, 1, 0.95), (*own, 0.9)]
    scores = detection_metrics([field([stray, own], found, regions=region)], CLASSES, ALL)
    assert (scores.ap50, scores.detections, scores.truths_per_class[CLASSES[1]]) == (1.0, 1, 1)


def test_of_several_annotated_regions_any_will_do():
    cells = [(10, 10, 20, 20, 1), (70, 10, 80, 20, 1), (40, 10, 50, 20, 1)]
    regions = ((0, 0, 30, 30), (60, 0, 90, 30))
    found = [(*cell, 0.9) for cell in cells]
    judged = detection_metrics([field(cells, found, regions=regions)], CLASSES, ALL)
    assert (judged.detections, judged.ap50) == (2, 1.0)
    nowhere = field(cells, found, regions=((0, 40, 90, 90), (0, 50, 9, 90)))
    assert detection_metrics([nowhere], CLASSES, ALL).detections == 0


def test_intervals_judge_the_same_boxes_as_the_score():
    judged_away = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        whole = random_domain(seed)
        records = [
            replace(
                r,
                true_labels=np.where(rng.random(len(r.true_labels)) < 0.3, -1, r.true_labels),
                regions=((0.0, 0.0, *rng.uniform(20, 80, 2)),) if rng.random() < 0.5 else None,
            )
            for r in whole
        ]
        scores = detection_metrics(records, CLASSES, ALL)
        judged_away += sum(len(r.labels) for r in records) - scores.detections
        np.testing.assert_allclose(
            MatchTable.build(records, ALL).ap(np.ones(len(records), np.int64)),
            (scores.ap50, scores.ap50_95),
            rtol=0,
            atol=1e-6,
        )
    assert judged_away > 100


def test_attributes_outside_the_annotated_region_are_not_judged():
    record = field(
        [(*A, 0), (*D, 0)],
        [(*A, 0, 0.9), (*D, 0, 0.9)],
        attributes=[(0, 0), (1, 1)],
        probs=[soft(0, 0), soft(0, 0)],
    )
    assert attribute_metrics([record], SPACE).attribute_f1 < 0.5
    patch = attribute_metrics([replace(record, regions=((0, 0, 30, 30),))], SPACE)
    assert patch.end_to_end == 1.0
    assert patch.per_attribute["size"].truths == 1


def test_a_class_that_the_domain_does_not_label_is_not_scored():
    records = [field([(0, 0, 9, 9, 1)], [(0, 0, 9, 9, 1, 0.5), (50, 50, 60, 60, 2, 0.9)])]
    result = evaluate(records, WBC5, labelled=(0, 1))
    assert list(result["per_class"]) == ["neutrophil", "lymphocyte"]
    assert result["per_class"]["neutrophil"] == {"ap50": None, "ap50_95": None, "truths": 0}
    assert result["ap50"] == 1.0
    assert result["ece"] == pytest.approx(0.5)  # the detection of class 2 is not in it


def soft(*codes: int) -> list[float]:
    """Probabilities of SPACE that are highest at (size, vacuoles)."""
    size, vacuoles = codes
    return [0.8 if i == size else 0.1 for i in range(3)] + [
        0.9 if i == vacuoles else 0.1 for i in range(2)
    ]


A, B, C, D = ((x, 0, x + 10, 10) for x in (0, 20, 40, 60))


def test_a_perfect_detector_has_perfect_attributes():
    values = [(0, 1), (1, 0), (2, 1)]
    record = field(
        [(*A, 0), (*B, 1), (*C, -1)],
        [(*C, 0, 0.9), (*A, 1, 0.5), (*B, 0, 0.7)],
        attributes=values,
        probs=[soft(*values[2]), soft(*values[0]), soft(*values[1])],
    )
    scores = attribute_metrics([record], SPACE)
    assert scores.attribute_f1 == scores.end_to_end == scores.attribute_balanced_accuracy == 1.0
    assert scores.per_attribute["size"].truths == 3  # a cell of unknown type has a known size


def test_attribute_scores_are_those_computed_by_hand():
    # vacuoles: A no -> no, B no -> yes, C yes -> yes, D yes -> not found; size only of A, known
    record = field(
        [(*A, 0), (*B, 0), (*C, 0), (*D, 0)],
        [(*A, 0, 0.9), (*B, 0, 0.9), (*C, 0, 0.9), (80, 0, 90, 10, 0, 0.9)],
        attributes=[(2, 0), (-1, 0), (-1, 1), (-1, 1)],
        probs=[soft(2, 0), soft(0, 1), soft(0, 1), soft(0, 0)],
    )
    scores = attribute_metrics([record], SPACE)
    vacuoles = scores.per_attribute["vacuoles"]
    assert vacuoles.f1 == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert vacuoles.balanced_accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert vacuoles.f1_end_to_end == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert (vacuoles.truths, vacuoles.found) == (4, 3)
    assert scores.per_attribute["size"].f1 == 1.0  # over the one value that occurs
    assert scores.attribute_f1 == pytest.approx((1 + 2 / 3) / 2)


def test_each_cell_takes_the_attributes_of_one_detection_and_the_surest_comes_first():
    sure_but_wrong = (0, 0, 10, 9, 1, 0.9)
    unsure_but_exact = (*A, 0, 0.2)
    record = field(
        [(*A, 0)],
        [unsure_but_exact, sure_but_wrong],
        attributes=[(0, 0)],
        probs=[soft(0, 0), soft(1, 1)],
    )
    assert attribute_metrics([record], SPACE).attribute_f1 == 0.0


def test_missing_every_cell_scores_zero_end_to_end_and_nothing_on_found_cells():
    record = field([(*A, 0)], [(*D, 0, 0.9)], attributes=[(0, 0)], probs=[soft(0, 0)])
    scores = attribute_metrics([record], SPACE)
    assert scores.end_to_end == 0.0
    assert np.isnan(scores.attribute_f1)


def test_without_attributes_there_is_no_attribute_score():
    truth, found = [(*A, 0)], [(*A, 0, 0.9)]
    assert attribute_metrics([field(truth, found)], SPACE) is None
    assert attribute_metrics([field(truth, found, attributes=[(0, 1)])], SPACE) is None
    unknown = field(truth, found, attributes=[(-1, -1)], probs=[soft(0, 0)])
    assert attribute_metrics([unknown], SPACE) is None
    assert attribute_metrics([field(truth, found)], LabelSpace("bare", ("a", "b"))) is None


def test_attributes_of_another_label_space_are_refused():
    truth, found = [(*A, 0)], [(*A, 0, 0.9)]
    with pytest.raises(ValueError, match="columns"):
        attribute_metrics([field(truth, found, attributes=[(0, 1)], probs=[[0.5] * 4])], SPACE)
    with pytest.raises(ValueError, match="code"):
        attribute_metrics([field(truth, found, attributes=[(0, 2)], probs=[soft(0, 0)])], SPACE)


def test_the_class_lookup_answers_with_the_usual_value_of_the_predicted_class():
    lookup = fit_lookup(
        np.array([0, 0, 0, 2, -1, -1]),
        np.array([(0, 1), (2, 1), (2, -1), (1, -1), (1, 0), (1, 0)]),
    )
    assert lookup.predict(np.array([0, 2, 1, 7])).tolist() == [[2, 1], [1, 0], [1, 0], [1, 0]]
    record = field([(*A, 0), (*B, 1)], [(*A, 0, 0.9), (*B, 1, 0.9)], attributes=[(2, 1), (0, 0)])
    scores = attribute_metrics([record], SPACE, lookup)
    assert scores.per_attribute["vacuoles"].f1 == 1.0
    assert scores.per_attribute["size"].balanced_accuracy == 0.5


def test_honest_scores_have_no_calibration_error_and_boasting_ones_have():
    truths = [(20 * i, 0, 20 * i + 10, 10, 0) for i in range(40)]

    def domain(score: float, right: int) -> MatchTable:
        found = [(*t[:4], 0, score) for t in truths[:right]]
        found += [(20 * i, 50, 20 * i + 10, 60, 0, score) for i in range(40 - right)]
        noise = [(20 * i, 80, 20 * i + 10, 90, 0, 0.01) for i in range(40)]
        return MatchTable.build([field(truths, found + noise)], ALL)

    assert reliability(domain(0.75, 30)).ece == pytest.approx(0.0, abs=1e-6)
    assert reliability(domain(1.0, 10)).ece == pytest.approx(0.75)
    assert len(reliability(domain(1.0, 10)).count) == BINS
    table = reliability(domain(0.5, 10))
    assert len(table.count) == BINS
    assert table.count.sum() == 40  # boxes of a score that nobody sees do not dilute the error
    assert table.precision[BINS // 2] == pytest.approx(0.25)
    assert np.isnan(reliability(MatchTable.build([field(truths)], ALL)).ece)


def test_an_interval_holds_its_score_is_repeatable_and_shrinks_with_more_patients():
    def table(patients: int) -> MatchTable:
        rng = np.random.default_rng(3)
        records = [random_field(rng, i) for i in range(2 * patients)]
        return MatchTable.build(records, ALL)

    few, many = (hierarchical_interval([table(n)], replicates=200)["ap50"] for n in (4, 60))
    assert few.low < few.mean < few.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert many.low < many.mean < many.high
    assert hierarchical_interval([table(60)], replicates=200)["ap50"] == many
    assert hierarchical_interval([table(60)], replicates=200, rng_seed=1)["ap50"] != many


def test_fields_of_one_patient_are_drawn_together():
    good, bad = field([(*A, 0)], [(*A, 0, 0.9)]), field([(*A, 0)], [])
    fields = [good, good, bad, bad]
    one = MatchTable.build([replace(r, group="patient:1") for r in fields], ALL)
    each = MatchTable.build([replace(r, group=f"field:{i}") for i, r in enumerate(fields)], ALL)
    together = hierarchical_interval([one], replicates=50)["ap50"]
    apart = hierarchical_interval([each], replicates=50)["ap50"]
    assert together.low == together.high == together.mean == one.ap(np.ones(4, np.int64))[0]
    assert apart.low < apart.high


def test_training_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    records = [field([(*A, 0)], [(*A, 0, 0.9)], group=f"g{i}") for i in range(20)]
    blind = [replace(r, scores=r.scores * 0, boxes=r.boxes + 50) for r in records]
    hit, miss = MatchTable.build(records, ALL), MatchTable.build(blind, ALL)
    agree = hierarchical_interval([hit, hit], replicates=100)["ap50"]
    disagree = hierarchical_interval([hit, miss], replicates=100)["ap50"]
    assert (agree.low, agree.mean, agree.high) == (1.0, 1.0, 1.0)
    assert (disagree.low, disagree.mean, disagree.high) == (0.0, 0.5, 1.0)
    third = hierarchical_interval([hit, miss, miss], level=0.9)["ap50"]
    assert third.high == pytest.approx(2 / 3)  # the seed that finds all was drawn twice
    other = MatchTable.build([random_field(rng, 0)], ALL)
    with pytest.raises(ValueError, match="same fields"):
        hierarchical_interval([hit, other])


def test_all_seeds_are_scored_on_the_same_draw_of_patients():
    class FindsHalf:
        """Finds exactly the fields that the other half misses: the mean of both is one half."""

        groups = tuple(f"g{i}" for i in range(20))

        def __init__(self, half: int) -> None:
            self.half = half

        def statistic(self, weights):
            return {"found": weights[self.half :: 2].sum() / weights.sum()}

    halves = [FindsHalf(0), FindsHalf(1)]
    # Half of the replicates draw each seed once and give exactly 0.5; a quarter lies on each side.
    middle = hierarchical_interval(halves, level=0.3, replicates=400)["found"]
    whole = hierarchical_interval(halves, level=0.95, replicates=400)["found"]
    assert middle.low == middle.high == 0.5
    assert whole.low < 0.45
    assert whole.high > 0.55


def test_attributes_are_resampled_by_the_same_bootstrap():
    right = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(0, 1)], probs=[soft(0, 1)])
    wrong = replace(right, attribute_probs=np.array([soft(1, 0)], np.float32))
    records = [replace(r, group=f"g{i}") for i, r in enumerate([right, wrong] * 5)]
    table = AttributeTable.build(records, SPACE)
    weights = np.array([1, 0] * 5)
    assert table.statistic(weights)["attribute_f1"] == 1.0
    assert table.statistic(1 - weights)["attribute_f1"] == 0.0
    interval = hierarchical_interval([table], replicates=200)["attribute_f1"]
    headline = attribute_metrics(records, SPACE)
    assert interval.mean == headline.attribute_f1
    assert interval.low < interval.mean < interval.high


def test_a_thousand_replicates_take_seconds():
    rng = np.random.default_rng(0)
    records = [random_field(rng, i, most=25) for i in range(100)]
    table = MatchTable.build(records, ALL)
    start = time.perf_counter()
    hierarchical_interval([table], replicates=1000)
    assert time.perf_counter() - start < 10  # about one second on a quiet machine


def test_records_come_back_from_their_file_as_they_were(tmp_path: Path):
    rng = np.random.default_rng(1)
    records = [random_field(rng, i) for i in range(6)]
    records += [
        field(key="d//leer", regions=((0.5, 1, 20, 30.25), (20, 0, 30, 9))),
        field(key="größe/é", group=""),
    ]
    save_records(tmp_path / "a.npz", records)
    back = load_records(tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    for before, after in zip(records, back, strict=True):
        assert (before.key, before.group, before.regions) == (after.key, after.group, after.regions)
        for name in ("true_boxes", "true_labels", "true_attributes", "boxes", "scores", "labels"):
            old, new = getattr(before, name), getattr(after, name)
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
    assert evaluate(back, WBC5, ALL) == evaluate(records, WBC5, ALL)
    save_records(tmp_path / "none.npz", [])
    assert load_records(tmp_path / "none.npz") == []


def test_attributes_survive_the_file_when_some_fields_have_no_boxes(tmp_path: Path):
    full = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(2, 1)], probs=[soft(2, 1)])
    save_records(tmp_path / "a.npz", [field(), full, field()])
    back = load_records(tmp_path / "a.npz")
    np.testing.assert_array_equal(back[1].attribute_probs, full.attribute_probs)
    assert attribute_metrics(back, SPACE).end_to_end == 1.0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    save_records(tmp_path / "a.npz", [field(key="old")])

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_records(tmp_path / "a.npz", [field(key="new")])
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert load_records(tmp_path / "a.npz")[0].key == "old"


def test_a_record_that_does_not_fit_together_is_refused():
    whole = field([(*A, 0)], [(*A, 0, 0.9)])
    with pytest.raises(ValueError, match="fit together"):
        replace(whole, scores=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="not a number"):
        replace(whole, scores=np.array([np.nan], np.float32))


def test_a_result_is_json_without_nan():
    keys = {
        *("evaluator_version", "ap50", "ap50_95", "recall", "ece", "fields", "boxes"),
        *("attribute_f1", "attribute_f1_end_to_end", "attribute_balanced_accuracy"),
        *("per_class", "per_attribute", "attributes", "as_released", "reliability"),
        *("attribute_f1_true_boxes", "attribute_balanced_accuracy_true_boxes"),
        *("attribute_balanced_accuracy_end_to_end", "attribute_ece", "attribute_f1_as_released"),
        *("map50_as_released", "map50_95_as_released"),
        *("ap50_without_none", "ap50_95_without_none"),
    }
    attributed = field([(*A, 0)], [(*A, 0, 0.9)], attributes=[(2, -1)], probs=[soft(2, 1)])
    for records in ([], [field()], [field([(*A, 1)])], [field([], [(*A, 1, 0.9)])], [attributed]):
        result = evaluate(records, SPACE, labelled=(0, 1))
        assert set(result) == keys
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result["evaluator_version"] == EVALUATOR_VERSION
    assert result["per_attribute"]["size"] == {"f1": 1.0, "balanced_accuracy": 1.0, "truths": 1}
    assert result["per_attribute"]["vacuoles"]["f1"] is None
    assert result["attribute_f1"] == result["ap50"] == result["recall"] == 1.0


# --- on true boxes, against the lookup, and how sure -------------------------------------------


def macro_by_hand(truth, said):
    """F1 and recall of each value that occurs, counted one by one; the mean of both."""
    values = sorted(set(truth))
    f1, recall = [], []
    for v in values:
        hit = sum(t == v and s == v for t, s in zip(truth, said, strict=True))
        missed = sum(t == v and s != v for t, s in zip(truth, said, strict=True))
        false = sum(t != v and s == v for t, s in zip(truth, said, strict=True))
        f1.append(2 * hit / (2 * hit + missed + false))
        recall.append(hit / (hit + missed))
    return np.mean(f1), np.mean(recall)


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


@pytest.mark.parametrize("seed", range(5))
def test_scores_on_true_boxes_are_those_counted_one_by_one(seed):
    records = attributed_domain(seed)
    truth = np.concatenate([r.true_attributes for r in records])
    asked = np.concatenate([r.true_attribute_probs for r in records])
    found = attribute_metrics(records, SPACE, given_boxes=True)
    scores = []
    for a, (start, stop) in enumerate([(0, 3), (3, 5)]):
        known = truth[:, a] >= 0
        said = asked[known, start:stop].argmax(1)
        f1, balanced = macro_by_hand(truth[known, a].tolist(), said.tolist())
        score = found.per_attribute[SPACE.attributes[a].name]
        assert (score.f1, score.balanced_accuracy) == pytest.approx((f1, balanced))
        assert score.truths == score.found == known.sum()
        scores.append((f1, balanced))
    means = np.mean(scores, axis=0)
    assert (found.attribute_f1, found.attribute_balanced_accuracy) == pytest.approx(tuple(means))
    unasked = [replace(r, true_attribute_probs=None) for r in records]
    assert attribute_metrics(unasked, SPACE, given_boxes=True) is None


def test_the_gain_is_over_a_lookup_that_knows_the_types():
    """Types decide the size and the lookup has it right; the head knows the vacuoles, it cannot."""
    codes = [(0, 0), (0, 1), (2, 0), (2, 1)]
    truths = [(*A, 0), (*B, 0), (*C, 1), (*D, 1)]
    lookup = fit_lookup(np.array([0, 0, 1, 1]), np.array(codes))
    asked = np.array([soft(1, c[1]) for c in codes], np.float32)  # always "medium"
    record = field(
        truths,
        [(*A, 0, 0.9), (*B, 1, 0.9), (*C, 1, 0.9)],
        attributes=codes,
        probs=asked[:3],
    )
    result = evaluate([replace(record, true_attribute_probs=asked)], SPACE, (0, 1), lookup)
    on_boxes = result["attributes"]["true_boxes"]["per_attribute"]
    assert (on_boxes["size"]["f1"], on_boxes["size"]["lookup_f1"]) == (0.0, 1.0)
    assert on_boxes["size"]["gain_f1"] == -1.0
    assert on_boxes["vacuoles"]["gain_f1"] == pytest.approx(1 - 1 / 3)  # always "no": 2/3 and 0
    assert on_boxes["vacuoles"]["gain_balanced_accuracy"] == pytest.approx(0.5)
    found = result["attributes"]["found"]["per_attribute"]["size"]
    assert found["lookup_balanced_accuracy"] == 0.75  # B was named b, so it is guessed large
    assert result["attributes"]["end_to_end"]["scored"] == 2
    view = result["attributes"]["end_to_end"]
    assert view["gain_f1"] == pytest.approx(view["f1"] - view["lookup_f1"])
    assert result["attribute_f1_true_boxes"] == result["attributes"]["true_boxes"]["f1"] == 0.5
    missed = result["attributes"]["end_to_end"]["per_attribute"]["vacuoles"]
    assert missed["balanced_accuracy"] == 0.75  # D was not found: one of two "yes" is lost
    plain = evaluate([record], SPACE, (0, 1))["attributes"]
    assert plain.keys() == {"found", "end_to_end"}
    assert "lookup_f1" not in plain["found"]


def test_the_lookup_is_told_by_name():
    lookup = fit_lookup(np.array([0, 0, -1]), np.array([(2, 1), (2, 1), (1, 0)]))
    assert lookup.to_dict(SPACE) == {
        "overall": {"size": "l", "vacuoles": "yes"},
        "classes": {"a": {"size": "l", "vacuoles": "yes"}, "b": {"size": "l", "vacuoles": "yes"}},
    }


@pytest.mark.parametrize("seed", range(5))
def test_attribute_calibration_is_that_of_each_answer(seed):
    records = attributed_domain(seed, fields=30)
    pooled, by_name = attribute_reliability(records, SPACE)
    answers = {"size": [], "vacuoles": []}
    for r in records:
        for d, box in enumerate(r.boxes):
            (n,) = np.flatnonzero((r.true_boxes == box).all(1))
            for a, (name, start, stop) in enumerate([("size", 0, 3), ("vacuoles", 3, 5)]):
                probs = r.attribute_probs[d, start:stop]
                if r.true_attributes[n, a] >= 0:
                    right = probs.argmax() == r.true_attributes[n, a]
                    answers[name].append((float(probs.max()), bool(right)))

    def ece(rows):
        total = 0.0
        for b in range(BINS):
            inside = [(p, right) for p, right in rows if min(int(p * BINS), BINS - 1) == b]
            if inside:
                sure, right = np.mean(inside, axis=0)
                total += abs(sure - right) * len(inside) / len(rows)
        return total

    for name, rows in answers.items():
        assert by_name[name].ece == pytest.approx(ece(rows), abs=1e-6)
        assert by_name[name].count.sum() == len(rows)
    assert pooled.ece == pytest.approx(ece(answers["size"] + answers["vacuoles"]), abs=1e-6)
    told = pooled.to_dict()
    assert told["count"][0] == 0  # no answer of three values is below one third
    assert told["precision"][0] is None


def test_calibration_of_nothing_is_no_number():
    missed = field([(*A, 0)], [(*D, 0, 0.9)], attributes=[(0, 0)], probs=[soft(0, 0)])
    pooled, by_name = attribute_reliability([missed], SPACE)
    assert np.isnan(pooled.ece)
    assert by_name["size"].to_dict()["ece"] is None
    assert evaluate([missed], SPACE, (0, 1))["attribute_ece"] is None
    assert attribute_reliability([field([(*A, 0)], [(*A, 0, 0.9)])], SPACE) is None
    assert attribute_reliability([], SPACE) is None


def test_what_was_read_at_true_boxes_survives_the_file_and_the_region(tmp_path: Path):
    records = attributed_domain(3)
    save_records(tmp_path / "a.npz", records)
    back = load_records(tmp_path / "a.npz")
    for before, after in zip(records, back, strict=True):
        np.testing.assert_array_equal(before.true_attribute_probs, after.true_attribute_probs)
    assert evaluate(back, SPACE, (0, 1)) == evaluate(records, SPACE, (0, 1))
    unasked = [replace(r, true_attribute_probs=None) for r in records]
    save_records(tmp_path / "b.npz", unasked)
    assert all(r.true_attribute_probs is None for r in load_records(tmp_path / "b.npz"))
    with np.load(tmp_path / "b.npz") as file:  # a file of before there was such a thing
        old = {k: v for k, v in file.items() if k != "true_attribute_probs"}
    np.savez_compressed(tmp_path / "c.npz", **old)
    assert evaluate(load_records(tmp_path / "c.npz"), SPACE, (0, 1)) == evaluate(
        unasked, SPACE, (0, 1)
    )
    part = field([(*A, 0), (*D, 0)], attributes=[(0, 0), (0, 0)], regions=((0, 0, 30, 30),))
    asked = np.array([soft(0, 0), soft(1, 1)], np.float32)
    scores = attribute_metrics([replace(part, true_attribute_probs=asked)], SPACE, given_boxes=True)
    assert scores.attribute_f1 == 1.0  # the wrong one lies outside
    with pytest.raises(ValueError, match="fit together"):
        replace(part, true_attribute_probs=asked[:1])


def test_true_boxes_are_resampled_by_the_same_bootstrap():
    records = attributed_domain(2)
    table = AttributeTable.build(records, SPACE, given_boxes=True)
    everything = table.statistic(np.ones(len(records), np.int64))
    assert everything["attribute_f1_true_boxes"] == pytest.approx(table.scores().attribute_f1)
    assert everything.keys().isdisjoint(
        AttributeTable.build(records, SPACE).statistic(np.ones(len(records), np.int64))
    )
