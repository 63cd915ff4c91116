"""What is done to a finished network for one device, and undone for the others."""

from __future__ import annotations

import adaptation_kit as kit
import pytest
import torch
from adaptation_kit import rand
from torch import nn

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.base import Component
from da_leukemia.adaptation.statistics import AdaBN, Tent, detection_entropy, type_weights
from da_leukemia.config import Augmentation, Detector, Trainer
from da_leukemia.data.batches import UnlabelledBatch
from da_leukemia.errors import ConfigError
from da_leukemia.labels import WBC5, LabelSpace
from da_leukemia.models.base import Places
from da_leukemia.models.factory import build_detector
from da_leukemia.tasks.detection import DetectionTask

S = 64


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def detector():
    return kit.detector(sizes=()).eval()


def first_norm(net):
    return next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def entropy(net, images):
    return detection_entropy(net.places(net(images)).scores)


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def test_the_statistics_are_those_of_the_targets_images():
    net, given = detector(), [rand(4, 3, S, S) * 0.3, rand(4, 3, S, S, seed=1) * 0.6]
    layer, seen = first_norm(net), []
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    AdaBN(s.AdaBN()).finish(net, lambda: given)
    hook.remove()
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)
    assert not any(m.training for m in net.modules())
    assert layer.momentum == 0.1


def test_nothing_but_statistics_changes_and_again_gives_the_same():
    net, given = detector(), [rand(4, 3, S, S)]
    before = state(net)
    AdaBN(s.AdaBN()).finish(net, lambda: given)
    after = state(net)
    changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed
    assert all(k.endswith(("running_mean", "running_var", "num_batches_tracked")) for k in changed)
    AdaBN(s.AdaBN()).finish(net, lambda: given)
    assert all(torch.allclose(v, state(net)[k]) for k, v in after.items() if "running" in k)


def test_the_weight_mixes_with_the_sources_statistics():
    whole, half, given = detector(), detector(), [rand(4, 3, S, S)]
    start = first_norm(half).running_mean.clone()
    AdaBN(s.AdaBN()).finish(whole, lambda: given)
    AdaBN(s.AdaBN(weight=0.25)).finish(half, lambda: given)
    expected = 0.75 * start + 0.25 * first_norm(whole).running_mean
    torch.testing.assert_close(first_norm(half).running_mean, expected)


def test_a_rest_of_few_images_does_not_count_as_a_batch_and_the_number_is_held():
    one, other, three = detector(), detector(), detector()
    full, rest = rand(4, 3, S, S), rand(1, 3, S, S, seed=2)
    AdaBN(s.AdaBN()).finish(one, lambda: [full])
    AdaBN(s.AdaBN()).finish(other, lambda: [full, rest])
    AdaBN(s.AdaBN(batches=1)).finish(three, lambda: [full, full * 0.1])
    for net in (other, three):
        assert torch.equal(first_norm(one).running_mean, first_norm(net).running_mean)


def test_a_target_without_images_leaves_the_statistics():
    net = detector()
    before = state(net)
    AdaBN(s.AdaBN()).finish(net, list)
    Tent(s.Tent()).finish(net, list)
    after = state(net)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if "running" in k)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.endswith("weight"))


def test_a_network_without_batchnorm_is_refused():
    net = detector()
    net.backbone = nn.Identity()
    with pytest.raises(ConfigError, match="no BatchNorm layer"):
        AdaBN(s.AdaBN()).finish(net, lambda: [rand(2, 3, S, S)])


def test_entropy_is_that_of_the_cells():
    certain, open_ = torch.full((1, 9, 1), -12.0), torch.full((1, 1, 1), 0.0)
    both = detection_entropy(torch.cat([certain, open_], 1).sigmoid())
    assert float(both) == pytest.approx(0.6931, abs=1e-3)  # ground does not dilute it
    assert float(detection_entropy(torch.full((1, 4, 2), 9.0).sigmoid())) < 0.01


def test_tent_lowers_the_entropy_by_norm_layers_alone():
    net, given = detector(), [rand(4, 3, S, S)]
    with torch.no_grad():
        net.head.score.bias.fill_(-1.0)
        before, start = state(net), entropy(net, given[0])
    frozen = [p.requires_grad for p in net.parameters()]
    Tent(s.Tent(steps=4)).finish(net, lambda: given)  # round and round one batch
    with torch.no_grad():
        assert entropy(net, given[0]) < start
    kinds = (nn.BatchNorm2d, nn.GroupNorm)
    norms = {
        f"{name}.{p}"
        for name, m in net.named_modules()
        if isinstance(m, kinds)
        for p in ("weight", "bias")
    }
    changed = {k for k, v in before.items() if not torch.equal(v, state(net)[k])}
    assert changed
    assert changed <= norms
    assert [p.requires_grad for p in net.parameters()] == frozen
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", ["one_stage", "classifier"])
def test_tent_survives_what_is_beyond_doubt_and_what_was_never_seen(kind):
    """At a score of 0 or 1 the slope of the entropy is infinite, and NaN times 0 is NaN."""
    given = [rand(4, 3, S, S)]
    if kind == "classifier":
        net = build_detector(Detector(kind=kind, backbone="mobilenetv3_small_050"), WBC5, S)
        net.know(torch.tensor([9, 9, 0, 9, 9]))  # bccd has no basophil
    else:
        net = detector()
        nn.init.constant_(net.head.score.bias[0], 40.0)
        nn.init.constant_(net.head.score.bias[1], -120.0)
    with torch.no_grad():
        scores = net.eval().places(net(given[0])).scores
    assert (scores == 0).any()
    Tent(s.Tent(steps=3)).finish(net, lambda: given)
    assert all(v.isfinite().all() for v in state(net).values())


