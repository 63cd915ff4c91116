"""Confusion and abstention of single cells in the report, from the answers that results hold."""

from __future__ import annotations

import csv
import re
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from test_matrix_support import make_sweep

from da_leukemia.config import Data, Detector, Domain, Experiment, complete
from da_leukemia.evaluation import FieldRecord, save_records
from da_leukemia.evaluation.classification import evaluate_cells
from da_leukemia.labels import LABEL_SPACES
from da_leukemia.report import gather, write_report
from da_leukemia.report.confusion import FILES, all_answers, answers_of, confusion_table
from da_leukemia.sweep.plan import make_plan

SPACE = LABEL_SPACES["wbc5"]
TYPES = len(SPACE.classes)


def records(test, right, seed, name):
    """Sixty cells of one device, the same for everybody, of which a share is named rightly."""
    world = np.random.default_rng(zlib.crc32(test.encode()))
    luck = np.random.default_rng(zlib.crc32(f"{name}{seed}{test}".encode()))
    made = []
    for i in range(60):
        truth = int(world.integers(TYPES - 1))  # the last type is never there
        said = truth if luck.random() < right else int(luck.integers(TYPES))
        logits = luck.normal(0, 1, TYPES)
        logits[said] += luck.uniform(1, 5)
        box = np.array([[0, 0, 40, 40]], np.float32)
        made.append(
            FieldRecord(
                key=f"{test}/{i}",
                group=f"patient{i // 6}",
                true_boxes=box,
                true_labels=np.array([truth]),
                true_attributes=np.zeros((1, len(SPACE.attributes)), int),
                attribute_probs=np.zeros((TYPES, sum(SPACE.attribute_sizes)), np.float32),
                boxes=box.repeat(TYPES, 0),
                scores=(np.exp(logits) / np.exp(logits).sum()).astype(np.float32),
                labels=np.arange(TYPES),
            )
        )
    return made


def make_cells(folder, seeds=(0, 1)):
    """Return an experiment on single cells and the results of its whole plan."""
    experiment = Experiment(
        name="cells",
        runs_dir=str(folder / "runs"),
        data=Data(
            label_space=SPACE.name,
            domains={d: Domain(format="cells") for d in ("lab", "ward", "phone")},
        ),
        detector=Detector(kind="classifier"),
        methods=["fair_source_only", "dann"],
        seeds=list(seeds),
        twins=[],
    )
    complete(experiment)
    results = []
    for job in make_plan(experiment):
        where = experiment.folder / "jobs" / job.hash / "records"
        where.mkdir(parents=True, exist_ok=True)
        tests = {}
        for test in job.tests:
            right = 0.95 if test == job.source else 0.7 if job.target == test else 0.45
            cells = records(test, right, job.seed, f"{job.method_name}{job.source}{job.target}")
            save_records(where / f"{test}.npz", cells)
            metrics = evaluate_cells(cells, SPACE, range(TYPES))
            tests[test] = {"metrics": metrics, "records": f"records/{test}.npz"}
        told = {"job": job.hash, "method": job.method_name, "source": job.source}
        told |= {"target": job.target, "seed": job.seed, "label_space": SPACE.name}
        told |= {"classes": list(SPACE.classes), "config": asdict(job), "tests": tests}
        results.append(told)
    return experiment, results


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    experiment, results = make_cells(tmp_path_factory.mktemp("cells"))
    folder = tmp_path_factory.mktemp("report")
    write_report(experiment, results, folder)
    return experiment, results, folder


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_counts_are_added_over_seeds_and_curves_are_means(sweep):
    experiment, results, folder = sweep
    mine = [
        r["tests"]["phone"]["metrics"]
        for r in results
        if (r["method"], r["source"], r["target"]) == ("dann", "lab", "phone")
    ]
    assert len(mine) == 2
    place = {"method": "dann", "source": "lab", "target": "phone", "test": "phone", "seeds": "2"}
    counts = np.zeros((TYPES, TYPES), int)
    for line in read(folder / "confusion.csv"):
        if place.items() <= line.items():
            i, k = (SPACE.classes.index(line[key]) for key in ("truth", "answer"))
            counts[i, k] += int(line["cells"])
            of_type = sum(sum(m["confusion"][i]) for m in mine)
            assert float(line["share"]) == pytest.approx(int(line["cells"]) / of_type, abs=1e-6)
    assert (counts == np.sum([m["confusion"] for m in mine], axis=0)).all()
    points = [x for x in read(folder / "abstention.csv") if place.items() <= x.items()]
    assert [float(p["coverage"]) for p in points] == [p["coverage"] for p in mine[0]["abstention"]]
    for key in ("accuracy", "from"):
        means = np.mean([[p[key] for p in m["abstention"]] for m in mine], axis=0)
        assert [float(p[key]) for p in points] == pytest.approx(means, abs=1e-6)
    places = {tuple(x[k] for k in ("method", "source", "target", "test")) for x in points}
    assert len(all_answers(gather(experiment, results))) == 9 + 6
    assert places == {("dann", "lab", "phone", "phone")}


def test_the_page_folds_them_behind_each_cell(sweep):
    experiment, results, folder = sweep
    page = (folder / "index.html").read_text("utf-8")
    block = page[page.index('id="cell--dann--lab--phone"') :].partition('class="depth"')[0]
    assert block.count("<summary>Which type is taken for which</summary>") == 1
    assert "2 seeds added" in block
    assert "Right among the cells that are answered" in block
    assert page.count("Which type is taken for which") == 9 + 6
    found = next(
        a for a in all_answers(gather(experiment, results)) if a.row[:3] == ("dann", "lab", "phone")
    )
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", confusion_table(found))
    assert len(rows) == TYPES - 1  # of the last type there is no cell
    shown = [int(n or 0) for _, cells in rows for n in re.findall(r"<td[^>]*>(\d*)</td>", cells)]
    assert sum(shown) == found.counts.sum() == 120
    assert found.abstention[-1].accuracy == pytest.approx(np.trace(found.counts) / 120)


def test_pictures_are_drawn_of_the_methods_that_are_shown(sweep):
    folder = sweep[2]
    for name in FILES[2:]:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 22)) > 50


def test_detectors_have_none_of_it(tmp_path):
    experiment, results = make_sweep(tmp_path, records=False, seeds=(0,))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / FILES[0]).write_text("of an earlier report")
    page = write_report(experiment, results, tmp_path / "report").read_text("utf-8")
    assert "taken for which" not in page
    assert not any((tmp_path / "report" / name).exists() for name in FILES)
    contents = gather(experiment, results)
    assert answers_of(contents.depths[0].row, contents.depths[0].results) is None
