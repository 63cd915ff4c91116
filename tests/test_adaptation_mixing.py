"""Mixed images: what is seen and what is said about it go together."""

from __future__ import annotations

import dataclasses
import math

import adaptation_kit as kit
import pytest
import torch
from adaptation_kit import CPU, draw, rand

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.base import StepContext, Taught, Views
from da_leukemia.adaptation.masking import MaskedConsistency, Masking, hide_blocks
from da_leukemia.adaptation.mixing import (
    ConfMix,
    Daca,
    box_certainty,
    most_confident,
    quadrants,
    uncovered,
)
from da_leukemia.config import Augmentation
from da_leukemia.data.batches import Targets
from da_leukemia.models.base import Detections, Places

S = 64


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def detector(sizes=()):
    return kit.detector(sizes=sizes)


def labels(boxes, kinds, attributes=0, classes=(True, True)):
    boxes, kinds = torch.tensor(boxes).float(), torch.tensor(kinds)
    return Targets(
        boxes,
        kinds,
        torch.ones(*kinds.shape, attributes, dtype=torch.int64),
        boxes.sum(-1) > 0,
        torch.tensor(classes).expand(len(boxes), -1),
    )


def said(boxes, scores, kinds):
    """A teacher's answer, made by hand."""
    boxes, scores, kinds = torch.tensor(boxes).float(), torch.tensor(scores), torch.tensor(kinds)
    taught = Taught.__new__(Taught)
    none = boxes.new_zeros((*scores.shape, 0))
    taught.detections = Detections(boxes, scores, kinds, scores > 0, none)
    faint = torch.full((len(boxes), 4, 2), -4.0).sigmoid()
    taught.places = Places(faint, torch.zeros(len(boxes), 4, 4))
    return taught


def views(taught, targets, *, progress=1.0, source=None, weak=None, strong=None):
    count = len(targets.boxes)
    given = Views(
        teacher=None,
        progress=progress,
        draw=draw(),
        augmentation=PLAIN,
        source=torch.zeros(count, 3, S, S) if source is None else source,
        source_targets=targets,
        target_weak=torch.ones(count, 3, S, S) if weak is None else weak,
        target_strong=torch.ones(count, 3, S, S) if strong is None else strong,
        log={}.__setitem__,
    )
    if taught is not None:
        given.taught = taught
    return given


PLAIN = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0, noise=0)


def learned(extra, net=None, progress=1.0):
    """The labels that the student is asked to learn, and the losses on its outputs."""
    net = detector() if net is None else net
    asked = []
    original = net.loss
    net.loss = lambda outputs, targets, **rest: (
        asked.append(targets) or original(outputs, targets, **rest)
    )
    context = StepContext(
        detector=net,
        teacher=None,
        progress=progress,
        draw=draw(),
        source=None,
        source_targets=None,
        target=None,
        target_weak=None,
        log={}.__setitem__,
    )
    return asked, extra.losses(context, net(extra.images))


def of_step(net, given):
    """The step in which such views are learned from."""
    return StepContext(
        detector=net,
        teacher=given.teacher,
        progress=given.progress,
        draw=draw(),
        source=None,
        source_targets=given.source_targets,
        target=None,
        target_weak=given.target_weak,
        log={}.__setitem__,
    ).after(given)


# --- masking -----------------------------------------------------------------------------------


def test_whole_blocks_are_hidden_and_about_the_wanted_share():
    images = rand(16, 3, 80, 80)
    hidden = hide_blocks(images, 32, 0.5, draw())
    gone = (hidden != images).any(1)
    blocks = gone[:, :64, :64].reshape(16, 2, 32, 2, 32).float().mean((2, 4))
    assert ((blocks == 0) | (blocks > 0.99)).all()
    assert 0.3 < float(gone.float().mean()) < 0.7
    assert gone[:, 64:, 64:].any()  # the rest at the border is a block, too
    assert torch.equal(hide_blocks(images, 32, 0.0, draw()), images)
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    assert torch.equal(hide_blocks(images, 32, 1.0, draw()), mean)


def test_masking_disguises_the_students_view_alone():
    component = Masking(s.Masking(ratio=0.5, block=16))
    target = rand(2, 3, S, S)
    kept = target.clone()
    assert not torch.equal(component.disguise(target, draw()), target)
    assert torch.equal(target, kept)
    assert not component.wants_target(1.0)  # it asks for no view of its own


