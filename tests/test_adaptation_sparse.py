"""Learning outside the patches: pseudo-cells, similarity of the right sign, the stage of crops."""

from __future__ import annotations

import dataclasses
import math

import adaptation_kit as kit
import pytest
import torch
from adaptation_kit import KINDS, draw, number, rand
from test_adaptation_mixing import S, labels, learned, said, views
from test_adaptation_teacher import batches

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.base import StepContext
from da_leukemia.adaptation.mixing import ConfMix
from da_leukemia.adaptation.sparse import (
    PatchCrops,
    SparseSimilarity,
    SparseTeacher,
    crop_patches,
    outside,
)
from da_leukemia.config import Augmentation, Trainer, load_method
from da_leukemia.data.views import strong_photometry
from da_leukemia.models.base import Detections
from da_leukemia.tasks.detection import DetectionTask

PATCH = (0.0, 0.0, 32.0, 32.0)
AT_ONCE = {"burn_in": 0.0, "ramp": 0.0}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def sparse(boxes, kinds, *regions, **rest):
    given = torch.tensor(regions or [PATCH]).view(len(boxes), -1, 4)
    return dataclasses.replace(labels(boxes, kinds, **rest), regions=given)


def context(targets, taught=None, kind="one_stage", progress=1.0, net=None):
    """A step whose teacher said what it is told to have said."""
    net = net or kit.detector(kind=kind, sizes=()).eval()
    made = StepContext(
        detector=net,
        teacher=None,
        progress=progress,
        draw=draw(),
        source=net(rand(len(targets.boxes), 3, S, S)),
        source_targets=targets,
        target=None,
        target_weak=None,
        log=(logged := {}).__setitem__,
    )
    if taught is not None:
        made.taught_source = taught
    made.logged = logged
    return made


IN, TRUE = [4, 4, 16, 16], [20, 20, 31, 31]
OUT, NEAR, FAINT = [40, 40, 56, 56], [22, 22, 44, 44], [40, 8, 56, 24]


# --- pseudo-cells ------------------------------------------------------------------------------


