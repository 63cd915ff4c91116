"""A detector that is always right scores 1.0 on the way that every detector goes, at every batch
size: through windows, maps, decoding, joining, records. One that mixes cells up does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from da_leukemia.calibration import Calibration, Quantity
from da_leukemia.config import Augmentation, Trainer
from da_leukemia.data.dataset import FieldDataset
from da_leukemia.data.fields import FieldOfView
from da_leukemia.data.preparation import Preparation
from da_leukemia.evaluation import evaluate, fit_lookup
from da_leukemia.evaluation.records import load_records, save_records
from da_leukemia.labels import LEUKEMIAATTRI as SPACE
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.one_stage import OneStageDetector
from da_leukemia.tasks.detection import DetectionTask

SIZE, STRIDES = 128, (8, 16)
FIELDS = 7
SURE = 9.0


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Seven fields of one grey each, by which the detector knows them; up to six cells."""
    folder = tmp_path_factory.mktemp("fields")
    rng = np.random.default_rng(5)
    made = []
    for number in range(FIELDS):
        path = folder / f"{number}.png"
        Image.new("RGB", (256, 256), (30 * number + 20,) * 3).save(path)
        places = rng.permutation(9)[: (0, 3, 6, 4, 5, 6, 2)[number]]
        corner = np.stack([places % 3, places // 3], 1) * 84 + rng.uniform(2, 12, (len(places), 2))
        labels = rng.integers(0, 14, len(places))
        codes = np.stack([rng.integers(0, v, len(places)) for v in SPACE.attribute_sizes], 1)
        codes[labels == 0] = -1
        made.append(
            FieldOfView(
                image=path,
                domain="d",
                patient=f"p{number % 3}",
                name=str(number),
                width=256,
                height=256,
                boxes=np.hstack([corner, corner + rng.uniform(40, 70, (len(places), 2))]).astype(
                    np.float32
                ),
                labels=labels,
                attributes=codes,
                labelled_classes=tuple(range(14)),
            )
        )
    return made


@dataclass
class Oracle:
    """What the detector below knows of each window, by the grey of its image."""

    data: FieldDataset
    shift: int = 0  # attributes are read from so many cells further on
    seen: list[int] = field(default_factory=list)

    def windows_of(self, images):
        """Return the numbers of the windows: same grey, in the order in which they come."""
        greys = (images[:, 0, 0, 0] * 255).round().long().tolist()
        numbers = []
        for grey in greys:
            index = round((grey - 20) / 30)
            all_windows = [n for n, (i, _) in enumerate(self.data.windows) if i == index]
            numbers.append(all_windows[self.seen.count(index)])
            self.seen.append(index)
        return numbers


class AttributeReader(torch.nn.Module):
    """Stands in for the attribute head: answers for the box, from the window it belongs to."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle
        self.sizes = SPACE.attribute_sizes
        self.needs_types = False

    def forward(self, maps, boxes, strides, types, draw):
        del strides, types, draw
        (features,) = maps
        logits = torch.zeros(*boxes.shape[:2], sum(self.sizes))
        for row, number in enumerate(features[:, 0, 0, 0].round().long().tolist()):
            field = self.oracle.data.fields[self.oracle.data.windows[number][0]]
            if not len(field.labels):
                continue
            true = self.oracle.data.true_boxes([number])[0, : len(field.labels)]
            off = (boxes[row, :, None] - true[None]).abs().sum(-1)
            cell = (off.argmin(1).numpy() + self.oracle.shift) % len(field.labels)
            starts = np.cumsum([0, *self.sizes[:-1]])
            for column, start in enumerate(starts):
                codes = torch.from_numpy(field.attributes[cell, column].clip(0))
                logits[row, torch.arange(boxes.shape[1]), start + codes] = SURE
        return logits

    def probabilities(self, logits):
        return torch.cat([p.softmax(-1) for p in torch.split(logits, list(self.sizes), -1)], -1)


class Perfect(OneStageDetector):
    """Right everywhere: its raw maps hold the true boxes of the window it is shown."""

    def __init__(self, oracle):
        backbone = Backbone("mobilenetv3_small_050", STRIDES)
        super().__init__(backbone, len(SPACE.classes), SPACE.attribute_sizes, channels=8, depth=1)
        self.oracle = oracle
        self.attributes = AttributeReader(oracle)

    def forward(self, images):
        outputs = super().forward(images)
        numbers = self.oracle.windows_of(images)
        outputs.scores.fill_(-SURE)
        for row, number in enumerate(numbers):
            field = self.oracle.data.fields[self.oracle.data.windows[number][0]]
            boxes = self.oracle.data.true_boxes([number])[0, : len(field.labels)]
            for box, label in zip(boxes, field.labels.tolist(), strict=True):
                if (box[2:] - box[:2]).min() > 0:
                    middle = (box[:2] + box[2:]) / 2
                    near = (outputs.points - middle).abs().sum(1).argmin()
                    outputs.boxes[row, near] = box
                    outputs.scores[row, near, label] = SURE
            outputs.features[0][row] = number
        return outputs


def predict(data, batch_size, shift=0):
    detector = Perfect(Oracle(data, shift))
    task = DetectionTask(detector, trainer=Trainer(), augmentation=Augmentation(), ema=False)
    return task.eval().predict_fields(data.searches(batch_size), data)


def scores(records, fields):
    lookup = fit_lookup(
        np.concatenate([f.labels for f in fields]), np.concatenate([f.attributes for f in fields])
    )
    return evaluate(records, SPACE, range(14), lookup)


PERFECT = (
    *("ap50", "ap50_95", "recall", "ap50_without_none", "ap50_95_without_none"),
    *("attribute_f1", "attribute_f1_end_to_end", "attribute_f1_true_boxes"),
    *("attribute_balanced_accuracy", "attribute_balanced_accuracy_end_to_end"),
    *("attribute_balanced_accuracy_true_boxes", "attribute_f1_as_released"),
)


def whole():
    return 128


def windowed():
    """Twice the network's size, so four windows a field that overlap."""
    scale = Quantity(4.0, 4.0, 4.0)
    device = Calibration(fields=9, size=(256, 256), px_per_um_x=scale, px_per_um_y=scale)
    return Preparation(SIZE, device, 4.0)


@pytest.mark.parametrize("batch_size", range(1, FIELDS + 2))
def test_a_perfect_predictor_scores_one_at_every_batch_size(fields, batch_size, tmp_path):
    records = predict(FieldDataset(fields, SPACE, whole()), batch_size)
    save_records(tmp_path / "d.npz", records)
    found = scores(load_records(tmp_path / "d.npz"), fields)
    assert {name: found[name] for name in PERFECT} == pytest.approx(dict.fromkeys(PERFECT, 1.0))
    # The released curve falls from (1, 1) to (1, 0) within its last of 100 steps: half is lost.
    assert found["map50_as_released"] == pytest.approx(0.995)
    assert found["map50_95_as_released"] == pytest.approx(0.995)
    assert found["as_released"]["cells"] + found["as_released"]["dropped"] == found["boxes"] == 26


@pytest.mark.parametrize("batch_size", [1, 3, 5, 28])
def test_also_through_windows_that_do_not_respect_the_batch(fields, batch_size):
    data = FieldDataset(fields, SPACE, windowed())
    assert len(data.windows) > 2 * FIELDS
    found = scores(predict(data, batch_size), fields)
    assert found["attribute_f1_true_boxes"] == found["attribute_f1_end_to_end"] == 1.0
    assert found["ap50"] == pytest.approx(1.0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_reading_the_neighbours_attributes_lowers_every_attribute_score(fields, batch_size):
    found = scores(predict(FieldDataset(fields, SPACE, whole()), batch_size, shift=1), fields)
    assert found["ap50"] == pytest.approx(1.0)
    for name in PERFECT:
        if name.startswith("attribute"):
            assert found[name] < 0.8, name
    assert found["attribute_ece"] > 0.2


def test_what_is_asked_at_a_box_does_not_depend_on_what_was_detected(fields):
    """Blind to every cell, the detector still reads the attributes where it is told to look."""
    data = FieldDataset(fields, SPACE, whole())
    detector = Perfect(Oracle(data))
    detector.score_threshold = 1.0
    task = DetectionTask(detector, trainer=Trainer(), augmentation=Augmentation(), ema=False)
    found = scores(task.eval().predict_fields(data.searches(3), data), fields)
    assert found["attribute_f1_true_boxes"] == 1.0
    assert found["attribute_f1_end_to_end"] == 0.0
    assert found["attribute_f1"] is None
    assert found["attribute_f1_as_released"] is None
    assert found["as_released"]["without_prediction"] == 26 - found["as_released"]["dropped"]
    assert found["map50_as_released"] == 0.0
