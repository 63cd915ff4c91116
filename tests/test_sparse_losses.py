"""Sparse fields in both detectors: what was not annotated is no background, in any stage."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from adaptation_kit import KINDS, detector, draw, number, rand
from test_models_assign import grid, square, targets_of

from da_leukemia.models.assign import assign
from da_leukemia.models.sampling import match

S = 96
PATCH = (16.0, 16.0, 64.0, 80.0)
WHOLE = (-math.inf, -math.inf, math.inf, math.inf)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def labels(*regions, boxes=((24, 24, 44, 48),), images=1, classes=2):
    """The same cells on every image, and the annotated regions of each."""
    made = targets_of(*boxes, padded=4)
    made = dataclasses.replace(
        made,
        **{n: getattr(made, n).repeat(images, 1, 1) for n in ("boxes", "attributes")},
        **{n: getattr(made, n).repeat(images, 1) for n in ("labels", "mask")},
        classes=torch.ones(images, classes, dtype=torch.bool),
    )
    if not regions:
        return made
    given = torch.tensor(regions).view(images, -1, 4)
    return dataclasses.replace(made, regions=given)


def summed(losses):
    return torch.stack(list(losses.values())).sum()


def test_only_locations_inside_a_patch_are_background():
    points, strides = grid()
    cell = square(100, 100, 40)
    whole = assign(targets_of(cell), points, strides)
    two = torch.tensor([[[96.0, 90, 200, 250], [0, 0, 30, 40], [0, 0, 0, 0]]])
    found = assign(dataclasses.replace(targets_of(cell), regions=two), points, strides)
    x, y = points.T
    inside = (x >= 96) & (x < 200) & (y >= 90) & (y < 250) | (x < 30) & (y < 40)
    assert torch.equal(found.positive, whole.positive)  # also those outside the patch
    assert (found.positive[0] & ~inside).any()
    assert torch.equal(found.background[0], whole.background[0] & inside)
    assert 0 < found.background.sum() < whole.background.sum()


def test_only_candidates_centred_in_a_patch_are_background():
    low = rand(400, 2) * 70
    candidates = torch.cat([low, low + 8 + 20 * rand(400, 2, seed=1)], 1).unsqueeze(0)
    whole, sparse = (match(candidates, labels(*r), 0.5, 0.3) for r in ((), (PATCH,)))
    centre = (candidates[..., :2] + candidates[..., 2:]) / 2
    inside = ((centre >= 16) & (centre < torch.tensor([64.0, 80.0]))).all(-1)
    assert torch.equal(sparse.positive, whole.positive)
    assert torch.equal(sparse.background, whole.background & inside)
    assert 0 < sparse.background.sum() < whole.background.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_annotated_whole_is_learned_as_if_there_were_no_regions(kind):
    net, images = detector(kind=kind, sizes=()), rand(2, 3, S, S)
    outputs = net(images)
    plain = net.loss(outputs, labels(images=2), draw=draw())
    told = net.loss(outputs, labels(WHOLE, WHOLE, images=2), draw=draw())
    assert plain.keys() == told.keys()
    assert all(torch.equal(plain[k], told[k]) for k in plain)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_outside_the_patch_costs_nothing(kind):
    net = detector(kind=kind, sizes=()).eval()
    images = rand(1, 3, S, S)

    def gradient(regions):
        net.zero_grad()
        outputs = net(images)
        seen = outputs.scores if kind == "one_stage" else outputs.objectness
        seen.retain_grad()
        summed(net.loss(outputs, labels(*regions, boxes=()), draw=draw())).backward()
        if kind == "one_stage":
            at = outputs.points
        else:
            at = (outputs.anchors[:, :2] + outputs.anchors[:, 2:]) / 2
        inside = ((at >= 16) & (at < torch.tensor([64.0, 80.0]))).all(-1)
        felt = seen.grad[0].reshape(len(at), -1).abs().sum(-1)
        return felt[inside].sum(), felt[~inside].sum()

    inside, outside = gradient(((PATCH,),))
    assert inside > 0
    assert outside == 0
    assert all(felt > 0 for felt in gradient(()))
    nothing = gradient(((0.0, 0.0, 0.0, 0.0),))
    assert nothing[0] == nothing[1] == 0


def test_the_second_stage_samples_no_background_outside():
    net = detector(kind="faster_rcnn", sizes=()).eval()
    outputs = net(rand(1, 3, S, S))
    empty = labels((0.0, 0.0, 0.0, 0.0), boxes=())
    assert number(net.loss(outputs, empty, draw=draw())["class"]) == 0
    found = net.loss(outputs, labels(PATCH, boxes=()), draw=draw())
    assert number(found["class"]) > 0
    none = net.loss(outputs, labels((0.0, 0.0, 1.0, 1.0)), draw=draw())
    assert number(none["class"]) > 0  # the labelled cell is learned all the same


@pytest.mark.parametrize("kind", KINDS)
def test_a_labelled_cell_outside_every_patch_is_still_a_cell(kind):
    """So pseudo-labels can be learned by the same loss."""
    net = detector(kind=kind, sizes=())
    outputs = net(rand(1, 3, S, S))
    losses = net.loss(outputs, labels((0.0, 0.0, 0.0, 0.0)), draw=draw())
    assert all(number(losses[k]) > 0 for k in ("class", "box"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_grounds_feature_comes_from_where_somebody_looked(kind):
    net = detector(kind=kind).eval()
    outputs = net(rand(1, 3, S, S))
    whole, told, patch = (net.ground_feature(outputs, labels(*r)) for r in ((), (WHOLE,), (PATCH,)))
    assert torch.equal(whole, told)
    assert not torch.allclose(whole, patch)
    nowhere = net.ground_feature(outputs, labels((0.0, 0.0, 0.0, 0.0)))
    assert not nowhere.any()


def test_regions_move_to_another_device_with_the_rest():
    targets = labels(PATCH)
    moved = targets.to("meta")
    assert moved.regions.device.type == moved.boxes.device.type == "meta"
    assert labels().to("meta").regions is None
