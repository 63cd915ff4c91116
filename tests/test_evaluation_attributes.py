"""Attributes on found cells and true boxes, against the lookup, and how sure: counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_kit import SPACE, A, B, C, D, attributed_domain, field, soft

from da_leukemia.evaluation import attribute_metrics, evaluate, fit_lookup
from da_leukemia.evaluation.reliability import BINS, attribute_reliability
from da_leukemia.labels import LabelSpace


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
