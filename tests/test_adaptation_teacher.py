"""Self-training: what the teacher says, who may learn it, and what is known of its health."""

from __future__ import annotations

import dataclasses
import math

import adaptation_kit as kit
import pytest
import torch
from adaptation_kit import draw, rand
from torch import nn
from torch.nn import functional as F

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.base import Component, NoSource, StepContext
from da_leukemia.adaptation.distillation import Distillation
from da_leukemia.adaptation.mean_teacher import MeanTeacher
from da_leukemia.adaptation.pseudo import (
    ClassCounts,
    ClassThresholds,
    attribute_codes,
    disagreement,
    strength,
)
from da_leukemia.config import Augmentation, Trainer
from da_leukemia.data.batches import LabelledBatch, Targets, UnlabelledBatch
from da_leukemia.models.base import Detections
from da_leukemia.models.ema import MovingAverage
from da_leukemia.models.losses import soft_cross_entropy
from da_leukemia.tasks.detection import DetectionTask

S = 64


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def detector(sizes=(2, 3), seed=0):
    return kit.detector(sizes=sizes, seed=seed)


def source_labels(classes=(True, True), attributes=((1, 2), (0, -1))):
    boxes = torch.tensor([[[4, 4, 24, 24.0]], [[30, 30, 50, 50]]])
    codes = torch.tensor(attributes).view(2, 1, -1)
    mask = torch.ones(2, 1, dtype=torch.bool)
    known = torch.tensor(classes).expand(2, -1)
    return Targets(boxes, torch.zeros(2, 1, dtype=torch.int64), codes, mask, known)


def step(component, *, bias=None, labels=None, progress=1.0, sizes=(2, 3), same=False, source=None):
    """One call of a component: losses, student, teacher's answer, figures, what was asked."""
    net = detector(sizes)
    teacher = MovingAverage(net if same else detector(sizes, seed=1), 0.9).network
    if bias is not None:
        nn.init.constant_(teacher.head.score.bias, bias)
    log, weak, asked = {}, rand(2, 3, S, S), []
    original = net.loss
    net.loss = lambda out, targets, **rest: (
        asked.append((targets, rest)) or original(out, targets, **rest)
    )
    seen = net.eval()(weak if same else rand(2, 3, S, S, seed=1))
    context = StepContext(
        detector=net,
        teacher=teacher,
        progress=progress,
        draw=draw(),
        source=source or seen,
        source_targets=labels or source_labels(),
        target=seen,
        target_weak=weak,
        log=log.__setitem__,
    )
    return component.losses(context), net, context, log, asked


# --- classes that the source does not label ----------------------------------------------------


def test_classes_that_the_source_does_not_label_are_neither_cells_nor_background():
    component = MeanTeacher(s.MeanTeacher(threshold=0.6), 2)
    labels = source_labels(classes=(True, False))
    losses, net, context, _, asked = step(component, bias=2.0, labels=labels)
    (pseudo, _), found = asked[0], context.taught.detections
    assert (found.labels[found.mask] == 1).any()  # the teacher does find some
    assert pseudo.mask.any()
    assert not (pseudo.labels == 1).any()
    assert torch.equal(pseudo.mask, found.mask & (found.labels == 0) & (found.scores >= 0.6))
    losses["teacher_class"].backward()
    assert net.head.score.weight.grad[0].any()
    assert not net.head.score.weight.grad[1].any()
    assert not net.head.score.bias.grad[1].any()


def test_an_unlabelled_class_causes_no_doubt_either():
    component = MeanTeacher(s.MeanTeacher(threshold=0.6, negative=0.2), 2)
    labels = source_labels(classes=(False, False))
    _, _, _, log, _ = step(component, bias=2.0, labels=labels)
    assert log["health/doubtful_share"] == 0
    assert log["health/pseudo_boxes_per_image"] == 0


