"""Single cells in the report: every cell has an answer, however unsure."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_matrix_support import make_experiment, make_result
from test_report_confusion import SPACE, TYPES, make_cells
from test_report_confusion import records as make_records

from da_leukemia.data.fields import FieldOfView
from da_leukemia.evaluation.records import load_records, save_records
from da_leukemia.report import gather, write_report
from da_leukemia.report.html import page
from da_leukemia.report.samples import CELL_WIDTH, portrait, read_samples
from da_leukemia.sweep.plan import make_plan
from da_leukemia.tasks.samples import CELLS, sample_fields

SIDE = 40


def unsure(record):
    """The same answer with a probability between 1/5 and 0.3."""
    scores = np.full(TYPES, 0.19, np.float32)
    scores[record.scores.argmax()] = 0.24
    return replace(record, scores=scores)


def as_field(record, image):
    device, name = record.key.split("/")
    truth = (record.true_boxes, record.true_labels, record.true_attributes)
    return FieldOfView(image, device, "", name, SIDE, SIDE, *truth, tuple(range(TYPES)))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on runs that are nowhere surer than 0.24; also its folder."""
    experiment, results = make_cells(tmp_path_factory.mktemp("cells"), seeds=(0,))
    image = experiment.folder / "cell.png"
    Image.new("RGB", (SIDE, SIDE), (150, 120, 180)).save(image)
    for result in results:
        job = experiment.folder / "jobs" / result["job"]
        (job / "samples").mkdir()
        for test in result["tests"]:
            path = job / "records" / f"{test}.npz"
            cells = [unsure(r) for r in load_records(path)]
            save_records(path, cells)
            fields = {r.key: as_field(r, image) for r in cells}
            shown = sample_fields(cells, fields, SPACE, single_cells=True)
            (job / "samples" / f"{test}.json").write_text(json.dumps(shown))
    folder = tmp_path_factory.mktemp("report")
    write_report(experiment, results, folder)
    return folder


def test_cells_are_shown_of_every_type_by_turns(tmp_path):
    cells = make_records("phone", 0.5, 0, "one")
    cells[0] = replace(cells[0], true_labels=np.array([-1]))
    fields = {r.key: as_field(r, tmp_path / "cell.png") for r in cells}
    shown = sample_fields(cells, fields, SPACE, single_cells=True)
    types = [s["truths"][0]["type"] for s in shown]
    known = SPACE.classes[: TYPES - 1]  # the last type is never there
    assert types == [*known] * (CELLS // len(known))
    # Nothing that a run answered has a say in which are shown.
    other = sample_fields([unsure(c) for c in cells[::-1]], fields, SPACE, single_cells=True)
    assert [s["name"] for s in other] == [s["name"] for s in shown]
    few = [c for c in cells if c.true_labels[0] in (-1, 0)][:2]
    assert [s["truths"][0]["type"] for s in sample_fields(few, fields, SPACE, True)][
        -1
    ] == "unknown"


def test_every_picture_has_its_answer_and_every_answer_counts(report):
    page = (report / "index.html").read_text()
    section = page[page.index('<h2 id="samples">') : page.index('<h2 id="settings">')]
    figures = re.findall("<figure.*?</figure>", section)
    assert len(figures) == 3 * CELLS
    for figure in figures:
        truth = re.search("<figcaption><b>(.*?)</b>", figure)[1]
        answers = re.findall(r"<li>.*?: (<span class=\"neg\">)?(\w+) 0\.24", figure)
        assert len(answers) == 2  # without and with adaptation
        assert all(bool(wrong) == (said != truth) for wrong, said in answers)
    for summed in json.loads((report / "slides.json").read_text()).values():
        for run in summed:
            assert run["min_score"] == 0
            assert all(
                s["found"]["cells"] == s["true"]["cells"] == s["fields"] for s in run["slides"]
            )


def test_answers_are_one_a_cell_and_pictures_are_not_enlarged(tmp_path):
    image = tmp_path / "cell.png"
    box = [0.0, 0.0, 64.0, 64.0]
    said = [
        {"box": box, "score": s, "type": t} for t, s in (("monocyte", 0.33), ("neutrophil", 0.4))
    ]
    entry = {"image": str(image), "truths": [{"box": box, "type": "monocyte"}], "detections": said}
    path = tmp_path / "d.json"
    path.write_text(json.dumps([entry]))
    for side, shown in ((64, 64), (3 * CELL_WIDTH, CELL_WIDTH)):
        Image.new("RGB", (side, side)).save(image)
        (sample,) = read_samples(path, single_cells=True)
        (answer,) = sample.findings
        assert (answer.type, answer.score, answer.others) == ("neutrophil", 0.4, [])
        assert answer.truth["type"] == "monocyte"
        assert Image.open(io.BytesIO(portrait(sample))).size == (shown, shown)


def test_devices_are_counted_that_were_trained_or_tested_on(tmp_path):
    def told(scored=True, **choices):
        experiment = make_experiment(tmp_path, seeds=(0,), methods=("fair_source_only",))
        for key, value in choices.items():
            setattr(experiment, key, value)
        jobs = make_plan(experiment)
        results = [make_result(experiment, j, records=False) for j in jobs]
        contents = gather(experiment, [r if scored else r | {"tests": {}} for r in results])
        return page(contents, {}).split('<p class="soft">')[1].split("</p>")[0]

    assert "tested on every device. 3 devices" in told()
    assert "tested on the same device. 1 device," in told(sources=["phone"], tests=["phone"])
    assert "tested on 1 device. 2 devices" in told(sources=["phone"], tests=["low_cost"])
    assert "could be tested on none. 1 device," in told(scored=False, sources=["phone"])
