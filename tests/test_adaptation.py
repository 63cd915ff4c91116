"""The mechanisms of adaptation, each against what its name promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from adaptation_kit import context, detector, draw, rand
from torch import nn

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.adversarial import Adversarial, reversal_schedule
from da_leukemia.adaptation.appearance import (
    Fourier,
    Histogram,
    match_histogram,
    swap_low_frequencies,
)
from da_leukemia.adaptation.base import StepContext
from da_leukemia.adaptation.build import build_components
from da_leukemia.adaptation.mean_teacher import MeanTeacher
from da_leukemia.models.ema import MovingAverage
from da_leukemia.models.gradients import scale_gradient
from da_leukemia.models.one_stage import DenseOutputs


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def outputs(*features, images=2):
    none = torch.zeros(images, 1, 1)
    return DenseOutputs(list(features), none, none, none, none)


# --- adversarial -------------------------------------------------------------------------------


def test_the_reversed_gradient_has_the_other_sign_and_the_scale():
    x = rand(5).requires_grad_()
    plain = (x.square() * 3).sum()
    (direct,) = torch.autograd.grad(plain, x)
    y = scale_gradient(x, -0.25)
    assert torch.equal(y, x)
    (turned,) = torch.autograd.grad((y.square() * 3).sum(), x)
    torch.testing.assert_close(turned, -0.25 * direct)


def test_a_step_down_the_gradient_raises_the_discriminators_loss_by_what_the_sign_says():
    """Against a numerical derivative: the features go up where the discriminator goes down."""
    component = Adversarial(s.Adversarial(weight=1.0, reversal=1.0, ramp=0.0), 4, 1).double()
    features = rand(2, 4, 3, 3).double().requires_grad_()
    other = rand(2, 4, 3, 3, seed=1).double()

    def loss(values):
        return component.losses(context(outputs(values), outputs(other)))["adversarial"]

    # The component computes in float32, the precision of a difference quotient is then about 1e-3.
    component.float()
    (analytic,) = torch.autograd.grad(loss(features), features)
    step = 1e-2
    direction = analytic / analytic.norm()
    with torch.no_grad():
        rise = (loss(features + step * direction) - loss(features - step * direction)) / (2 * step)
    assert float(rise) == pytest.approx(-float(analytic.norm()), rel=0.05)
    weights = list(component.parameters())
    grads = torch.autograd.grad(loss(features), weights)
    with torch.no_grad():
        before = loss(features)
        for p, g in zip(weights, grads, strict=True):
            p -= 0.1 * g
        assert loss(features) < before  # the discriminator itself learns


def test_the_reversal_rises_from_nothing_to_its_full_strength():
    values = [reversal_schedule(p / 10, 1.0) for p in range(11)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[5] == pytest.approx(2 / (1 + 2.718281828**-5) - 1)
    assert values[-1] > 0.999
    assert reversal_schedule(0.1, 0.2) == pytest.approx(reversal_schedule(0.5, 1.0))
    assert reversal_schedule(0.5, 0.2) == reversal_schedule(1.0, 1.0)
    assert reversal_schedule(0.0, 0.0) == 1.0


def test_at_the_start_only_the_discriminator_learns():
    component = Adversarial(s.Adversarial(ramp=1.0), 4, 1)
    features = rand(2, 4, 3, 3).requires_grad_()
    component.losses(context(outputs(features), outputs(features), progress=0.0))[
        "adversarial"
    ].backward()
    assert not features.grad.any()
    assert all(p.grad.any() for p in component.discriminators[0][2].parameters())


def test_the_discriminator_sees_both_devices_on_every_level():
    component = Adversarial(s.Adversarial(ramp=0.0), 4, 2)
    source = [rand(2, 4, 6, 6).requires_grad_(), rand(2, 4, 3, 3, seed=1).requires_grad_()]
    target = [rand(2, 4, 6, 6, seed=2).requires_grad_(), rand(2, 4, 3, 3, seed=3).requires_grad_()]
    loss = component.losses(context(outputs(*source), outputs(*target)))["adversarial"]
    loss.backward()
    for feature in (*source, *target):
        assert feature.grad.abs().max() > 0
    assert component.wants_target(0.0)
    assert component.wants_target(1.0)


def test_a_discriminator_that_is_trained_tells_two_devices_apart_and_one_from_itself_not():
    torch.manual_seed(0)
    accuracies = {}
    for name, shift in (("apart", 0.5), ("same", 0.0)):
        component = Adversarial(s.Adversarial(weight=1.0), 4, 1)
        optimiser = torch.optim.Adam(component.parameters(), lr=0.02)
        log = {}
        for step in range(60):
            source, target = rand(2, 4, 8, 8, seed=step), rand(2, 4, 8, 8, seed=1000 + step) + shift
            losses = component.losses(context(outputs(source), outputs(target), log=log))
            optimiser.zero_grad()
            losses["adversarial"].backward()
            optimiser.step()
        accuracies[name] = float(log["health/discriminator_accuracy"])
    assert accuracies["apart"] > 0.8
    assert 0.3 < accuracies["same"] < 0.7


# --- appearance --------------------------------------------------------------------------------


def test_fourier_keeps_the_phase_and_takes_the_low_amplitudes():
    source, target = rand(2, 3, 32, 32) * 0.2 + 0.4, rand(2, 3, 32, 32, seed=1) * 0.2 + 0.4
    mixed = swap_low_frequencies(source, target, torch.full((2,), 0.1))
    a, b, c = (torch.fft.rfft2(x) for x in (source, target, mixed))
    rows = torch.fft.fftfreq(32).abs()[:, None]
    low = torch.maximum(rows, torch.fft.rfftfreq(32)[None]) <= 0.1
    assert 0 < int(low.sum()) < low.numel()
    torch.testing.assert_close(c.abs()[..., low], b.abs()[..., low], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(c.abs()[..., ~low], a.abs()[..., ~low], atol=1e-3, rtol=1e-3)
    turn = torch.polar(torch.ones_like(a.abs()), c.angle() - a.angle())
    clear = a.abs() > 1e-2
    torch.testing.assert_close(turn.real[clear], torch.ones(int(clear.sum())), atol=1e-3, rtol=0)


def test_fourier_with_the_narrowest_window_swaps_the_mean_alone():
    source, target = rand(2, 3, 32, 32) * 0.4 + 0.3, rand(2, 3, 32, 32, seed=1) * 0.4 + 0.2
    mixed = swap_low_frequencies(source, target, torch.zeros(2))
    move = (target - source).mean((2, 3), keepdim=True)
    torch.testing.assert_close(mixed, source + move, atol=1e-5, rtol=0)


def test_each_image_has_its_own_window():
    source, target = rand(2, 3, 32, 32), rand(2, 3, 32, 32, seed=1)
    mixed = swap_low_frequencies(source, target, torch.tensor([0.0, 0.2]))
    for row, beta in enumerate((0.0, 0.2)):
        alone = swap_low_frequencies(
            source[row : row + 1], target[row : row + 1], torch.tensor([beta])
        )
        torch.testing.assert_close(mixed[row : row + 1], alone)


def test_histogram_matching_gives_the_quantiles_of_the_target():
    source, target = rand(2, 3, 48, 48), rand(2, 3, 48, 48, seed=1).square() * 0.6 + 0.2
    matched = match_histogram(source, target)
    q = torch.linspace(0.02, 0.98, 25)
    for one, other in zip(matched.flatten(0, 1), target.flatten(0, 1), strict=True):
        torch.testing.assert_close(one.quantile(q), other.quantile(q), atol=0.02, rtol=0)
    # What was darker stays darker.
    order = source.flatten(2).argsort(-1)
    assert (matched.flatten(2).gather(-1, order).diff(dim=-1) >= -1e-6).all()


@pytest.mark.parametrize("size", [64, 512, 1000])
def test_histogram_matching_sees_the_whole_image(size):
    """Dark stripes of a few columns must not fall between those that are looked at."""
    source = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    target = torch.full((1, 3, size, size), 0.9)
    column = torch.arange(size)
    target[..., column % 64 < 35] = 0.1
    dark = float((target < 0.5).float().mean())
    matched = match_histogram(source, target)
    assert float((matched < 0.5).float().mean()) == pytest.approx(dark, abs=0.1)


def test_histogram_matching_of_an_image_with_itself_changes_nothing():
    image = rand(1, 3, 48, 48)
    torch.testing.assert_close(match_histogram(image, image), image, atol=0.02, rtol=0)


def test_histogram_matching_bears_a_flat_background():
    source = torch.full((1, 3, 32, 32), 0.9)
    source[:, :, 10:14, 10:14] = 0.2
    matched = match_histogram(source, source * 0.8)
    assert matched.isfinite().all()
    assert 0 <= matched.min() <= matched.max() <= 0.72 + 1e-5
    flat = match_histogram(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.3))
    torch.testing.assert_close(flat, torch.full((1, 3, 16, 16), 0.3))


@pytest.mark.parametrize(
    "component",
    [
        Fourier(s.Fourier(probability=0.5, beta_min=0.02)),
        Histogram(s.Histogram(probability=0.5)),
    ],
)
def test_a_share_of_the_source_is_restyled_and_the_target_never(component):
    source, target = rand(64, 3, 16, 16), rand(64, 3, 16, 16, seed=1) * 0.5
    kept = target.clone()
    out = component.restyle(source, target, draw())
    changed = (out != source).flatten(1).any(1)
    assert 0.3 < float(changed.float().mean()) < 0.7
    assert torch.equal(target, kept)
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(out, component.restyle(source, target, draw()))
    assert not torch.equal(out, component.restyle(source, target, draw(1)))


# --- mean teacher ------------------------------------------------------------------------------


def overheard(net):
    """Return the list of all pseudo-labels that the student is asked to learn."""
    asked, original = [], net.loss
    net.loss = lambda given, targets, **rest: (
        asked.append((targets, rest)) or original(given, targets, **rest)
    )
    return asked


def teacher_step(bias=None, progress=1.0, **settings):
    """One call of the component; ``bias`` sets how sure the teacher is of cells everywhere."""
    net = detector()
    average = MovingAverage(net, 0.9)
    teacher = average.network
    if bias is not None:
        nn.init.constant_(teacher.head.score.bias, bias)
    log, weak = {}, rand(2, 3, 64, 64)
    asked = overheard(net)
    component = MeanTeacher(s.MeanTeacher(**settings))
    seen = net(rand(2, 3, 64, 64, seed=1))
    losses = component.losses(
        context(seen, seen, progress=progress, net=net, teacher=teacher, weak=weak, log=log)
    )
    return losses, net, asked, teacher, log


def test_no_pseudo_label_gives_a_small_finite_loss_and_gradient():
    losses, student, _, _, log = teacher_step()
    loss = losses["teacher_class"]
    assert log["health/pseudo_boxes_per_image"] == 0
    assert loss.isfinite()
    assert 0 <= float(loss.detach()) < 0.1
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_a_teacher_in_doubt_teaches_nothing():
    losses, _, _, _, log = teacher_step(bias=-0.8)  # scores 0.31: between background and cell
    assert log["health/doubtful_share"] == 1
    assert log["health/pseudo_boxes_per_image"] == 0
    assert float(losses["teacher_class"].detach()) == 0


def test_pseudo_labels_are_the_teachers_confident_cells_and_come_without_attributes():
    losses, _, asked, teacher, log = teacher_step(bias=2.0, threshold=0.6)
    (pseudo, settings) = asked[0]
    weak = rand(2, 3, 64, 64)
    with torch.no_grad():
        found = teacher.decode(teacher(weak))
    confident = found.mask & (found.scores >= 0.6)
    assert confident.any()
    assert torch.equal(pseudo.mask, confident)
    assert torch.equal(pseudo.boxes[confident], found.boxes[confident])
    assert torch.equal(pseudo.labels[confident], found.labels[confident])
    assert pseudo.attributes.shape[-1] == 0
    assert settings["boxes"] is False  # neither box nor attribute losses
    assert losses.keys() == {"teacher_class"}
    assert float(log["health/pseudo_boxes_per_image"]) == pytest.approx(float(confident.sum()) / 2)
    assert not pseudo.boxes.requires_grad


def test_the_teacher_gets_no_gradient_and_is_not_the_student():
    losses, student, _, teacher, _ = teacher_step(bias=2.0)
    losses["teacher_class"].backward()
    assert teacher is not student
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_the_target_joins_after_burn_in_and_its_weight_rises():
    at = {
        p: teacher_step(bias=2.0, progress=p, burn_in=0.4, ramp=0.2)[0]
        for p in (0.0, 0.39, 0.4, 0.5, 0.6, 1.0)
    }
    assert at[0.0] == at[0.39] == {}
    values = {p: float(v["teacher_class"].detach()) for p, v in at.items() if v}
    assert values[0.4] == 0
    assert values[0.5] == pytest.approx(values[1.0] / 2, rel=1e-5)
    assert values[0.6] == pytest.approx(values[1.0], rel=1e-5)
    component = MeanTeacher(s.MeanTeacher(burn_in=0.4))
    assert not component.wants_target(0.39)
    assert component.wants_target(0.4)
    assert teacher_step(bias=2.0, burn_in=0.0, ramp=0.0, progress=0.0)[0]["teacher_class"] > 0


def test_the_weight_is_the_weight():
    one, three = (
        float(teacher_step(bias=2.0, weight=w)[0]["teacher_class"].detach()) for w in (1.0, 3.0)
    )
    assert three == pytest.approx(3 * one, rel=1e-5)


# --- building ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(s.COMPONENTS))
def test_a_component_of_no_strength_is_not_built(name):
    net = detector()
    off = s.Method(components=[{"name": name, s.COMPONENTS[name].strength: 0.0}])
    assert build_components(off, net) == []
    on = build_components(s.Method(components=[{"name": name}]), net)
    assert [type(c).__name__.lower() for c in on] == [name.replace("_", "")]
    assert on[0].settings == s.COMPONENTS[name]()


def test_components_keep_their_order_and_settings():
    given = [{"name": "histogram", "probability": 0.2}, {"name": "adversarial", "hidden": 8}]
    built = build_components(s.Method(components=given), detector())
    assert [type(c) for c in built] == [Histogram, Adversarial]
    assert built[0].settings.probability == 0.2
    assert built[1].discriminators[0][0].out_channels == 8
    assert len(built[1].discriminators) == 3


def test_a_component_cannot_reach_a_target_label():
    names = {f.name for f in dataclasses.fields(StepContext)}
    assert names == {
        "detector",
        "teacher",
        "progress",
        "draw",
        "source",
        "source_targets",
        "source_weak",
        "target",
        "target_weak",
        "log",
    }
