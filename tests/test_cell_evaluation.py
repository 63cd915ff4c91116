"""Scores of single cells against direct counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from da_leukemia.data.readers.cells import whole_image_cell
from da_leukemia.evaluation.classification import ClassTable, abstention, evaluate_cells
from da_leukemia.evaluation.records import load_records, save_records
from da_leukemia.labels import OPEN_SET, UNKNOWN, WBC5
from da_leukemia.tasks.classification import cell_records

TRUTH = [0, 0, 0, 0, 1, 1, 2, 2, 2, 4, OPEN_SET, OPEN_SET, UNKNOWN, 3]
ALL = (0, 1, 2, 3, 4)


def records(truth=TRUTH, seed=0, sharp=3.0):
    """Return answers of a classifier that is often right."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1, (len(truth), 5))
    for row, label in enumerate(truth):
        if label >= 0 and draw.random() < 0.7:
            logits[row, label] += sharp
    fields = [
        whole_image_cell(Path(f"{n}.png"), "d", f"p{n % 4}", str(n), (9, 9), [t], None, WBC5, ALL)
        for n, t in enumerate(truth)
    ]
    return cell_records(fields, torch.from_numpy(logits).softmax(-1), torch.zeros(len(truth), 0))


def direct(truth, said):
    """Count what the definitions say, with plain loops."""
    classes = sorted(set(truth))
    recalls, f1s = [], []
    for k in classes:
        hit = sum(t == s == k for t, s in zip(truth, said, strict=True))
        recalls.append(hit / truth.count(k))
        f1s.append(2 * hit / (truth.count(k) + said.count(k)))
    right = sum(t == s for t, s in zip(truth, said, strict=True)) / len(truth)
    return {
        "accuracy": right,
        "balanced_accuracy": sum(recalls) / len(classes),
        "macro_f1": sum(f1s) / len(classes),
    }


def said_of(found):
    return [int(r.labels[r.scores.argmax()]) for r in found]


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_what_counting_gives(seed):
    found = records(seed=seed)
    result = evaluate_cells(found, WBC5, ALL)
    known = [n for n, t in enumerate(TRUTH) if t >= 0]
    expected = direct([TRUTH[n] for n in known], [said_of(found)[n] for n in known])
    assert {k: result[k] for k in expected} == pytest.approx(expected)
    assert (result["fields"], result["boxes"]) == (14, 11)
    assert result["per_class"]["neutrophil"]["truths"] == 4


def test_only_classes_that_the_device_labels_are_scored():
    found = records()
    result = evaluate_cells(found, WBC5, (0, 1))
    pairs = [(t, s) for t, s in zip(TRUTH, said_of(found), strict=True) if t in (0, 1)]
    expected = direct(*(list(column) for column in zip(*pairs, strict=True)))
    assert result["accuracy"] == pytest.approx(expected["accuracy"])
    assert result["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])
    assert set(result["per_class"]) == {"neutrophil", "lymphocyte"}


def test_a_cell_that_counts_twice_is_as_if_it_were_there_twice():
    found = records()
    weights = np.array([2, 1, 0, 1, 3, 1, 1, 1, 1, 0, 1])
    known = [r for r, t in zip(found, TRUTH, strict=True) if t >= 0]
    many = [r for r, n in zip(known, weights.tolist(), strict=True) for _ in range(n)]
    one, other = (ClassTable.build(x, 5, ALL) for x in (known, many))
    assert one.statistic(weights) == pytest.approx(other.statistic(np.ones(len(many), np.int64)))
    assert all(np.isnan(v) for v in one.statistic(weights * 0).values())


def test_certainty_against_the_open_set_is_the_share_of_right_pairs():
    found = records(seed=2)
    sure = {n: float(r.scores.max()) for n, r in enumerate(found)}
    known = [sure[n] for n, t in enumerate(TRUTH) if t >= 0]
    other = [sure[n] for n, t in enumerate(TRUTH) if t == OPEN_SET]
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(known, other)]
    result = evaluate_cells(found, WBC5, ALL)
    assert result["open_set_auroc"] == pytest.approx(sum(wins) / len(wins))
    assert result["open_set_cells"] == 2


def test_answering_only_the_surest_is_read_off_their_order():
    sure = np.array([0.9, 0.5, 0.8, 0.6, 0.7], np.float32)
    right = np.array([True, False, True, False, True])
    found = abstention(sure, right)
    rows = {r["coverage"]: (r["accuracy"], r["from"]) for r in found["abstention"]}
    assert rows[0.6] == pytest.approx((1.0, 0.7))
    assert rows[0.8] == pytest.approx((0.75, 0.6))
    assert rows[1.0] == pytest.approx((0.6, 0.5))
    assert found["aurc"] == pytest.approx((0 + 0 + 0 + 0.25 + 0.4) / 5)
    assert abstention(sure[:0], right[:0])["aurc"] is None


def test_of_several_labels_the_cells_own_is_the_truth():
    field = whole_image_cell(Path("a.png"), "d", "", "a", (9, 9), [3, 1], None, WBC5, ALL)
    answer = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1]])
    result = evaluate_cells(cell_records([field], answer, answer[:, :0]), WBC5, ALL)
    assert (result["accuracy"], result["boxes"]) == (0.0, 1)
    assert result["intervals"] == {}  # one group only


def test_records_come_back_from_their_file_with_the_same_scores(tmp_path):
    found = records()
    save_records(tmp_path / "r.npz", found)
    again = load_records(tmp_path / "r.npz")
    assert evaluate_cells(again, WBC5, ALL) == evaluate_cells(found, WBC5, ALL)


def test_without_any_known_cell_there_is_no_score():
    result = evaluate_cells(records([UNKNOWN, OPEN_SET]), WBC5, ALL)
    assert result["balanced_accuracy"] is result["ece"] is result["open_set_auroc"] is None