def test_distillation_leaves_unlabelled_classes_alone():
    component = Distillation(s.Distillation(box_weight=0.0))
    labels = source_labels(classes=(True, False))
    losses, net, *_ = step(component, bias=1.0, labels=labels)
    losses["teacher_class"].backward()
    assert net.head.score.bias.grad[0] != 0
    assert net.head.score.bias.grad[1] == 0


# --- thresholds --------------------------------------------------------------------------------


def found_by(scores, kinds):
    scores, kinds = torch.tensor([scores]), torch.tensor([kinds])
    boxes = torch.zeros(1, scores.shape[1], 4)
    return Detections(boxes, scores, kinds, scores > 0, boxes[..., :0])


def test_thresholds_follow_each_class_by_the_papers_rule():
    rule = ClassThresholds(3, 0.4, 0.25, 0.45)
    rule.update(found_by([0.9, 0.5, 0.1, 0.0], [0, 0, 1, 2]), floor=0.2)
    expected = 0.9 * 0.4 + 0.1 * 0.5 * math.sqrt(0.7)
    assert rule.values.tolist() == pytest.approx([expected, 0.4, 0.4])
    for _ in range(200):
        rule.update(found_by([1.0, 0.21], [0, 1]), floor=0.2)
    assert rule.values.tolist() == pytest.approx([0.45, 0.25, 0.4])  # held in the range
    assert rule.of(torch.tensor([[2, 0]])).tolist() == [pytest.approx([0.4, 0.45])]


def test_an_adaptive_teacher_judges_each_class_by_its_own_threshold():
    component = MeanTeacher(s.MeanTeacher(adaptive=True, threshold=0.3), 2)
    component.thresholds.values.copy_(torch.tensor([0.25, 0.45]))
    _, _, context, log, asked = step(component, bias=-0.6)  # scores about 0.35
    found, (pseudo, _) = context.taught.detections, asked[0]
    assert pseudo.mask.any()
    assert (found.labels == 1).any()
    assert (pseudo.labels[pseudo.mask] == 0).all()
    assert {"health/threshold_min", "health/threshold_mean", "health/threshold_max"} <= log.keys()
    assert log["health/threshold_min"] < log["health/threshold_max"]


def test_thresholds_and_counts_go_with_the_checkpoint():
    component = MeanTeacher(s.MeanTeacher(adaptive=True), 2, (2, 3))
    step(component, bias=2.0)
    other = MeanTeacher(s.MeanTeacher(adaptive=True), 2, (2, 3))
    other.load_state_dict(component.state_dict())
    assert torch.equal(other.thresholds.values, component.thresholds.values)
    assert torch.equal(other.counts.pseudo, component.counts.pseudo)
    assert other.taught_attributes.tolist() == [True, True]


# --- attributes --------------------------------------------------------------------------------


def test_attributes_in_doubt_are_missing():
    probabilities = torch.tensor([[[0.95, 0.05, 0.5, 0.3, 0.2], [0.2, 0.8, 0.01, 0.01, 0.98]]])
    usable = torch.tensor([[[True], [True]]])
    codes = attribute_codes(probabilities, (2, 3), 0.9, usable)
    assert codes.tolist() == [[[0, -1], [-1, 2]]]
    assert (attribute_codes(probabilities, (2, 3), 0.9, ~usable) == -1).all()


def test_attributes_are_taught_where_the_teacher_is_sure_and_the_source_labels_them():
    given = s.MeanTeacher(threshold=0.6, attribute_weight=1.0, attribute_threshold=0.0)
    component = MeanTeacher(given, 2, (2, 3))
    labels = source_labels(attributes=((1, -1), (0, -1)))  # the second attribute: never
    losses, net, *_ = step(component, bias=2.0, labels=labels)
    assert component.taught_attributes.tolist() == [True, False]
    losses["teacher_attribute"].backward()
    gradient = net.attributes.classify.weight.grad
    assert gradient[:2].any()
    assert not gradient[2:].any()
    sure = dataclasses.replace(given, attribute_threshold=1.1)
    losses, *_ = step(MeanTeacher(sure, 2, (2, 3)), bias=2.0)
    assert losses["teacher_attribute"] == 0


