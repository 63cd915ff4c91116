"""Detectors as an axis, and the report's numbers beside published ones."""

from __future__ import annotations

import csv
import json
import re

import pytest
from test_matrix_support import make_experiment, make_sweep

from da_leukemia.config import load_experiment, save_experiment, shipped
from da_leukemia.config.published import Published, PublishedRow
from da_leukemia.errors import ConfigError
from da_leukemia.report import gather, write_report
from da_leukemia.report.contents import as_results
from da_leukemia.report.latex import latex, tex
from da_leukemia.report.published import published_markdown, published_section, sides
from da_leukemia.simulate import simulate
from da_leukemia.sweep import ledger
from da_leukemia.sweep.names import full_name, reference_of, uncalibrated
from da_leukemia.sweep.plan import make_plan

EXPERIMENT = shipped("experiments") / "attridet_leukemiaattri.yaml"
SUBSETS = ("H_40X_C2", "H_100X_C2", "L_40X_C2", "L_100X_C2")


def table_of(**rows):
    return Published(
        source="Somebody et al.",
        scale=100.0,
        systems={"theirs": "Their System", "silent": "Silent"},
        rows={
            name: PublishedRow(train=train, test=test, numbers={"ap50": numbers})
            for name, (train, test, numbers) in rows.items()
        },
    )


# --- the experiment ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped experiment on simulated smears, a few steps of tiny networks, one source."""
    folder = tmp_path_factory.mktemp("attridet")
    smears = simulate(folder / "smears", domains=SUBSETS, patients=4, fields_per_patient=1, seed=0)
    return load_experiment(
        EXPERIMENT,
        [
            *(f"data.root={smears}", f"runs_dir={folder / 'runs'}", "seeds=[0]"),
            *("data.image_size=96", "sources=[H_100X_C2]", "tests=[H_100X_C2]"),
            *("detector.backbone=mobilenetv3_small_050", "detector.pretrained=false"),
            *("detector.channels=16", "detector.depth=1", "trainer=smoke", "trainer.steps=4"),
            *("trainer.epoch_steps=2", "trainer.batch_size=2", "trainer.accelerator=cpu"),
            "trainer.workers=0",
        ],
    )


@pytest.fixture(scope="module")
def run(small):
    from da_leukemia.config import save_job
    from da_leukemia.sweep.worker import run_job

    jobs = make_plan(small)
    for job in jobs:
        folder = ledger.job_folder(small.folder, job.hash)
        folder.mkdir(parents=True)
        save_job(job, folder / "config.yaml")
        run_job(folder)
    return as_results(small, ledger.collect(small.folder, jobs))


def test_attridets_experiment_runs_and_stands_beside_the_published_numbers(small, run, tmp_path):
    assert [r.run.method for r in run] == [
        "fair_source_only@one_stage",
        "fair_source_only@one_stage_attridet",
        "fair_source_only@faster_rcnn_attridet",
    ]
    folder = write_report(small, run, tmp_path).parent
    page = (folder / "index.html").read_text("utf-8")
    assert "Beside published numbers" in page
    assert "Uni-Hema (arXiv 2511.13889), table 1" in page
    assert "AttriDet</th>" in page
    with (folder / "published.csv").open() as file:
        rows = list(csv.DictReader(file))
    theirs = {(r["metric"], r["train"], r["system"]): r["value"] for r in rows if r["ours"] == "0"}
    assert theirs["map50_as_released", "H_100X_C2", "attridet"] == "44.4"
    assert theirs["attribute_f1_as_released", "H_100X_C2", "unihema"] == "75.8"
    assert {r["train"] for r in rows} == {"H_100X_C2"}  # the others are not tested here
    mine = {r["system"]: r for r in rows if r["ours"] == "1" and r["metric"] == "map50_as_released"}
    for result in run:
        value = result.metrics("H_100X_C2")["map50_as_released"]
        assert float(mine[result.run.method]["value"]) == pytest.approx(100 * value, abs=1e-3)


def test_six_of_seven_attributes_are_answered_by_attridet(run):
    for result in run:
        told = result.content["attributes_learned"]
        silent = {name for name, t in told.items() if not t["answered"]}
        constant = {n for n, t in told.items() if len([v for v in t["cells"].values() if v]) < 2}
        read = {"cell_size"} if "attridet" in result.run.method else set()
        assert silent == read | constant
        whole = json.loads((result.folder / "result.json").read_text("utf-8"))
        metrics = whole["tests"]["H_100X_C2"]["metrics"]
        scored = metrics["attributes"]["true_boxes"]["per_attribute"]
        assert all(scored[name]["f1"] is None for name in silent)
        assert any(row["f1"] is not None for row in scored.values())


