"""The paired test, its correction and the interval of the share won."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from da_leukemia.evaluation.paired import Cell, holm, randomization_test, share_interval


class Means:
    """Two detectors whose score is a mean over fields."""

    def __init__(self, first, second, groups=None):
        self.first, self.second = np.array(first, float), np.array(second, float)
        self.groups = [str(i) for i in range(len(first))] if groups is None else groups

    def statistic(self, first):
        return float(np.where(first, self.first, self.second).mean())


class Scores:
    """One detector whose score is a mean over the drawn fields."""

    def __init__(self, values):
        self.values = np.array(values, float)
        self.groups = [str(i) for i in range(len(values))]

    def statistic(self, weights):
        return {"ap50": float(np.average(self.values, weights=weights))}


def exact(first, second):
    gap = np.array(first) - np.array(second)
    all_signs = np.array(list(itertools.product([-1, 1], repeat=len(gap))))
    means = (all_signs * gap).mean(1)
    return (np.abs(means) >= abs(gap.mean()) - 1e-12).mean()


def test_p_is_that_of_all_sign_changes():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.4, 0.9):
        first, second = rng.normal(shift, 1, 10), rng.normal(0, 1, 10)
        found = randomization_test([Means(first, second)], permutations=8000)
        assert found.difference == pytest.approx((first - second).mean())
        assert found.p == pytest.approx(exact(first, second), abs=0.02)


def test_p_does_not_depend_on_which_is_first():
    first, second = [0.9, 0.8, 0.7, 0.9, 0.9, 0.6], [0.5, 0.6, 0.8, 0.4, 0.5, 0.5]
    one, other = (
        randomization_test([Means(*pair)], 500).p for pair in ((first, second), (second, first))
    )
    assert one == other


def test_fields_of_a_patient_change_sides_together():
    first, second = np.ones(12), np.zeros(12)
    alone = randomization_test([Means(first, second)], 2000).p
    grouped = randomization_test([Means(first, second, ["a", "b", "c"] * 4)], 2000).p
    assert alone < 0.01
    assert grouped == pytest.approx(0.25, abs=0.05)  # 2 of 2^3


def test_an_exchange_that_comes_again_is_not_scored_again():
    asked = []

    class Counted(Means):
        def statistic(self, first):
            asked.append(first.tobytes())
            return super().statistic(first)

    pair = Counted(
        [0.9, 0.2, 0.7, 0.8, 0.5, 0.6], [0.5, 0.6, 0.1, 0.2, 0.1, 0.3], ["a", "b", "c"] * 2
    )
    found = randomization_test([pair], 500)
    assert len(asked) == len(set(asked)) == 2**3
    assert found == randomization_test([Means(pair.first, pair.second, pair.groups)], 500)
    assert found.p == pytest.approx(0.5, abs=0.06)  # b is even, a and c must go the same way


def test_seeds_are_averaged_and_one_patient_tells_nothing():
    up, down = Means([1.0] * 8, [0.0] * 8), Means([0.0] * 8, [1.0] * 8)
    found = randomization_test([up, down], 200)
    assert found.difference == 0
    assert found.p == 1
    assert np.isnan(randomization_test([Means([1, 1], [0, 0], ["a", "a"])], 50).p)


def test_holm_against_its_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    found = holm([0.02, float("nan"), 0.04])
    assert found[0] == pytest.approx(0.04)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(0.04)


def test_the_interval_of_a_share_holds_it_and_narrows_with_the_data():
    rng = np.random.default_rng(0)
    widths = []
    for fields in (10, 1000):
        noise = [rng.normal(0, 0.1, fields) for _ in range(3)]
        cell = Cell(
            "phone",
            [Scores(0.7 + noise[0])],
            [Scores(0.5 + noise[1])],
            [Scores(0.9 + noise[2])],
        )
        low, high = share_interval([cell], "ap50")
        assert low < 0.5 < high or fields == 10
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_cells_of_a_device_are_resampled_alike():
    """One cell's luck is the other's bad luck on the same films: their sum does not move."""
    values = np.linspace(-0.5, 0.5, 20)
    flat, oracle = Scores(np.zeros(20)), Scores(np.ones(20))
    cells = [
        Cell("phone", [Scores(0.5 + values)], [flat], [oracle]),
        Cell("phone", [Scores(0.5 - values)], [flat], [oracle]),
    ]
    low, high = share_interval(cells, "ap50")
    assert (low, high) == pytest.approx((0.5, 0.5))
    apart = [cells[0], Cell("scope", *(c for c in (cells[1].adapted, [flat], [oracle])))]
    low, high = share_interval(apart, "ap50")
    assert high - low > 0.05


def test_a_gap_may_begin_elsewhere_than_the_gain():
    level = [[Scores(np.full(8, value))] for value in (0.8, 0.7, 0.9, 0.5)]  # base: 0.5
    assert share_interval([Cell("phone", *level[:3])], "ap50") == pytest.approx((0.5, 0.5))
    assert share_interval([Cell("phone", *level)], "ap50") == pytest.approx((0.25, 0.25))


def test_an_oracle_that_may_be_below_opens_the_interval():
    rng = np.random.default_rng(3)
    fair = Scores(0.5 + rng.normal(0, 0.2, 8))
    oracle = Scores(0.5 + rng.normal(0, 0.2, 8))
    low, high = share_interval([Cell("phone", [Scores(np.full(8, 0.6))], [fair], [oracle])], "ap50")
    assert not np.isfinite([low, high]).all()


def test_runs_on_other_fields_are_refused():
    with pytest.raises(ValueError, match="phone"):
        share_interval(
            [Cell("phone", [Scores([1, 1])], [Scores([1, 1, 1])], [Scores([1, 1])])], "ap50"
        )