# --- distillation ------------------------------------------------------------------------------


def test_soft_cross_entropy_has_the_gradient_of_the_plain_one_and_is_zero_at_agreement():
    logits, truth = (rand(50) * 8 - 4).requires_grad_(), rand(50, seed=1)
    (own,) = torch.autograd.grad(soft_cross_entropy(logits, truth).sum(), logits)
    plain = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    torch.testing.assert_close(own, torch.autograd.grad(plain, logits)[0])
    same = soft_cross_entropy(logits, logits.detach().sigmoid())
    torch.testing.assert_close(same, torch.zeros(50), atol=1e-6, rtol=0)
    for certain in (0.0, 1.0):
        assert soft_cross_entropy(logits, torch.full((50,), certain)).isfinite().all()


@pytest.mark.parametrize("harmony", [False, True])
def test_a_student_that_agrees_has_nothing_to_learn(harmony):
    losses, net, _, log, _ = step(Distillation(s.Distillation(harmony=harmony)), same=True)
    assert float(losses["teacher_class"].detach()) == pytest.approx(0, abs=1e-4)
    assert float(losses["teacher_box"].detach()) == pytest.approx(0, abs=1e-4)
    assert float(log["health/disagreement"]) == pytest.approx(0, abs=1e-6)
    losses["teacher_class"].backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-3 for p in net.parameters())


def test_boxes_alone_are_distilled():
    given = s.Distillation(class_weight=0.0)
    losses, net, *_ = step(Distillation(given), bias=1.0)
    assert set(losses) == {"teacher_box"}
    losses["teacher_box"].backward()
    assert net.head.distance.weight.grad.any()
    assert net.head.score.bias.grad is None or not net.head.score.bias.grad.any()
    half, *_ = step(Distillation(s.Distillation(class_weight=0.5)), bias=1.0)
    whole, *_ = step(Distillation(s.Distillation()), bias=1.0)
    torch.testing.assert_close(half["teacher_class"], whole["teacher_class"] / 2)


@pytest.mark.parametrize("harmony", [False, True])
def test_the_student_moves_to_the_teacher(harmony):
    losses, net, context, *_ = step(Distillation(s.Distillation(harmony=harmony)), bias=1.0)
    sum(losses.values()).backward()
    assert net.head.score.bias.grad.max() < 0  # the teacher is surer of cells
    assert net.head.distance.weight.grad.any()
    assert all(p.grad is None for p in context.teacher.parameters())
    assert float(sum(losses.values()).detach()) < 100


def test_boxes_are_learned_only_where_the_teacher_sees_a_cell():
    losses, _, _, log, _ = step(Distillation(s.Distillation()))  # an untrained teacher: about .01
    assert log["health/teacher_positives_per_image"] == 0
    assert losses["teacher_box"] == 0
    assert losses["teacher_class"].isfinite()
    losses, *_ = step(Distillation(s.Distillation(box_weight=0.0)), bias=1.0)
    assert losses.keys() == {"teacher_class"}


def test_harmony_weighs_by_score_and_overlap():
    """By hand: two locations, one where the boxes agree by half."""
    component = Distillation(s.Distillation(harmony=True, ramp=0.0, burn_in=0.0))
    _, _, context, _, _ = step(component)
    for out in (context.target, context.taught.outputs):
        out.scores = torch.tensor([[[0.0, -30.0], [0.0, -30.0]]])
        out.boxes = torch.tensor([[[0, 0, 10, 10.0], [0, 0, 10, 10]]])
    context.target.boxes = torch.tensor([[[0, 0, 10, 10.0], [0, 0, 10, 5]]])
    context.target.scores = context.target.scores + 1.0
    losses = component.losses(context)
    apart = float(soft_cross_entropy(torch.tensor(1.0), torch.tensor(0.5)))
    w = [math.sqrt(0.5), math.sqrt(0.25)]
    weight = sum(w) * 0.5
    assert float(losses["teacher_class"]) == pytest.approx(
        sum(w) * apart / max(1, weight), rel=1e-4
    )
    assert float(losses["teacher_box"]) == pytest.approx(
        w[1] * 0.5 * 0.5 / max(1, weight), rel=1e-4
    )


