"""The report tells what the results say, and what is missing."""

from __future__ import annotations

import copy
import html
import html.parser
import json
import random
import re
import shutil
import time
from urllib.parse import unquote

import pytest
from PIL import Image
from test_matrix_support import DEVICES, make_experiment, make_result, make_sweep, write_samples

from da_leukemia.errors import UserError
from da_leukemia.evaluation import load_records
from da_leukemia.evaluation.slides import summarise
from da_leukemia.labels import LABEL_SPACES
from da_leukemia.report import render_text, write_report
from da_leukemia.report.attributes import pool
from da_leukemia.report.figures import colour, text_on, top_of_scale
from da_leukemia.report.latex import tex
from da_leukemia.report.samples import draw, overlap, read_samples
from da_leukemia.sweep.matrix import read_matrix
from da_leukemia.sweep.plan import make_plan

FILES = ("slides.json", "matrix.csv", "matrix.md", "matrix.tex", "matrix.png", "matrix.svg")
FILES += ("ranks.svg", "index.html")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    experiment, results = make_sweep(tmp_path_factory.mktemp("sweep"), seeds=(0,))
    for job in make_plan(experiment):
        write_samples(experiment, job)
    return experiment, results


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(*sweep, folder).parent


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order and keeps attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[k] for k in ("href", "src") if k in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "img", "br", "wbr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def without_new_keys(results):
    """Results as they were before attributes were scored by both evaluations."""
    new = ("attributes", "as_released", "reliability")
    stripped = []
    for result in results:
        tests = {
            name: {
                **test,
                "metrics": {
                    k: v
                    for k, v in test["metrics"].items()
                    if k not in new and "released" not in k and "true_boxes" not in k
                },
            }
            for name, test in result["tests"].items()
        }
        stripped.append({**result, "tests": tests})
    return stripped


def test_older_results_still_make_a_report(sweep, report, tmp_path):
    experiment, results = sweep
    shutil.copy(report / "intervals.json", tmp_path)
    page = Page(write_report(experiment, without_new_keys(results), tmp_path).read_text("utf-8"))
    assert page.open == []
    assert "Attributes, by both evaluations" not in page.text
    assert "mean_teacher closes" in page.text
    mixed = [*without_new_keys(results[:1]), *results[1:]]
    page = Page(write_report(experiment, mixed, tmp_path).read_text("utf-8"))
    assert "Attributes, by both evaluations" in page.text


def test_attributes_stand_in_one_table_by_both_evaluations(sweep, report):
    _, results = sweep
    page = Page((report / "index.html").read_text("utf-8"))
    assert "as released" in page.text
    assert "strict, on found cells" in page.text
    assert "strict, end to end" in page.text
    values = [
        test["metrics"]["attributes"]["end_to_end"]["f1"]
        for r in results
        for name, test in r["tests"].items()
        if (r["method"], r["source"] == name) == ("fair_source_only", True)
    ]
    text = (report / "index.html").read_text("utf-8")
    start = "<td>fair_source_only</td><td>same</td><td>strict, end to end</td>"
    mean = sum(values) / len(values)
    assert f'{start}<td class="n">{mean:.3f}</td>' in text
    assert "score_threshold=0.01, nms_iou=0.6, max_detections=100" in page.text


def test_reliability_is_pooled_by_counts():
    def table(counts, sure, right):
        return {"count": counts, "confidence": sure, "precision": right}

    one = table([1, 0, 3], [0.1, None, 0.9], [1.0, None, 0.5])
    two = table([0, 0, 1], [None, None, 0.7], [None, None, 1.0])
    both = pool([one, two, table([0, 0, 0], [None] * 3, [None] * 3)])
    assert both["count"] == [1, 0, 4]
    assert both["confidence"] == pytest.approx([0.1, None, 0.85])
    assert both["precision"] == pytest.approx([1.0, None, 0.625])
    assert both["ece"] == pytest.approx((0.9 * 1 + 0.225 * 4) / 5)
    assert pool([table([0], [None], [None])]) is None


def test_slides_tell_what_is_true_beside_what_was_found(sweep, report):
    experiment, results = sweep
    summed = json.loads((report / "slides.json").read_text())
    assert set(summed) == set(DEVICES)
    text = (report / "index.html").read_text("utf-8")
    for test, runs in summed.items():
        assert [run["method"] for run in runs] == ["fair_source_only", "mean_teacher"]
        for run in runs:
            assert run["source"] != test
            found = next(
                r
                for r in results
                if (r["method"], r["source"]) == (run["method"], run["source"])
                and r["target"] == (run["target"] or None)
            )
            path = experiment.folder / "jobs" / found["job"] / "records" / f"{test}.npz"
            assert run["slides"] == summarise(load_records(path), LABEL_SPACES["lineage"])
            blasts = run["slides"][0]["found"]["blasts"]
            told = f"{blasts['count']}, {100 * blasts['share']:.0f} %"
            assert told in text
    assert "all blasts" in text
    assert "nuclear chromatin: coarse" in text


