"""What stands behind a cell of the matrix, and the page as a browser runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_matrix_support import (
    METHODS,
    SPACE,
    make_experiment,
    make_records,
    make_result,
    make_sweep,
    write_samples,
)

from da_leukemia.evaluation import MatchTable
from da_leukemia.report import cells, contents, depth, gather, write_report
from da_leukemia.report.cells import anchor
from da_leukemia.report.moved import crop, moved
from da_leukemia.report.samples import Sample
from da_leukemia.sweep.plan import make_plan

LABELLED = range(len(SPACE.classes))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    experiment, results = make_sweep(tmp_path_factory.mktemp("sweep"), seeds=(0,))
    for job in make_plan(experiment):
        write_samples(experiment, job)
    return write_report(experiment, results, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def depths(tmp_path_factory):
    experiment, results = make_sweep(tmp_path_factory.mktemp("sweep"), seeds=(0, 1))
    for job in make_plan(experiment):
        write_samples(experiment, job)
    return gather(experiment, results).depths


# --- curves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_mean_of_the_curve_is_ap50(share):
    table = MatchTable.build(make_records("phone", share, 0, "x"), LABELLED)
    everything = np.ones(len(table.groups), dtype=np.int64)
    curve = table.curve()
    assert curve.mean() == pytest.approx(table.ap(everything)[0], abs=1e-9)
    assert (np.diff(curve) <= 1e-12).all()


def test_a_curve_by_hand():
    """Two true cells of one class; found first, a false alarm, found second."""
    table = MatchTable(
        groups=("a",),
        score=np.array([0.9, 0.8, 0.7], np.float32),
        correct=np.array([True, False, True]),
        field=np.zeros(3, np.int64),
        truths=np.array([[2, 0]]),
        class_start=np.array([0, 3]),
        hit=np.array([0, 2]),
        hit_class=np.zeros(2, np.int64),
        hit_segment=np.zeros(2, np.int64),
    )
    assert table.curve()[[0, 50, 51, 100]] == pytest.approx([1, 1, 2 / 3, 2 / 3])


# --- cells -----------------------------------------------------------------------------------


def test_every_cell_of_the_methods_that_are_drawn_is_opened(depths):
    places = {(d.row.method, d.row.source, d.row.test) for d in depths}
    assert {p[0] for p in places} == set(METHODS)
    assert len(places) == 9 + 9 + 6 + 6
    assert all(d.whole for d in depths)
    one = next(d for d in depths if d.row.method == "mean_teacher")
    assert [r.run.seed for r in one.results] == [0, 1]
    assert {r.run.method for r in one.twins.values()} == {"fair_source_only"}
    values = [r.metrics(one.row.test)["ap50"] for r in one.results]
    assert np.mean([p for _, p in one.curve]) == pytest.approx(np.mean(values), abs=0.02)
    assert one.cells == sum(
        c["truths"] for c in one.results[0].metrics(one.row.test)["per_class"].values()
    )


def test_of_many_cells_few_are_opened_whole_and_others_with_their_numbers(tmp_path, monkeypatch):
    experiment, results = make_sweep(tmp_path, records=False)
    for module in (depth, cells):
        monkeypatch.setattr(module, "MOST_CELLS", 4)
    found = gather(experiment, results)
    methods = ("fair_source_only", "mean_teacher")
    values = [r.value for r in found.matrix.on_target("ap50") if r.method in methods]
    assert sorted(d.row.value for d in found.depths if d.whole) == sorted(values)[:4]
    assert len(found.depths) == 9 + 9 + 6 + 6
    assert all(not d.twins and not d.curve for d in found.depths if not d.whole)
    text = write_report(experiment, results, tmp_path / "report").read_text("utf-8")
    assert "4 cells open whole" in text
    assert "6 further cells, numbers alone" in text  # of dann
    block = text[text.index('id="cell--dann--low_cost--phone"') :].partition("</details>")[0]
    assert block.count("da-leukemia reproduce") == 2
    assert "blast" in block
    headline = text[text.index('data-metric="ap50"') : text.index('data-metric="ap50_95"')]
    links = re.findall(r'href="#(cell--[^"]+)"', headline)
    assert len(set(links)) == len(found.depths)
    assert all(f'id="{link}"' in text for link in links)

    for module in (depth, cells):
        monkeypatch.setattr(module, "MOST_BRIEF", 3)
    text = write_report(experiment, results, tmp_path / "report").read_text("utf-8")
    assert text.count('class="depth"') == 4 + 3
    assert "Of more than 3 others those with the lowest scores" in text


def test_many_methods_are_drawn_by_what_they_close(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MOST", 3)
    experiment = make_experiment(tmp_path)
    results = [make_result(experiment, job, records=False) for job in make_plan(experiment)]
    found = gather(experiment, results)
    assert found.shown == ("fair_source_only", "dann", "mean_teacher")
    assert "Of 4 methods 3 are drawn" in found.left_out
    text = write_report(experiment, results, tmp_path / "report").read_text("utf-8")
    assert "Of 4 methods 3 are drawn" in text
    assert "| dann | " in (tmp_path / "report" / "matrix.md").read_text()


def test_where_nothing_says_the_gap_the_methods_that_gain_most_are_drawn(monkeypatch):
    longer = [f"longer_source_only:{m}" for m in ("recommended", "recommended+calibrated")]
    asked = ["fair_source_only+calibrated", "recommended", "recommended+calibrated"]
    methods = ("source_only", "fair_source_only", *longer, *asked)
    gains = dict(zip(asked, (0.2, 0.0, 0.3), strict=True))
    gap = SimpleNamespace(
        summaries=[
            SimpleNamespace(method=m, ratio_of_means=None, mean_gain=gain)
            for m, gain in gains.items()
        ]
    )
    matrix = SimpleNamespace(methods=methods, adapted=tuple(asked))
    monkeypatch.setattr(contents, "reference_method", lambda _: "fair_source_only")
    assert set(methods) - set(contents._drawn(matrix, gap)) == {longer[1]}
    # Nothing can be scored: what was asked for is still drawn.
    nothing = SimpleNamespace(summaries=[])
    assert set(asked) < set(contents._drawn(matrix, nothing))
    monkeypatch.setattr(contents, "MOST", 2)
    assert contents._drawn(matrix, gap) == ("fair_source_only", "recommended+calibrated")


# --- what moved ------------------------------------------------------------------------------


def sample(name, image, found):
    """Two true cells, of which the named ones have a detection."""
    truths = [{"box": [10 + 60 * i, 10, 40 + 60 * i, 40], "type": "blast"} for i in range(2)]

    class Finding:
        def __init__(self, box):
            self.box, self.score = tuple(box), 0.8

    return Sample(name, image, truths, [Finding(truths[i]["box"]) for i in found])


def test_cells_that_moved_are_counted_both_ways_and_cut_out(depths, tmp_path, monkeypatch):
    image = tmp_path / "field.png"
    Image.new("RGB", (120, 60), (230, 210, 200)).save(image)
    one = next(d for d in depths if d.row.target)
    seen = {False: [sample("f", image, [1])], True: [sample("f", image, [0])]}
    monkeypatch.setattr(
        "da_leukemia.report.moved.samples_of",
        lambda result, test, single_cells: seen[bool(result.run.target)],
    )
    changes = [(c.truth, c.gained) for c in moved(one)]
    seeds = len(one.results)
    assert changes == [(0, True)] * seeds + [(1, False)] * seeds
    picture = crop(next(moved(one)))
    assert picture[:2] == b"\xff\xd8"


def test_a_cell_that_both_runs_see_has_not_moved(depths, tmp_path, monkeypatch):
    one = next(d for d in depths if d.row.target)
    same = [sample("f", tmp_path / "none.png", [0])]
    monkeypatch.setattr("da_leukemia.report.moved.samples_of", lambda *_: same)
    assert list(moved(one)) == []


# --- in a browser ----------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

PROBE = """
<script>
const seen = { errors: [] };
addEventListener("error", (e) => seen.errors.push(e.message));
addEventListener("load", () => {
  const shown = (what) => [...document.querySelectorAll(what)].filter((e) => e.offsetParent);
  const [metric, method] = document.querySelectorAll(".switch select");
  const pick = (list, value) => { list.value = value; list.dispatchEvent(new Event("change")); };
  seen.first = shown(".metric").map((e) => e.dataset.metric);
  pick(metric, "recall");
  seen.second = shown(".metric").map((e) => e.dataset.metric);
  pick(method, "dann");
  seen.cards = shown(".metric .card").map((e) => e.dataset.method);
  pick(metric, "ap50");
  pick(method, "");
  const link = document.querySelector('.card[data-method="mean_teacher"] td a');
  link.focus();
  seen.readout = document.querySelector(".readout").textContent;
  const press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  press("ArrowDown");
  seen.below = document.querySelector(".readout").textContent;
  link.click();
  setTimeout(() => {
    seen.opened = shown(".depth[open]").map((e) => e.id);
    seen.wide = document.documentElement.scrollWidth - innerWidth;
    document.title = "probe " + JSON.stringify(seen);
  }, 50);
});
</script>
"""


@pytest.fixture(scope="module")
def probe(page, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    file = tmp_path_factory.mktemp("probe") / "probe.html"
    file.write_text(page.read_text("utf-8").replace("<body>", "<body>" + PROBE), "utf-8")

    def run(width):
        options = ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900")
        command = [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r"<title>probe (.*?)</title>", done.stdout)
        assert found, done.stderr[-2000:]
        return json.loads(found[1].replace("&amp;", "&").replace("&gt;", ">"))

    return run


def test_a_browser_switches_reads_out_and_opens(probe):
    seen = probe(1280)
    assert seen["errors"] == []
    assert (seen["first"], seen["second"]) == (["ap50"], ["recall"])
    assert seen["cards"] == ["dann"]
    assert seen["readout"].startswith(
        "fair_source_only, trained on microscope, tested on microscope"
    )
    assert seen["below"].startswith("mean_teacher, trained on low_cost, tested on microscope")
    assert seen["opened"] == [anchor("fair_source_only", "microscope", "microscope")]
    assert seen["wide"] <= 0


def test_a_phone_needs_no_sideways_scrolling(probe):
    seen = probe(390)
    assert seen["errors"] == []
    assert seen["wide"] <= 0
