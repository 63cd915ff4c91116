"""Average ranks against scipy, Demsar's own numbers and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare
from test_matrix_support import make_sweep

from da_leukemia.evaluation.ranks import Ranking, critical_difference, rank_methods
from da_leukemia.report.contents import as_results
from da_leukemia.report.ranks import ranks_of, svg
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.matrix import Matrix, Row


def ranking(ranks, distance):
    names = tuple(f"m{i}" for i in range(len(ranks)))
    return Ranking(names, tuple(ranks), 10, 9.0, 0.01, distance, 0.05)


def test_ranks_are_those_of_counting():
    scores = [[0.9, 0.8, 0.7], [0.5, 0.6, 0.5], [0.1, 0.2, 0.3]]
    found = rank_methods(["a", "b", "c"], scores)
    # by hand: a 1, 2.5, 3; b 2, 1, 2; c 3, 2.5, 1
    by_name = dict(zip(found.methods, found.ranks, strict=True))
    assert by_name == pytest.approx({"a": 6.5 / 3, "b": 5 / 3, "c": 6.5 / 3})
    assert found.methods == ("b", "a", "c")


def test_the_statistic_is_friedmans():
    scores = np.random.default_rng(0).random((9, 5))
    found = rank_methods(list("abcde"), scores)
    n, k = scores.shape
    places = np.argsort(np.argsort(-scores, axis=1), axis=1) + 1
    sums = (places.mean(axis=0) ** 2).sum()
    assert found.statistic == pytest.approx(12 * n / (k * (k + 1)) * (sums - k * (k + 1) ** 2 / 4))
    assert found.p == pytest.approx(friedmanchisquare(*scores.T).pvalue)


def test_critical_differences_are_those_of_the_paper():
    """Demsar (2006): table 5 gives q = 2.343, 2.569, 3.164; section 3.2.4 a distance of 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    for k, q in ((3, 2.343), (4, 2.569), (10, 3.164)):
        assert critical_difference(k, 25) == pytest.approx(q * (k * (k + 1) / 150) ** 0.5, rel=1e-3)
    assert critical_difference(4, 14, level=0.1) == pytest.approx(
        2.291 * (20 / 84) ** 0.5, rel=1e-3
    )


def test_methods_that_never_differ_are_alike():
    found = rank_methods(["a", "b", "c"], np.full((6, 3), 0.5))
    assert (found.statistic, found.p) == (0.0, 1.0)
    assert found.alike() == [(0, 2)]


def test_bars_are_the_largest_groups_within_the_distance():
    assert ranking([1.0, 1.8, 2.6, 4.0], 1.0).alike() == [(0, 1), (1, 2)]
    assert ranking([1.0, 1.5, 2.0, 4.0], 1.0).alike() == [(0, 2)]
    assert ranking([1.0, 3.0, 5.0], 1.0).alike() == []


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.ones((4, 2)), "2 methods in 4 blocks"),
        (np.ones((1, 3)), "3 methods in 1 blocks"),
        ([[1.0, 2.0, np.nan]] * 3, "missing"),
        (np.ones(3), "expected"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, said):
    names = list("abc")[: np.shape(scores)[-1]]
    with pytest.raises(ValueError, match=said):
        rank_methods(names, scores)


# --- from the matrix -------------------------------------------------------------------------

DEVICES = ("x", "y", "z")


def matrix(scores, leave_out=()):
    """Methods that look at no target: scores[method][source, test]."""
    rows = []
    for method, by_place in scores.items():
        for (s, t), value in by_place.items():
            if (method, s, t) not in leave_out:
                rows.append(Row(method, s, "", t, "ap50", value, None, None, 1, 9))
    return Matrix(tuple(rows))


def steps():
    places = [(s, t) for s in DEVICES for t in DEVICES]
    quality = {"low": 0.2, "middle": 0.4, "high": 0.6}
    return {m: {p: q + 0.01 * i for i, p in enumerate(places)} for m, q in quality.items()}


def test_cells_off_the_diagonal_are_ranked():
    found = ranks_of(matrix(steps()), "ap50")
    assert found.ranking.methods == ("high", "middle", "low")
    assert found.ranking.ranks == (1.0, 2.0, 3.0)
    assert (found.ranking.blocks, found.cells) == (6, 6)


def test_a_missing_cell_is_said_and_a_missing_method_named():
    found = ranks_of(matrix(steps(), {("low", "x", "y")}), "ap50")
    assert (found.ranking.blocks, found.cells) == (5, 6)
    assert any("1 of 6 cells lack a method" in note for note in found.notes)
    scores = steps()
    scores["rare"] = {("x", "y"): 0.9, ("x", "z"): 0.9}
    found = ranks_of(matrix(scores), "ap50")
    assert found.absent == ("rare",)
    assert any("rare" in note for note in found.notes)


def test_too_little_gives_nothing():
    scores = steps()
    assert ranks_of(Matrix(()), "ap50") is None
    assert ranks_of(matrix({m: scores[m] for m in ("low", "high")}), "ap50") is None
    assert ranks_of(matrix(scores, {("low", "x", "y"), ("low", "y", "x")}), "ap50") is None


def test_an_adapted_method_is_ranked_where_it_adapted(tmp_path):
    experiment, results = make_sweep(tmp_path, records=False)
    found = ranks_of(build_matrix(as_results(experiment, results)), "ap50")
    assert found.ranking.methods[0] == "mean_teacher"
    assert found.ranking.methods[-1] == "source_only"
    assert found.ranking.blocks == 6
    picture = svg(found, alone=True)
    assert picture.count("<text") == 4 + 1 + 4
    assert 'aria-label="Average ranks over 6 cells' in picture
