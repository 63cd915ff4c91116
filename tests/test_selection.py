"""Choosing an epoch is a function of the records, and the report says what each rule gives."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from test_matrix_support import make_experiment, make_result
from test_report import Page

from da_leukemia.evaluation import FieldRecord
from da_leukemia.evaluation.label_free import SCORERS
from da_leukemia.evaluation.pseudo import pseudo_label_quality
from da_leukemia.report import write_report
from da_leukemia.sweep.plan import make_plan
from da_leukemia.sweep.results import Result
from da_leukemia.sweep.selection import (
    CONSENSUS,
    LAST,
    ORACLE,
    SELECTIONS,
    VALIDATION,
    choices,
    correlations,
    selected,
    spearman,
)


def result(truth, scores=None, validation=None, method="dann", target="phone", seed=0, test=None):
    test = test or target
    scores = {} if scores is None else scores
    records = [
        {
            "epoch": i + 1,
            "step": 10 * (i + 1),
            "source_validation": None if validation is None else validation[i],
            "scores": {test: {name: values[i] for name, values in scores.items()}},
            "tests": {test: value},
        }
        for i, value in enumerate(truth)
    ]
    content = {"method": method, "source": "microscope", "target": target, "seed": seed}
    return Result({**content, "job": f"{method}{seed}", "tests": {}, "epochs": records})


def four(values):
    return dict.fromkeys(SCORERS, values)


def picked(found):
    (choice,) = choices([found])
    return {rule: choice.score(rule) for rule in SELECTIONS}


def test_each_rule_picks_by_its_own_score():
    scores = four([0, 0, 0, 1]) | {"flatness": [0.1, 0.9, 0.2, 0.3], "confidence": [5, 4, 3, 2]}
    got = picked(result([0.1, 0.2, 0.9, 0.4], scores, validation=[0.5, 0.7, 0.6, 0.1]))
    assert got[LAST] == got["agreement"] == 0.4
    assert got["flatness"] == got[VALIDATION] == 0.2
    assert got["confidence"] == 0.1
    assert got[ORACLE] == 0.9


def test_of_equal_epochs_the_later_is_picked():
    got = picked(result([0.3, 0.5, 0.5, 0.4], four([1, 1, 0, 0]), validation=[1, 1, 1, 0]))
    assert got[VALIDATION] == 0.5
    (choice,) = choices([result([0.3, 0.5, 0.5], four([1, 1, 0]), validation=[1, 1, 1])])
    assert choice.place(ORACLE) == choice.place(VALIDATION) == 2
    assert choice.place("agreement") == 1


def test_consensus_is_the_mean_of_ranks():
    scores = {
        "agreement": [0.1, 0.2, 0.3],
        "flatness": [0.1, 0.3, 0.2],
        "confidence": [0.1, 0.9, 0.2],
        "separation": [0.9, 0.2, 0.1],
    }
    (choice,) = choices([result([0.1, 0.2, 0.3], scores)])
    assert choice.scores[CONSENSUS] == (1.5, 2.5, 2.0)


def test_what_was_not_recorded_is_no_choice():
    got = picked(result([0.1, 0.2]))
    assert got[VALIDATION] is None
    assert got["agreement"] is got[CONSENSUS] is None
    assert got[LAST] == got[ORACLE] == 0.2
    assert choices([Result({**result([]).content, "epochs": []})]) == []
    old = {k: v for k, v in result([]).content.items() if k != "epochs"}
    assert choices([Result(old)]) == []  # written before there were records
    with pytest.raises(KeyError):
        choices([result([0.1])])[0].place("best")


def test_records_are_taken_in_the_order_of_the_epochs():
    ordered = result([0.1, 0.2, 0.3], four([1, 2, 3]))
    content = dict(ordered.content)
    content["epochs"] = list(reversed(content["epochs"]))
    assert choices([Result(content)]) == choices([ordered])


def test_only_the_oracle_looks_at_the_truth():
    scores, validation = four([3, 1, 2]), [0.1, 0.3, 0.2]
    (one,) = choices([result([0.1, 0.2, 0.3], scores, validation)])
    (other,) = choices([result([0.9, 0.8, 0.1], scores, validation)])
    same = [rule for rule in SELECTIONS if one.place(rule) == other.place(rule)]
    assert same == [rule for rule in SELECTIONS if rule != ORACLE]


def test_means_are_over_the_same_runs_or_not_given():
    runs = [
        result([0.2, 0.4], four([1, 0]), [0, 1], seed=0),
        result([0.6, 0.8], four([1, 0]), None, seed=1),
        result([1.0, 0.0], four([1, 0]), [0, 1], seed=2, target="microscope"),  # the diagonal
    ]
    table = selected(choices(runs))["dann"]
    assert table[LAST] == table[ORACLE] == pytest.approx(0.6)
    assert table["agreement"] == pytest.approx(0.4)
    assert table[VALIDATION] is None  # one of the runs had no validation


def test_rank_correlations_within_and_between_runs():
    runs = [
        result([0.1, 0.2, 0.3], four([1, 2, 3]), seed=0),
        result([0.4, 0.5, 0.6], four([3, 2, 1]), seed=1),
        result([0.5, 0.6, 0.7], four([1, 2, 9]), seed=2, method="mmd"),
    ]
    table = correlations(choices(runs))
    assert table["agreement"].within == pytest.approx(1 / 3)
    assert table["agreement"].cells == 3
    # Last epochs: truth .3 .6 .7, scores 3 1 9.
    assert table["agreement"].between == {"phone": pytest.approx(0.5)}
    assert table[CONSENSUS].between == {"phone": pytest.approx(0.5)}
    assert table[VALIDATION].within is None
    assert table[VALIDATION].between == {}


def test_a_flat_side_or_two_pairs_have_no_correlation():
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([], [1, 2, 3]) is None
    assert spearman([1, 5, 9], [0.1, 0.2, 0.9]) == pytest.approx(1)


# --- pseudo-labels -----------------------------------------------------------------------------


def field(boxes, scores, labels, truths, types):
    return FieldRecord(
        key="f",
        group="f",
        true_boxes=np.float32(truths).reshape(-1, 4),
        true_labels=np.array(types, np.int64),
        true_attributes=np.zeros((len(types), 0), np.int64),
        boxes=np.float32(boxes).reshape(-1, 4),
        scores=np.float32(scores),
        labels=np.array(labels, np.int64),
        attribute_probs=np.zeros((len(scores), 0), np.float32),
    )


A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60)


def test_precision_and_recall_of_pseudo_labels_by_hand():
    records = [
        # A right, B of the wrong type, C a false alarm; a doubtful one on A is no pseudo-label.
        field([A, B, C, A], [0.9, 0.9, 0.9, 0.3], [0, 0, 1, 0], [A, B], [0, 1]),
        # One on A is doubtful, the other right; nobody told the teacher what a z looks like.
        field([A, A, C], [0.7, 0.8, 0.9], [1, 1, 2], [A, B, C], [1, 1, 2]),
    ]
    told = pseudo_label_quality(records, np.array([0.5, 0.75, 0.5]), ["x", "y", "z"], [0, 1])
    assert told["per_class"] == {
        "x": {"pseudo": 2, "right": 1, "true": 1},
        "y": {"pseudo": 2, "right": 1, "true": 3},
    }
    assert told["precision"] == pytest.approx(2 / 4)
    assert told["recall"] == pytest.approx(2 / 4)
    assert told["boxes_per_image"] == 2
    assert told["threshold"] == pytest.approx(0.625)


def test_without_labels_or_pseudo_labels_nothing_is_made_up():
    thresholds = np.array([0.5])
    assert pseudo_label_quality([field([A], [0.9], [0], [], [])], thresholds, ["x"], [0]) is None
    told = pseudo_label_quality([field([A], [0.1], [0], [A], [0])], thresholds, ["x"], [0])
    assert (told["precision"], told["recall"]) == (None, 0.0)


# --- the report --------------------------------------------------------------------------------

HEALTH = "health/pseudo_boxes_per_image,health/unsupervised_ratio,health/some_new_figure"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A sweep in which the adapted runs were recorded, and one of them is not well."""
    folder = tmp_path_factory.mktemp("recorded")
    experiment = make_experiment(folder, seeds=(0,))
    results = []
    for job in make_plan(experiment):
        content = make_result(experiment, job, records=False)
        if job.target:
            better = [0.2, 0.5, 0.4]
            content["epochs"] = list(
                result(
                    better, four([1, 3, 2]), [0.9, 0.8, 0.7], job.method_name, job.target
                ).content["epochs"]
            )
        if job.method_name == "mean_teacher":
            pseudo = {"threshold": 0.6, "boxes_per_image": 1.0, "precision": 0.75, "recall": 0.5}
            pseudo["per_class"] = {"blast": {"pseudo": 4, "right": 3, "true": 6, "source": 50}}
            for record in content["epochs"]:
                record["pseudo"] = pseudo
            jobs = experiment.folder / "jobs" / job.hash
            jobs.mkdir(parents=True, exist_ok=True)
            ill = (job.source, job.target) == ("microscope", "phone")
            last = "0.0,37.5" if ill else "2.5,1.5"
            (jobs / "metrics.csv").write_text(
                f"step,train/loss,{HEALTH}\n10,1.0,3.0,0.5,7\n20,0.5,,,\n30,0.4,{last},8\n"
            )
        results.append(content)
    page = write_report(experiment, results, folder / "report")
    return experiment, results, page


