"""Discriminators on cells and centres: signs, masks, conditions, and what an empty target does."""

from __future__ import annotations

import math

import pytest
import torch
from adaptation_kit import STRIDES, anyone, context, detector, draw, number, rand
from torchvision.ops import roi_align

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.adversarial import (
    Adversarial,
    InstanceAdversarial,
    domain_loss,
    reversal_schedule,
)
from da_leukemia.adaptation.build import build_components
from da_leukemia.adaptation.regions import true_regions
from da_leukemia.data.batches import Targets
from da_leukemia.errors import ConfigError
from da_leukemia.models.one_stage import DenseOutputs
from da_leukemia.models.pooling import pool_boxes


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def view(seed=0, score=-4.0, peaks=(), classes=2, channels=4):
    """Outputs of two 64-px images; ``peaks`` are (image, location, class, logit)."""
    maps = [rand(2, channels, 64 // n, 64 // n, seed=seed + n) for n in STRIDES]
    points, strides = [], []
    for n in STRIDES:
        at = (torch.arange(64 // n) + 0.5) * n
        y, x = torch.meshgrid(at, at, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], -1))
        strides.append(torch.full((len(points[-1]),), float(n)))
    points, strides = torch.cat(points), torch.cat(strides)
    scores = torch.full((2, len(points), classes), score)
    for image, location, kind, logit in peaks:
        scores[image, location, kind] = logit
    boxes = torch.cat([points - 10, points + 10], -1).expand(2, -1, -1)
    maps = [m.requires_grad_() for m in maps]
    return DenseOutputs(maps, scores.requires_grad_(), boxes, points, strides)


def cells(*per_image, labels=None):
    """Targets with these boxes in each of the two images."""
    room = max(4, *(len(b) for b in per_image))
    boxes, mask = torch.zeros(2, room, 4), torch.zeros(2, room, dtype=torch.bool)
    kinds = torch.full((2, room), -1)
    for row, given in enumerate(per_image):
        for place, box in enumerate(given):
            boxes[row, place], mask[row, place] = torch.tensor(box), True
            kinds[row, place] = labels[row][place] if labels else 0
    none = torch.full((2, room, 0), -1)
    return Targets(boxes, kinds, none, mask, torch.ones(2, 2, dtype=torch.bool))


TRUE = cells([[4.0, 4, 24, 24], [30, 30, 60, 60]], [[10.0, 20, 50, 40]], labels=[[0, 1], [1]])
SEEN = ((0, 9, 0, 3.0), (1, 20, 1, 2.0))


# --- regions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [1, 3, 4])
def test_pooling_is_roi_align_on_the_level_that_answers_for_the_box(resolution):
    features = [rand(2, 5, 24 // n, 32 // n, seed=n) for n in (1, 2, 4)]
    boxes = torch.tensor(
        [
            [[5.0, 7, 40, 33], [20, 3, 120, 180], [0, 0, 256, 192]],
            [[60, 60, 80, 90], [64, 8, 130, 90], [-3, 3, 70, 68]],
        ]
    )
    levels = [[0, 2, 2], [0, 1, 1]]
    boxes[0, 1] = torch.tensor([20.0, 3, 150, 180])
    found = pool_boxes(features, boxes, STRIDES, resolution)
    for image in range(2):
        for place in range(3):
            level = levels[image][place]
            box = boxes[image, place][None]
            wanted = roi_align(
                features[level][image][None], [box], resolution, 1 / STRIDES[level], 1, aligned=True
            )
            torch.testing.assert_close(found[image, place], wanted.mean((0, 2, 3)))


def test_the_gradient_of_a_cell_reaches_its_place_alone():
    outputs = view()
    pooled = pool_boxes(outputs.features, torch.tensor([[[0.0, 0, 16, 16]]] * 2), STRIDES)
    pooled[0].sum().backward()
    fine, *coarse = outputs.features
    assert fine.grad[0, :, :3, :3].any()
    assert not fine.grad[0, :, 3:].any()
    assert not fine.grad[0, :, :, 3:].any()
    assert not fine.grad[1].any()
    assert not any(c.grad.any() for c in coarse)


def test_labelled_cells_are_drawn_among_those_of_known_type():
    outputs = view()
    targets = cells([[0.0, 0, 9, 9]] * 3, [[i, 0.0, i + 9, 9] for i in range(6)])
    targets.labels[0] = torch.tensor([1, -1, 0, -1, -1, -1])
    targets.labels[1] = torch.arange(6) % 2
    seen = set()
    for step in range(20):
        found = true_regions(anyone(), outputs, targets, 4, draw(step))
        assert found.mask.tolist() == [[True, True, False, False], [True] * 4]
        assert sorted(found.labels[0, :2].tolist()) == [0, 1]
        lefts = found.boxes[1, :, 0].long()
        assert len(set(lefts.tolist())) == 4
        assert torch.equal(found.labels[1], lefts % 2)
        seen |= set(lefts.tolist())
    assert seen == set(range(6))
    room = true_regions(anyone(), outputs, targets, 9, draw())
    assert room.boxes.shape == (2, 9, 4)
    assert room.mask.sum(1).tolist() == [2, 6]


def test_a_labelled_cell_has_the_scores_of_the_location_in_its_middle():
    outputs = view(peaks=[(0, 9, 1, 2.0)])  # row 1, column 1 of the finest level: 8..16 px
    found = true_regions(anyone(), outputs, cells([[8.0, 8, 16, 16]], []), 2, draw())
    torch.testing.assert_close(found.scores[0, 0], torch.tensor([-4.0, 2.0]).sigmoid())


def test_detections_are_the_confident_peaks():
    outputs = view(peaks=[(0, 9, 0, 3.0), (0, 10, 1, 2.5), (0, 40, 1, 2.0), (1, 5, 0, -1.0)])
    found = anyone().confident(outputs, 0.5, 4)
    assert found.mask.tolist() == [[True, True, False, False], [False] * 4]
    assert found.labels[0, :2].tolist() == [0, 1]  # location 10 is beside the better 9
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([2.0, 2, 22, 22]))
    assert not found.boxes.requires_grad
    assert not found.scores.requires_grad
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 64).all()


# --- centre-aware ------------------------------------------------------------------------------


def test_only_what_the_detector_takes_for_a_cell_is_aligned():
    component = Adversarial(s.Adversarial(ramp=0.0, centre_aware=True), 4, 3)
    source, target = view(score=-60.0, peaks=SEEN), view(1, score=-60.0, peaks=[(0, 30, 0, 1.0)])
    source.scores.data[:, 64:], target.scores.data[:, 64:] = 0.0, 0.0  # the coarser levels
    losses = component.losses(context(source, target))
    assert losses.keys() == {"centre_adversarial"}
    losses["centre_adversarial"].backward()
    moved = source.features[0].grad.abs().sum(1).flatten(1)
    assert moved[0, 9] > 0
    assert moved[1, 20] > 0
    assert float(moved.sum()) == pytest.approx(float(moved[0, 9] + moved[1, 20]))
    assert source.scores.grad is None  # the weight is no way to cheat


def test_equal_scores_everywhere_are_plain_alignment():
    torch.manual_seed(0)
    aware = Adversarial(s.Adversarial(centre_aware=True), 4, 3)
    plain = Adversarial(s.Adversarial(), 4, 3)
    plain.load_state_dict(aware.state_dict())
    one, other = view(), view(1)
    torch.testing.assert_close(
        aware.losses(context(one, other))["centre_adversarial"],
        plain.losses(context(one, other))["adversarial"],
    )


# --- single cells ------------------------------------------------------------------------------


def instance(**settings):
    torch.manual_seed(0)
    given = {"weight": 1.0, "ramp": 0.0, "dropout": 0.0, "hidden": 16, **settings}
    return InstanceAdversarial(s.InstanceAdversarial(**given), 4, 2)


CONDITIONS = ["none", "outer", "random"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_discriminator_goes_down_and_the_features_go_up(condition):
    component = instance(condition=condition)
    source, target = view(), view(1, peaks=SEEN)
    loss = component.losses(context(source, target, labels=TRUE))["instance"]
    loss.backward()

    def again(step, whom):
        moved = [(x, x.detach().clone()) for x in whom]
        with torch.no_grad():
            for x, _ in moved:
                x -= step * x.grad / x.grad.norm()
            found = component.losses(context(source, target, labels=TRUE))["instance"]
            for x, before in moved:
                x.copy_(before)
        return number(found)

    for features in (source.features, target.features):
        assert again(0.1, features[:1]) > number(loss)
    assert again(0.1, list(component.parameters())) < number(loss)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("missing", ["target", "source", "both"])
def test_a_batch_without_cells_on_one_device_teaches_nothing(condition, missing):
    component = instance(condition=condition, consistency=0.1)
    component.meet([Adversarial(s.Adversarial(), 4, 3)])
    source = view()
    target = view(1, peaks=SEEN if missing == "source" else ())
    labels = TRUE if missing == "target" else cells([], [])
    losses = component.losses(context(source, target, labels=labels))
    assert number(losses["instance"]) == 0
    sum(losses.values()).backward()
    for p in component.parameters():
        assert p.grad is None or p.grad.isfinite().all()
    if missing == "both":
        assert all(number(v) == 0 for v in losses.values())


def test_empty_places_have_no_say():
    component = instance(regions=3)
    source, target = view(), view(1, peaks=SEEN)
    few = component.losses(context(source, target, labels=TRUE))["instance"]
    component.settings.regions = 12
    torch.testing.assert_close(
        component.losses(context(source, target, labels=TRUE))["instance"], few
    )


def test_the_loss_is_the_mean_over_cells_of_each_device():
    one, other = torch.tensor([1.0, -2.0, 9.0]), torch.tensor([0.5, 9.0, 9.0])
    weights = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    by_hand = -(math.log(1 / (1 + math.exp(-1))) + math.log(1 / (1 + math.exp(2)))) / 2
    by_hand -= math.log(1 - 1 / (1 + math.exp(-0.5)))
    assert number(domain_loss(one, other, *weights)) == pytest.approx(by_hand / 2)


@pytest.mark.parametrize("condition", ["outer", "random"])
def test_a_conditional_discriminator_can_tell_by_the_class_what_a_plain_one_cannot(condition):
    """The same features with the classes the other way round on the other device."""
    found = {}
    for kind in ("none", condition):
        component = instance(condition=kind, hidden=32, reversal=0.0, regions=2)
        optimiser = torch.optim.Adam(component.parameters(), lr=0.01)
        log = {}
        features = [torch.zeros(2, 4, 64 // n, 64 // n) for n in STRIDES]
        features[0][:, 0, :, :4], features[0][:, 1, :, 4:] = 1.0, 1.0  # left and right look apart
        one = [(i, 9, i_class, 6.0) for i, i_class in ((0, 0), (1, 0))]
        one += [(i, 14, 1, 6.0) for i in (0, 1)]
        other = [(i, p, 1 - kind_, logit) for i, p, kind_, logit in one]
        source, target = view(peaks=one), view(peaks=other)
        source.features = target.features = features
        boxes = [[8.0, 8, 16, 16], [48, 8, 56, 16]]
        target.boxes = torch.cat([target.points - 4, target.points + 4], -1).expand(2, -1, -1)
        truth = cells(boxes, boxes, labels=[[0, 1], [0, 1]])
        for _ in range(150):
            losses = component.losses(context(source, target, labels=truth, log=log))
            optimiser.zero_grad()
            losses["instance"].backward()
            optimiser.step()
        found[kind] = float(log["health/instance_accuracy"])
    assert found["none"] == pytest.approx(0.5)
    assert found[condition] > 0.9


def test_dropout_is_a_function_of_the_step():
    component = instance(dropout=0.5)
    source, target = view(), view(1, peaks=SEEN)

    def loss(seed):
        given = context(source, target, labels=TRUE)
        given.draw = draw(seed)
        return number(component.losses(given)["instance"])

    assert loss(1) == loss(1) != loss(2)


# --- consistency -------------------------------------------------------------------------------


def test_consistency_pulls_cell_and_image_together():
    component = instance(consistency=1.0)
    image = Adversarial(s.Adversarial(), 4, 3)
    component.meet([component, image])
    assert len(list(component.parameters())) == 6  # the image's discriminator is not its own
    source, target = view(), view(1, peaks=SEEN)
    optimiser = torch.optim.SGD([*component.parameters(), *image.parameters()], lr=0.05)
    values = []
    for _ in range(20):
        loss = component.losses(context(source, target, labels=TRUE))["consistency"]
        values.append(number(loss))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert values[-1] < values[0]
    for feature in (*source.features, *target.features):
        feature.grad = None
    before = component.losses(context(source, target, labels=TRUE))["consistency"]
    before.backward()
    with torch.no_grad():
        for feature in (*source.features, *target.features):
            feature -= 1e-2 * feature.grad / feature.grad.norm()
        after = component.losses(context(source, target, labels=TRUE))["consistency"]
    assert number(after) < number(before)  # not reversed


def test_consistency_moves_the_cells_branch_towards_its_image():
    component = instance(consistency=1.0, dropout=0.0)
    image = Adversarial(s.Adversarial(), 4, 3)
    component.meet([image])
    for discriminator in image.discriminators:
        torch.nn.init.zeros_(discriminator[-1].weight)
        torch.nn.init.zeros_(discriminator[-1].bias)
    source, target = view(), view(1, peaks=SEEN)

    def apart():
        return component.losses(context(source, target, labels=TRUE))["consistency"]

    before = apart()
    before.backward()
    with torch.no_grad():
        for feature in (*source.features, *target.features):
            if feature.grad is not None:
                feature -= 0.1 * feature.grad / feature.grad.norm().clamp(min=1e-9)
    assert number(apart()) < number(before)


def test_discriminators_wait_for_burn_in_and_their_reversal_rises_from_there():
    given = {"burn_in": 0.2, "ramp": 1.0}
    image = Adversarial(s.Adversarial(**given), 4, 3)
    for component in (image, instance(**given)):
        assert [component.wants_target(p) for p in (0.0, 0.19, 0.2)] == [False, False, True]
        assert component.losses(context(view(), None, progress=0.1, labels=TRUE)) == {}
    assert reversal_schedule(0.2, 1.0, 0.2) == 0
    assert reversal_schedule(0.6, 1.0, 0.2) == pytest.approx(reversal_schedule(0.5, 1.0))
    assert reversal_schedule(1.0, 1.0, 0.2) == reversal_schedule(1.0, 1.0)
    slopes = []
    for progress in (0.2, 0.6):
        source = view()
        step = context(source, view(1), progress=progress, labels=TRUE)
        image.losses(step)["adversarial"].backward()
        slopes.append(float(source.features[0].grad.abs().sum()))
    assert slopes[0] == 0 < slopes[1]


def test_consistency_is_the_distance_of_probabilities():
    component = instance(consistency=0.5, weight=2.0)
    image = Adversarial(s.Adversarial(), 4, 3)
    component.meet([image])
    torch.nn.init.zeros_(component.last.weight)
    torch.nn.init.constant_(component.last.bias, 1.0)
    for discriminator in image.discriminators:
        torch.nn.init.zeros_(discriminator[-1].weight)
        torch.nn.init.constant_(discriminator[-1].bias, -1.0)
    losses = component.losses(context(view(), view(1, peaks=SEEN), labels=TRUE))
    apart = torch.tensor(1.0).sigmoid() - torch.tensor(-1.0).sigmoid()
    assert number(losses["consistency"]) == pytest.approx(float(apart))


def test_consistency_without_an_image_discriminator_is_refused():
    lone = {"name": "instance_adversarial", "consistency": 0.1}
    for others in ([], [{"name": "adversarial", "centre_aware": True}]):
        with pytest.raises(ConfigError, match="add an `adversarial` component"):
            build_components(s.Method(components=[lone, *others]), detector())
    built = build_components(s.Method(components=[lone, {"name": "adversarial"}]), detector())
    assert built[0]._image == [built[1]]


def test_discriminators_compute_in_float32_under_bf16():
    net = detector()
    parts = [
        {"name": "adversarial", "depth": 2, "kernel": 3},
        {"name": "adversarial", "centre_aware": True},
        {"name": "instance_adversarial", "condition": "outer", "threshold": 0.0},
        {"name": "instance_adversarial", "condition": "random", "consistency": 0.1},
    ]
    built = build_components(s.Method(components=parts), net)
    with torch.autocast("cpu", torch.bfloat16):
        seen = net(rand(2, 3, 64, 64))
        for component in built:
            for name, loss in component.losses(context(seen, seen, labels=TRUE)).items():
                assert loss.dtype == torch.float32, name
                assert loss.isfinite()
