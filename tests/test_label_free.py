"""Scores without labels: they tell a good detector from a bad one, and never see a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from da_leukemia.adaptation.settings import Method
from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.evaluation.label_free import SCORERS, Found, agreement, confidence, separation
from da_leukemia.models.one_stage import Detections
from da_leukemia.sweep.worker import build_task
from da_leukemia.tasks import epochs

SIDE = 64


def found(boxes, scores, labels=None):
    """One view; a score of 0 is an empty place."""
    boxes = np.asarray(boxes, np.float32).reshape(1, -1, 4)
    scores = np.asarray(scores, np.float32).reshape(1, -1)
    labels = np.zeros(scores.shape, np.int64) if labels is None else np.asarray([labels])
    return Found(boxes, scores, labels)


BOX, SHIFTED, FAR = (0, 0, 10, 10), (5, 0, 15, 10), (30, 30, 40, 40)


# --- the formulas ------------------------------------------------------------------------------


def test_agreement_by_hand():
    one = found([BOX], [0.8])
    assert agreement(one, one) == pytest.approx(1)
    assert agreement(one, found([FAR], [0.8])) == 0
    assert agreement(one, found([BOX], [0.8], [1])) == 0  # another type is another finding
    assert agreement(one, found([SHIFTED], [0.8])) == pytest.approx(1 / 3)
    assert agreement(one, found([BOX], [0.4])) == pytest.approx(0.5)


def test_what_is_lost_and_what_is_made_up_count_alike():
    whole, half = found([BOX, FAR], [0.8, 0.8]), found([BOX, FAR], [0.8, 0])
    assert agreement(whole, half) == pytest.approx(2 / 3) == agreement(half, whole)


def test_sure_detections_weigh_more():
    one = found([BOX, FAR], [0.9, 0.1])
    lost_sure, lost_doubtful = found([FAR], [0.1]), found([BOX], [0.9])
    assert agreement(one, lost_doubtful) > 0.97
    assert agreement(one, lost_sure) < 0.03


def test_views_do_not_confirm_each_other():
    one = Found(np.float32([[BOX], [BOX]]), np.float32([[0.5], [0]]), np.zeros((2, 1), np.int64))
    other = Found(one.boxes, one.scores[::-1], one.labels)
    assert agreement(one, other) == 0


def test_confidence_by_hand():
    assert confidence(found([BOX, FAR], [0.5, 0.5])) == pytest.approx(0.5)
    assert confidence(found([BOX, FAR], [0.9, 0.1])) == pytest.approx(0.82)


def test_separation_by_hand():
    apart = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]])
    mixed = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
    groups, weights = np.array([0, 0, 1, 1]), np.ones(4, np.float32)
    assert separation(apart, groups, weights) == pytest.approx(1)
    assert separation(mixed, groups, weights) == pytest.approx(0)
    assert separation(7 * apart, groups, weights) == pytest.approx(1)
    # The means lie 1/2 apart on each axis: between 1/8, within 3/8.
    half = np.float32([[1, 0], [1, 0], [1, 0], [0, 1]])
    assert separation(half, groups, weights) == pytest.approx((1 / 8) / (1 / 8 + 1 / 4))


def test_a_type_that_nobody_believes_in_is_hardly_a_group():
    features, groups = np.float32([[1, 0], [0, 1], [0.7, 0.7]]), np.array([0, 1, 1])
    sure = separation(features, groups, np.float32([1, 1, 1]))
    doubtful = separation(features, groups, np.float32([0.02, 1, 1]))
    assert doubtful < sure / 5


def test_nothing_found_is_the_worst_and_no_error():
    nothing, empty = found([BOX], [0]), found(np.zeros((0, 4)), [])
    assert agreement(nothing, nothing) == agreement(empty, empty) == 0
    assert confidence(nothing) == confidence(empty) == 0
    assert agreement(found([BOX], [0.9]), nothing) == 0
    assert separation(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), np.zeros(0)) == 0
    assert separation(np.ones((2, 3), np.float32), np.array([0, 0]), np.ones(2)) == 0


# --- on a network ------------------------------------------------------------------------------


class Blobs(torch.nn.Module):
    """Finds one dark disc: where it is, or half of the time somewhere else, with some noise.

    Its one map is the darkness itself beside a constant, or noise where it is bad.
    """

    strides = (1,)
    classes = 1
    exclusive = False

    def __init__(self, good):
        super().__init__()
        self.good = good
        self.weight = torch.nn.Parameter(torch.ones(1, 2))

    def forward(self, images):
        dark = 1 - images.mean(1)
        at = (dark * (dark > 0.6)).flatten(1).argmax(1)
        scale = self.weight.prod()
        generator = torch.Generator().manual_seed(int(1e4 * images.sum() + 1e6 * (scale - 1)))
        noise = torch.rand(images.shape[0], 1, SIDE, SIDE, generator=generator)
        ground = noise if not self.good else torch.ones_like(noise)
        outputs = type("Outputs", (), {})()
        outputs.features = [torch.cat([10 * dark.unsqueeze(1) * self.good, ground, 1 - noise], 1)]
        outputs.at = torch.stack([at % SIDE, at // SIDE], 1) + 0.5
        if not self.good:
            outputs.at = outputs.at + 40 * (torch.rand(len(images), 2, generator=generator) - 0.5)
        outputs.score = torch.full((len(images),), 0.9 if self.good else 0.4)
        return outputs

    def decode(self, outputs):
        boxes = torch.cat([outputs.at - 6, outputs.at + 6], 1).unsqueeze(1)
        scores = outputs.score.unsqueeze(1)
        nothing = torch.zeros(len(scores), 1)
        return Detections(boxes, scores, nothing.long(), scores > 0, nothing[..., None][..., :0])


def discs(count=4):
    """Views with a dark disc each, at places that a mirror does not map to themselves."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIDE, :SIDE]
    views = []
    for a, b in rng.integers(20, 44, (count, 2)):
        depth = np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18)
        views.append(np.repeat((230 - 220 * depth)[None], 3, 0))
    images = torch.from_numpy(np.stack(views).astype(np.uint8))
    return [UnlabelledBatch(images, images[:, :, 0, 0], torch.arange(count))]


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_tells_a_steady_detector_from_a_noisy_one(name):
    good = epochs.label_free_scores(Blobs(good=True), discs())
    bad = epochs.label_free_scores(Blobs(good=False), discs())
    assert good.keys() == bad.keys() == set(SCORERS)
    assert good[name] > bad[name] + 0.2, (good, bad)
    assert all(0 <= v <= 1 for v in (*good.values(), *bad.values()))