def test_the_report_shows_every_rule_side_by_side(recorded):
    _, _, path = recorded
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "target_oracle (not a legal choice)" in text
    assert "Recorded: 12 of 18 runs." in page.text
    markdown = (path.parent / "matrix.md").read_text().split("## Selection")[1]
    (row,) = [line for line in markdown.splitlines() if line.startswith("| dann | 6 |")]
    # last .4, validation .2, the five label-free ones and the oracle .5
    assert row == "| dann | 6 | 0.400 | 0.200 |" + " 0.500 |" * 6
    (row,) = [line for line in markdown.splitlines() if line.startswith("| agreement |")]
    assert row.startswith("| agreement | +1.000 (12 cells) |")
    (row,) = [line for line in markdown.splitlines() if line.startswith("| source_validation |")]
    assert row.startswith("| source_validation | -0.500 (12 cells) |")


def test_the_choices_are_written_as_csv(recorded):
    _, _, path = recorded
    with (path.parent / "selection.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12 * len(SELECTIONS)
    first = [
        r for r in lines if (r["method"], r["source"], r["test"]) == ("dann", "phone", "low_cost")
    ]
    assert {r["selection"]: (r["epoch"], r["ap50"]) for r in first} == {
        LAST: ("3", "0.4"),
        VALIDATION: ("1", "0.2"),
        **dict.fromkeys([*SCORERS, CONSENSUS, ORACLE], ("2", "0.5")),
    }


def test_the_report_says_where_nothing_was_recorded(recorded, tmp_path):
    experiment, results, _ = recorded
    bare = [{k: v for k, v in r.items() if k != "epochs"} for r in results]
    text = Page(write_report(experiment, bare, tmp_path).read_text(encoding="utf-8")).text
    assert "No epoch was recorded" in text
    assert "selection.every=1" in text
    assert not (tmp_path / "selection.csv").exists()
    assert "No epoch was recorded" in (tmp_path / "matrix.md").read_text()


def test_health_is_drawn_and_what_is_ill_is_named(recorded):
    _, _, path = recorded
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    name = "mean_teacher: microscope -> phone, seed 0"
    assert f"{name}: no pseudo-label in the last epoch" in page.text
    assert f"{name}: the unsupervised loss was 38 times the supervised one." in page.text
    assert page.text.count("no pseudo-label in the last epoch") == 1
    figures = ("pseudo-boxes per image", "precision of pseudo-labels", "some new figure")
    assert all(figure in page.text for figure in figures)
    assert "precision of pseudo-labels: from 0.75 at step 10 to 0.75 at step 30" in text
    # six runs and their mean, for each figure
    assert text.count('<polyline class="one"') == 6 * text.count('<polyline class="mean"') == 36
    # the thin lines lie between the axes: 0 is at the bottom, the largest value at the top
    assert 'points="0.0,0.0 230.0,84.0"' in text
    assert 'points="0.0,0.0 230.0,14.0"' in text


def test_pseudo_labels_by_type_are_added_over_runs(recorded):
    _, _, path = recorded
    text = path.read_text(encoding="utf-8")
    cells = ["100 %", "100 %", "100 %", "75 %", "50 %"]
    row = "".join(f'<td class="n">{c}</td>' for c in cells)
    assert f"<tr><td>blast</td>{row}</tr>" in text