# --- health ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "component", [MeanTeacher(s.MeanTeacher(), 2), Distillation(s.Distillation(), 2)]
)
def test_the_health_of_self_training_is_logged(component):
    *_, log, _ = step(component, bias=2.0)
    assert {"health/disagreement", "health/class_shift"} <= log.keys()
    assert any(k.endswith("per_image") for k in log)
    assert all(v.isfinite() for v in log.values())
    assert not any(v.requires_grad for v in log.values())
    # Without a source there is no class histogram to be far from.
    *_, alone, _ = step(component, bias=2.0, source=NoSource())
    assert alone.keys() == log.keys() - {"health/class_shift"}


def test_the_class_shift_is_what_must_be_moved():
    counts = ClassCounts(3)
    assert counts.shift() == 0
    labels = source_labels()
    counts.see_source(labels)  # class 0 alone
    assert counts.shift() == 0  # nothing to compare yet
    counts.see_pseudo(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[True, True, False, False]]))
    assert float(counts.shift()) == pytest.approx(0.5)


def test_disagreement_counts_only_where_the_teacher_sees_a_cell():
    teacher = torch.tensor([[[0.0, -9.0], [-9.0, -9.0]]])
    student = torch.tensor([[[-30.0, 30.0], [30.0, 30.0]]])
    known = torch.tensor([True, False])
    assert float(disagreement(teacher.sigmoid(), student.sigmoid(), known, 0.2)) == pytest.approx(
        0.5
    )


def test_the_weight_rises_after_burn_in():
    assert [strength(p, 0.4, 0.2) for p in (0.0, 0.4, 0.5, 0.7)] == pytest.approx([0, 0, 0.5, 1])
    assert strength(0.1, 0.2, 0.0) == 0
    assert strength(0.2, 0.2, 0.0) == 1


# --- the training step -------------------------------------------------------------------------


def batches(target=True):
    images = (rand(2, 3, S, S) * 255).to(torch.uint8)
    fill, index = torch.zeros(2, 3), torch.arange(2)
    source = LabelledBatch(images, fill, index, source_labels())
    other = UnlabelledBatch((rand(2, 3, S, S, seed=5) * 255).to(torch.uint8), fill, index)
    return {"source": source} | ({"target": other} if target else {})


def task(components, target=True):
    """One training step: the task, its loss, what the student saw and what was logged."""
    net = detector()
    made = DetectionTask(
        net, components, trainer=Trainer(steps=1), augmentation=Augmentation(), strong=True
    )
    logged, seen = {}, []
    made.log = lambda name, value, **_: logged.__setitem__(name, value)
    made.log_dict = lambda values, **_: logged.update(values)
    net.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().clone()))
    if made.ema is not None:
        made.ema.network.register_forward_pre_hook(lambda _, x: seen_by_teacher.append(x[0]))
    seen_by_teacher = []
    loss = made.training_step(batches(target), 0)
    return made, loss, seen, seen_by_teacher, logged


AT_ONCE = {"burn_in": 0.0, "ramp": 0.0}


