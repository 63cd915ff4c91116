"""Calibration as an axis of the matrix: names, references, what is compared with what."""

from __future__ import annotations

import pytest

from da_leukemia.calibration import Calibration, Quantity, RedCells
from da_leukemia.config import Data, Domain, Experiment
from da_leukemia.errors import ConfigError
from da_leukemia.report.contents import gather
from da_leukemia.report.gap import gap_closed
from da_leukemia.report.headlines import headlines, loss_sentence
from da_leukemia.report.html import page
from da_leukemia.report.slides import sum_up
from da_leukemia.report.tables import caption
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.names import calibration_of, full_name
from da_leukemia.sweep.plan import make_plan, unique
from da_leukemia.sweep.results import Result


def experiment(**settings):
    domains = {"scope": Domain(), "phone": Domain()}
    return Experiment(**{"data": Data(domains=domains), **settings})


def result(method, source, target, scores, seed=0):
    tests = {d: {"metrics": {"ap50": v, "fields": 3, "per_class": {}}} for d, v in scores.items()}
    content = {"method": method, "source": source, "target": target, "seed": seed, "tests": tests}
    return Result(content | {"job": f"{method}{source}{target}{seed}"})


def results(*extra):
    """Fair runs without and with calibration: 0.2 across devices, then 0.6; oracles at 1.0."""
    return [
        result("fair_source_only", "scope", None, {"scope": 1.0, "phone": 0.2}),
        result("fair_source_only", "phone", None, {"scope": 0.2, "phone": 1.0}),
        result("fair_source_only+calibrated", "scope", None, {"scope": 0.9, "phone": 0.6}),
        result("fair_source_only+calibrated", "phone", None, {"scope": 0.6, "phone": 0.9}),
        *extra,
    ]


def test_names_say_what_was_calibrated():
    assert full_name("fda", ()) == "fda"
    assert full_name("fda", ("scale", "illumination", "colour")) == "fda+calibrated"
    assert full_name("fda", ("scale", "colour")) == "fda+scale+colour"
    assert [calibration_of(n) for n in ("fda", "fda+calibrated", "fda+scale+colour")] == [
        "",
        "+calibrated",
        "+scale+colour",
    ]


def test_the_axis_multiplies_every_method():
    made = experiment(methods=["fair_source_only", "fda"], calibration=["none", "default", "scale"])
    made.twins = ["fair", "oracle"]
    jobs = make_plan(made)
    names = {j.method_name for j in jobs}
    assert names == {
        f"{m}{c}" for m in ("fair_source_only", "fda") for c in ("", "+calibrated", "+scale")
    }
    assert len(unique(jobs)) == len(jobs) == 3 * (2 + 2)
    by_name = {j.method_name: j.data.calibration.used for j in jobs}
    assert by_name["fda"] == ()
    assert by_name["fda+calibrated"] == ("scale", "illumination", "colour")
    assert by_name["fda+scale"] == ("scale",)


def test_without_the_axis_the_data_settings_count():
    made = experiment()
    made.data.calibration.colour = True
    assert {j.method_name for j in make_plan(made)} == {"fair_source_only+colour"}
    made.calibration = ["none"]
    with pytest.raises(ConfigError, match=r"data\.calibration\.colour"):
        make_plan(made)


def test_an_uncalibrated_job_is_the_job_of_a_project_without_calibration():
    plain, axis = experiment(), experiment(calibration=["none"])
    other = experiment()
    other.data.calibration.view_um = 50
    hashes = [[j.hash for j in make_plan(e)] for e in (plain, axis, other)]
    assert hashes[0] == hashes[1] == hashes[2]
    scaled, wider = experiment(calibration=["scale"]), experiment(calibration=["scale"])
    wider.data.calibration.view_um = 50
    assert make_plan(scaled)[0].hash != make_plan(wider)[0].hash != make_plan(plain)[0].hash


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calibration": ["defualt"]}, "calibration: unknown value 'defualt'.*default"),
        ({"calibration": []}, "calibration: empty"),
    ],
)
def test_wrong_values_of_the_axis_are_said(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_plan(experiment(**settings))


def test_a_calibrated_source_only_run_closes_a_share_of_the_gap():
    table = gap_closed(build_matrix(results()))
    assert {(g.method, g.source, g.target) for g in table.gaps} == {
        ("fair_source_only+calibrated", "scope", "phone"),
        ("fair_source_only+calibrated", "phone", "scope"),
    }
    assert [g.closed for g in table.gaps] == pytest.approx([0.5, 0.5])
    said = headlines(build_matrix(results()), table)
    assert "fair_source_only+calibrated closes 50 % of the gap" in " ".join(said)


def test_the_sentence_about_the_loss_adds_up_as_it_is_printed():
    scores = {"scope": 0.1554, "phone": 0.1395}  # 0.0159 apart, 0.155 and 0.140 in print
    matrix = build_matrix([result("fair_source_only", "scope", None, scores)])
    said = loss_sentence(matrix)
    assert said is not None
    assert "is 0.155 on average" in said
    assert said.endswith("0.140 on another device: 0.015 is lost.")


def test_an_adapted_calibrated_run_is_measured_against_the_uncalibrated_reference():
    matrix = build_matrix(results(result("fda+calibrated", "scope", "phone", {"phone": 0.8})))
    closed = {g.method: g.closed for g in gap_closed(matrix).gaps if g.source == "scope"}
    assert closed == pytest.approx({"fair_source_only+calibrated": 0.5, "fda+calibrated": 0.75})
    view = matrix.view("fda+calibrated")
    assert view.cells["scope", "scope"].value == 0.9  # its own fair twin, calibrated too


def test_where_everything_is_calibrated_the_reference_is_too():
    runs = [r for r in results() if "+" in r.run.method]
    runs.append(result("fda+calibrated", "scope", "phone", {"phone": 0.75}))
    table = gap_closed(build_matrix(runs))
    assert {g.method: g.closed for g in table.gaps} == pytest.approx({"fda+calibrated": 0.5})


def test_a_caption_does_not_hide_that_images_were_seen():
    matrix = build_matrix(results())
    assert "the row's device alone" in caption(matrix.view("fair_source_only"))
    assert "unlabelled images of the device" in caption(matrix.view("fair_source_only+calibrated"))


def test_the_report_shows_what_was_measured_and_what_was_not(tmp_path):
    known = Calibration(
        fields=9,
        size=(640, 480),
        red_cell_px=RedCells(22.0, 24.0, 20.0, 26.0),
        px_per_um_x=Quantity(2.9, 2.7, 3.1),
        px_per_um_y=Quantity(3.2, 3.0, 3.4),
        notes=("too little clear background was seen",),
    )
    made = experiment(calibration=["none", "default"])
    made.runs_dir = str(tmp_path)
    devices = {"scope": known.to_dict(), "phone": Calibration(9, (640, 480)).to_dict()}
    jobs = {(j.method_name, j.source): j.hash for j in make_plan(made)}
    given = [
        Result(
            {**r.content, "job": jobs[r.run.method, r.run.source]}
            | ({"devices": devices} if "+" in r.run.method else {})
        )
        for r in results()
    ]
    contents = gather(made, given)
    text = page(contents, sum_up(contents))
    assert "22 x 24 [20, 26]" in text
    assert "2.90 x 3.20" in text
    assert '<td class="n">light, colour</td>' in text
    assert '<td class="n">scale, light, colour</td>' in text
    assert "scope: too little clear background was seen" in text