def test_the_masked_view_is_matched_against_the_teacher_on_the_whole_one():
    component = MaskedConsistency(s.MaskedConsistency(burn_in=0.2, threshold=0.6), 2)
    assert not component.composes(0.1)
    assert component.composes(0.2)
    assert not component.wants_target(1.0)
    net = detector()
    given = views(None, labels([[[0, 0, 0, 0]]], [[-1]], classes=(True, False)))
    given.teacher, given.target_weak = detector(), rand(1, 3, S, S)
    torch.nn.init.constant_(given.teacher.head.score.bias, 2.0)
    given.target_strong = rand(1, 3, S, S, seed=1)
    extra = component.compose(given)
    assert not torch.equal(extra.images, given.target_strong)
    assert "taught" not in vars(given)  # the teacher never sees the mask
    asked = []
    original = net.loss
    net.loss = lambda outputs, t, **rest: asked.append((t, rest)) or original(outputs, t, **rest)
    context = of_step(net, given)
    losses = extra.losses(context, net(extra.images))
    losses["masked_class"].backward()
    (pseudo, rest) = asked[0]
    assert pseudo.mask.any()
    assert (pseudo.labels[pseudo.mask] == 0).all()  # class 1 is not labelled by the source
    assert torch.equal(pseudo.boxes, context.taught.detections.boxes)
    assert rest["boxes"] is False


def test_the_weight_of_masked_consistency_rises_after_burn_in():
    settings = s.MaskedConsistency(burn_in=0.2, ramp=0.4, weight=2.0)
    net = detector()
    net.pseudo_loss = lambda *_: torch.ones(())
    found = []
    for progress in (0.2, 0.4, 0.6, 1.0):
        given = views(None, labels([[[0, 0, 0, 0]]], [[-1]]), progress=progress)
        given.teacher = detector()
        context = of_step(net, given)
        extra = MaskedConsistency(settings, 2).compose(given)
        losses = extra.losses(context, net(extra.images))
        found.append(float(losses["masked_class"]))
    assert found == pytest.approx([0, 1, 2, 2])


# --- the most confident quadrant ---------------------------------------------------------------