def test_cells_outside_are_those_nobody_was_asked_to_annotate():
    boxes = torch.tensor([[IN, OUT, NEAR, FAINT, OUT]]).float()
    found = Detections(
        boxes,
        torch.full((1, 5), 0.9),
        torch.tensor([[0, 0, 0, 1, 0]]),
        torch.tensor([[True, True, True, True, False]]),
        torch.zeros(1, 5, 0),
    )
    targets = sparse([[TRUE]], [[0]])
    iou = 9 * 9 / (11 * 11 + 22 * 22 - 9 * 9)
    # Inside the patch, on an annotated cell, padding: none of them.
    assert outside(found, targets, 0.0).tolist() == [[False, True, False, True, False]]
    centred = sparse([[TRUE]], [[0]], (0.0, 0.0, 30.0, 30.0))
    assert outside(found, centred, iou * 1.1)[0, 2]
    assert not outside(found, centred, iou * 0.9)[0, 2]
    unlabelled = sparse([[TRUE]], [[0]], classes=(True, False))
    assert outside(found, unlabelled, 0.0).tolist() == [[False, True, False, False, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_only_confident_detections_outside_are_learned_and_no_background(kind):
    taught = said([[OUT, FAINT, IN]], [[0.9, 0.4, 0.95]], [[1, 0, 0]])
    step = context(sparse([[TRUE]], [[0]]), taught, kind)
    asked, original = [], step.detector.loss
    step.detector.loss = lambda outputs, targets, **rest: (
        asked.append(targets) or original(outputs, targets, **rest)
    )
    losses = SparseTeacher(s.SparseTeacher(threshold=0.5, weight=2.0, **AT_ONCE)).losses(step)
    (pseudo,) = asked
    assert pseudo.mask.tolist() == [[True, False, False]]
    assert pseudo.labels.tolist() == [[1, -1, -1]]
    assert torch.equal(pseudo.boxes[0, 0], torch.tensor(OUT).float())
    assert not pseudo.searched(rand(50, 2) * S).any()
    assert number(step.logged["health/outside_cells_per_image"]) == 1
    assert {"outside_class", "outside_box"} <= losses.keys()
    own = original(step.source, pseudo, draw=draw(), attributes=False)
    for name in ("class", "box"):
        assert number(losses[f"outside_{name}"]) == pytest.approx(2 * number(own[name]))
    boxless = SparseTeacher(s.SparseTeacher(boxes=False, **AT_ONCE)).losses(step)
    assert not any(name.endswith("box") for name in boxless)


def test_a_pseudo_cell_that_reaches_into_the_patch_is_left_out():
    across, beside = [26, 8, 42, 24], [32, 8, 48, 24]  # both are centred outside, at 34 and 40
    step = context(sparse([[TRUE]], [[0]], (0.0, 0.0, 32.0, 32.0)))
    for box, cells in ((across, 0), (beside, 1)):
        step.taught_source = said([[box]], [[0.9]], [[0]])
        losses = SparseTeacher(s.SparseTeacher(**AT_ONCE)).losses(step)
        assert number(step.logged["health/outside_cells_per_image"]) == cells
        assert (number(losses["outside_class"]) > 0) == bool(cells)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_pseudo_cell_raises_the_score_there(kind):
    taught = said([[OUT]], [[0.9]], [[1]])
    step = context(sparse([[TRUE]], [[0]]), taught, kind)
    losses = SparseTeacher(s.SparseTeacher(**AT_ONCE)).losses(step)
    torch.stack(list(losses.values())).sum().backward()
    head = step.detector.head
    if kind == "one_stage":
        bias = head.score.bias.grad
        assert bias[1] < 0  # the score of its type rises
        assert bias[0] >= 0
    else:
        assert head.score.bias.grad[1] < 0 < head.score.bias.grad[-1]  # off the background
        assert head.propose.cls_logits.bias.grad.min() < 0


def test_without_a_confident_cell_nothing_is_learned():
    taught = said([[OUT, IN]], [[0.3, 0.9]], [[0, 0]])
    step = context(sparse([[TRUE]], [[0]]), taught)
    losses = SparseTeacher(s.SparseTeacher(**AT_ONCE)).losses(step)
    assert all(number(v) == 0 for v in losses.values())


def test_the_weight_rises_after_burn_in_and_whole_fields_ask_no_teacher():
    taught = said([[OUT]], [[0.9]], [[1]])
    one = SparseTeacher(s.SparseTeacher(burn_in=0.4, ramp=0.2))
    targets = sparse([[TRUE]], [[0]])
    assert one.losses(context(targets, taught, progress=0.3)) == {}
    half, full = (
        number(one.losses(context(targets, taught, progress=p))["outside_class"])
        for p in (0.5, 0.8)
    )
    assert half == pytest.approx(full / 2)
    whole = context(labels([[TRUE]], [[0]]))  # asking would fail: there is no teacher
    assert one.losses(whole) == {}
    assert SparseSimilarity(s.SparseSimilarity(**AT_ONCE)).losses(whole) == {}


# --- similarity --------------------------------------------------------------------------------


def similarity(features, kinds, known, known_kinds, **settings):
    """Loss and gradient of uncertain cells' features beside given features of annotated ones."""
    features = torch.tensor(features, requires_grad=True)
    known = torch.tensor(known, requires_grad=True)
    many = len(kinds)
    taught = said([[OUT] * many], [[0.4] * many], [kinds])
    step = context(sparse([[TRUE] * len(known)], [known_kinds]), taught, progress=0.5)
    given = iter([features.unsqueeze(0), known.unsqueeze(0)])
    step.detector.region_features = lambda *_: next(given)
    one = SparseSimilarity(s.SparseSimilarity(weight=1.0, regions=many, **AT_ONCE, **settings))
    (loss,) = one.losses(step).values()
    loss.backward()
    return number(loss), features, known


def test_similarity_draws_alike_together_and_others_apart():
    alike, features, known = similarity([[1.0, 0.2]], [0], [[0.0, 1.0]], [0])
    moved = features - 0.1 * features.grad
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(moved, known) > cosine(features, known)
    assert known.grad is None or not known.grad.any()  # the annotated cell stays where it is
    assert alike == pytest.approx(1 - 0.2 / math.hypot(1, 0.2), abs=1e-4)
    other, features, known = similarity([[1.0, 0.2]], [1], [[0.0, 1.0]], [0])
    moved = features - 0.1 * features.grad
    assert cosine(moved, known) < cosine(features, known)
    assert other == pytest.approx(0.2 / math.hypot(1, 0.2), abs=1e-4)
    far, features, _ = similarity([[1.0, -0.2]], [1], [[0.0, 1.0]], [0])
    assert far == 0  # apart enough
    assert not features.grad.any()
    assert similarity([[1.0, 0.2]], [1], [[0.0, 1.0]], [0], margin=0.5)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_similarity_is_asked_of_uncertain_cells_alone_and_for_a_time(kind):
    targets = sparse([[TRUE]], [[0]])
    one = SparseSimilarity(s.SparseSimilarity(low=0.3, high=0.6, until=0.8, **AT_ONCE))
    for score, asked in ((0.2, 0), (0.3, 1), (0.5, 1), (0.6, 0), (0.9, 0)):
        step = context(targets, said([[OUT]], [[score]], [[0]]), kind, progress=0.5)
        losses = one.losses(step)
        assert step.logged["health/uncertain_cells_per_image"] == asked
        assert bool(number(losses["outside_similarity"]) > 0) == bool(asked)
    late = context(targets, said([[OUT]], [[0.5]], [[0]]), kind, progress=0.8)
    assert one.losses(late) == {}
    inside = context(targets, said([[IN]], [[0.5]], [[0]]), kind, progress=0.5)
    assert number(one.losses(inside)["outside_similarity"]) == 0


# --- the stage of crops ------------------------------------------------------------------------


def textured(count=1):
    """Each pixel tells where it is."""
    axis = (torch.arange(S) + 0.5) / S
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 0.5)]).repeat(count, 1, 1, 1)


