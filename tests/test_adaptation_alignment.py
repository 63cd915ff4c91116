"""Distances without a discriminator, prototypes, and the two newer appearances."""

from __future__ import annotations

import kornia
import pytest
import torch
from adaptation_kit import anyone, context, detector, draw, number, rand
from test_adaptation_adversarial import SEEN, TRUE, cells, view

from da_leukemia.adaptation import settings as s
from da_leukemia.adaptation.alignment import Compared, Coral, Mmd, coral, mmd
from da_leukemia.adaptation.appearance import (
    DYES,
    Reinhard,
    StainJitter,
    jitter_dyes,
    match_lab,
)
from da_leukemia.adaptation.build import build_components
from da_leukemia.adaptation.prototypes import Prototypes
from da_leukemia.adaptation.settings import Method
from da_leukemia.config import Data, Domain, Experiment, complete
from da_leukemia.data.batches import Targets
from da_leukemia.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compared(source, target, one=None, other=None):
    ones = torch.ones(len(source), 1), torch.ones(len(target), 1)
    return Compared(
        source, target, ones[0] if one is None else one, ones[1] if other is None else other
    )


# --- distances ---------------------------------------------------------------------------------


def mmd_by_hand(source, target, width):
    def kernel(a, b):
        gap = float((a - b).square().sum())
        return sum(torch.exp(torch.tensor(-gap / (width * f))) for f in (0.25, 0.5, 1, 2, 4)) / 5

    def mean(first, second):
        values = [kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(second)
                  if first is not second or i != j]  # fmt: skip
        return sum(values) / len(values)

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


