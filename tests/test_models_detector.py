"""The detector: losses that count what they should, decoding, and that it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops

from da_leukemia.config import Detector
from da_leukemia.data.batches import Targets
from da_leukemia.evaluation.detection import detection_metrics
from da_leukemia.evaluation.records import FieldRecord
from da_leukemia.labels import LEUKEMIAATTRI, MORPHOLOGY
from da_leukemia.models.attributes import PyramidHead
from da_leukemia.models.backbone import Backbone
from da_leukemia.models.factory import build_detector
from da_leukemia.models.losses import paired_iou, quality_focal_loss
from da_leukemia.models.one_stage import DenseOutputs, OneStageDetector

SIZES = tuple(len(a.values) for a in MORPHOLOGY)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny(classes=3, sizes=(), seed=0, **settings):
    torch.manual_seed(seed)
    backbone = Backbone("mobilenetv3_small_050", (8, 16, 32))
    return OneStageDetector(backbone, classes, sizes, channels=16, depth=1, **settings)


def random_images(count, size=96, seed=1):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def targets_of(*images, classes=3, padded=4, attributes=0):
    """Each image is a list of ``(box, label)`` or ``(box, label, codes)``."""
    out = Targets(
        torch.zeros(len(images), padded, 4),
        torch.full((len(images), padded), -1),
        torch.full((len(images), padded, attributes), -1),
        torch.zeros(len(images), padded, dtype=torch.bool),
        torch.ones(len(images), classes, dtype=torch.bool),
    )
    for row, cells in enumerate(images):
        for column, (box, label, *codes) in enumerate(cells):
            out.boxes[row, column] = torch.tensor(box, dtype=torch.float32)
            out.labels[row, column] = label
            out.mask[row, column] = True
            if codes:
                out.attributes[row, column] = torch.tensor(codes[0])
    return out


CELLS = (
    [((10, 12, 40, 44), 0, [1, 0, 1, 0, 1, 0, 1]), ((50, 50, 90, 94), 1, [2, 1, 0, 1, 0, 1, 0])],
    [((20, 30, 60, 70), 2, [0, 1, 1, 1, 1, 1, 1])],
    [],
)


def pick(targets, rows):
    parts = (getattr(targets, f.name) for f in dataclasses.fields(targets))
    return Targets(*(p if p is None else p[rows] for p in parts))


# --- the parts of the loss ---------------------------------------------------------------------


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([low, low + 1 + torch.rand(count, 2, generator=generator) * 40], 1)


def test_paired_iou_is_torchvisions_diagonal():
    a, b = random_boxes(300, 0), random_boxes(300, 1)
    a[:10] = b[:10]  # the same box
    a[10:20] = b[10:20] + 200  # far apart
    iou, giou = paired_iou(a, b)
    torch.testing.assert_close(iou, ops.box_iou(a, b).diagonal(), atol=1e-5, rtol=1e-5)
    reference = ops.generalized_box_iou(a, b).diagonal()
    torch.testing.assert_close(giou, reference, atol=1e-5, rtol=1e-5)
    shaped = paired_iou(a.view(3, 100, 4), b.view(3, 100, 4))[0]
    assert torch.equal(shaped.flatten(), iou)


def test_an_empty_box_has_no_overlap_and_no_infinite_gradient():
    a = torch.zeros(2, 4, requires_grad=True)
    iou, giou = paired_iou(a, torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]]))
    assert iou.tolist() == [0, 0]
    giou.sum().backward()
    assert a.grad.isfinite().all()


def test_quality_focal_loss_is_its_formula():
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64)
    for quality in (0.0, 0.3, 1.0):
        p = 1 / (1 + torch.exp(-logits))
        cross_entropy = -(quality * p.log() + (1 - quality) * (1 - p).log())
        direct = (quality - p).abs() ** 2 * cross_entropy
        given = quality_focal_loss(logits, torch.full_like(logits, quality))
        torch.testing.assert_close(given, direct, atol=1e-9, rtol=1e-6)


def test_the_class_target_is_the_iou_of_the_predicted_box():
    """A location whose box is right is asked for 1, one whose box is half right for a half."""
    detector = tiny(classes=1, score_threshold=0.0)
    point = torch.tensor([[16.0, 16.0]])
    truth = targets_of([((8, 8, 24, 24), 0)], classes=1)
    for box, quality in (((8, 8, 24, 24), 1.0), ((8, 8, 24, 16), 0.5)):
        outputs = DenseOutputs(
            [], torch.zeros(1, 1, 1), torch.tensor([[box]]).float(), point, torch.tensor([8.0])
        )
        losses = detector.loss(outputs, truth)
        expected = quality_focal_loss(torch.tensor(0.0), torch.tensor(quality))
        torch.testing.assert_close(losses["class"], expected)
        torch.testing.assert_close(losses["box"], torch.tensor(1 - quality))


# --- the loss of a batch -----------------------------------------------------------------------


def test_a_field_without_cells_gives_a_finite_loss_and_teaches_background():
    detector = tiny(sizes=SIZES).train()
    with torch.no_grad():
        detector.head.score.bias.zero_()  # it sees cells everywhere
    optimiser = torch.optim.SGD(detector.parameters(), lr=1e-4)
    images, empty = random_images(2), targets_of([], [], attributes=7)
    course = []
    for _ in range(4):
        losses = detector.loss(detector(images), empty)
        assert all(v.isfinite() for v in losses.values())
        assert float(losses["box"].detach()) == float(losses["attribute"].detach()) == 0
        course.append(float(losses["class"].detach()))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
        optimiser.step()
    assert course[0] > course[-1] > 0
    assert course == sorted(course, reverse=True)


def gradients(detector, outputs_of, targets):
    detector.zero_grad()
    losses = detector.loss(outputs_of(), targets)
    sum(losses.values()).backward()
    grads = [p.grad.clone() for p in detector.parameters() if p.grad is not None]
    return {k: v.detach() for k, v in losses.items()}, grads


def test_padding_changes_neither_loss_nor_gradient():
    detector, images = tiny(sizes=SIZES).eval(), random_images(3)
    results = [
        gradients(detector, lambda: detector(images), targets_of(*CELLS, padded=m, attributes=7))
        for m in (4, 12)
    ]
    (short, short_grads), (long, long_grads) = results
    assert short.keys() == {"class", "box", "attribute"}
    for name, value in short.items():
        torch.testing.assert_close(value, long[name], atol=1e-6, rtol=1e-5)
    for a, b in zip(short_grads, long_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_what_stands_in_the_padding_is_not_read():
    detector, images = tiny(sizes=SIZES).eval(), random_images(3)
    clean, dirty = (targets_of(*CELLS, attributes=7) for _ in range(2))
    dirty.boxes[~dirty.mask] = torch.tensor([5.0, 5, 40, 40])
    dirty.labels[~dirty.mask] = 1
    dirty.attributes[~dirty.mask] = 1
    outputs = detector(images)
    for name, value in detector.loss(outputs, clean).items():
        assert torch.equal(value, detector.loss(outputs, dirty)[name])


def test_a_batch_is_the_mean_of_its_images_weighted_by_their_positives():
    from da_leukemia.models.assign import assign

    detector, images = tiny().eval(), random_images(3)
    targets = targets_of(*CELLS, attributes=7)
    together = detector.loss(detector(images), targets)
    sums = dict.fromkeys(together, 0.0)
    positives = 0
    for row in range(3):
        one = pick(targets, slice(row, row + 1))
        outputs = detector(images[row : row + 1])
        count = int(assign(one, outputs.points, outputs.strides).positive.sum())
        positives += count
        for name, value in detector.loss(outputs, one).items():
            sums[name] += float(value.detach()) * max(count, 1)
    for name, value in together.items():
        assert float(value.detach()) == pytest.approx(sums[name] / positives, rel=1e-4)


def test_an_unlabelled_class_gets_no_gradient():
    detector, images = tiny().eval(), random_images(3)
    targets = targets_of(*CELLS, attributes=7)
    targets.classes[:, 1] = False
    targets.labels[targets.labels == 1] = 0
    gradients(detector, lambda: detector(images), targets)
    weights, bias = detector.head.score.weight.grad, detector.head.score.bias.grad
    assert weights[1].abs().max() == 0
    assert bias[1] == 0
    assert (weights.flatten(1).abs().amax(1)[[0, 2]] > 0).all()


def test_a_class_may_be_labelled_in_one_image_and_not_in_the_next():
    detector, images = tiny().eval(), random_images(2)
    targets = targets_of([], [])
    targets.classes[0, 2] = False
    outputs = detector(images)
    outputs.scores.retain_grad()
    detector.loss(outputs, targets)["class"].backward()
    assert outputs.scores.grad[0, :, 2].abs().max() == 0
    assert outputs.scores.grad[0, :, 1].abs().min() > 0
    assert outputs.scores.grad[1, :, 2].abs().min() > 0


def test_a_cell_of_unknown_type_teaches_nothing_where_it_lies():
    detector, images = tiny(sizes=SIZES).eval(), random_images(1)
    targets = targets_of([((24, 24, 72, 72), -1, [1, 1, 1, 1, 1, 1, 1])], attributes=7)
    outputs = detector(images)
    outputs.scores.retain_grad()
    losses = detector.loss(outputs, targets)
    losses["class"].backward(retain_graph=True)
    x, y = outputs.points.T
    inside = (x > 24) & (x < 72) & (y > 24) & (y < 72)
    moved = outputs.scores.grad[0].abs().amax(-1) > 0
    assert torch.equal(moved, ~inside)
    assert float(losses["box"].detach()) == float(losses["attribute"].detach()) == 0


def test_background_may_be_limited_and_boxes_left_out():
    detector, images = tiny().eval(), random_images(1)
    targets = targets_of([((24, 24, 72, 72), 1)])
    outputs = detector(images)
    outputs.scores.retain_grad()
    nothing = torch.zeros(outputs.scores.shape[:2], dtype=torch.bool)
    losses = detector.loss(outputs, targets, background=nothing, boxes=False)
    assert losses.keys() == {"class"}
    losses["class"].backward()
    moved = outputs.scores.grad[0].abs().amax(-1) > 0
    assert 0 < moved.sum() <= 9  # the positives alone


# --- attributes --------------------------------------------------------------------------------


def test_a_missing_attribute_gives_no_gradient_and_its_neighbours_do():
    torch.manual_seed(0)
    head = PyramidHead(16, SIZES)
    features = torch.rand(2, 16, 12, 12)
    boxes = torch.tensor([[[8.0, 8, 40, 40], [50, 50, 80, 90]]] * 2)
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    for missing in range(len(SIZES)):
        truth = torch.zeros(2, 2, len(SIZES), dtype=torch.int64)
        truth[..., missing] = -1
        head.zero_grad()
        head.loss(head([features], boxes, [8]), truth).backward()
        moved = head.classify.weight.grad.abs().amax(1) > 0
        rows = torch.zeros(sum(SIZES), dtype=torch.bool)
        rows[starts[missing] : starts[missing] + SIZES[missing]] = True
        assert torch.equal(moved, ~rows)


def test_the_attribute_loss_is_the_mean_over_what_is_known():
    logits = torch.randn(1, 3, sum((2, 3)), generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[[0, 2], [1, -1], [-1, -1]]])
    first = F.cross_entropy(logits[0, :2, :2], truth[0, :2, 0])
    second = F.cross_entropy(logits[0, :1, 2:], truth[0, :1, 1])
    head = PyramidHead(16, (2, 3))
    torch.testing.assert_close(head.loss(logits, truth), (first + second) / 2)
    assert head.loss(logits, torch.full_like(truth, -1)) == 0


def test_the_attribute_gradient_that_reaches_the_pyramid_is_the_share_asked_for():
    def at(share):
        torch.manual_seed(0)
        head = PyramidHead(16, (2, 3), gradient=share)
        features = torch.rand(1, 16, 12, 12, requires_grad=True)
        boxes = torch.tensor([[[8.0, 8, 40, 40]]])
        head.loss(head([features], boxes, [8]), torch.zeros(1, 1, 2, dtype=torch.int64)).backward()
        return features.grad, head.classify.weight.grad

    (whole, own), (tenth, own_again), (none, _) = at(1.0), at(0.1), at(0.0)
    assert whole.abs().max() > 0
    torch.testing.assert_close(tenth, whole * 0.1, atol=1e-8, rtol=1e-3)
    torch.testing.assert_close(own, own_again, atol=1e-6, rtol=1e-4)
    assert none is None


def test_attribute_features_come_from_under_the_box():
    torch.manual_seed(0)
    head = PyramidHead(16, (2,)).eval()
    features = torch.rand(2, 16, 12, 12)
    boxes = torch.tensor([[[16.0, 24, 48, 56]], [[16.0, 24, 48, 56]]])
    before = head([features], boxes, [8])
    elsewhere, under = features.clone(), features.clone()
    elsewhere[:, :, 9:, 9:] += 1  # 72 px and beyond
    under[1, :, 4:6, 3:5] += 5
    assert torch.equal(head([elsewhere], boxes, [8]), before)
    changed = head([under], boxes, [8])
    assert torch.equal(changed[0], before[0])
    assert not torch.allclose(changed[1], before[1])


def test_no_attribute_head_without_attributes_or_weight():
    assert tiny(sizes=()).attributes is None
    assert tiny(sizes=SIZES, attribute_weight=0.0).attributes is None
    assert tiny(sizes=SIZES).attributes is not None


# --- decoding ----------------------------------------------------------------------------------


def random_outputs(images=3, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = []
    for stride in (8, 16, 32):
        centres = (torch.arange(96 // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], -1))
    points = torch.cat(points)
    reach = 2 + torch.rand(images, len(points), 4, generator=generator) * 25
    boxes = torch.cat([points - reach[..., :2], points + reach[..., 2:]], -1)
    scores = torch.randn(images, len(points), classes, generator=generator) * 2 - 2
    features = [torch.zeros(images, 16, 96 // s, 96 // s) for s in (8, 16, 32)]
    strides = torch.cat([torch.full(((96 // s) ** 2,), float(s)) for s in (8, 16, 32)])
    return DenseOutputs(features, scores, boxes, points, strides)


@pytest.mark.parametrize(("threshold", "nms"), [(0.01, 0.6), (0.3, 0.3), (0.05, 0.9)])
def test_decoding_is_a_suppression_per_image_and_class(threshold, nms):
    detector = tiny(score_threshold=threshold, nms_iou=nms, max_detections=40)
    outputs = random_outputs()
    found = detector.decode(outputs)
    for row in range(3):
        scores, place = outputs.scores[row].sigmoid().flatten().topk(400)
        boxes = outputs.boxes[row][place // 3].clamp(0, 96)
        expected = []
        for c in range(3):
            own = (place % 3 == c) & (scores > threshold)
            kept = ops.nms(boxes[own], scores[own], nms)
            chosen = zip(scores[own][kept].tolist(), boxes[own][kept].tolist(), strict=True)
            expected += [(score, c, box) for score, box in chosen]
        expected = sorted(expected, key=lambda e: -e[0])[:40]
        mask = found.mask[row]
        assert int(mask.sum()) == len(expected)
        assert mask[: len(expected)].all()  # best first, padding last
        got = zip(found.scores[row], found.labels[row], found.boxes[row], strict=True)
        for (score, label, box), (s, c, b) in zip(got, expected, strict=False):
            assert float(score) == pytest.approx(s)
            assert int(label) == c
            assert box.tolist() == pytest.approx(b)


def test_one_image_is_decoded_alike_alone_and_in_company():
    detector, outputs = tiny(), random_outputs()
    together = detector.decode(outputs)
    for row in range(3):
        alone = detector.decode(outputs.select(slice(row, row + 1)))
        for name in ("boxes", "scores", "labels", "mask"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])


def test_two_cells_of_one_type_in_one_place_are_one_but_two_types_are_two():
    detector = tiny(score_threshold=0.2)
    outputs = random_outputs(images=1)
    outputs.scores.fill_(-9)
    outputs.boxes[0, :3] = torch.tensor([10.0, 10, 40, 40])
    outputs.scores[0, 0, 0], outputs.scores[0, 1, 0], outputs.scores[0, 2, 1] = 2.0, 1.0, 0.0
    found = detector.decode(outputs)
    assert found.labels[0][found.mask[0]].tolist() == [0, 1]
    assert found.boxes[0, 0].tolist() == [10, 10, 40, 40]


def test_every_cell_of_a_crowd_is_found_though_each_is_seen_from_many_places():
    side, cells = 256, 60
    centres = (torch.arange(side // 8) + 0.5) * 8
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], -1)
    corner = torch.stack([torch.arange(cells) % 8 * 32.0, torch.arange(cells) // 8 * 32.0], -1)
    boxes = torch.zeros(1, len(points), 4)
    scores = torch.full((1, len(points), 3), -9.0)
    seen = torch.arange(9 * cells)  # nine places each, the first cells more surely than the last
    boxes[0, seen] = torch.cat([corner, corner + 24], -1).repeat_interleave(9, 0)
    scores[0, seen, 1] = torch.linspace(4, 1, cells).repeat_interleave(9)
    features = [torch.zeros(1, 16, side // 8, side // 8)]
    outputs = DenseOutputs(features, scores, boxes, points, torch.full((len(points),), 8.0))
    detector = tiny(score_threshold=0.5)
    detector.strides = (8,)
    found = detector.decode(outputs)
    assert int(found.mask.sum()) == cells
    assert torch.equal(found.boxes[0, :cells, :2], corner)


def test_nothing_above_the_threshold_is_no_detection():
    outputs = random_outputs()
    outputs.scores.fill_(-9)
    found = tiny().decode(outputs)
    assert not found.mask.any()
    assert found.boxes.isfinite().all()


def test_attributes_of_a_detection_are_probabilities_within_each_attribute():
    detector = tiny(sizes=SIZES)
    found = detector.decode(random_outputs())
    assert found.attributes.shape == (3, 100, sum(SIZES))
    for part in found.attributes.split(SIZES, -1):
        torch.testing.assert_close(part.sum(-1), torch.ones(3, 100))


# --- it learns ---------------------------------------------------------------------------------


def drawn_fields(size=96):
    """Two fields with round cells of two colours on a pale ground, of three sizes."""
    cells = (
        [((10, 12, 40, 42), 0), ((52, 50, 92, 90), 1)],
        [((30, 30, 78, 78), 0), ((4, 60, 26, 82), 1), ((66, 4, 90, 28), 0)],
    )
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    images = torch.full((2, 3, size, size), 0.9)
    colours = torch.tensor([[0.3, 0.1, 0.6], [0.8, 0.3, 0.3]])
    for image, field in zip(images, cells, strict=True):
        for (x1, y1, x2, y2), label in field:
            radius = (x2 - x1) / 2
            disc = (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2 < radius**2
            image[:, disc] = colours[label][:, None]
    return images, cells


def test_two_fields_are_learned_by_heart():
    images, cells = drawn_fields()
    targets = targets_of(*cells, classes=2)
    detector = tiny(classes=2).train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=4e-3)
    for step in range(120):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 10) * (1 - step / 130)
        losses = detector.loss(detector(images), targets)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
    detector.eval()
    with torch.no_grad():
        found = detector.decode(detector(images))
    records = []
    for row in range(2):
        truth, mask = targets.mask[row], found.mask[row]
        records.append(
            FieldRecord(
                key=str(row),
                group=str(row),
                true_boxes=targets.boxes[row][truth].numpy(),
                true_labels=targets.labels[row][truth].numpy(),
                true_attributes=targets.attributes[row][truth].numpy(),
                boxes=found.boxes[row][mask].numpy(),
                scores=found.scores[row][mask].numpy(),
                labels=found.labels[row][mask].numpy(),
                attribute_probs=found.attributes[row][mask].numpy(),
            )
        )
    assert detection_metrics(records, ("purple", "red"), (0, 1)).ap50 > 0.95


def test_the_whole_leukemiaattri_label_space_trains_a_step():
    torch.manual_seed(0)
    settings = Detector(backbone="mobilenetv3_small_050", channels=16, depth=1)
    detector = build_detector(settings, LEUKEMIAATTRI).train()
    assert detector.classes == 14
    assert detector.attributes.sizes == (3, 2, 2, 2, 2, 2, 2)
    targets = targets_of(*CELLS, classes=14, attributes=7)
    targets.labels[0, 0] = 13
    losses = detector.loss(detector(random_images(3)), targets)
    assert losses.keys() == {"class", "box", "attribute"}
    assert all(v.isfinite() and v > 0 for v in losses.values())
    sum(losses.values()).backward()
    idle = [k for k, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle  # every weight takes part
    torch.optim.AdamW(detector.parameters(), lr=1e-3).step()
    found = detector.eval().decode(detector(random_images(3)))
    assert found.attributes.shape[-1] == 15