def test_the_quadrant_with_the_highest_mean_score_is_chosen():
    boxes = torch.tensor([[[2, 2, 8, 8], [40, 2, 48, 8], [50, 2, 60, 8], [2, 40, 8, 48]]]).float()
    scores = torch.tensor([[0.5, 0.9, 0.2, 0.7]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert most_confident(boxes, scores, mask, S).tolist() == [2]
    mask[0, 2] = False  # the weak one lowers the mean of the upper right no more
    assert most_confident(boxes, scores, mask, S).tolist() == [1]
    assert most_confident(boxes, scores, torch.zeros_like(mask), S).tolist() == [0]
    assert quadrants(S, CPU)[1].tolist() == [32, 0, 64, 32]
    assert quadrants(S, CPU)[2].tolist() == [0, 32, 32, 64]


def test_boxes_that_agree_are_certain():
    found = said([[[0, 0, 20, 20], [30, 30, 50, 50]]], [[0.9, 0.9]], [[0, 0]])
    near = torch.tensor([[[0, 0, 20, 20], [0, 0, 20, 20], [30, 30, 50, 50], [30, 30, 50, 42]]])
    found.places.boxes = near.float()
    certain = box_certainty(found.detections, found.places)
    assert float(certain[0, 0]) == pytest.approx(1)
    assert float(certain[0, 1]) == pytest.approx(0.8)


# --- ConfMix -----------------------------------------------------------------------------------


def test_the_labels_of_a_mixed_image_are_what_is_seen_on_it():
    """A rectangle is drawn for each cell; each label must frame its own colour."""
    source, target = torch.zeros(1, 3, S, S), torch.zeros(1, 3, S, S)
    source[0, 0, 4:14, 4:14] = 1.0  # red: lower left and others are the source's
    source[0, 0, 40:52, 40:52] = 1.0  # will be covered
    target[0, 1, 42:54, 38:50] = 1.0  # green
    own = labels([[[4, 4, 14, 14], [40, 40, 52, 52]]], [[0, 0]], attributes=2)
    taught = said([[[38, 42, 50, 54], [4, 40, 10, 50]]], [[0.9, 0.3]], [[1, 1]])
    extra = ConfMix(s.ConfMix(), 2).compose(
        views(taught, own, progress=0.0, source=source, strong=target)
    )
    net = detector(sizes=(2, 2))
    (mixed,), losses = learned(extra, net)
    found = {
        (int(k), *b) for b, k, m in zip(
            mixed.boxes[0].tolist(), mixed.labels[0], mixed.mask[0], strict=True
        ) if m
    }  # fmt: skip
    assert found == {(0, 4, 4, 14, 14), (1, 38, 42, 50, 54)}
    assert extra.images[0, 0, 4:14, 4:14].min() == 1
    assert extra.images[0, 1, 42:54, 38:50].min() == 1
    assert extra.images[0, 0].sum() == 100  # nothing is left of the covered cell
    assert mixed.attributes[0, :2].min() == 1
    assert mixed.attributes[0, 2:].max() == -1  # the target's attributes are unknown
    assert losses.keys() == {"mixed_class", "mixed_box", "mixed_attribute"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_doubtful_cells_are_neither_cells_nor_background():
    own = labels([[[4, 4, 14, 14]]], [[0]])
    boxes = [[[36, 36, 50, 50], [52, 36, 60, 50], [36, 52, 50, 60]]]
    taught = said(boxes, [[0.9, 0.4, 0.1]], [[1, 0, 0]])
    (mixed,), _ = learned(ConfMix(s.ConfMix(), 2).compose(views(taught, own, progress=0.0)))
    assert mixed.labels[0].tolist() == [0, 1, -1, -1]
    assert mixed.mask[0].tolist() == [True, True, True, False]


def test_a_class_that_the_source_does_not_label_is_not_pasted():
    own = labels([[[4, 4, 14, 14]]], [[0]], classes=(True, False))
    taught = said([[[36, 36, 50, 50], [4, 40, 14, 50]]], [[0.9, 0.7]], [[1, 0]])
    (mixed,), _ = learned(ConfMix(s.ConfMix(), 2).compose(views(taught, own, progress=0.0)))
    assert not (mixed.labels == 1).any()
    assert mixed.labels[0, 1] == 0  # the lower left was chosen
    assert mixed.classes.tolist() == [[True, False]]


def test_a_pasted_cell_is_cut_at_the_seam_and_a_covered_one_too():
    region = torch.tensor([[32.0, 0, 64, 32]])
    boxes = [[[22, 4, 42, 14], [40, 28, 50, 38], [34, 4, 40, 10], [31, 12, 61, 20], [2, 2, 9, 9]]]
    kept = uncovered(labels(boxes, [[0, 0, 0, 0, 0]]), region)
    assert kept.boxes[0, 0].tolist() == [22, 4, 32, 14]  # cut on its right
    assert kept.boxes[0, 1].tolist() == [40, 32, 50, 38]  # cut on top
    assert kept.mask[0].tolist() == [True, True, False, True, True]  # the third is covered
    assert kept.labels[0].tolist() == [0, 0, -1, -1, 0]  # of the fourth too little is left
    assert kept.boxes[0, 4].tolist() == [2, 2, 9, 9]


def test_the_loss_weighs_as_much_as_the_labels_are_sure():
    own = labels([[[4, 4, 14, 14]]], [[0]])
    box = [[[36, 36, 50, 50], [52, 52, 60, 60]]]
    weights = []
    for second in (0.8, 0.3, 0.0):
        taught = said(box, [[0.9, second]], [[1, 1]])
        extra = ConfMix(s.ConfMix(), 2).compose(views(taught, own, progress=0.0))
        net = detector()
        net.loss = lambda *_, **__: {"class": torch.ones(())}
        _, losses = learned(extra, net)
        weights.append(float(losses["mixed_class"]))
    assert weights == pytest.approx([1, 2 / 3, 1])


def test_trust_moves_from_the_score_to_the_boxs_certainty_as_the_mixing_goes_on():
    """A score of .7 is above .6 as it is, and below it times a certainty of .55."""
    own = labels([[[4, 4, 14, 14]]], [[0]])
    taught = said([[[36, 36, 56, 56]]], [[0.7]], [[1]])
    taught.places.scores = torch.full((1, 4, 2), 0.9)
    taught.places.boxes = torch.tensor([[[36, 36, 56, 47]] * 4]).float()  # overlap .55
    component = ConfMix(s.ConfMix(threshold=0.6, burn_in=0.4), 2)
    for progress, kind in ((0.4, 1), (1.0, -1)):
        (mixed,), _ = learned(component.compose(views(taught, own, progress=progress)))
        assert mixed.labels[0, 1] == kind
    delta = 2 / (1 + math.exp(-5 * 0.5)) - 1  # half way through the mixing, at .7
    edge = 0.7 * (1 - delta + delta * 0.55)
    for threshold, kind in ((edge - 0.01, 1), (edge + 0.01, -1)):
        component = ConfMix(s.ConfMix(threshold=threshold, burn_in=0.4), 2)
        (mixed,), _ = learned(component.compose(views(taught, own, progress=0.7)))
        assert mixed.labels[0, 1] == kind


@pytest.mark.parametrize("kind", [ConfMix, Daca])
def test_mixing_begins_after_burn_in_and_its_weight_rises(kind):
    component = kind(getattr(s, kind.__name__)(burn_in=0.2, ramp=0.4, weight=2.0), 2)
    assert [component.composes(p) for p in (0.0, 0.19, 0.2, 1.0)] == [False, False, True, True]
    taught = said([[[36, 36, 50, 50]]], [[0.9]], [[1]])
    taught.places.boxes = taught.detections.boxes.expand(-1, 4, -1)  # of which all are certain
    own = labels([[[4, 4, 14, 14]]], [[0]])
    found = []
    for progress in (0.2, 0.4, 0.6, 1.0):
        net = detector()
        net.loss = lambda *_, **__: {"class": torch.ones(())}
        extra = component.compose(views(taught, own, progress=progress))
        found.append(float(learned(extra, net, progress)[1]["mixed_class"]))
    assert found == pytest.approx([0, 1, 2, 2])
    assert component.counts.pseudo[0] == 0 < component.counts.pseudo[1]


# --- DACA --------------------------------------------------------------------------------------


def test_each_copy_carries_its_own_boxes():
    """One green cell in the best quadrant: it is on the composite four times, where labels say."""
    weak = torch.zeros(8, 3, S, S)
    weak[:, 1, 36:44, 40:60] = 1.0
    own = labels([[[4, 4, 14, 14]]] * 8, [[0]] * 8)
    taught = said([[[40, 36, 60, 44], [4, 4, 9, 9]]] * 8, [[0.9, 0.3]] * 8, [[1, 0]] * 8)
    extra = Daca(s.Daca(), 2).compose(views(taught, own, weak=weak))
    (tiled,), losses = learned(extra, detector(sizes=(2,)))
    assert extra.images.shape == (8, 3, S, S)
    places = set()
    for image, boxes, mask, kinds in zip(
        extra.images, tiled.boxes, tiled.mask, tiled.labels, strict=True
    ):
        drawn = torch.zeros(S, S)
        for x1, y1, x2, y2 in boxes[mask].long().tolist():
            drawn[y1:y2, x1:x2] = 1
            places.add((x1 % 32, y1 % 32))
        assert int(mask.sum()) == 4
        assert (kinds[mask] == 1).all()
        torch.testing.assert_close(image[1], drawn, atol=1e-5, rtol=0)
    assert len(places) == 4  # flipped in all four ways
    assert losses.keys() == {"mixed_class", "mixed_box"}


def test_the_copies_have_colours_of_their_own():
    weak = rand(1, 3, S, S) * 0.5 + 0.2
    given = views(said([[[40, 36, 60, 44]]], [[0.9]], [[1]]), labels([[[4, 4, 14, 14]]], [[0]]))
    given.target_weak, given.augmentation = weak, Augmentation(brightness=0.4)
    image = Daca(s.Daca(), 2).compose(given).images[0]
    means = image.reshape(3, 2, 32, 2, 32).mean((0, 2, 4)).flatten()
    assert means.sort().values.diff().min() > 1e-4


@pytest.mark.parametrize("component", [ConfMix(s.ConfMix(), 2), Daca(s.Daca(), 2)])
def test_a_teacher_that_finds_nothing_is_no_accident(component):
    nothing = said([[[0, 0, 0, 0]]], [[0.0]], [[0]])
    extra = component.compose(views(nothing, labels([[[0, 0, 0, 0]]], [[-1]])))
    net = detector()
    _, losses = learned(extra, net)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_no_label_of_the_target_can_be_reached_from_the_views():
    assert {f.name for f in dataclasses.fields(Views)} == {
        "teacher",
        "progress",
        "draw",
        "augmentation",
        "source",
        "source_targets",
        "target_weak",
        "target_strong",
        "log",
    }