def test_mmd_is_the_mean_of_kernels_over_pairs():
    source, target = normal(5, 3), normal(4, 3, seed=1) + 0.5
    x = torch.cat([source, target])
    pairs = [(a - b).square().sum() for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    wanted = mmd_by_hand(source, target, float(torch.stack(pairs).mean()))
    torch.testing.assert_close(mmd(compared(source, target)), wanted, atol=1e-5, rtol=1e-4)


def test_coral_is_the_distance_of_the_covariances():
    source, target = normal(9, 3), normal(7, 3, seed=1) * torch.tensor([1.0, 2.0, 0.5])
    wanted = (source.T.cov() - target.T.cov()).square().sum() / (4 * 9)
    torch.testing.assert_close(coral(compared(source, target)), wanted)
    torch.testing.assert_close(coral(compared(source + 3, target)), wanted)  # the mean has no say


@pytest.mark.parametrize("distance", [mmd, coral])
def test_a_distance_is_small_for_one_device_large_for_two_and_falls_down_its_gradient(distance):
    source, same = normal(200, 4), normal(200, 4, seed=1)
    apart = (normal(200, 4, seed=2) * 2 + 1).requires_grad_()
    far = distance(compared(source, apart))
    assert float(distance(compared(source, same))) < 0.1 * number(far)
    far.backward()
    with torch.no_grad():
        moved = apart - 0.1 * apart.grad / apart.grad.norm()
        assert float(distance(compared(source, moved))) < number(far)


@pytest.mark.parametrize("distance", [mmd, coral])
def test_places_without_a_cell_have_no_say(distance):
    source, target = normal(6, 3), normal(5, 3, seed=1) + 1
    filled = [torch.cat([x, 100 * normal(4, 3, seed=9)]).requires_grad_() for x in (source, target)]
    members = [torch.cat([torch.ones(n, 1), torch.zeros(4, 1)]) for n in (6, 5)]
    found = distance(compared(*filled, *members))
    torch.testing.assert_close(found, distance(compared(source, target)))
    found.backward()
    assert not filled[0].grad[6:].any()
    assert not filled[1].grad[5:].any()


def test_by_class_the_share_of_a_class_does_not_matter():
    """Nine of the one and three of the other against three and nine, each class alike."""
    first, second = normal(12, 3), normal(12, 3, seed=1) * 0.5 + 4
    source, target = torch.cat([first[:9], second[:3]]), torch.cat([first[:3], second[:9]])
    kinds = torch.tensor([0] * 9 + [1] * 3), torch.tensor([0] * 3 + [1] * 9)
    one, other = (torch.nn.functional.one_hot(k, 3).float() for k in kinds)
    by_class = mmd(compared(source, target, one, other))
    assert abs(float(by_class)) < 0.5 * float(mmd(compared(source, target)))


@pytest.mark.parametrize("kind", [Mmd, Coral])
@pytest.mark.parametrize("features", ["regions", "map"])
def test_alignment_of_the_student(kind, features):
    given = getattr(s, kind.__name__)(weight=1.0, ramp=0.0, features=features, by_class=False)
    component = kind(given, 2)
    source, target = view(), view(1, peaks=[*SEEN, (0, 40, 0, 2.0)])
    loss = component.losses(context(source, target, labels=TRUE))[kind.__name__.lower()]
    loss.backward()
    for outputs in (source, target):
        assert outputs.features[0].grad.any()
        assert bool(outputs.features[2].grad.any()) == (features == "map")
    with torch.no_grad():
        for feature in (*source.features, *target.features):
            feature -= 0.05 * feature.grad / feature.grad.norm().clamp(min=1e-9)
        after = component.losses(context(source, target, labels=TRUE))[kind.__name__.lower()]
    assert number(after) < number(loss)


@pytest.mark.parametrize("kind", [Mmd, Coral])
@pytest.mark.parametrize("net", ["one_stage", "faster_rcnn"])
def test_alignment_of_what_attributes_are_read_from(kind, net):
    given = getattr(s, kind.__name__)(weight=1.0, ramp=0.0, features="attributes", threshold=0.0)
    given.by_class = False
    student = detector(kind=net).train()
    source, target = (student(rand(2, 3, 64, 64, seed=i)) for i in (0, 1))
    boxes = torch.tensor([[[4.0, 4, 30, 30], [20, 20, 60, 60]]]).repeat(2, 1, 1)
    labels = Targets(
        boxes,
        torch.zeros(2, 2, dtype=torch.long),
        torch.zeros(2, 2, 2, dtype=torch.long),
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(2, 2, dtype=torch.bool),
    )
    step = context(source, target, net=student, labels=labels)
    loss = kind(given, 2).losses(step)[kind.__name__.lower()]
    loss.backward()
    head = student.attributes
    assert head.body[0][0].weight.grad.any()
    assert head.classify.weight.grad is None  # it is the features that are compared
    assert any(p.grad is not None and p.grad.any() for p in student.backbone.parameters())
    embedded = student.attribute_features(source, boxes)
    torch.testing.assert_close(head.classify(embedded), student.attributes_at(source, boxes))


def test_features_of_attributes_need_an_attribute_head():
    method = Method(components=[{"name": "mmd", "features": "attributes"}])
    made = Experiment(
        data=Data(domains={"a": Domain(), "b": Domain()}), methods=["m"], adaptations={"m": method}
    )
    complete(made)
    made.detector.attribute_weight = 0.0
    with pytest.raises(ConfigError, match="no attribute head"):
        complete(made)


def all_alignment():
    return {
        "mmd": Mmd(s.Mmd(weight=1.0, ramp=0.0), 2),
        "coral": Coral(s.Coral(weight=1.0, ramp=0.0), 2),
        "prototypes": Prototypes(s.Prototypes(weight=1.0, ramp=0.0), 4, 2),
    }


@pytest.mark.parametrize("name", ["mmd", "coral", "prototypes"])
@pytest.mark.parametrize("labels", [TRUE, cells([], [])], ids=["labels", "none"])
def test_a_target_without_a_confident_detection_teaches_nothing(name, labels):
    source, target = view(), view(1)
    loss = all_alignment()[name].losses(context(source, target, labels=labels))[name]
    assert number(loss) == 0
    loss.backward()
    for feature in (*source.features, *target.features):
        assert feature.grad is None or not feature.grad.any()  # neither NaN nor anything


@pytest.mark.parametrize("name", ["mmd", "coral", "prototypes"])
def test_the_weight_rises_with_the_schedule(name):
    component = all_alignment()[name]
    component.settings.ramp = 1.0
    source, target = view(), view(1, peaks=[*SEEN, (0, 40, 1, 2.0), (1, 40, 1, 2.0)])
    at = [
        number(component.losses(context(source, target, labels=TRUE, progress=p))[name])
        for p in (0.0, 1.0)
    ]
    assert at[0] == 0 != at[1]


# --- prototypes --------------------------------------------------------------------------------


def prototypes(**settings):
    return Prototypes(s.Prototypes(**{"weight": 1.0, "ramp": 0.0, **settings}), 4, 2)


def test_the_ground_is_what_lies_outside_all_cells():
    outputs = view()
    targets = cells([[0.0, 0, 64, 33]], [[0.0, 0, 64, 64]])
    targets.labels[0] = -1  # not even a cell of unknown type is ground
    lower = [f[0, :, n:].flatten(1) for f, n in zip(outputs.features, (4, 2, 1), strict=True)]
    torch.testing.assert_close(
        anyone().ground_feature(outputs, targets), torch.cat(lower, 1).mean(1).detach()
    )


def test_prototypes_follow_the_labelled_cells_and_not_the_target():
    component = prototypes(momentum=0.75)
    source, target = view(), view(1, peaks=SEEN)
    component.losses(context(source, target, labels=cells([[8.0, 8, 24, 24]], [])))
    assert component.seen.tolist() == [True, False, True]
    first = component.prototypes.clone()
    assert torch.allclose(first[[0, 2]].norm(dim=1), torch.ones(2))
    assert not first[1].any()
    component.losses(context(source, view(7, peaks=SEEN), labels=cells([[8.0, 8, 24, 24]], [])))
    torch.testing.assert_close(component.prototypes[:2], first[:2])
    other = view(5)
    component.losses(context(other, target, labels=cells([[8.0, 8, 24, 24]], [])))
    fresh = prototypes()
    fresh.losses(context(other, target, labels=cells([[8.0, 8, 24, 24]], [])))
    wanted = torch.nn.functional.normalize(0.75 * first[0] + 0.25 * fresh.prototypes[0], dim=0)
    torch.testing.assert_close(component.prototypes[0], wanted)
    assert not component.prototypes.requires_grad


def test_cells_of_the_target_are_drawn_to_their_class_and_off_the_other():
    component = prototypes()
    component.seen[:] = True
    component.prototypes.copy_(torch.eye(4)[:3])
    target = view(1, peaks=SEEN)
    features = torch.nn.functional.normalize(rand(6, 4), dim=1).requires_grad_()
    labels, mask = torch.tensor([0, 0, 1, 1, 0, 1]), torch.tensor([True] * 4 + [False] * 2)
    component._contrast(features, labels, mask).backward()
    moved = -features.grad
    for cell, kind in enumerate(labels[:4].tolist()):
        assert moved[cell, kind] > 0
        assert moved[cell, 1 - kind] < 0
        assert moved[cell, 2] < 0
    assert not moved[4:].any()
    source = view()
    component.losses(context(source, target, labels=TRUE))["prototypes"].backward()
    assert source.features[0].grad.any()
    assert target.features[0].grad.any()


def test_a_class_that_the_source_never_showed_pulls_nobody():
    component = prototypes()
    target = view(1, peaks=[(0, 9, 1, 3.0)])
    labels = cells([[8.0, 8, 24, 24]], [])  # class 0 alone
    component.losses(context(view(), target, labels=labels))["prototypes"].backward()
    assert not target.features[0].grad.any()


@pytest.mark.parametrize("kind", ["one_stage", "faster_rcnn"])
def test_prototypes_of_what_attributes_are_read_from(kind):
    net = detector(sizes=(2, 3), kind=kind)
    method = s.Method(
        components=[{"name": "prototypes", "features": "attributes", "threshold": 0.0, "ramp": 0.0}]
    )
    (component,) = build_components(method, net)
    seen = net(rand(2, 3, 64, 64)), net(rand(2, 3, 64, 64, seed=1))
    loss = component.losses(context(*seen, labels=TRUE, net=net))["prototypes"]
    loss.backward()
    assert component.seen.tolist() == [True, True, False]  # there is no ground among attributes
    assert component.prototypes.shape[1] == net.attributes.embedded
    assert any(p.grad is not None and p.grad.any() for p in net.attributes.parameters())


def test_prototypes_are_part_of_the_checkpoint():
    assert {"prototypes", "seen"} <= prototypes().state_dict().keys()


def test_alignment_computes_in_float32_under_bf16():
    net = detector()
    parts = [{"name": n, "threshold": 0.0, "ramp": 0.0} for n in ("mmd", "coral", "prototypes")]
    parts += [{"name": n, "features": "map"} for n in ("mmd", "coral")]
    built = build_components(s.Method(components=parts), net)
    with torch.autocast("cpu", torch.bfloat16):
        seen = net(rand(2, 3, 64, 64))
        for component in built:
            for name, loss in component.losses(context(seen, seen, labels=TRUE)).items():
                assert loss.dtype == torch.float32, name
                assert loss.isfinite()


# --- appearance --------------------------------------------------------------------------------


def test_reinhard_takes_mean_and_spread_in_lab():
    source, target = rand(2, 3, 24, 24) * 0.3 + 0.3, rand(2, 3, 24, 24, seed=1) * 0.2 + 0.45
    matched, wanted = (kornia.color.rgb_to_lab(x) for x in (match_lab(source, target), target))
    for found, goal in zip(
        torch.std_mean(matched, (2, 3)), torch.std_mean(wanted, (2, 3)), strict=True
    ):
        torch.testing.assert_close(found, goal, atol=0.5, rtol=0.02)
    torch.testing.assert_close(match_lab(source, source), source, atol=1e-3, rtol=0)
    flat = match_lab(torch.full((1, 3, 8, 8), 0.5), target[:1, :, :8, :8])
    assert flat.isfinite().all()
    assert float(flat.std((2, 3)).max()) < 1e-3  # no noise where there was none


def test_jitter_of_one_dye_changes_that_dye_alone():
    dyes = torch.tensor(DYES)
    dyes = dyes / dyes.norm(dim=1, keepdim=True)
    amounts = rand(2, 3, 6, 6) * 0.4

    def stained(of):
        return 10 ** -torch.einsum("bdhw,dc->bchw", of, dyes)

    factor = torch.tensor([[1.5, 1.0, 1.0], [1.0, 0.5, 1.0]])
    shift = torch.tensor([[0.0, 0.0, 0.05], [0.0, 0.0, 0.0]])
    wanted = stained(amounts * factor[..., None, None] + shift[..., None, None])
    torch.testing.assert_close(jitter_dyes(stained(amounts), dyes, factor, shift), wanted)
    image = rand(1, 3, 6, 6).clamp(min=0.05)
    none = jitter_dyes(image, dyes, torch.ones(1, 3), torch.zeros(1, 3))
    torch.testing.assert_close(none, image)
    ground = jitter_dyes(torch.ones(1, 3, 4, 4), dyes, factor[:1] * 2, torch.zeros(1, 3))
    torch.testing.assert_close(ground, torch.ones(1, 3, 4, 4))  # no dye, nothing to vary


def test_the_target_has_no_part_in_stain_jitter():
    component = StainJitter(s.StainJitter(probability=0.5))
    source = rand(64, 3, 8, 8)
    one = component.restyle(source, rand(64, 3, 8, 8, seed=1), draw())
    assert torch.equal(one, component.restyle(source, rand(64, 3, 8, 8, seed=2), draw()))
    assert not s.StainJitter.targeted


@pytest.mark.parametrize(
    "component",
    [Reinhard(s.Reinhard(probability=0.5)), StainJitter(s.StainJitter(probability=0.5))],
)
def test_a_share_of_the_source_is_restyled(component):
    source, target = rand(64, 3, 8, 8), rand(64, 3, 8, 8, seed=1) * 0.5
    kept = target.clone()
    out = component.restyle(source, target, draw())
    assert 0.3 < float((out != source).flatten(1).any(1).float().mean()) < 0.7
    assert torch.equal(target, kept)
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(out, component.restyle(source, target, draw()))
    assert not torch.equal(out, component.restyle(source, target, draw(1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(out, component.restyle(source, target, draw()))