def test_the_experiment_is_that_of_the_paper():
    whole = load_experiment(EXPERIMENT)
    assert tuple(whole.data.domains) == SUBSETS
    assert whole.data.label_space == "leukemiaattri"
    jobs = make_plan(whole)
    assert len(jobs) == 3 * 4 * 3  # detectors x subsets x seeds
    settings = {
        (j.detector.score_threshold, j.detector.nms_iou, j.detector.max_detections) for j in jobs
    }
    assert settings == {(0.001, 0.6, 300)}
    assert set(whole.published_tables["leukemiaattri"].rows) == set(SUBSETS)


# --- detectors as an axis ------------------------------------------------------------------------


def test_names_of_an_axis_come_apart_again():
    name = full_name("fda", ("scale",), "small")
    assert name == "fda+scale@small"
    assert uncalibrated(name) == "fda@small"
    methods = {"fair_source_only@small", "fair_source_only+scale@small", "fair_source_only"}
    assert reference_of(name, methods) == "fair_source_only+scale@small"
    own = "fair_source_only:fda+scale@small"
    assert reference_of(name, methods | {own}) == own


def test_every_detector_has_twins_of_its_own(tmp_path):
    text = """
detector: {channels: 32}
detectors: {wide: {channels: 64}, plain: , two: {kind: faster_rcnn}}
data: {domains: {a: {}, b: {}}}
methods: [fda]
"""
    (tmp_path / "e.yaml").write_text(text)
    made = load_experiment(tmp_path / "e.yaml")
    jobs = make_plan(made)
    names = {j.method_name for j in jobs}
    for detector in ("wide", "plain", "two"):
        assert {f"{m}@{detector}" for m in ("fda", "fair_source_only", "source_only")} <= names
    channels = {j.method_name.partition("@")[2]: j.detector.channels for j in jobs}
    assert channels == {"wide": 64, "plain": 32, "two": 32}
    alone = load_experiment(tmp_path / "e.yaml", ["detector.channels=64"])
    alone.detectors = {}
    by_name = {(j.method_name, j.source, j.target): j.hash for j in make_plan(alone)}
    for job in jobs:
        base, _, detector = job.method_name.partition("@")
        same = by_name[base, job.source, job.target] == job.hash
        assert same == (detector == "wide")  # the name of an axis is no part of a job
    save_experiment(made, tmp_path / "again.yaml")
    again = load_experiment(tmp_path / "again.yaml")
    assert [j.hash for j in make_plan(again)] == [j.hash for j in jobs]


def test_mistakes_in_a_detector_of_the_axis_are_named(tmp_path):
    text = """
detectors: {a: {chanels: 3}, b@c: {}, d: {attributes: {head: attridet}}}
data: {label_space: m5, domains: {a: {}, b: {}}}
"""
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"detectors\.a\.chanels: unknown key; did you mean"):
        load_experiment(tmp_path / "e.yaml")
    (tmp_path / "e.yaml").write_text(text.replace("chanels: 3", "attribute_gradient: -1"))
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "e.yaml")
    said = str(error.value)
    assert "detectors.a.attribute_gradient: expected a number from 0 to 1, got -1" in said
    (tmp_path / "e.yaml").write_text(text.replace("chanels: 3", ""))
    with pytest.raises(ConfigError, match=r"detectors\.b@c: a name cannot hold '@'"):
        load_experiment(tmp_path / "e.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("detector.attributes.loss=focal", "unknown value 'focal'"),
        ("detector.attributes.head=attridett", "did you mean 'attridet'"),
        ("detector.attributes={loss: asymmetric,}", None),
    ],
)
def test_mistakes_in_the_settings_of_attributes(tmp_path, change, said):
    (tmp_path / "e.yaml").write_text("data: {domains: {a: {}, b: {}}}\n")
    if said is None:
        assert load_experiment(tmp_path / "e.yaml", [change])
        with pytest.raises(ConfigError, match="means nothing with detector"):
            load_experiment(tmp_path / "e.yaml", [change, "detector.attribute_weight=0"])
        return
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_experiment(tmp_path / "e.yaml", [change])


# --- published tables ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep, its results, and the file that keeps its intervals."""
    folder = tmp_path_factory.mktemp("sweep")
    return *make_sweep(folder, seeds=(0,)), folder / "intervals.json"


def test_ours_and_theirs_stand_in_one_row_and_what_is_unknown_is_empty(sweep):
    experiment, results, cache = sweep
    a, b = experiment.sources[:2]
    experiment.published_tables = {
        "paper": table_of(
            same=(a, a, {"theirs": 41.26}),
            across=(a, b, {"theirs": 12.0, "unlisted": 3.0}),
            elsewhere=("no_device", "no_device", {"theirs": 99.0}),
        )
    }
    contents = gather(experiment, results, cache)
    (side,) = sides(contents, experiment.published_tables["paper"])
    assert side.header[-2:] == ["Their System", "unlisted"]  # nobody published Silent's
    assert [row[0] for row in side.rows] == [a, f"{a} to {b}"]
    assert side.rows[0][-2:] == ["41.3", ""]
    assert side.rows[1][-2:] == ["12.0", "3.0"]
    place = side.header.index("ours: fair_source_only")
    row = contents.matrix.cell("fair_source_only", a, "", b, "ap50")
    assert side.rows[1][place].startswith(f"{100 * row.value:.1f} [{100 * row.low:.1f}, ")
    text = "\n".join(published_markdown(contents))
    assert "Source: Somebody et al.\n" in text
    assert "99.0" not in text
    assert f"| {a} to {b} |" in text
    assert "Their System" in published_section(contents)


