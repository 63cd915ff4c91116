"""Attribute heads on both detectors: losses by hand, what is missing, what reaches the backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adaptation_kit import KINDS, detector, draw, rand
from torch.nn import functional as F
from torchvision.ops import roi_align

from da_leukemia.config import Attributes, Detector
from da_leukemia.data.batches import Targets
from da_leukemia.errors import ConfigError
from da_leukemia.labels import LEUKEMIAATTRI, WBC
from da_leukemia.models.attributes import AttributeHead, PyramidHead
from da_leukemia.models.attridet import GRID, AttriDetHead
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.factory import build_detector, check_settings
from da_leukemia.models.losses import asymmetric_loss, class_balanced_weights
from da_leukemia.models.pooling import align_boxes

SIZES = (3, 2, 2)
LOSSES = ("cross_entropy", "class_balanced", "asymmetric")
HEADS = ("ours", "attridet")
SETTINGS = [
    Attributes(head=head, loss=loss, on_type=typed)
    for head, loss, typed in (
        ("ours", "cross_entropy", False),
        ("ours", "class_balanced", True),
        ("ours", "asymmetric", False),
        ("attridet", "asymmetric", False),
        ("attridet", "cross_entropy", True),
    )
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def net(kind="one_stage", attributes=None, **settings):
    made = detector(2, SIZES, kind=kind, attribute_settings=attributes, **settings)
    return made.train()


def labels(codes=((1, 0, 1), (2, 1, 0))):
    boxes = torch.tensor([[[4.0, 4, 30, 30], [20, 20, 60, 60], [0, 0, 0, 0]]]).repeat(2, 1, 1)
    attributes = torch.full((2, 3, len(SIZES)), -1)
    attributes[:, :2] = torch.tensor(codes)
    mask = torch.tensor([[True, True, False]]).repeat(2, 1)
    kinds = torch.tensor([[0, 1, -1]]).repeat(2, 1)
    return Targets(boxes, kinds, attributes, mask, torch.ones(2, 2, dtype=torch.bool))


def only_attributes(made, targets, **settings):
    outputs = made(rand(2, 3, 64, 64))
    return made.attribute_loss(outputs, targets, **settings)["attribute"]


def backbone_gradient(made):
    return [None if p.grad is None else p.grad.clone() for p in made.backbone.parameters()]


# --- the losses ----------------------------------------------------------------------------------


def test_the_asymmetric_loss_is_its_formula():
    logits = torch.linspace(-7, 7, 29, dtype=torch.float64)
    p = 1 / (1 + torch.exp(-logits))
    shifted = np.maximum(p.numpy() - 0.08, 0)
    yes = -((1 - p.numpy()) ** 1) * np.log(p.numpy())
    no = -(shifted**4) * np.log(1 - shifted)
    ones, zeros = torch.ones(29), torch.zeros(29)
    np.testing.assert_allclose(asymmetric_loss(logits, ones).numpy(), yes, rtol=1e-9)
    np.testing.assert_allclose(asymmetric_loss(logits, zeros).numpy(), no, rtol=1e-9, atol=1e-12)


def test_an_easy_negative_teaches_nothing_and_a_far_one_is_finite():
    logits = torch.tensor([-4.0, 0.0, 60.0, -60.0], requires_grad=True)
    asymmetric_loss(logits, torch.zeros(4)).sum().backward()
    assert logits.grad[[0, 3]].tolist() == [0, 0]  # probability below the clip
    assert logits.grad[1] > 0
    assert logits.grad.isfinite().all()
    again = torch.tensor([-60.0, 60.0], requires_grad=True)
    asymmetric_loss(again, torch.ones(2)).sum().backward()
    assert again.grad.isfinite().all()


def test_class_balanced_weights_are_those_of_the_paper():
    counts = torch.tensor([900, 100, 0])
    effective = [(1 - 0.999**n) / (1 - 0.999) for n in (900, 100)]
    raw = np.array([1 / e for e in effective])
    expected = [*(raw / raw.sum() * 2), 0.0]
    np.testing.assert_allclose(class_balanced_weights(counts), expected, rtol=1e-6)
    assert class_balanced_weights(torch.tensor([-1, -1])).tolist() == [1, 1]
    assert class_balanced_weights(torch.tensor([0, 0])).tolist() == [0, 0]


def one_by_one(head, logits, truth):
    """The loss of a head, value by value."""
    total = 0.0
    first = 0
    for column in head.read:
        size = SIZES[column]
        losses = []
        for row in range(len(truth)):
            code, own = int(truth[row, column]), logits[row, first : first + size].double()
            if code < 0:
                continue
            if head.loss_kind == "asymmetric":
                asked = [asymmetric_loss(z, torch.tensor(i == code)) for i, z in enumerate(own)]
                losses.append(float(sum(asked)))
                continue
            weight = 1.0
            if head.loss_kind == "class_balanced":
                weight = float(class_balanced_weights(head.counts[column, :size])[code])
            losses.append(-weight * float(own.log_softmax(0)[code]))
        total += sum(losses) / max(len(losses), 1)
        first += size
    return total / len(head.read)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_each_loss_is_the_mean_over_what_is_known(head, loss):
    kinds = {"ours": lambda: PyramidHead(16, SIZES, loss=loss)}
    kinds["attridet"] = lambda: AttriDetHead((8, 8), SIZES, loss=loss)
    made: AttributeHead = kinds[head]()
    made.know(torch.tensor([[5, 40, 9], [30, 2, 0], [7, 8, 0]]))
    truth = torch.tensor([[0, 1, -1], [2, -1, 1], [-1, 0, 0], [1, 1, -1]])
    logits = rand(4, sum(made.widths), seed=3) * 6 - 3
    given = made.loss(logits.unsqueeze(0), truth.unsqueeze(0))
    assert float(given) == pytest.approx(one_by_one(made, logits, truth), rel=1e-5)
    nothing = made.loss(logits.unsqueeze(0), torch.full_like(truth, -1).unsqueeze(0))
    assert float(nothing) == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_a_missing_value_gives_no_gradient_and_its_neighbours_do(head, loss):
    made = net(attributes=Attributes(head=head, loss=loss)).attributes
    made.know(torch.tensor([[5, 5, 5], [5, 5, 0], [5, 5, 0]]))
    for column in made.read:
        for cell in range(2):
            logits = torch.zeros(1, 2, sum(made.widths), requires_grad=True)
            truth = torch.zeros(1, 2, len(SIZES), dtype=torch.long)
            truth[0, cell, column] = -1
            made.loss(logits, truth).backward()
            parts = dict(zip(made.read, logits.grad[0].split(list(made.widths), -1), strict=True))
            for other, part in parts.items():
                moved = part.abs().amax(-1) > 0
                assert moved.tolist() == [not (other == column and c == cell) for c in range(2)]


# --- what training holds -------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_a_constant_attribute_is_not_learned_and_has_no_answer(head):
    made = net(attributes=Attributes(head=head)).attributes
    made.know(torch.tensor([[5, 5, 5], [0, 9, 0], [4, 6, 0]]))
    logits = torch.zeros(1, 2, sum(made.widths), requires_grad=True)
    made.loss(logits, torch.ones(1, 2, 3, dtype=torch.long)).backward()
    parts = dict(zip(made.read, logits.grad.split(list(made.widths), -1), strict=True))
    assert not parts[1].any()
    assert parts[2].any()
    answers = [p.sum(-1) for p in made.probabilities(logits).detach().split(list(SIZES), -1)]
    read = 1.0 if head == "ours" else 0.0  # Cell Size has three values
    assert [a.flatten().tolist() for a in answers] == [[read] * 2, [0, 0], [1, 1]]


def test_what_was_learned_before_stays_answered():
    first, second = PyramidHead(16, SIZES), PyramidHead(16, SIZES)
    first.know(torch.tensor([[5, 5, 5], [0, 9, 0], [4, 6, 0]]))
    second.load_state_dict(first.state_dict())
    second.know(torch.tensor([[0, 0, 0], [3, 3, 0], [0, 1, 0]]))  # fine-tuned on other labels
    assert second.answers.tolist() == [True, True, True]
    assert second.learned.tolist() == [False, True, False]
    third = PyramidHead(16, SIZES)
    third.know(torch.tensor([[0, 0, 0], [3, 3, 0], [0, 1, 0]]))
    assert third.answers.tolist() == [False, True, False]


def test_weights_from_before_the_counts_still_load():
    head = PyramidHead(16, SIZES)
    old = {k: v for k, v in head.state_dict().items() if k.startswith(("body", "classify"))}
    fresh = PyramidHead(16, SIZES)
    fresh.load_state_dict(old)
    assert torch.equal(fresh.classify.weight, head.classify.weight)
    assert fresh.answers.all()


@pytest.mark.parametrize("loss", LOSSES)
def test_probabilities_are_shares_of_each_attribute(loss):
    head = PyramidHead(16, SIZES, loss=loss)
    logits = rand(2, 3, sum(SIZES), seed=1) * 8 - 4
    parts = head.probabilities(logits).split(list(SIZES), -1)
    for part, own in zip(parts, logits.split(list(SIZES), -1), strict=True):
        torch.testing.assert_close(part.sum(-1), torch.ones(2, 3))
        assert torch.equal(part.argmax(-1), own.argmax(-1))


# --- AttriDet's ----------------------------------------------------------------------------------


def test_attridet_reads_the_six_binary_attributes_from_two_backbone_levels():
    settings = Detector(backbone="mobilenetv3_small_050", channels=16, depth=1)
    settings.attributes = Attributes(head="attridet", loss="asymmetric")
    made = build_detector(settings, LEUKEMIAATTRI).eval()
    head = made.attributes
    assert isinstance(head, AttriDetHead)
    assert [LEUKEMIAATTRI.attributes[c].name for c in range(7) if c not in head.read] == [
        "cell_size"
    ]
    assert head.classify.out_features == 12
    assert [layer.out_features for layer in head.hidden] == [1024, 256]
    assert [block[0].out_channels for block in head.body] == [128, 64, 64]
    outputs = made(rand(2, 3, 64, 64))
    assert [m.shape[-1] for m in outputs.shallow] == [16, 8]  # strides 4 and 8 of the backbone
    assert head.body[0][0].in_channels == sum(m.shape[1] for m in outputs.shallow)
    assert made.decode(outputs).attributes.shape[-1] == sum(LEUKEMIAATTRI.attribute_sizes)


@pytest.mark.parametrize(("stride", "grid"), [(4, (24, 30)), (8, (7, 7)), (16, (1, 2))])
def test_a_grid_and_its_gradient_are_torchvisions_roialign(stride, grid):
    """Inside, across the border, wholly outside, smaller than a pixel, without area."""
    boxes = torch.tensor(
        [
            [[3.0, 9, 90, 61], [-20, -8, 33, 40], [70, 50, 140, 130], [0, 0, 0, 0]],
            [[200, 8, 260, 40], [40.2, 40.1, 40.6, 40.9], [0, 0, 128, 96], [-90, 0, -60, 50]],
        ]
    )
    rois = torch.cat([torch.arange(2.0).repeat_interleave(4)[:, None], boxes.flatten(0, 1)], 1)
    weight = rand(8, 3, *grid, seed=5)
    found, wanted = [], []
    for out, pool in (
        (found, lambda m: align_boxes(m, boxes, stride, grid)),
        (wanted, lambda m: roi_align(m, rois, grid, 1 / stride, 2, aligned=True)),
    ):
        feature = rand(2, 3, 96 // stride, 128 // stride).requires_grad_()
        pooled = pool(feature)
        (pooled * weight).sum().backward()
        out += [pooled.detach(), feature.grad]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found[0][:3].amax(dim=(1, 2, 3)).min() > 0.3  # they do look at something
    half = align_boxes(rand(2, 3, 96 // stride, 128 // stride).bfloat16(), boxes, stride, grid)
    assert half.dtype is torch.float32


def test_attridets_roialign_samples_both_levels_under_the_box():
    made = net(attributes=Attributes(head="attridet")).eval()
    head, outputs = made.attributes, made(rand(1, 3, 64, 64))
    boxes = torch.tensor([[[5.0, 9, 41, 33]]])
    rois = F.pad(boxes[0], (1, 0))
    pooled = [
        roi_align(m, rois, (24, 30), 1 / stride, 2, aligned=True)
        for m, stride in zip(outputs.shallow, (4, 8), strict=True)
    ]
    x = torch.cat(pooled, 1)
    assert x.shape[2:] == GRID
    for block in head.body:
        x = F.max_pool2d(F.leaky_relu(F.conv2d(x, block[0].weight, block[0].bias, padding=1)), 2)
    torch.testing.assert_close(made.attribute_features(outputs, boxes)[0], x.flatten(1))


def test_many_boxes_at_test_are_read_in_parts(monkeypatch):
    from da_leukemia.models import attridet

    made = net(attributes=Attributes(head="attridet")).eval()
    outputs = made(rand(2, 3, 64, 64))
    low = rand(2, 9, 2, seed=1) * 30
    boxes = torch.cat([low, low + 20], -1)
    with torch.no_grad():
        whole = made.attributes_at(outputs, boxes)
        monkeypatch.setattr(attridet, "_CHUNK", 4)
        torch.testing.assert_close(made.attributes_at(outputs, boxes), whole)


def test_dropout_follows_the_numbers_it_is_given():
    made = net(attributes=Attributes(head="attridet"))
    made.eval()
    outputs = made(rand(2, 3, 64, 64))
    made.attributes.train()
    boxes = labels().boxes

    def read(step):
        return made.attributes_at(outputs, boxes, None if step is None else draw(step)).detach()

    state = torch.random.get_rng_state()
    assert torch.equal(read(0), read(0))
    assert not torch.equal(read(0), read(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(read(None), read(None))
    made.attributes.eval()
    assert torch.equal(read(0), read(None))


def test_a_backbone_without_the_maps_is_refused():
    settings = Detector(backbone="vit_tiny_patch16_224", strides=[16])
    settings.attributes.head = "attridet"
    with pytest.raises(ConfigError, match=r"head=attridet: 'vit_tiny.*no map at stride"):
        check_settings(settings)
    with pytest.raises(ConfigError, match=r"no map at stride \[3\]"):
        Backbone("mobilenetv3_small_050", (8, 16)).also((3,), "detector.attributes.head")


# --- both detectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attributes", SETTINGS, ids=lambda a: f"{a.head}-{a.loss}-{a.on_type}")
def test_every_head_learns_on_both_detectors(kind, attributes):
    made = net(kind, attributes, attribute_gradient=1.0)
    made.attributes.know(torch.tensor([[5, 5, 5], [5, 4, 0], [5, 4, 0]]))
    optimiser = torch.optim.Adam(made.attributes.parameters(), lr=3e-3)
    course = []
    for step in range(12):
        losses = made.loss(made(rand(2, 3, 64, 64)), labels(), draw=draw(step))
        course.append(float(losses["attribute"].detach()))
        optimiser.zero_grad()
        losses["attribute"].backward()
        optimiser.step()
    assert any(g is not None and g.any() for g in backbone_gradient(made))
    assert min(course[-3:]) < 0.8 * course[0]
    found = made.eval().decode(made(rand(2, 3, 64, 64)))
    sums = torch.stack([p.sum(-1) for p in found.attributes.split(list(SIZES), -1)], -1)
    size = 1.0 if attributes.head == "ours" else 0.0
    torch.testing.assert_close(sums, torch.tensor([size, 1.0, 1.0]).expand_as(sums))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_with_gradient_zero_detector_and_backbone_learn_as_without_attributes(kind, head):
    with_head = net(kind, Attributes(head=head, on_type=True), attribute_gradient=0.0).eval()
    without = net(kind, attribute_weight=0.0).eval()
    shared = {k: v for k, v in with_head.state_dict().items() if not k.startswith("attributes")}
    without.load_state_dict(shared)
    for made in (with_head, without):
        losses = made.loss(made(rand(2, 3, 64, 64)), labels(), draw=draw())
        torch.stack(list(losses.values())).sum().backward()
    named = dict(with_head.named_parameters())
    for name, parameter in without.named_parameters():
        assert torch.equal(named[name].grad, parameter.grad), name
    assert named["attributes.classify.weight"].grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_that_reaches_the_backbone_is_the_share_asked_for(kind, head):
    found = {}
    for share in (1.0, 0.25):
        made = net(kind, Attributes(head=head), attribute_gradient=share).eval()
        only_attributes(made, labels()).backward()
        found[share] = [g for g in backbone_gradient(made) if g is not None]
    assert any(g.any() for g in found[1.0])
    for whole, part in zip(found[1.0], found[0.25], strict=True):
        torch.testing.assert_close(part, whole * 0.25, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_the_type_is_the_detectors_own_in_training_and_at_test(kind, head):
    made = net(kind, Attributes(head=head, on_type=True), attribute_gradient=0.0).eval()
    outputs = made(rand(2, 3, 64, 64))
    boxes = labels().boxes[:, :2]
    plain = made.attributes_at(outputs, boxes)
    with torch.no_grad():
        made.attributes.on_type.weight.copy_(rand(*made.attributes.on_type.weight.shape))
    told = made.attributes_at(outputs, boxes)
    scores = made.class_scores(outputs, boxes)
    expected = (scores / scores.sum(-1, keepdim=True)) @ made.attributes.on_type.weight.T
    torch.testing.assert_close(told - plain, expected, atol=1e-5, rtol=1e-4)
    # True types change nothing of what is read, and no gradient reaches the class scores.
    other = labels()
    other.labels[:, :2] = other.labels[:, :2].flip(1)
    losses = [made.attribute_loss(outputs, given)["attribute"] for given in (labels(), other)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(p.grad is None for p in made.head.parameters())
    assert made.attributes.on_type.weight.grad.any()


@pytest.mark.parametrize("head", ["ours", "attridet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crowded_field_costs_a_fixed_number_of_cells_and_known_ones_come_first(kind, head):
    made = net(kind, Attributes(head=head)).eval()
    outputs, few = made(rand(2, 3, 64, 64)), labels()
    padded = Targets(
        F.pad(few.boxes, (0, 0, 0, 40)),
        F.pad(few.labels, (0, 40), value=-1),
        F.pad(few.attributes, (0, 0, 0, 40), value=-1),
        F.pad(few.mask, (0, 40)),
        few.classes,
    )
    seen = []
    made.attributes.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    losses = [made.attribute_loss(outputs, t)["attribute"] for t in (few, padded)]
    torch.testing.assert_close(*losses)
    assert seen[1].shape[1] == made.attributes.most
    crowded = padded
    low = rand(2, 43, 2, seed=4) * 30
    crowded.boxes = torch.cat([low, low + 15], -1)
    crowded.labels[:], crowded.mask[:], crowded.attributes[:] = 0, True, 1
    for step in range(40):
        made.attribute_loss(outputs, crowded, draw(step))
    drawn = torch.cat(seen[2:], 1)[0]
    assert {tuple(b) for b in drawn.tolist()} == {tuple(b) for b in crowded.boxes[0].tolist()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_batch_takes_its_shallow_maps_along(kind):
    made = net(kind, Attributes(head="attridet")).eval()
    outputs = made(rand(3, 3, 64, 64))
    boxes = labels().boxes[:1, :2]
    alone = made.attributes_at(outputs.select(slice(2, 3)), boxes)
    together = made.attributes_at(outputs, boxes.repeat(3, 1, 1))
    torch.testing.assert_close(alone[0], together[2])


def test_the_default_head_is_as_before():
    settings = Detector(backbone="mobilenetv3_small_050", channels=16, depth=1)
    head = build_detector(settings, WBC).attributes
    assert isinstance(head, PyramidHead)
    assert (head.loss_kind, head.needs_types, head.gradient) == ("cross_entropy", False, 0.1)
