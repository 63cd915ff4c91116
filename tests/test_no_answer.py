"""What was not learned is not answered: in scores, files, pictures and pseudo-labels."""

from __future__ import annotations

import json
import logging

import lightning as L
import numpy as np
import pytest
import torch
from adaptation_kit import detector
from PIL import Image

from da_leukemia.adaptation.pseudo import attribute_codes
from da_leukemia.config import (
    Attributes,
    Augmentation,
    Data,
    Domain,
    Experiment,
    Trainer,
    complete,
    sparsities,
)
from da_leukemia.data.attributes import attribute_counts, constant_attributes
from da_leukemia.data.check import check
from da_leukemia.data.datamodules import AdaptationDataModule, DomainDataModule
from da_leukemia.data.experiment import read_experiment_data
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.preflight import preflight
from da_leukemia.data.readers import DomainSource, read_domain
from da_leukemia.data.sparse import made_sparse
from da_leukemia.errors import ConfigError
from da_leukemia.evaluation import FieldRecord, evaluate, fit_lookup
from da_leukemia.evaluation.slides import found_cells
from da_leukemia.labels import LEUKEMIAATTRI, LEUKEMIAATTRI13, WBC, is_cell
from da_leukemia.tasks.detection import DetectionTask
from da_leukemia.tasks.export import write_detections
from da_leukemia.tasks.samples import learned_attributes, sample_fields

SPACE = LEUKEMIAATTRI
SILENT = ("cell_size", "cytoplasmic_vacuoles")


def record(silent=SILENT, cells=12, seed=0):
    """A field whose cells are found and read rightly; ``silent`` attributes have no answer."""
    rng = np.random.default_rng(seed)
    corner = np.stack([np.arange(cells) * 60.0, np.zeros(cells)], 1)
    boxes = np.hstack([corner, corner + 40]).astype(np.float32)
    labels = 1 + np.arange(cells) % 3
    codes = np.stack([rng.permutation(cells) % s for s in SPACE.attribute_sizes], 1)
    parts = []
    for column, attribute in enumerate(SPACE.attributes):
        sure = np.where(np.eye(len(attribute.values))[codes[:, column]] > 0, 0.9, 0.05)
        share = sure / sure.sum(1, keepdims=True)
        parts.append(share * (attribute.name not in silent))
    probabilities = np.concatenate(parts, 1).astype(np.float32)
    return FieldRecord(
        key="d/p/0",
        group="patient:p",
        true_boxes=boxes,
        true_labels=labels,
        true_attributes=codes,
        boxes=boxes,
        scores=np.full(cells, 0.9, np.float32),
        labels=labels,
        attribute_probs=probabilities,
        true_attribute_probs=probabilities,
    )


def test_no_answer_has_no_score_and_no_part_in_a_mean():
    whole = record(())
    lookup = fit_lookup(whole.true_labels, whole.true_attributes)
    scores = evaluate([record()], SPACE, range(14), lookup)
    full = evaluate([whole], SPACE, range(14), lookup)
    assert full["attributes"]["found"]["scored"] == 7
    for view in ("true_boxes", "found", "end_to_end"):
        found = scores["attributes"][view]
        assert found["scored"] == 5
        assert found["f1"] == found["balanced_accuracy"] == 1.0
        silent = [n for n, row in found["per_attribute"].items() if row["f1"] is None]
        assert tuple(silent) == SILENT
        # The lookup is compared on the same attributes.
        rows = full["attributes"][view]["per_attribute"]
        theirs = [row["lookup_f1"] for name, row in rows.items() if name not in SILENT]
        assert found["lookup_f1"] == pytest.approx(np.mean(theirs))
    # As released every attribute is answered: no answer is one that is never code 1.
    f1 = {name: row["f1"] for name, row in scores["as_released"]["per_attribute"].items()}
    binary = [a.name for a in SPACE.attributes if len(a.values) == 2]
    assert f1 == {name: float(name not in SILENT) for name in binary}
    assert scores["attribute_f1_as_released"] == pytest.approx(5 / 6)
    assert scores["attribute_ece"] == pytest.approx(0.1, abs=0.05)
    assert set(scores["reliability"]["ece_per_attribute"]) == set(binary) - set(SILENT)


def test_a_detector_without_any_answer_has_no_attribute_score():
    scores = evaluate([record([a.name for a in SPACE.attributes])], SPACE, range(14))
    assert scores["attribute_f1"] is None
    assert scores["attribute_f1_as_released"] is None
    assert scores["attribute_ece"] is None
    assert scores["attributes"] == {}
    assert scores["ap50"] == 1.0


def test_profiles_of_slides_leave_out_what_has_no_answer():
    cells = found_cells([record()], SPACE)
    assert (cells.attributes[:, 0] == -1).all()
    assert (cells.attributes[:, 1] >= 0).all()