def test_a_mirrored_view_is_mapped_back_exactly():
    scores = epochs.label_free_scores(Blobs(good=True), discs())
    assert scores["agreement"] == pytest.approx(1)


def test_scores_are_repeatable_and_leave_the_network_alone(make_job):
    network = build_task(make_job(Method(), target=None)).tested.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    images = torch.randint(0, 255, (3, 3, 96, 96), dtype=torch.uint8)
    batches = [UnlabelledBatch(images, images[:, :, 0, 0], torch.arange(3))]
    one = epochs.label_free_scores(network, batches)
    torch.manual_seed(99)
    assert one == epochs.label_free_scores(network, batches)
    after = network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert one["flatness"] < 1  # the weights of the copy were disturbed
    assert all(np.isfinite(v) for v in one.values())


def test_a_detector_that_finds_nothing_gets_the_worst(make_job):
    job = make_job(Method(), target=None, detector={"score_threshold": 0.9})
    images = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8)
    batches = [UnlabelledBatch(images, images[:, :, 0, 0], torch.arange(2))]
    scores = epochs.label_free_scores(build_task(job).tested.eval(), batches)
    assert scores == {"agreement": 0, "flatness": 0, "confidence": 0, "separation": 0}


def test_ground_under_a_detection_weighs_what_its_score_leaves():
    maps = [torch.zeros(1, 2, SIDE, SIDE)]
    box, empty = torch.tensor([[[20.0, 20.0, 30.0, 30.0]]]), torch.zeros(1, 1)
    said = Detections(box, empty + 0.8, empty.long(), empty == 0, box[..., :0])
    features, groups, weights = epochs._features(maps, Blobs(good=True), said, SIDE)
    assert len(features) == len(groups) == len(weights) == 1 + epochs.GROUND**2
    assert (groups[0], weights[0]) == (0, pytest.approx(0.8))
    assert (groups[1:] == 1).all()
    # The grid's boxes are as large as the detection, 11 px apart: four of them touch it.
    assert sorted(weights[1:].tolist()) == pytest.approx([0.2] * 4 + [1.0] * 32)
