"""What a slide is summed up as, and the file of detections: counted by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_kit import SPACE as TWO
from evaluation_kit import A, B, C, D, field, soft

from da_leukemia.data.fields import FieldOfView
from da_leukemia.errors import UserError
from da_leukemia.evaluation.slides import (
    COUNTED_SCORE,
    blast_classes,
    counted,
    summarise,
    wilson,
)
from da_leukemia.labels import LABEL_SPACES, LEUKEMIAATTRI, WBC5
from da_leukemia.tasks.export import write_detections


def named(*names):
    return [LEUKEMIAATTRI.classes.index(n) for n in names]


def test_wilson_is_the_textbook_interval():
    low, high = wilson(10, 50)  # worked out with the formula in Wilson (1927)
    assert (low, high) == pytest.approx((0.11244, 0.33037), abs=2e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[1] == pytest.approx(1.959964**2 / (20 + 1.959964**2))
    assert np.isnan(wilson(0, 0)).all()
    # The ends are where the share lies two standard errors of the end away from what was seen.
    for end in wilson(7, 31):
        assert abs(7 / 31 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 31))


def test_blasts_are_those_of_the_map():
    assert [LEUKEMIAATTRI.classes[k] for k in blast_classes(LEUKEMIAATTRI)] == [
        *("myeloblast", "lymphoblast", "promonocyte", "monoblast", "abnormal_promyelocyte")
    ]
    assert blast_classes(WBC5) == ()
    assert blast_classes(TWO) == ()


def test_a_slide_is_counted_as_by_hand():
    myelo, lympho, neutro = named("myeloblast", "lymphoblast", "neutrophil")
    missing = np.full((4, 7), -1)
    missing[0, :2] = (2, 0)  # a large myeloblast with open chromatin
    missing[1, :2] = (0, 0)  # a small one
    probs = np.zeros((3, 15), np.float32)
    probs[:, [0, 4, 5, 7, 9, 11, 13]] = 1.0  # small, coarse chromatin, the rest code 0
    one = field(
        [(*A, myelo), (*B, myelo), (*C, neutro), (*D, 0)],
        [(*A, lympho, 0.9), (*B, neutro, 0.4), (*C, neutro, 0.29)],
        key="d/7/1",
        group="patient:7",
        attributes=missing,
        probs=probs,
    )
    other = replace(one, key="d/10/1", group="patient:10")
    slides = summarise([other, one, replace(one, key="d/7/2")], LEUKEMIAATTRI)
    assert [(s["slide"], s["fields"]) for s in slides] == [("7", 2), ("10", 1)]
    truth, found = slides[1]["true"], slides[1]["found"]
    assert (truth["cells"], truth["untyped"]) == (3, 1)  # "none" is no cell
    assert "none" not in truth["types"]
    assert truth["types"]["myeloblast"]["count"] == 2
    assert truth["blasts"]["share"] == pytest.approx(2 / 3, abs=1e-6)
    assert (truth["blasts"]["low"], truth["blasts"]["high"]) == pytest.approx(
        wilson(2, 3), abs=1e-6
    )
    assert found["cells"] == 2  # the third is below the score that counts
    assert found["types"]["lymphoblast"]["count"] == found["types"]["neutrophil"]["count"] == 1
    assert found["blasts"]["share"] == 0.5
    assert truth["attributes"]["myeloblast"]["cell_size"] == {
        **{"cells": 2, "small": 0.5, "medium": 0.0, "large": 0.5}
    }
    assert "nucleolus" not in truth["attributes"]["myeloblast"]
    assert found["attributes"]["neutrophil"]["nuclear_chromatin"]["coarse"] == 1.0
    assert slides[0]["true"]["cells"] == 6
    assert json.loads(json.dumps(slides, allow_nan=False)) == slides


def test_a_device_without_patients_is_one_slide_and_no_cell_has_no_share():
    fields = [field(key="d//1", group="field:d/1"), field(key="d//2", group="field:d/2")]
    (slide,) = summarise(fields, LEUKEMIAATTRI)
    assert (slide["slide"], slide["fields"]) == ("all of d", 2)
    assert slide["true"]["blasts"] == {"count": 0, "share": None, "low": None, "high": None}
    assert slide["found"]["attributes"] == {}
    (plain,) = summarise(fields, WBC5)
    assert plain["true"]["blasts"] is None  # no class of it is a blast: not "0 %"


def test_two_names_for_one_cell_are_one_cell():
    record = field([], [(*A, 0, 0.5), (1, 0, 10, 10, 1, 0.8), (*B, 0, 0.4), (*C, 0, 0.1)])
    assert counted(record).tolist() == [1, 2]
    assert counted(record, 0.0).tolist() == [1, 2, 3]
    assert len(counted(field())) == 0


def test_cells_outside_the_annotated_region_are_not_counted():
    record = field([(*A, 1), (*D, 1)], [(*A, 1, 0.9), (*D, 1, 0.9)], regions=((0, 0, 30, 30),))
    (slide,) = summarise([record], WBC5)
    assert (slide["true"]["cells"], slide["found"]["cells"]) == (1, 1)


# --- the file of detections --------------------------------------------------------------------


@pytest.fixture
def found(tmp_path):
    record = field(
        [(*A, 0)],
        [(*A, 1, 0.875), (*B, 0, 0.1)],
        key="phone/3/f",
        group="patient:3",
        attributes=[(0, 1)],
        probs=[soft(0, 1), soft(2, 0)],
    )
    image = tmp_path / "f.png"
    of_view = FieldOfView(
        image, "phone", "3", "f", 99, 99, record.true_boxes, record.true_labels,
        record.true_attributes, (0, 1),
    )  # fmt: skip
    return {"phone": ([record], [of_view])}


def test_json_holds_every_probability_and_the_slides(found, tmp_path):
    write_detections(tmp_path / "d.json", found, TWO)
    content = json.loads((tmp_path / "d.json").read_text())
    assert (content["label_space"], content["min_score"]) == ("two", COUNTED_SCORE)
    (listed,) = content["devices"]["phone"]["fields"]
    assert (listed["field"], listed["patient"]) == ("phone/3/f", "3")
    assert listed["image"] == str(tmp_path / "f.png")
    (cell,) = listed["detections"]
    assert cell == {
        "box": [0.0, 0.0, 10.0, 10.0],
        "type": "b",
        "score": 0.875,
        "attributes": {"size": {"s": 0.8, "m": 0.1, "l": 0.1}, "vacuoles": {"no": 0.1, "yes": 0.9}},
    }
    assert content["devices"]["phone"]["slides"][0]["slide"] == "3"
    write_detections(tmp_path / "all.json", found, TWO, 0.0)
    both = json.loads((tmp_path / "all.json").read_text())["devices"]["phone"]["fields"][0]
    assert len(both["detections"]) == 2


def test_csv_has_a_row_per_detection(found, tmp_path):
    write_detections(tmp_path / "d.csv", found, TWO, 0.05)
    with (tmp_path / "d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["type"] for r in rows] == ["b", "a"]
    first = {k: rows[0][k] for k in ("device", "x2", "score", "size", "size_probability")}
    assert first == {
        **{"device": "phone", "x2": "10.0", "score": "0.875"},
        **{"size": "s", "size_probability": "0.8"},
    }
    assert rows[1]["vacuoles"] == "no"


def test_a_detector_without_attributes_leaves_their_columns_empty(found, tmp_path):
    records, fields = found["phone"]
    bare = replace(records[0], attribute_probs=np.zeros((2, 0), np.float32))
    write_detections(tmp_path / "d.csv", {"phone": ([bare], fields)}, TWO)
    with (tmp_path / "d.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["size"], row["size_probability"]) == ("", "")


def test_a_name_that_says_no_format_and_a_folder_that_is_none_are_refused(found, tmp_path):
    with pytest.raises(UserError, match=r"\.json or \.csv"):
        write_detections(tmp_path / "d.txt", found, TWO)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_detections(tmp_path / "file" / "d.csv", found, TWO)


def test_every_built_in_space_can_be_summed_up():
    for space in LABEL_SPACES.values():
        record = field([(*A, 0)], [(*A, 0, 0.9)])
        (slide,) = summarise([record], space)
        assert slide["found"]["cells"] == slide["true"]["cells"]