def finished_task(components):
    made = DetectionTask(
        detector(), components, trainer=Trainer(steps=1), augmentation=Augmentation()
    )
    made.eval()
    return made


def target_images():
    images = (rand(4, 3, S, S) * 255).to(torch.uint8)
    return [UnlabelledBatch(images, torch.zeros(4, 3), torch.arange(4))]


def test_the_tested_weights_are_changed_for_one_device_and_then_as_before():
    made = finished_task([AdaBN(s.AdaBN()), Tent(s.Tent(steps=2))])
    assert made.finishes
    assert not finished_task([]).finishes
    tested, trained = state(made.tested), state(made.detector)
    assert made.tested is made.ema.network
    runs = []
    for _ in range(2):
        with made.finished(target_images):
            runs.append(state(made.tested))
        assert all(torch.equal(v, state(made.tested)[k]) for k, v in tested.items())
    assert any(not torch.equal(v, runs[0][k]) for k, v in tested.items())
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())  # repeatable
    assert all(torch.equal(v, state(made.detector)[k]) for k, v in trained.items())


def test_the_weights_come_back_also_after_an_error():
    class Broken(Component):
        finishes = True

        def finish(self, network, images):
            first_norm(network).running_mean.add_(1.0)
            raise RuntimeError("no")

    made = finished_task([Broken()])
    before = state(made.tested)
    with pytest.raises(RuntimeError, match="no"), made.finished(target_images):
        pass
    assert all(torch.equal(v, state(made.tested)[k]) for k, v in before.items())


class _Named(nn.Module):
    """A classifier of two types, dark and bright, that is never wrong."""

    def __init__(self, shown=(0.5, 0.5)):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.shown = torch.tensor(shown)
        self.eval()

    def forward(self, images):
        self.norm(images)
        return images.mean((1, 2, 3))

    def places(self, brightness):
        bright = (brightness > 0.5).float()
        return Places(torch.stack([1 - bright, bright], -1)[:, None], brightness)


def mixed_cells(dark):
    """Batches of 8 of which ``dark`` are dark, and an evenly mixed one of the same cells."""
    pictures = torch.cat([rand(8, 3, 4, 4) * 0.4, 0.6 + rand(8, 3, 4, 4, seed=1) * 0.4])
    return [torch.cat([pictures[:dark], pictures[8 : 16 - dark]])] * 2


def test_types_count_as_in_training_whatever_their_mix_on_the_target():
    given = mixed_cells(dark=6)
    image = given[0].mean((2, 3))
    even, uneven = (
        torch.stack([image[:6].mean(0), image[6:].mean(0)]).mul(torch.tensor(w)[:, None]).sum(0)
        for w in ([0.5, 0.5], [0.2, 0.8])
    )
    for shown, expected in (((0.5, 0.5), even), ((0.2, 0.8), uneven)):
        net = _Named(shown)
        AdaBN(s.AdaBN(rounds=1)).finish(net, lambda: given)
        torch.testing.assert_close(net.norm.running_mean, expected)
    plain = _Named()
    AdaBN(s.AdaBN()).finish(plain, lambda: given)
    torch.testing.assert_close(plain.norm.running_mean, image.mean(0))


def test_a_type_hardly_ever_named_does_not_outweigh_all_others():
    given = [torch.cat([rand(39, 3, 4, 4) * 0.4, 0.6 + rand(1, 3, 4, 4) * 0.4])]
    (weights,) = type_weights(_Named(), given)
    assert weights[-1] == 4.0  # and not 20
    torch.testing.assert_close(weights[:-1], torch.full((39,), 0.5 / (39 / 40)))


def test_each_round_takes_the_answers_of_the_round_before():
    net, given = _Named(), mixed_cells(dark=6)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(net.norm.running_mean.clone()))
    AdaBN(s.AdaBN(rounds=2)).finish(net, lambda: given)
    start, first = torch.zeros(3), calls[3]
    assert len(calls) == 8  # two batches are asked and two measured, twice
    assert torch.equal(calls[0], start)
    assert not torch.equal(first, start)
    torch.testing.assert_close(calls[4], first)


def test_what_a_classifier_was_shown_follows_its_sampling():
    counts = torch.tensor([6, 0, 2])
    for sampling, expected in (("balanced", [0.5, 0.0, 0.5]), ("natural", [0.75, 0.0, 0.25])):
        space = LabelSpace("three", ("a", "b", "c"))
        settings = Detector(kind="classifier", backbone="mobilenetv3_small_050")
        settings.classifier.sampling = sampling
        classifier = build_detector(settings, space, size=32)
        classifier.know(counts)
        assert classifier.shown.tolist() == expected


def test_weights_by_type_are_refused_for_fields():
    assert "cells of several" in s.refusal(s.AdaBN(rounds=2), "one_stage")
    assert s.refusal(s.AdaBN(rounds=2), "classifier") is None
    assert s.refusal(s.AdaBN(), "faster_rcnn") is None