def test_all_files_are_written(report):
    assert all((report / name).stat().st_size > 0 for name in FILES)


def test_the_page_is_whole_and_needs_no_network(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"https?://|@import|<script [^>]*|url\(|import\(|fetch\(", text)
    targets = {html.unescape(name) for name in re.findall(r'id="([^"]+)"', text)}
    assert {unquote(link[1:]) for link in page.links if link.startswith("#")} <= targets


def test_the_page_shows_the_numbers_of_the_csv(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    matrix = read_matrix(report / "matrix.csv")
    row = matrix.cell("mean_teacher", "microscope", "phone", "phone", "ap50")
    assert f"{row.value:.2f}<small>{row.low:.2f}-{row.high:.2f}</small>" in text
    assert f"[{row.low:.4f}, {row.high:.4f}], 1 seed, 12 fields, 45 cells" in text
    assert "mean_teacher closes" in text
    assert "0123456789abcdef" in text
    assert "da-leukemia sweep run" in text


def test_samples_of_every_device_are_drawn(report):
    page = Page((report / "index.html").read_text(encoding="utf-8"))
    samples = [i for i in page.images if "true cells" in i["alt"]]
    assert len(samples) == 2 * len(DEVICES)
    assert len(page.images) > len(samples)  # the others are cells that moved
    assert all(image["src"].startswith("data:image/jpeg") for image in page.images)
    assert re.search(r"nuclear shape regular 80\s%", page.text)


def test_methods_that_do_not_adapt_are_shown_as_their_reference_is(sweep, tmp_path):
    """Of a sweep without targets, too, what was asked for is seen beside the reference."""
    experiment, results = sweep
    experiment = copy.deepcopy(experiment)
    experiment.methods, experiment.twins = ["fair_source_only", "source_only"], []
    alone = [r for r in results if r["method"] in experiment.methods]
    for job in make_plan(experiment):
        write_samples(experiment, job)
    page = (write_report(experiment, alone, tmp_path / "report")).read_text(encoding="utf-8")
    text = Page(page).text
    assert "source_only, same" in text
    assert "source_only, other" in text
    for name in experiment.methods:
        assert f"<figcaption><b>{name.replace('_', '_<wbr>')}</b>" in page


def test_the_picture_opens(report):
    with Image.open(report / "matrix.png") as picture:
        picture.load()
        assert min(picture.size) > 500


def test_markdown_and_latex_hold_the_headline(report):
    markdown = (report / "matrix.md").read_text()
    assert "| mean_teacher | microscope | phone |" in markdown
    latex = (report / "matrix.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert r"mean\_teacher" in latex
    assert not re.search(r"(?<!\\)_", latex.replace("label{", "").replace("synthetic-", ""))


def test_a_second_report_is_the_same_and_quick(sweep, report, tmp_path):
    experiment, results = sweep
    before = {name: (report / name).read_bytes() for name in FILES}
    shuffled = random.Random(0).sample(results, len(results))
    start = time.process_time()
    write_report(experiment, shuffled, report)
    assert time.process_time() - start < 5
    assert {name: (report / name).read_bytes() for name in FILES} == before


def test_an_incomplete_sweep_says_what_is_missing(sweep, report, tmp_path):
    experiment, results = sweep
    shutil.copy(report / "intervals.json", tmp_path)
    lost = next(r for r in results if (r["method"], r["target"]) == ("dann", "phone"))
    failed = experiment.folder / "jobs" / lost["job"] / "error.txt"
    failed.write_text("RuntimeError: <out of memory>")
    rest = [r for r in results if r["job"] != lost["job"]]
    page = Page(write_report(experiment, rest, tmp_path).read_text(encoding="utf-8"))
    failed.unlink()
    assert "1 of 18 runs have no result, 1 of them failed." in page.text
    assert f"{lost['method']}: {lost['source']} -> phone, seed 0" in page.text
    assert "RuntimeError: <out of memory>" in page.text
    assert "no run" in page.text
    assert lost["job"] in (tmp_path / "matrix.md").read_text()


def test_no_result_at_all_is_a_report_too(tmp_path):
    experiment = make_experiment(tmp_path)
    page = write_report(experiment, [], tmp_path / "report").read_text(encoding="utf-8")
    assert "There is no result yet." in page
    assert "36 of 36 runs have no result yet." in page
    assert (tmp_path / "report" / "matrix.csv").read_text().count("\n") == 1
    assert "No result yet" in render_text(read_matrix(tmp_path / "report" / "matrix.csv"))


def test_a_missing_oracle_is_said_and_nothing_is_made_up(tmp_path):
    experiment, results = make_sweep(tmp_path, records=False)
    kept = [r for r in results if (r["method"], r["source"]) != ("fair_source_only", "phone")]
    kept = [r for r in kept if r["method"] != "source_only"]
    text = write_report(experiment, kept, tmp_path / "report").read_text(encoding="utf-8")
    assert "no oracle: no fair_source_only run trained on phone" in text
    assert "no fair_source_only run trained on phone (phone to" in text


def test_the_terminal_shows_every_method_and_the_gap(report):
    text = render_text(read_matrix(report / "matrix.csv"))
    assert all(m in text for m in ("source_only", "fair_source_only", "dann", "mean_teacher"))
    assert re.search(r"mean_teacher closes \d+ % of the gap", text)
    assert max(len(line) for line in text.splitlines()[:25]) < 110


def test_many_devices_are_numbered_in_the_terminal(tmp_path):
    devices = [f"microscope_with_a_long_name_{i}" for i in range(8)]
    experiment = make_experiment(tmp_path, devices=devices, methods=["fair_source_only"])
    results = [make_result(experiment, job, records=False) for job in make_plan(experiment)]
    write_report(experiment, results, tmp_path)
    lines = render_text(read_matrix(tmp_path / "matrix.csv")).splitlines()
    table = [line for line in lines if line.startswith("microscope")]
    assert len(table) == 8
    assert all(len(line) < 110 for line in table)
    assert table[2].startswith("microscope_with_a_long_name_2 [3]")


def test_five_hundred_results_take_seconds(tmp_path):
    devices = [f"d{i}" for i in range(10)]
    experiment = make_experiment(tmp_path, devices=devices, seeds=range(3))
    results = [make_result(experiment, job, records=False) for job in make_plan(experiment)][:500]
    start = time.process_time()
    write_report(experiment, results, tmp_path / "report")
    assert time.process_time() - start < 15


def test_a_result_of_another_sweep_is_refused(sweep, tmp_path):
    experiment, results = sweep
    with pytest.raises(UserError, match="no part of synthetic"):
        write_report(experiment, [{**results[0], "method": "unheard_of"}], tmp_path)


def test_hostile_names_stay_text(tmp_path):
    device = "<b onload=x>&\"'"
    experiment = make_experiment(tmp_path, devices=[device], methods=["fair_source_only"])
    results = [make_result(experiment, job, records=False) for job in make_plan(experiment)]
    text = write_report(experiment, results, tmp_path / "report").read_text(encoding="utf-8")
    assert "<b onload" not in text
    assert Page(text).open == []


def test_broken_samples_leave_the_report_alone(sweep, tmp_path):
    experiment, _ = sweep
    folder = next((experiment.folder / "jobs").iterdir()) / "samples"
    whole = folder / "phone.json"
    (sample,) = read_samples(whole)
    assert draw(sample)[:2] == b"\xff\xd8"
    assert len(draw(sample, legend=True)) > len(draw(sample))
    (tmp_path / "phone.json").write_text(whole.read_text()[:-20])
    assert read_samples(tmp_path / "phone.json") == []
    assert read_samples(tmp_path / "none.json") == []


def test_a_second_name_for_a_cell_stands_behind_the_first(sweep, tmp_path):
    """Two tags on one cell hide each other, and the second would be called a false alarm."""
    experiment, _ = sweep
    image = next((experiment.folder / "images").iterdir())

    def found(x, kind, score):
        return {"box": [x, 0, x + 20, 20], "type": kind, "score": score, "attributes": {}}

    detections = [found(0, "a", 0.5), found(2, "b", 0.9), found(1, "b", 0.4), found(80, "c", 0.6)]
    detections.append(found(1, "a", 0.35))
    truths = [{"box": [0, 0, 20, 20], "type": "a"}]
    entry = {"image": str(image), "truths": truths, "detections": detections}
    (tmp_path / "d.json").write_text(json.dumps([entry]))
    (sample,) = read_samples(tmp_path / "d.json")
    assert [f.title for f in sample.findings] == ["b 0.90 or a 0.50", "c 0.60"]
    assert [f.truth for f in sample.findings] == [truths[0], None]


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (1, 1, 2, 2)) == 0.0


def test_text_on_a_cell_can_be_read():
    for i in range(21):
        fill, ink = colour(i / 20, 1.0)
        rgb = [int(fill[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        assert ink == text_on(rgb)
        light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
        other = 1.0 if ink == "#ffffff" else 0.0056
        contrast = (max(luminance, other) + 0.05) / (min(luminance, other) + 0.05)
        assert contrast > 4.3
    assert top_of_scale([0.31, 0.2]) == pytest.approx(0.4)
    assert top_of_scale([]) == 1.0


def test_latex_is_escaped():
    assert tex("50 % of a_b & c") == r"50 \% of a\_b \& c"