def test_a_crop_shows_the_patch_enlarged_with_its_boxes():
    patch = (8.0, 16.0, 40.0, 32.0)  # 32 x 16: twice as large, a quarter covered above and below
    cut = [12, 12, 18, 20]  # by the upper edge of the patch, which is not that of the view
    boxes = [[10, 18, 20, 28], [36, 20, 48, 30], [39, 16, 49, 26], cut, OUT]
    targets = sparse([boxes], [[0, 1, 1, 1, 1]])
    targets.regions = torch.tensor([[patch, (0.0, 0.0, 0.0, 0.0)]])
    images, found = crop_patches(textured(), targets, draw())
    x, y = images[0, :2]
    axis = torch.arange(S) + 0.5
    torch.testing.assert_close(x[32, 1:-1], ((axis / 2 + 8) / S)[1:-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(y[17:47, 30], (((axis - 16) / 2 + 16) / S)[17:47], atol=1e-4, rtol=0)
    assert images[0, 0, 5].unique().numel() == 1  # nothing of the rest of the field is seen
    torch.testing.assert_close(images[0, :2, 5, 5], torch.tensor([24.0, 24.0]) / S)
    expected = [[4, 20, 24, 40], [56, 24, 64, 44], [62, 16, 64, 36], [8, 16, 20, 24]]
    assert found.boxes[0, :4].tolist() == expected
    assert found.mask[0].tolist() == [True, True, True, True, False]
    assert found.labels[0, :4].tolist() == [0, 1, -1, 1]  # a tenth of the third is left
    assert found.searched(rand(50, 2) * S).all()


def test_a_patch_that_left_the_view_teaches_nothing():
    targets = sparse([[OUT]], [[0]], (-50.0, 0.0, -1.0, 30.0))
    images, found = crop_patches(textured(), targets, draw())
    torch.testing.assert_close(images, textured(), atol=1e-4, rtol=0)
    assert not found.searched(rand(50, 2) * S).any()


def test_every_patch_of_a_field_has_its_turn():
    targets = sparse(
        [[OUT]] * 2, [[0]] * 2, *[(0.0, 0.0, 16.0, 16.0), (32.0, 32.0, 64.0, 64.0)] * 2
    )
    seen = {
        round(float(v), 1)
        for step in range(12)
        for v in crop_patches(textured(2), targets, draw(step))[0][:, 0, 32, 32]
    }
    assert seen == {0.1, 0.8}  # the middles of both: 8 / 64 and 48 / 64


def test_a_whole_field_is_its_own_patch():
    targets = sparse([[OUT]], [[0]], (-math.inf, -math.inf, math.inf, math.inf))
    images, found = crop_patches(textured(), targets, draw())
    torch.testing.assert_close(images, textured(), atol=1e-5, rtol=0)
    assert torch.equal(found.boxes, targets.boxes)


def test_crops_end_with_their_stage():
    one = PatchCrops(s.PatchCrops(until=0.5, plain_after=True))
    wild = Augmentation()
    targets = sparse([[OUT]], [[0]])
    for progress, cropped in ((0.0, True), (0.49, True), (0.5, False), (1.0, False)):
        one.begin(draw(), progress)
        images, _ = one.rework(textured(), targets, draw())
        assert torch.equal(images, textured()) != cropped
        assert (one.vary(wild) == wild) == cropped
    plain = one.vary(wild)
    torch.testing.assert_close(
        strong_photometry(textured(), plain, draw()), textured(), atol=1e-5, rtol=0
    )
    assert (plain.flip, plain.scale, plain.translate) == (0.0, [1.0, 1.0], 0.0)
    going_on = PatchCrops(s.PatchCrops(until=0.5))
    going_on.begin(draw(), 0.9)
    assert going_on.vary(wild) is wild


# --- with others -------------------------------------------------------------------------------


def test_a_pasted_quadrant_is_searched_and_the_rest_of_the_source_is_not():
    targets = sparse([[TRUE]], [[0]], (10.0, 10.0, 40.0, 40.0))
    taught = said([[[40, 4, 60, 24]]], [[0.9]], [[0]])
    extra = ConfMix(s.ConfMix(burn_in=0.0, ramp=0.0), 2).compose(
        views(taught, targets, progress=0.0)
    )
    asked, losses = learned(extra)
    (mixed,) = asked
    pasted = extra.images[0, 0] == 1  # the target is white here
    axis = torch.arange(S) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    seen = mixed.searched(torch.stack([x.flatten(), y.flatten()], -1)).view(S, S)
    assert pasted[:32, 32:].all()
    assert pasted.sum() == 32 * 32
    assert torch.equal(seen, pasted | ((x > 10) & (x < 40) & (y > 10) & (y < 40)))
    assert all(v.isfinite() for v in losses.values())


def task(components, outside_is_ground=False, progress=0.0):
    net = kit.detector(classes=2)
    made = DetectionTask(
        net,
        components,
        trainer=Trainer(steps=1),
        augmentation=Augmentation(),
        outside_is_ground=outside_is_ground,
    )
    logged, taught = {}, []
    made.log = lambda name, value, **_: logged.__setitem__(name, value)
    made.log_dict = lambda values, **_: logged.update(values)
    if made.ema is not None:
        made.ema.network.register_forward_pre_hook(lambda _, x: taught.append(x[0]))
    return made, logged, taught


def sparse_batches(target=True):
    given = batches(target)
    regions = torch.tensor([[[0.0, 0, 40, 40]], [[20.0, 20, 60, 60]]])
    given["source"].targets = dataclasses.replace(given["source"].targets, regions=regions)
    return given


def test_the_teacher_sees_the_source_once_with_the_students_geometry():
    from da_leukemia.adaptation.mean_teacher import MeanTeacher

    components = [
        SparseTeacher(s.SparseTeacher(threshold=0.0, **AT_ONCE)),
        SparseSimilarity(s.SparseSimilarity(low=0.0, **AT_ONCE)),
        MeanTeacher(s.MeanTeacher(**AT_ONCE), 2),
    ]
    made, logged, taught = task(components)
    seen = []
    made.detector.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    made.training_step(sparse_batches(), 0).backward()
    assert len(taught) == 2  # its source and its target view
    assert {
        "train/outside_class",
        "train/outside_similarity",
        "train/teacher_class",
    } <= logged.keys()
    assert logged["health/outside_cells_per_image"] > 0
    source = min(taught, key=lambda t: (t - seen[0][:2]).abs().mean())
    for mine, weak in zip(seen[0][:2], source, strict=True):
        both = torch.stack([mine.mean(0).flatten(), weak.mean(0).flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.5
    assert all(p.grad is None for p in made.ema.parameters())


def test_the_naive_arm_learns_what_a_whole_annotation_would_say():
    def loss(given, naive):
        made, logged, _ = task([], naive)
        made.training_step(given, 0)
        return {k: number(v) for k, v in logged.items()}

    whole, sparse_ = batches(False), sparse_batches(False)
    assert loss(sparse_, True) == loss(whole, True) == loss(whole, False)
    assert loss(sparse_, False)["train/class"] != loss(sparse_, True)["train/class"]


def test_sla_det_keeps_the_values_that_were_published():
    patches, teacher, similarity = (
        s.COMPONENTS[given["name"]](**{k: v for k, v in given.items() if k != "name"})
        for given in load_method("sla_det_paper").components
    )
    epochs = 100 + 30
    assert (patches.until, patches.plain_after) == (pytest.approx(100 / epochs, abs=1e-3), True)
    assert teacher.burn_in == similarity.burn_in == patches.until
    assert (teacher.weight, teacher.threshold, teacher.overlap) == (0.1, 0.95, 0)
    assert (similarity.weight, similarity.low, similarity.high) == (0.1, 0.6, 0.95)
    assert similarity.until == pytest.approx(120 / epochs, abs=1e-3)