def test_the_same_cells_are_written_for_latex(sweep, tmp_path):
    experiment, results, cache = sweep
    a, b = experiment.sources[:2]
    paper = table_of(across=(a, b, {"theirs": 12.0, "a_b": 3.0}))
    paper.note = "90 % of the cells & no more."
    experiment.published_tables = {"paper": paper}
    contents = gather(experiment, results, cache)
    text = latex(contents)
    start = text.index(rf"\label{{tab:{experiment.name}-paper-ap50}}")
    caption, table = text[:start].rpartition(r"\caption")[2], text[start:]
    assert "AP50, times 100, beside published numbers" in caption
    assert r"Published: Somebody et al. 90 \% of the cells \& no more." in caption
    (side,) = sides(contents, paper)
    lines = [line.removesuffix(r" \\") for line in table.splitlines() if line.endswith(r"\\")]
    assert [tex(c) for c in side.rows[0]] == lines[1].split(" & ")
    assert lines[0].split(" & ")[-2:] == ["Their System", r"A\_b"]
    assert rf"\begin{{tabular}}{{l{'c' * (len(side.header) - 1)}}}" in table
    order = [r"\toprule", r"\midrule", tex(side.rows[0][0]), r"\bottomrule", r"\end{table}"]
    assert [table.index(mark) for mark in order] == sorted(table.index(mark) for mark in order)
    assert text.endswith("\\end{table}\n")


def test_no_run_yet_is_a_dash(sweep):
    experiment, results, cache = sweep
    a = experiment.sources[0]
    experiment.published_tables = {"paper": table_of(same=(a, a, {"theirs": 41.0}))}
    kept = [r for r in results if r["source"] != a]
    (side,) = sides(gather(experiment, kept, cache), experiment.published_tables["paper"])
    ours = [c for c, h in zip(side.rows[0], side.header, strict=True) if h.startswith("ours")]
    assert set(ours) == {"-"}


def test_without_a_table_there_is_no_section_and_no_file(tmp_path):
    experiment = make_experiment(tmp_path)
    contents = gather(experiment, [])
    assert published_section(contents) == ""
    assert published_markdown(contents) == []
    assert not (write_report(experiment, [], tmp_path / "r").parent / "published.csv").exists()


def test_a_table_of_ones_own_travels_with_the_experiment(tmp_path):
    folder = tmp_path / "configs" / "published"
    folder.mkdir(parents=True)
    table = "source: me\nscale: 100\nrows: {a: {numbers: {ap50: {x: 12.5}}}}\n"
    (folder / "mine.yaml").write_text(table)
    text = "data: {domains: {a: {}, b: {}}}\npublished: [mine]\n"
    (tmp_path / "e.yaml").write_text(text)
    made = load_experiment(tmp_path / "e.yaml")
    assert made.published_tables["mine"].rows["a"].numbers == {"ap50": {"x": 12.5}}
    elsewhere = tmp_path / "runs"
    elsewhere.mkdir()
    save_experiment(made, elsewhere / "experiment.yaml")
    (folder / "mine.yaml").unlink()
    again = load_experiment(elsewhere / "experiment.yaml")
    assert again.published_tables == made.published_tables


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("rows: {a: {numbers: {ap50: {x: 1}}}}", "source: empty; say where"),
        ("source: s\nrows: {a: {numbers: {ap5O: {x: 1}}}}", "unknown metric 'ap5O'; did you mean"),
        ("source: s\nrows: {a: {numbers: {ap50: {x: .nan}}}}", "leave out what was not published"),
        ("source: s\nrows: {z: {numbers: {ap50: {x: 1}}}}", "none is trained on a device"),
        ("source: s\nrowz: {}", "unknown key; did you mean 'rows'"),
        ("source: s\nrows: {a: {numbers: {ap50: {x: many}}}}", "numbers: expected"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, table, said):
    folder = tmp_path / "configs" / "published"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"{table}\n")
    text = "data: {domains: {a: {}, b: {}}}\npublished: [mine]\n"
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_experiment(tmp_path / "e.yaml")
    with pytest.raises(ConfigError, match="published: unknown 'other'"):
        load_experiment(tmp_path / "e.yaml", ["published=[other]"])
