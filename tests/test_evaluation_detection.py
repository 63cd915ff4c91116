"""Detection scores against pycocotools, what of a field is judged, and how sure scores may be."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from evaluation_kit import ALL, field, random_field

from da_leukemia.evaluation import FieldRecord, MatchTable, evaluate
from da_leukemia.evaluation.detection import DetectionScores, detection_metrics
from da_leukemia.evaluation.reliability import BINS, reliability
from da_leukemia.labels import WBC5

CLASSES = WBC5.classes


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


# --- what is judged ----------------------------------------------------------------------------


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


def test_a_class_that_the_domain_does_not_label_is_not_scored():
    records = [field([(0, 0, 9, 9, 1)], [(0, 0, 9, 9, 1, 0.5), (50, 50, 60, 60, 2, 0.9)])]
    result = evaluate(records, WBC5, labelled=(0, 1))
    assert list(result["per_class"]) == ["neutrophil", "lymphocyte"]
    assert result["per_class"]["neutrophil"] == {"ap50": None, "ap50_95": None, "truths": 0}
    assert result["ap50"] == 1.0
    assert result["ece"] == pytest.approx(0.5)  # the detection of class 2 is not in it


# --- how sure ----------------------------------------------------------------------------------


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