def test_the_teacher_is_asked_once_whoever_needs_it():
    from da_leukemia.adaptation.masking import MaskedConsistency
    from da_leukemia.adaptation.mixing import ConfMix, Daca

    components = [
        MeanTeacher(s.MeanTeacher(**AT_ONCE), 2, (2, 3)),
        Distillation(s.Distillation(**AT_ONCE), 2),
        MaskedConsistency(s.MaskedConsistency(**AT_ONCE), 2),
        ConfMix(s.ConfMix(**AT_ONCE), 2),
        Daca(s.Daca(**AT_ONCE), 2),
    ]
    made, loss, seen, taught, logged = task(components)
    assert len(taught) == 1
    assert len(seen) == 1  # one forward pass over everything
    assert seen[0].shape == (2 * 5, 3, S, S)  # source, target, masked, mixed, composite
    assert {"train/teacher_class", "train/masked_class", "train/mixed_class"} <= logged.keys()
    assert logged["health/unsupervised_ratio"] > 0
    assert made.ema.network is not made.detector
    loss.backward()
    assert all(p.grad is None for p in made.ema.parameters())


def test_the_source_and_the_target_look_the_same_whoever_composes():
    from da_leukemia.adaptation.mixing import ConfMix

    _, _, alone, _, _ = task([], target=False)
    _, _, taught, _, _ = task([MeanTeacher(s.MeanTeacher(**AT_ONCE), 2)])
    mixing = [MeanTeacher(s.MeanTeacher(**AT_ONCE), 2), ConfMix(s.ConfMix(**AT_ONCE), 2)]
    _, _, mixed, _, _ = task(mixing)
    assert torch.equal(alone[0], taught[0][:2])
    assert torch.equal(taught[0], mixed[0][:4])


def test_weak_and_strong_view_share_the_geometry():
    """With the photometry off, teacher and student see the same target to the last bit."""
    components = [MeanTeacher(s.MeanTeacher(**AT_ONCE), 2)]
    net = detector()
    quiet = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, blur=0, noise=0)
    made = DetectionTask(net, components, trainer=Trainer(steps=1), augmentation=quiet)
    made.log = lambda *_, **__: None
    made.log_dict = lambda *_, **__: None
    seen, taught = [], []
    net.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    made.ema.network.register_forward_pre_hook(lambda _, x: taught.append(x[0]))
    made.training_step(batches(), 0)
    torch.testing.assert_close(seen[0][2:], taught[0], atol=1e-5, rtol=0)
    assert not torch.allclose(taught[0], batches()["target"].images.float() / 255)


def test_the_disguise_is_seen_by_the_student_alone():
    from da_leukemia.adaptation.masking import Masking

    class Spy(Component):
        def disguise(self, target, draw):
            return target * 0

    _, _, seen, taught, _ = task([MeanTeacher(s.MeanTeacher(**AT_ONCE), 2), Spy()])
    assert not seen[0][2:].any()
    assert seen[0][:2].any()
    assert taught[0].any()
    _, _, seen, _, _ = task([Masking(s.Masking())])
    assert len(seen[0]) == 2  # nobody asked for a view of the target


def test_buffers_of_the_teacher_follow():
    made, *_ = task([MeanTeacher(s.MeanTeacher(**AT_ONCE), 2)])
    name = next(n for n, _ in made.detector.named_buffers() if n.endswith("running_mean"))
    before = made.ema.network.get_buffer(name).clone()
    assert not torch.equal(before, made.detector.get_buffer(name))
    made.on_train_batch_end()
    after = made.ema.network.get_buffer(name)
    gap = (after - made.detector.get_buffer(name)).abs().sum()
    assert gap < (before - made.detector.get_buffer(name)).abs().sum()


def test_the_source_is_restyled_without_a_target_by_whoever_can():
    class Dark(Component):
        def restyle(self, source, target, draw):
            return source * 0

    class DarkAlone(Dark):
        restyles_alone = True

    _, _, seen, _, _ = task([], target=False)
    _, _, same, _, _ = task([Dark()], target=False)
    _, _, dark, _, _ = task([DarkAlone()], target=False)
    assert torch.equal(seen[0], same[0])
    assert float(dark[0].mean()) < 0.1 < float(seen[0].mean())