def test_files_and_samples_list_only_answers_and_none_for_an_artefact(tmp_path):
    made = record()
    made.labels[0] = 0  # an artefact
    field = FieldOfView(
        *(tmp_path / "a.png", "d", "p", "0", 800, 100, made.true_boxes, made.true_labels),
        *(made.true_attributes, tuple(range(14))),
    )
    write_detections(tmp_path / "found.json", {"d": ([made], [field])}, SPACE)
    content = json.loads((tmp_path / "found.json").read_text())
    first, *others = content["devices"]["d"]["fields"][0]["detections"]
    assert (first["type"], first["attributes"]) == ("none", {})
    for found in others:
        assert {"box", "type", "score", "attributes"} == set(found)
        assert not set(SILENT) & set(found["attributes"])
        assert len(found["attributes"]) == 5
        for shares in found["attributes"].values():
            assert sum(shares.values()) == pytest.approx(1, abs=2e-3)
    write_detections(tmp_path / "found.csv", {"d": ([made], [field])}, SPACE)
    header, row, *_ = (tmp_path / "found.csv").read_text().splitlines()[0::2]
    cell = dict(zip(header.split(","), row.split(","), strict=True))
    assert cell["cell_size"] == cell["cell_size_probability"] == ""
    assert float(cell["nucleolus_probability"]) > 0.9
    (sample,) = sample_fields([made], {made.key: field}, SPACE)
    spelt = [d["attributes"] for d in sample["detections"]]
    assert sorted(len(s) for s in spelt) == [0] + [5] * 11
    assert all(0.9 < share <= 1 for s in spelt for _, share in s.values())


def test_a_teacher_does_not_teach_what_it_has_no_answer_to():
    probabilities = torch.tensor([[[0.0, 0.0, 0.2, 0.3, 0.5]]])
    codes = attribute_codes(probabilities, (2, 3), 0.0, torch.ones(1, 1, 2, dtype=torch.bool))
    assert codes.tolist() == [[[-1, 2]]]


# --- what the labels say -------------------------------------------------------------------------


