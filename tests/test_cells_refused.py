"""What means nothing on single cells is refused with the reason; what is odd in them is told."""

from __future__ import annotations

import pytest
from cells_jobs_kit import domains
from cells_kit import five_types

from da_leukemia.config import Attributes, Classifier, Data, Detector, Domain, Experiment, complete
from da_leukemia.config.files import load_method
from da_leukemia.data.preflight import preflight
from da_leukemia.errors import ConfigError


def problems_of(**settings):
    experiment = Experiment(**settings)
    with pytest.raises(ConfigError) as raised:
        complete(experiment)
    return raised.value.problems


def test_cells_and_fields_are_not_taken_for_each_other():
    cells, fields = Detector(kind="classifier"), Detector()
    (one,) = problems_of(data=domains(format="coco"), detector=cells)
    assert one.startswith("data.domains.{a, b}: the classifier names single cells; set crop=0.15")
    found = problems_of(data=domains(format="cells"), detector=fields)
    assert "data.domains.{a, b}: shows single cells" in "\n".join(found)
    mixed = Data(domains={"a": Domain(format="coco"), "b": Domain(format="cells")})
    (one,) = problems_of(data=mixed, detector=cells)
    assert one.startswith("data.domains.a: the classifier")
    found = problems_of(data=domains(format="cells", crop=0.1), detector=cells)
    assert "data.domains.a.crop: its images are single cells already" in found[0]
    found = problems_of(data=domains(format="coco", crop=-0.1), detector=cells)
    assert "expected a margin as a share of the box" in found[0]
    found = problems_of(data=domains(format="coco", crop=15), detector=cells)
    assert all("did you mean 0.15?" in p for p in found)


def test_settings_that_a_classifier_does_not_have_are_refused():
    for key, value in {"channels": 7, "attribute_gradient": 0.5, "nms_iou": 0.1}.items():
        (found,) = problems_of(
            data=domains(format="cells"), detector=Detector(kind="classifier", **{key: value})
        )
        assert f"detector.{key}: means nothing for kind classifier" in found


def test_what_only_fields_or_detectors_have_is_refused():
    cells = Detector(kind="classifier", attributes=Attributes(head="attridet"))
    found = problems_of(data=domains(format="cells"), detector=cells)
    assert any("detector.attributes.head: attridet reads maps" in p for p in found)
    plain = Detector(kind="classifier")
    (found,) = problems_of(data=domains(format="cells"), detector=plain, sparse=[1.0, 0.1])
    assert found.startswith("sparse: leaves out cells by where they lie in a field")
    found = problems_of(
        data=domains(format="cells"),
        detectors={"cells": plain, "boxes": Detector(strides=[3])},
    )
    assert "set detectors.boxes.kind=classifier" in found[0]
    assert not any("detectors.cells" in p for p in found)


def test_whole_fields_are_no_cells_even_without_labels():
    cells = Detector(kind="classifier")
    for given in ({"format": "coco", "labels": "none"}, {"format": "yolo", "labels": "none"}):
        found = problems_of(data=domains(**given), detector=cells)
        assert any("the classifier names single cells; set crop=0.15" in p for p in found)
    data = domains(format="cells")
    data.domains["phone"] = Domain(format="images", labels="none")  # may well be of single cells
    complete(Experiment(data=data, detector=cells))


@pytest.mark.parametrize("name", ["sparse_naive", "sparse_recommended", "sla_det_paper"])
def test_methods_for_sparse_fields_are_refused(name):
    method = load_method(name)
    (found,) = problems_of(
        data=domains(format="cells"),
        detector=Detector(kind="classifier"),
        methods=[name],
        adaptations={name: method},
    )[:1]
    assert f"'{name}' cannot run on detector.kind=classifier: it is about the part" in found


def test_of_the_calibration_single_cells_have_colour_alone():
    cells = Detector(kind="classifier")
    (found,) = problems_of(
        data=domains(format="coco", crop=0.1), detector=cells, calibration=["none", "default"]
    )
    assert found.startswith("calibration: illumination, scale goes by place and size")
    found = problems_of(data=domains(format="cells"), detector=cells, calibration=["colour"])
    assert [p.split(":")[0] for p in found] == [
        "data.domains.a.calibration",
        "data.domains.b.calibration",
    ]
    for settings in ({"format": "coco", "crop": 0.1}, {"format": "cells", "calibration": "a.json"}):
        made = Experiment(data=domains(**settings), detector=cells, calibration=["none", "colour"])
        complete(made)


def test_numbers_of_the_classifier_are_checked():
    own = Classifier(smoothing=1.0, beta=1.5)
    found = problems_of(
        data=domains(format="cells"), detector=Detector(kind="classifier", classifier=own)
    )
    assert len(found) == 2
    assert "detector.classifier.beta: expected a number from 0 to below 1, got 1.5" in found[0]
    found = problems_of(data=domains(format="coco"), detector=Detector(classifier=own))
    assert any("detector.classifier: means nothing for kind one_stage" in p for p in found)


@pytest.mark.parametrize(
    ("conflicts", "said"),
    [("soft", "all of them alike"), ("own", "the one of its own folder"), ("skip", "nothing")],
)
def test_cells_in_folders_of_different_types_are_said_once(tmp_path, caplog, conflicts, said):
    for n, name in enumerate("ab"):
        root = five_types(tmp_path / "data" / name, cells=6, seed=500 * n)
        for k in range(2):
            content = (root / "basophil" / f"ba_{k}.png").read_bytes()
            (root / "monocyte" / f"border{k}.png").write_bytes(content)
    data = domains(format="cells")
    data.root, data.cache_dir, data.image_size = str(tmp_path / "data"), str(tmp_path / "c"), 32
    detector = Detector(kind="classifier", classifier=Classifier(conflicts=conflicts))
    experiment = Experiment(data=data, detector=detector)
    complete(experiment)
    preflight(experiment)
    (line,) = (r.getMessage() for r in caplog.records if "different types" in r.getMessage())
    assert line.startswith("4 cell pictures in folders of different types, such as a: basophil/ba_")
    assert f"teaches {said} (detector.classifier.conflicts: {conflicts})" in line
