"""Faster R-CNN: losses against torchvision's own, what it must not learn, what it answers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from adaptation_kit import detector, draw, number, rand
from test_models_detector import CELLS, drawn_fields, random_images, targets_of
from torch.nn import functional as F
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork

from da_leukemia.config import Detector, TwoStage
from da_leukemia.config.check import ranges
from da_leukemia.config.together import check_detector
from da_leukemia.data.batches import Targets
from da_leukemia.labels import LEUKEMIAATTRI
from da_leukemia.models.base import Detections
from da_leukemia.models.ema import MovingAverage
from da_leukemia.models.factory import build_detector
from da_leukemia.models.region_head import RegionHead
from da_leukemia.models.sampling import Match, match, sample

SIZES = (2, 3)
FIELDS = tuple([(box, label) for box, label, _ in field] for field in CELLS)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(classes=3, sizes=(), **settings):
    return detector(classes, sizes, kind="faster_rcnn", **settings).eval()


def boxes_at(count, seed):
    low = rand(count, 2, seed=seed) * 60
    return torch.cat([low, low + 4 + rand(count, 2, seed=seed + 100) * 40], 1)


# --- matching and sampling ---------------------------------------------------------------------


@pytest.mark.parametrize("claim", [False, True])
def test_matching_is_torchvisions(claim):
    targets = targets_of(*FIELDS, padded=6)
    # The second cell has no good candidate, and is nobody's unless it claims the best there is.
    far = boxes_at(300, 0)
    far = far[ops.box_iou(far, targets.boxes[0, 1:2])[:, 0] < 0.5]
    candidates = torch.cat([far, targets.boxes[0, :1], targets.boxes[1, :1] + 3])
    found = match(candidates.unsqueeze(0), targets, 0.6, 0.4, claim)
    assert (found.box[0][found.positive[0]] == 1).any() == claim
    reference = Matcher(0.6, 0.4, allow_low_quality_matches=claim)
    for row in range(2):
        truth = targets.boxes[row][targets.mask[row]]
        index = reference(ops.box_iou(truth, candidates))
        assert torch.equal(found.positive[row], index >= 0)
        assert torch.equal(found.background[row], index == Matcher.BELOW_LOW_THRESHOLD)
        positive = index >= 0
        assert torch.equal(found.box[row][positive], index[positive])
        assert (index == Matcher.BETWEEN_THRESHOLDS).any()
        assert positive.any()
    assert found.background[2].all()  # no cell there


def test_a_cell_of_unknown_type_or_of_an_unlabelled_class_is_no_background():
    targets = targets_of([((10, 10, 50, 50), -1), ((60, 60, 90, 90), 2)], padded=3)
    targets.classes[0, 2] = False
    candidates = torch.tensor(
        [[12.0, 12, 50, 50], [20, 20, 30, 30], [61, 61, 90, 90], [0, 60, 30, 90], [48, 48, 70, 62]]
    )
    found = match(candidates.unsqueeze(0), targets, 0.7, 0.3)
    assert not found.positive.any()
    assert found.background[0].tolist() == [False, False, False, True, True]


def test_a_sample_has_its_share_of_positives_and_background_fills_the_rest():
    positive = torch.zeros(3, 100, dtype=torch.bool)
    positive[0, :50], positive[1, :3] = True, True
    background = ~positive
    background[2, 10:] = False
    found = Match(positive, positive.long(), background)
    seen = set()
    for step in range(40):
        index, chosen = sample(found, 20, 0.5, draw(step))
        kinds = positive.gather(1, index) & chosen
        assert kinds.sum(1).tolist() == [10, 3, 0]
        assert chosen.sum(1).tolist() == [20, 20, 10]
        assert all(
            len(set(row[m].tolist())) == int(m.sum()) for row, m in zip(index, chosen, strict=True)
        )
        assert background.gather(1, index)[chosen & ~kinds].all()
        seen |= set(index[0, :10].tolist())
    assert seen == set(range(50))


def test_what_is_sampled_follows_the_generator_it_is_given_and_no_other():
    net, targets = tiny(), targets_of(*FIELDS)
    outputs = net(random_images(3))

    def loss(step):
        return torch.stack(list(net.loss(outputs, targets, draw=draw(step)).values())).detach()

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = loss(0)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(7)
    assert torch.equal(first, loss(0))
    assert not torch.equal(first, loss(1))
    # Another device in the batch moves nothing on the source.
    both = net(torch.cat([random_images(3), random_images(2, seed=9)])).select(slice(0, 3))
    again = torch.stack(list(net.loss(both, targets, draw=draw(0)).values())).detach()
    torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-4)


# --- the losses against torchvision's ----------------------------------------------------------


def everything(net):
    """A detector whose samples are all there is, so that there is no chance in the loss."""
    net.sampled = 10_000
    return net


def as_list(targets):
    return [
        {"boxes": targets.boxes[row][m], "labels": targets.labels[row][m]}
        for row, m in enumerate(targets.mask)
    ]


def region_proposals(net, **settings):
    given = {
        "fg_iou_thresh": 0.7,
        "bg_iou_thresh": 0.3,
        "batch_size_per_image": 10_000,
        "positive_fraction": 1.0,
        "pre_nms_top_n": {"training": 256, "testing": 256},
        "post_nms_top_n": {"training": net.proposals, "testing": net.proposals},
        "nms_thresh": 0.7,
    }
    return RegionProposalNetwork(net.head.anchors, net.head.propose, **(given | settings)).eval()


def shaken(net, spread=0.3):
    """Weights that say something: untrained ones score all anchors nearly alike."""
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in (net.head.propose.cls_logits, net.head.propose.bbox_pred):
            layer.weight.normal_(std=spread)
        net.head.score.weight.normal_(std=spread)
        net.head.shift.weight.normal_(std=spread)
    return net


def test_the_first_stage_has_torchvisions_loss(monkeypatch):
    monkeypatch.setattr("da_leukemia.models.faster_rcnn._ANCHORS_SAMPLED", 10_000)
    monkeypatch.setattr("da_leukemia.models.faster_rcnn._ANCHORS_POSITIVE", 1.0)
    net, targets = shaken(tiny()), targets_of(*FIELDS)
    outputs = net(random_images(3))
    ours = net.loss(outputs, targets, draw=draw())
    reference = region_proposals(net)
    anchors = [outputs.anchors] * 3
    labels, boxes = reference.assign_targets_to_anchors(anchors, as_list(targets))
    goals = reference.box_coder.encode(boxes, anchors)
    shifts = outputs.shifts.flatten(0, 1)
    for name, value in zip(
        ("proposal_class", "proposal_box"),
        reference.compute_loss(outputs.objectness.flatten(), shifts, labels, goals),
        strict=True,
    ):
        torch.testing.assert_close(ours[name], value)


def test_proposals_are_torchvisions():
    net = shaken(tiny(proposals=40))
    outputs = net(random_images(3))
    boxes, real = net.propose(outputs)
    images = [(96, 96)] * 3
    with torch.no_grad():
        moved = net._anchor_boxes(outputs.shifts, outputs.anchors)
        theirs, scores = region_proposals(net, nms_thresh=0.7).filter_proposals(
            moved, outputs.objectness, images, outputs.counts
        )
    for row in range(3):
        # Torchvision keeps slivers down to a thousandth of a pixel.
        wide = (theirs[row][:, 2:] - theirs[row][:, :2] > 1).all(-1)
        wanted, own = theirs[row][wide], boxes[row][real[row]]
        assert len(wanted) > 10
        torch.testing.assert_close(own[: len(wanted)], wanted, atol=1e-3, rtol=0)
        assert scores[row].diff().max() <= 0


def test_the_second_stage_has_the_loss_of_the_paper(monkeypatch):
    """Cross-entropy over all sampled regions, smooth L1 over the positive ones."""
    monkeypatch.setattr("da_leukemia.models.faster_rcnn._REGIONS_POSITIVE", 1.0)
    net, targets = everything(shaken(tiny())), targets_of(*FIELDS)
    outputs = net(random_images(3))
    ours = net.loss(outputs, targets, draw=draw())
    proposals, real = net.propose(outputs)
    coder, cross, off, count = BoxCoder((10.0, 10.0, 5.0, 5.0)), 0.0, 0.0, 0
    for row, given in enumerate(as_list(targets)):
        regions = torch.cat([proposals[row][real[row]], given["boxes"]])
        labels = torch.full((len(regions),), 3)
        goals = torch.zeros(len(regions), 4)
        if len(given["boxes"]):
            best, box = ops.box_iou(regions, given["boxes"]).max(1)
            labels = torch.where(best >= 0.5, given["labels"][box], 3)
            goals = coder.encode_single(given["boxes"][box], regions)
        one = outputs.select(slice(row, row + 1))
        hidden = net.head.pooled(one.features, regions.unsqueeze(0), 96)[0]
        cross = cross + F.cross_entropy(net.head.score(hidden), labels, reduction="sum")
        distance = F.smooth_l1_loss(net.head.shift(hidden), goals, beta=1 / 9, reduction="none")
        off = off + distance[labels < 3].sum()
        count += len(regions)
    torch.testing.assert_close(ours["class"], cross / count)
    torch.testing.assert_close(ours["box"], off / count)


def test_a_region_is_pooled_from_its_own_image_and_level():
    net = tiny()
    outputs = net(random_images(2))
    outputs.features = [f.detach().requires_grad_() for f in outputs.features]
    boxes = torch.tensor([[[0.0, 0, 24, 24]], [[40, 40, 80, 80]]])
    net.region_features(outputs, boxes)[1].sum().backward()
    fine = outputs.features[0].grad
    assert not fine[0].any()
    assert fine[1, :, 5:10, 5:10].any()
    assert not fine[1, :, :4, :4].any()


# --- what must not be learned ------------------------------------------------------------------


def test_padding_and_what_stands_in_it_change_nothing():
    net = everything(tiny(sizes=SIZES))
    outputs = net(random_images(3))
    short = targets_of(*FIELDS, attributes=2)
    short.attributes[short.mask] = 1
    long = Targets(
        *(F.pad(t, [0, 0] * (t.ndim - 2) + [0, 5]) for t in _parts(short)), short.classes
    )
    long.boxes[~long.mask] = torch.tensor([5.0, 5, 40, 40])
    long.labels[~long.mask], long.attributes[~long.mask] = 1, 1
    one = net.loss(outputs, short, draw=draw())
    other = net.loss(outputs, long, draw=draw())
    # The second stage ranks more candidates, all of which are taken; the first has the same ones.
    assert one.keys() == other.keys() == {
        "proposal_class", "proposal_box", "class", "box", "attribute"
    }  # fmt: skip
    monitored = {k: number(v) for k, v in one.items()}
    assert {k: number(v) for k, v in other.items()} == pytest.approx(monitored, rel=1e-4)


def _parts(targets):
    return targets.boxes, targets.labels, targets.attributes, targets.mask


def test_a_field_without_cells_gives_a_finite_loss_and_teaches_background():
    net = tiny(sizes=SIZES)
    losses = net.loss(net(random_images(2)), targets_of([], [], attributes=2), draw=draw())
    assert number(losses["box"]) == number(losses["proposal_box"]) == 0
    assert number(losses["attribute"]) == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert (net.head.score.bias.grad[:3] > 0).all()
    assert net.head.propose.cls_logits.bias.grad.sum() > 0


def test_an_image_that_is_all_doubt_teaches_nothing():
    net = tiny(sizes=SIZES)
    losses = net.loss(
        net(random_images(1)), targets_of([((-99, -99, 195, 195), -1, [1, 1])], attributes=2)
    )
    assert all(number(v) == 0 for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_an_unlabelled_class_gets_no_gradient():
    net, targets = tiny(), targets_of(*FIELDS)
    targets.classes[:, 1] = False
    targets.labels[targets.labels == 1] = 0
    sum(net.loss(net(random_images(3)), targets, draw=draw()).values()).backward()
    weights, bias = net.head.score.weight.grad, net.head.score.bias.grad
    assert not weights[1].any()
    assert bias[1] == 0
    assert (weights.abs().amax(1)[[0, 2, 3]] > 0).all()


# --- answers -----------------------------------------------------------------------------------


def test_detections_are_sound_and_alike_alone_and_in_company():
    net = shaken(tiny(sizes=SIZES, score_threshold=0.011), 0.3)
    images = random_images(3)
    with torch.no_grad():
        together = net.decode(net(images))
        assert together.mask.any()
        for row in range(3):
            alone = net.decode(net(images[row : row + 1]))
            for f in dataclasses.fields(Detections):
                one, other = getattr(alone, f.name)[0], getattr(together, f.name)[row]
                torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)
    assert together.attributes.shape[-1] == sum(SIZES)
    boxes = together.boxes[together.mask]
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    assert (together.scores[together.mask] > 0.011).all()
    assert (together.scores.diff(dim=1) <= 0).all()


def test_no_proposal_is_no_detection():
    net = tiny(score_threshold=0.0)
    outputs = net(random_images(2))
    outputs.kept["proposals"] = torch.zeros(2, 8, 4), torch.zeros(2, 8, dtype=torch.bool)
    with torch.no_grad():
        assert not net.decode(outputs).mask.any()
    assert not net.confident(outputs, 0.0, 4).mask.any()
    assert not net.places(outputs).scores.any()  # nor a doubt, nor an entropy
    losses = net.loss(outputs, targets_of(*FIELDS[:2]), draw=draw())  # the cells are learned still
    assert number(losses["class"]) > 0


def test_the_second_stage_is_asked_once_without_gradient_and_anew_with_it(monkeypatch):
    net, calls = tiny(), []
    outputs = net(random_images(2))
    original = RegionHead.pooled
    monkeypatch.setattr(RegionHead, "pooled", lambda *a: calls.append(1) or original(*a))
    with torch.no_grad():
        net.places(outputs)
        net.decode(outputs)
    assert len(calls) == 1
    assert net.places(outputs).scores.requires_grad
    part = outputs.select(slice(1, 2))
    with torch.no_grad():
        assert torch.equal(net.places(part).boxes, net.places(outputs).boxes[1:])


def test_objectness_is_the_best_anchor_of_a_location():
    net = tiny(anchors=(3.0,))
    outputs = net(random_images(1))
    outputs.objectness = torch.full_like(outputs.objectness, -9.0)
    outputs.objectness[0, 3 * 14 + 2] = 2.0  # third anchor of row 1, column 2 of the finest level
    fine, middle, coarse = net.objectness(outputs)
    assert (fine.shape, middle.shape, coarse.shape) == ((1, 144), (1, 36), (1, 9))
    assert int(fine.argmax()) == 14
    assert float(fine.max()) == pytest.approx(float(torch.tensor(2.0).sigmoid()))
    assert tuple(outputs.anchors[3 * 14 + 1].tolist()) == (4, -4, 28, 20)


def test_the_ground_is_what_no_cell_touches():
    net = tiny()
    outputs = net(random_images(1))
    boxes = torch.tensor([[[0.0, 0, 20, 20], [60, 60, 90, 90], [30, 30, 50, 50]]])
    outputs.kept["proposals"] = boxes, torch.tensor([[True, True, False]])
    ground = net.ground_feature(outputs, targets_of([((10, 10, 30, 30), -1)]))
    wanted = net.region_features(outputs, boxes[:, 1:2])[0, 0]
    torch.testing.assert_close(ground, wanted.detach())


# --- what a teacher says -----------------------------------------------------------------------


def test_what_the_teacher_doubts_is_neither_cell_nor_background(monkeypatch):
    net, asked = tiny(), []
    outputs = net(random_images(1))
    monkeypatch.setattr(
        net, "loss", lambda out, t, **rest: asked.append((t, rest)) or {"class": torch.ones(())}
    )
    scores = torch.tensor([[0.9, 0.4, 0.1, 0.5]])
    found = Detections(
        rand(1, 4, 4), scores, torch.tensor([[0, 1, 0, 2]]), scores > 0, torch.zeros(1, 4, 0)
    )
    sure = scores >= 0.6
    classes = torch.tensor([[True, True, False]])
    labels = torch.where(sure, found.labels, -1)
    pseudo = Targets(found.boxes, labels, torch.zeros(1, 4, 0).long(), sure, classes)
    net.pseudo_loss(outputs, pseudo, outputs, found, 0.2, draw())
    (given, rest) = asked[0]
    assert given.mask.tolist() == [[True, True, False, False]]
    assert given.labels[given.mask].tolist() == [0, -1]
    assert rest["boxes"] is False


def test_a_student_that_agrees_has_nothing_to_learn_and_another_moves_to_its_teacher():
    net = shaken(tiny(), 0.1)
    teacher = MovingAverage(net, 0.9).network
    labelled = torch.tensor([True, False, True])
    images = random_images(2)
    with torch.no_grad():
        taught = teacher(images)
    for pair in net.pairs(net(images), teacher, taught, labelled):
        torch.testing.assert_close(pair.apart, torch.zeros_like(pair.apart), atol=1e-5, rtol=0)
        torch.testing.assert_close(pair.boxes, pair.taught_boxes, atol=1e-3, rtol=0)
    with torch.no_grad():
        net.head.score.weight.mul_(-1)
        net.head.propose.cls_logits.weight.mul_(-1)
    outputs = net(images)
    second, first = net.pairs(outputs, teacher, taught, labelled)
    assert number(second.apart.sum()) > 0.005
    assert not second.taught[..., 1].any()  # a class that is not labelled
    assert net.scores_beside(outputs, taught).shape == second.scores.shape
    (second.apart.sum() + first.apart.sum()).backward()
    assert not net.head.score.weight.grad[1].any()
    assert net.head.score.weight.grad[0].any()
    before = number(second.apart.sum() + first.apart.sum())
    with torch.no_grad():
        for layer in (net.head.score, net.head.propose.cls_logits):
            layer.weight -= 1e-2 * layer.weight.grad / layer.weight.grad.norm()
    after = net.pairs(net(images), teacher, taught, labelled)
    assert number(sum(p.apart.sum() for p in after)) < before
    assert all(p.grad is None for p in teacher.parameters())


# --- the whole ---------------------------------------------------------------------------------


def test_losses_are_float32_and_finite_under_bf16():
    net, targets = tiny(sizes=SIZES), targets_of(*FIELDS, attributes=2)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(random_images(3))
        losses = net.loss(outputs, targets, draw=draw())
        assert outputs.features[0].dtype == torch.bfloat16
        assert outputs.anchors.dtype == torch.float32
        with torch.autocast("cpu", enabled=False):  # as components do
            assert net.region_features(outputs, targets.boxes).dtype == torch.float32
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())


def test_the_whole_leukemiaattri_label_space_trains_a_step():
    torch.manual_seed(0)
    two = TwoStage(proposals=32, sampled=16, hidden=24)
    settings = Detector(
        kind="faster_rcnn", backbone="mobilenetv3_small_050", channels=16, depth=1, two_stage=two
    )
    net = build_detector(settings, LEUKEMIAATTRI).train()
    assert (net.classes, net.proposals, net.region_channels) == (14, 32, 24)
    targets = targets_of(*CELLS, classes=14, attributes=7)
    losses = net.loss(net(random_images(3)), targets, draw=draw())
    assert all(v.isfinite() and v > 0 for v in losses.values())
    sum(losses.values()).backward()
    assert not [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_settings_that_mean_nothing_are_refused():
    assert check_detector(Detector()) == check_detector(Detector(kind="faster_rcnn")) == []
    (why,) = check_detector(Detector(two_stage=TwoStage(hidden=64)))
    assert "two_stage" in why
    assert "faster_rcnn" in why
    for two, key in (
        (TwoStage(anchors=[-1.0]), "anchors[0]"),
        (TwoStage(proposals=0), "proposals"),
        (TwoStage(sampled=0), "sampled"),
    ):
        (why,) = ranges(Detector(kind="faster_rcnn", two_stage=two), "detector.")
        assert why.startswith(f"detector.two_stage.{key}: expected")
    (why,) = check_detector(Detector(kind="faster_rcnn", two_stage=TwoStage(anchors=[])))
    assert "two_stage.anchors: empty" in why
    (why,) = check_detector(Detector(kind="faster_rcnn", strides=[4, 16]))
    assert "detector.strides" in why
    assert check_detector(Detector(strides=[4, 16])) == []


def test_two_fields_are_learned_by_heart():
    images, cells = drawn_fields()
    targets = targets_of(*cells, classes=2)
    net = detector(2, (), kind="faster_rcnn", hidden=64).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(100):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10) * (1 - step / 110)
        losses = net.loss(net(images), targets, draw=draw(step))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
    net.eval()
    with torch.no_grad():
        found = net.decode(net(images))
    for row in range(2):
        truth, count = targets.boxes[row][targets.mask[row]], int(targets.mask[row].sum())
        overlap = ops.box_iou(truth, found.boxes[row, :count])
        assert overlap.amax(1).min() > 0.6
        best = overlap.argmax(1)
        assert torch.equal(found.labels[row][best], targets.labels[row][targets.mask[row]])
        assert found.scores[row, :count].min() > 0.5