def put_coco(root, cells, patients=4):
    """A folder of one field per patient; ``cells`` are (class, attributes) on each."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for n in range(patients):
        Image.new("RGB", (64, 64), (200, 180, 10 * n)).save(root / f"images/{n}.png")
        images.append({"id": n, "file_name": f"images/{n}.png", "patient": f"p{n}"})
        images[-1] |= {"width": 64, "height": 64}
        for kind, attributes in cells:
            place = len(annotations)
            box = [1 + place % 7, 2 + place % 5, 20 + place % 3, 20]
            row = {"id": place, "image_id": n, "category_id": 1, "bbox": box, "wbc_type": kind}
            annotations.append({**row, "attributes": attributes})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "WBC"}]
    (root / "annotations.json").write_text(json.dumps(content))
    return root


VARIED = [
    ("monocyte", {"cytoplasm": "abundant", "nucleolus": "prominent", "nuclear_shape": "regular"}),
    ("myeloblast", {"cytoplasm": "abundant", "nucleolus": "inconspicuous"}),
    ("myeloblast", {"nucleolus": "prominent", "nuclear_shape": "irregular"}),
    ("lymphocyte", {"cytoplasm": "abundant", "nucleolus": "prominent"}),
    ("eosinophil", {"cytoplasm": "abundant"}),
    ("basophil", {"cytoplasm": "abundant"}),
]


@pytest.mark.parametrize("space", [LEUKEMIAATTRI, LEUKEMIAATTRI13], ids=lambda s: s.name)
def test_attributes_of_an_artefact_are_not_read_and_counted(tmp_path, space):
    root = put_coco(tmp_path / "a", [*VARIED, ("none", {"nucleolus": "prominent"})])
    index = read_domain(DomainSource("a", root), "coco", space)
    found = {f.kind: f.count for f in index.findings}
    assert found["attribute_of_no_cell"] == 4
    for field in index:
        artefact = field.labels == (0 if space is LEUKEMIAATTRI else -1)
        assert (field.attributes[artefact] == -1).all()
        assert (field.attributes[~artefact] >= 0).any()
    assert [is_cell(n) for n in ("None", "artifact", "unidentified", "blast", "wbc")] == [
        *(False, False, False, True, True)
    ]


def test_a_constant_attribute_is_found_counted_and_said(tmp_path, caplog):
    root = put_coco(tmp_path / "a", VARIED)
    put_coco(tmp_path / "b", VARIED)
    index = read_domain(DomainSource("a", root), "coco", SPACE)
    counts = attribute_counts(index, SPACE)
    assert constant_attributes(counts, SPACE) == ["cytoplasm: all 20 cells abundant"]
    (finding,) = [f for f in check(root).all_findings if f.kind == "attribute_constant"]
    assert finding.examples == ("cytoplasm: all 20 cells abundant",)
    data = Data(
        root=str(tmp_path), label_space="leukemiaattri", domains={"a": Domain(), "b": Domain()}
    )
    made = Experiment(data=data, runs_dir=str(tmp_path / "runs"))
    complete(made)
    with caplog.at_level(logging.WARNING):
        preflight(made)
    said = [r.getMessage() for r in caplog.records if "attribute cytoplasm" in r.getMessage()]
    assert len(said) == 2  # of each source
    assert "cells abundant in the training part: it is not learned" in said[0]
    caplog.clear()
    made.detector.attribute_weight = 0.0
    with caplog.at_level(logging.WARNING):
        preflight(made)
    assert not caplog.records


def test_a_box_outside_its_patch_is_not_counted(tmp_path):
    codes = np.ones((3, len(SPACE.attributes)), np.int64)
    codes[2] = 0
    boxes = np.array([[2, 2, 8, 8], [4, 4, 9, 9], [60, 60, 70, 70]], np.float32)
    field = FieldOfView(
        *(tmp_path / "a.png", "d", "p", "0", 100, 100, boxes, np.array([1, 2, 3]), codes),
        tuple(range(14)),
        annotated_regions=((0.0, 0.0, 50.0, 50.0),),
    )
    counts = attribute_counts([field], SPACE)
    assert (counts[:, 0] == 0).all()
    assert (counts[:, 1] == 2).all()


def test_constants_are_looked_for_in_what_a_share_of_the_area_leaves(tmp_path, caplog):
    put_coco(tmp_path / "a", VARIED)
    data = Data(root=str(tmp_path), label_space="leukemiaattri", domains={"a": Domain()})
    made = Experiment(data=data, runs_dir=str(tmp_path / "runs"), sparse=[0.3, 1.0])
    complete(made)
    with caplog.at_level(logging.WARNING):
        indexes, split = preflight(made)
    expected = []
    for settings in sparsities(made):
        train = split.select(made_sparse(indexes["a"], split, settings), "train")
        expected.append(constant_attributes(attribute_counts(train, SPACE), SPACE))
    assert expected[0] != expected[1]
    said = [r.getMessage() for r in caplog.records if "attribute " in r.getMessage()]
    for area, same in (("a, 0.3 of the area annotated: ", expected[0]), ("a: ", expected[1])):
        found = [line for line in said if line.startswith(f"{area}attribute ")]
        assert [
            line.removeprefix(f"{area}attribute ").split(" in the")[0] for line in found
        ] == same


def test_the_heads_are_told_what_the_training_labels_hold(tmp_path):
    put_coco(tmp_path / "a", VARIED)
    put_coco(tmp_path / "b", VARIED)
    data = Data(
        root=str(tmp_path), label_space="leukemiaattri", domains={"a": Domain(), "b": Domain()}
    )
    indexes, split = read_experiment_data(data)
    settings = Trainer(steps=2, epoch_steps=2, batch_size=2)
    common = {"space": SPACE, "how": 64, "trainer": settings}

    def fit(module, loss="class_balanced"):
        net = detector(14, SPACE.attribute_sizes, attribute_settings=Attributes(loss=loss))
        task = DetectionTask(net, trainer=settings, augmentation=Augmentation())
        trainer = L.Trainer(
            max_epochs=1,
            limit_train_batches=2,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        module = {"datamodule": module} if not isinstance(module, list) else {}
        trainer.fit(task, **module or {"train_dataloaders": [{}]})
        return task

    module = DomainDataModule(indexes["a"], split, **common)
    task = fit(module)
    train = split.select(indexes["a"], "train")
    expected = torch.from_numpy(attribute_counts(train, SPACE))
    for network in (task.detector, task.ema.network):
        assert torch.equal(network.attributes.counts, expected)
    told = learned_attributes(task.tested, SPACE)
    assert told["nucleolus"]["answered"]
    assert not told["cytoplasm"]["answered"]
    number = int(expected[4, 1])
    assert told["cytoplasm"]["cells"] == {"scanty": 0, "abundant": number}
    assert not told["cell_size"]["answered"]  # nobody labelled it
    assert learned_attributes(detector(14, ()), SPACE) is None
    alone = AdaptationDataModule([], indexes["b"], split, **common)
    assert alone.attribute_counts() is None  # a target has no labels to count
    with pytest.raises(ConfigError, match="class_balanced needs the counts"):
        fit([])


def test_labels_of_the_target_do_not_reach_the_heads(tmp_path):
    put_coco(tmp_path / "a", VARIED)
    put_coco(tmp_path / "b", [("monocyte", {"cytoplasm": "scanty"})])
    data = Data(root=str(tmp_path), label_space="wbc", domains={"a": Domain(), "b": Domain()})
    indexes, split = read_experiment_data(data)
    common = {"space": WBC, "how": 64, "trainer": Trainer(batch_size=2)}
    plain = DomainDataModule(indexes["a"], split, **common).attribute_counts()
    adapting = AdaptationDataModule(indexes["a"], indexes["b"], split, **common)
    assert np.array_equal(adapting.attribute_counts(), plain)
    assert plain[4, 0] == 0
