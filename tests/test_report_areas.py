"""Scores against annotated area: curves, their tables, and nothing where areas do not vary."""

from __future__ import annotations

import pytest
from PIL import Image
from test_matrix_calibration import experiment, result

from da_leukemia.report import write_report
from da_leukemia.report.areas import areas_markdown, areas_section, curves
from da_leukemia.report.contents import gather
from da_leukemia.sweep.build import build_matrix
from da_leukemia.sweep.ledger import job_folder
from da_leukemia.sweep.names import without_area
from da_leukemia.sweep.plan import make_plan
from da_leukemia.sweep.results import Result

AREAS = [0.05, 0.2, 1.0]


def made(tmp_path, **settings):
    found = experiment(
        methods=["sparse_naive", "fair_source_only"], sources=["scope"], runs_dir=str(tmp_path)
    )
    found.tests, found.sparse = ["scope"], AREAS
    for key, value in settings.items():
        setattr(found, key, value)
    return found


def finished(made):
    """Naive: a fifth of the area short of the masked loss, which reaches 0.5 + 0.5 area."""
    out = []
    for job in make_plan(made):
        area = job.data.sparse.area
        score = (0.5 + 0.5 * area) * (0.8 if "naive" in job.method_name and area < 1 else 1)
        found = result(job.method_name, "scope", None, {"scope": score})
        content = {**found.content, "data": {"fingerprint": str(area)}}
        out.append(Result(content, job_folder(made.folder, job.hash)))
    return out


def test_names_lose_their_area_and_keep_their_calibration():
    assert without_area("fda~20%+scale") == "fda+scale"
    assert without_area("fda~12.5%") == without_area("fda") == "fda"


def test_each_method_is_a_curve_over_the_areas(tmp_path):
    matrix = build_matrix(finished(made(tmp_path)))
    found = {c.method: {a: r.value for a, r in c.rows.items()} for c in curves(matrix, "ap50")}
    assert found["fair_source_only"] == pytest.approx({0.05: 0.525, 0.2: 0.6, 1.0: 1.0})
    assert found["sparse_naive"] == pytest.approx({0.05: 0.42, 0.2: 0.48, 1.0: 1.0})
    assert curves(matrix, "attribute_f1") == []
    assert not any("states of the data" in note for note in matrix.notes)


def test_the_table_gives_the_share_of_the_whole_annotation(tmp_path):
    setup = made(tmp_path)
    contents = gather(setup, finished(setup))
    text = "\n".join(areas_markdown(contents))
    assert "| 5 % | 20 % | 100 % |" in text
    naive = next(line for line in text.splitlines() if "sparse_naive" in line)
    assert "0.420 (42 %) | 0.480 (48 %) | 1.000 (100 %)" in naive
    assert "0.600 (60 %)" in areas_section(contents)


def test_the_curves_are_drawn_and_told_in_the_report(tmp_path):
    setup = made(tmp_path)
    write_report(setup, finished(setup), tmp_path / "report")
    assert Image.open(tmp_path / "report" / "areas.png").size[0] > 400
    assert "against annotated area" in (tmp_path / "report" / "matrix.md").read_text()
    assert "What a share of the annotation is worth" in (tmp_path / "report/index.html").read_text()
    assert r"sparse\_naive\textasciitilde{}5\%" in (tmp_path / "report" / "matrix.tex").read_text()
    whole = made(tmp_path, sparse=None)
    write_report(whole, finished(whole), tmp_path / "other")
    assert not (tmp_path / "other" / "areas.png").exists()
    assert "annotated area" not in (tmp_path / "other" / "matrix.md").read_text()
