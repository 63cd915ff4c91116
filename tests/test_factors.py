"""What an optical factor costs: from the names of the devices and the results alone."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from test_matrix_support import SPACE, make_records, plain_metrics

from da_leukemia.evaluation import MatchTable, evaluate, hierarchical_interval, save_records
from da_leukemia.report.factors import (
    ALL,
    ALONE,
    LAST,
    changes,
    factor_costs,
    factor_rows,
    write_factors,
)
from da_leukemia.report.intervals import Bootstrap, Difference
from da_leukemia.simulate import FACTORS, device_of, mixed
from da_leukemia.sweep.results import Result

H, L = "H_100X_C2", "L_100X_C1"
ONE = {f: mixed(H, [f], L) for f in FACTORS}
BUT_ONE = {f: mixed(L, [f], H) for f in FACTORS}


def test_every_factor_is_found_alone_and_last():
    found = list(changes(H, [H, *ONE.values(), *BUT_ONE.values(), L]))
    assert [c[0] for c in found if c[1] == ALONE] == list(FACTORS)
    assert ("jpeg", ALONE, H, ONE["jpeg"]) in found
    assert ("jpeg", LAST, BUT_ONE["jpeg"], L) in found
    assert ("all together", ALL, H, L) in found
    assert len(found) == 15


@pytest.mark.parametrize("context", [ALONE, LAST])
def test_the_two_devices_of_a_change_differ_in_nothing_else(context):
    """By the simulator's own settings, not by their names."""
    for factor, where, before, after in changes(H, [H, *ONE.values(), *BUT_ONE.values(), L]):
        if where != context:
            continue
        one, other = device_of(before), device_of(after)
        same = {key: getattr(device_of(L), key) for key in FACTORS[factor]}
        assert replace(one, name="", **same) == replace(other, name="")
        assert all(getattr(one, key) == getattr(device_of(H), key) for key in FACTORS[factor])


def test_names_from_the_other_side_and_several_at_once():
    all_but = mixed(H, [f for f in FACTORS if f != "blur"], L)
    assert list(changes(H, [all_but, L])) == [("blur", LAST, all_but, L)]
    assert list(changes(H, [H, ONE["blur"], mixed(H, ["noise"], "H_100X_C1")])) == [
        ("blur", ALONE, H, ONE["blur"]),
        ("noise", ALONE, H, mixed(H, ["noise"], "H_100X_C1")),
    ]


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("phone", ["phone", "microscope"]),
        (H, [H, f"{ONE['blur']}@320x240"]),
        (H, [H, mixed("H_40X_C2", ["blur"], L)]),
        (ONE["blur"], [H, ONE["blur"]]),
        (H, [ONE["blur"]]),
        (H, [H, L, "L_100X_C2"]),
    ],
)
def test_devices_that_differ_otherwise_are_not_compared(source, tests):
    assert list(changes(source, tests)) == []


def result(folder, seed, shares, target=None):
    """A run on H, of which each device's cells are found with that probability."""
    (folder / "records").mkdir(parents=True)
    tests = {}
    for i, (device, share) in enumerate(shares.items()):
        fields = make_records("cells", share, seed, f"run{i}")
        save_records(folder / "records" / f"{device}.npz", fields)
        metrics = evaluate(fields, SPACE, range(len(SPACE.classes)))
        tests[device] = {"metrics": metrics, "records": f"records/{device}.npz"}
    content = {"job": folder.name, "method": "fair_source_only", "source": H, "target": target}
    content |= {"seed": seed, "tests": tests, "label_space": SPACE.name}
    return Result({**content, "classes": list(SPACE.classes)}, folder)


def test_the_loss_is_the_difference_of_means_with_a_paired_interval(tmp_path):
    shares = {H: 0.95, ONE["blur"]: 0.5, ONE["noise"]: 0.95}
    runs = [result(tmp_path / str(seed), seed, shares) for seed in (0, 1)]
    costs = {c.factor: c for c in factor_costs(Bootstrap(), runs, "ap50")}
    assert costs.keys() == {"blur", "noise"}
    means = {d: np.mean([r.metrics(d)["ap50"] for r in runs]) for d in shares}
    blur = costs["blur"]
    assert blur.lost == pytest.approx(means[H] - means[ONE["blur"]])
    assert blur.lost > costs["noise"].lost + 0.1
    assert (blur.seeds, blur.fields) == (2, 12)

    def table(run, device):
        fields = make_records("cells", shares[device], run, f"run{list(shares).index(device)}")
        return MatchTable.build(fields, range(len(SPACE.classes)))

    direct = hierarchical_interval(
        [Difference(table(s, H), table(s, ONE["blur"])) for s in (0, 1)]
    )["ap50"]
    assert (blur.low, blur.high) == pytest.approx((direct.low, direct.high))
    assert blur.low < blur.lost < blur.high
    assert blur.low > 0


def test_dearest_first_and_as_a_file(tmp_path):
    shares = {H: 0.9, ONE["noise"]: 0.9, ONE["blur"]: 0.3, L: 0.2}
    costs = factor_costs(Bootstrap(), [result(tmp_path / "a", 0, shares)], "ap50")
    rows = factor_rows(costs)
    assert [row[2] for row in rows] == ["blur", "noise", "all together"]
    assert rows[0][1] == f"{H} (to {L})"
    assert rows[-1][-1].startswith("sum of those alone")
    write_factors(costs, "ap50", tmp_path / "factors.csv")
    with (tmp_path / "factors.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(lines[0]["kept"]) - float(lines[0]["changed"]) == pytest.approx(
        float(lines[0]["lost"]), abs=2e-6
    )
    write_factors([], "ap50", tmp_path / "factors.csv")
    assert not (tmp_path / "factors.csv").exists()


def test_without_records_there_is_no_interval_and_adapted_runs_take_no_part(tmp_path):
    def plain(method, target):
        tests = {d: {"metrics": plain_metrics(v)} for d, v in ((H, 0.8), (ONE["jpeg"], 0.5))}
        content = {"job": method, "method": method, "source": H, "target": target, "seed": 0}
        return Result({**content, "tests": tests, "label_space": SPACE.name})

    (cost,) = factor_costs(Bootstrap(), [plain("a", None), plain("b", ONE["jpeg"])], "ap50")
    assert (cost.method, cost.low, cost.high) == ("a", None, None)
    assert cost.lost == pytest.approx(0.3)
