"""The classifier of single cells: what it learns, what it says, what components ask of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from da_leukemia.config import Attributes, Classifier, Detector
from da_leukemia.data.batches import Targets
from da_leukemia.errors import ConfigError
from da_leukemia.labels import PBC8, WBC5
from da_leukemia.models.classifier import CellBackbone, CellOutputs
from da_leukemia.models.factory import build_detector, check_settings
from da_leukemia.models.losses import CellLoss, asymmetric_loss

SIDE = 32
TINY = "mobilenetv3_small_050"


def classifier(space=WBC5, counts=(10, 10, 10, 10, 10), seed=0, **settings):
    torch.manual_seed(seed)
    network = build_detector(Detector(kind="classifier", backbone=TINY, **settings), space, SIDE)
    network.know(torch.tensor(counts))
    return network


def targets(*labels, classes=5, allowed=None, attributes=0):
    """Return the labels of cells, each one or several."""
    rows = [list(x) if isinstance(x, tuple) else [x] for x in labels]
    table = torch.full((len(rows), 4), -1)
    mask = torch.zeros(len(rows), 4, dtype=torch.bool)
    for n, row in enumerate(rows):
        table[n, : len(row)] = torch.tensor(row)
        mask[n, : len(row)] = True
    boxes = torch.tensor([0.0, 0, SIDE, SIDE]).expand(len(rows), 4, 4)
    known = torch.ones(len(rows), classes, dtype=torch.bool)
    if allowed is not None:
        known = torch.tensor([k in allowed for k in range(classes)]).expand(len(rows), -1)
    codes = torch.full((len(rows), 4, attributes), -1)
    return Targets(boxes, table, codes, mask, known)


def logits(rows=3, classes=5, seed=0):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 2


def loss_of(loss, values, labels, counts=(10, 10, 10, 10, 10)):
    return float(loss(values, labels, labels.classes, torch.tensor(counts)))


# --- losses --------------------------------------------------------------------------------------


def test_plain_loss_is_cross_entropy_over_cells_of_known_type():
    values = logits(4)
    found = loss_of(CellLoss(), values, targets(0, 3, -1, -2))
    expected = F.cross_entropy(values[:2], torch.tensor([0, 3]))
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert loss_of(CellLoss(), values, targets(-1, -1, -2, -1)) == 0


def test_smoothing_is_that_of_torch():
    values = logits()
    found = loss_of(CellLoss(smoothing=0.2), values, targets(0, 3, 4))
    expected = F.cross_entropy(values, torch.tensor([0, 3, 4]), label_smoothing=0.2)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_logit_adjustment_adds_the_log_of_each_share():
    values, counts = logits(), (80, 10, 5, 4, 1)
    found = loss_of(CellLoss("logit_adjusted", tau=1.5), values, targets(0, 3, 4), counts)
    shifted = values + 1.5 * torch.tensor(counts).div(100).log()
    expected = F.cross_entropy(shifted, torch.tensor([0, 3, 4]))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_focal_loss_takes_the_sure_ones_back():
    values = logits()
    p = values.softmax(-1)[range(3), [0, 3, 4]]
    expected = ((1 - p) ** 2 * -p.log()).mean()
    found = loss_of(CellLoss("focal"), values, targets(0, 3, 4))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_rare_classes_weigh_more_and_the_mean_training_cell_one():
    counts = (90, 10, 1, 1, 1)
    values = torch.zeros(103, 5)
    labels = targets(*[k for k, n in enumerate(counts) for _ in range(n)])
    loss = CellLoss("class_balanced", beta=0.99)
    assert loss_of(loss, values, labels, counts) == pytest.approx(math.log(5), rel=1e-4)
    common, rare = (loss_of(loss, values[:1], targets(k), counts) for k in (0, 1))
    assert rare / common == pytest.approx((1 - 0.99**90) / (1 - 0.99**10), rel=1e-4)


def test_a_cell_with_two_labels_teaches_both_the_own_one_or_nothing():
    values = logits(1)
    log = -values.log_softmax(-1)[0]
    both = targets((4, 2))
    assert loss_of(CellLoss(conflicts="soft"), values, both) == pytest.approx(
        float((log[4] + log[2]) / 2), rel=1e-5
    )
    assert loss_of(CellLoss(conflicts="own"), values, both) == pytest.approx(
        float(log[4]), rel=1e-5
    )
    assert loss_of(CellLoss(conflicts="skip"), values, both) == 0
    assert loss_of(CellLoss(conflicts="skip"), values, targets(4)) > 0


def test_a_class_that_a_device_does_not_label_is_neither_learned_nor_unlearned():
    network = classifier()
    outputs = network(torch.rand(2, 3, SIDE, SIDE))
    outputs.logits.retain_grad()
    network.loss(outputs, targets(0, 1, allowed=(0, 1), attributes=7))["class"].backward()
    assert (outputs.logits.grad[:, 2:] == 0).all()
    assert (outputs.logits.grad[:, :2] != 0).all()


# --- answers -------------------------------------------------------------------------------------


def test_a_class_without_training_cells_is_never_named():
    network = classifier(counts=(5, 0, 3, 0, 1)).eval()
    outputs = network(torch.rand(4, 3, SIDE, SIDE))
    outputs.logits[:, 1] = 50.0
    p = network.probabilities(outputs)
    assert (p[:, [1, 3]] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(4))
    assert not set(network.decode(outputs).labels.flatten().tolist()) & {1, 3}


def test_attributes_are_read_and_their_gaps_masked():
    network = classifier(PBC8, counts=(1,) * 8)
    outputs = network(torch.rand(2, 3, SIDE, SIDE))
    labels = targets(0, 1, classes=8, attributes=11)
    assert float(network.loss(outputs, labels)["attribute"].detach()) == 0
    labels.attributes[0, 0, 2] = 5
    read = network.attributes_at(outputs, labels.boxes)[0, 0]
    first = sum(PBC8.attribute_sizes[:2])
    expected = F.cross_entropy(read[None, first : first + 6], torch.tensor([5])) / 11
    found = network.loss(outputs, labels)["attribute"] / network.attribute_weight
    torch.testing.assert_close(found, expected)
    assert network.decode(outputs).attributes.shape == (2, 1, sum(PBC8.attribute_sizes))


def test_what_a_source_does_not_vary_is_not_learned_and_not_answered():
    network = classifier(PBC8, counts=(1,) * 8).eval()
    counts = torch.zeros(11, max(PBC8.attribute_sizes), dtype=torch.int64)
    counts[2, 0], counts[2, 5] = 3, 4
    counts[1, 1] = 7  # a constant
    network.attributes.know(counts)
    outputs = network(torch.rand(2, 3, SIDE, SIDE))
    labels = targets(0, 1, classes=8, attributes=11)
    labels.attributes[:, 0, 1] = 1
    assert float(network.loss(outputs, labels)["attribute"].detach()) == 0
    labels.attributes[:, 0, 2] = 5
    assert float(network.loss(outputs, labels)["attribute"].detach()) > 0
    parts = network.decode(outputs).attributes[:, 0].split(list(PBC8.attribute_sizes), -1)
    answered = [float(part.sum()) for part in parts]
    assert answered == pytest.approx([2.0 if column == 2 else 0.0 for column in range(11)])


def test_the_attribute_head_takes_its_settings():
    settings = Attributes(loss="asymmetric", on_type=True)
    network = classifier(PBC8, counts=(1,) * 8, attributes=settings).eval()
    outputs = network(torch.rand(2, 3, SIDE, SIDE))
    boxes = torch.zeros(2, 1, 4)
    plain = network.attributes_at(outputs, boxes)
    torch.nn.init.normal_(network.attributes.on_type.weight)
    told = network.attributes_at(outputs, boxes)
    second = network.attributes.on_type(network.probabilities(outputs)).unsqueeze(1)
    torch.testing.assert_close(told - plain, second, atol=1e-5, rtol=1e-4)
    labels = targets(0, 1, classes=8, attributes=11)
    labels.attributes[0, 0, 2] = 5
    first = sum(PBC8.attribute_sizes[:2])
    yes = torch.tensor([0, 0, 0, 0, 0, 1])
    expected = asymmetric_loss(told[0, 0, first : first + 6], yes).sum() / 11
    found = network.loss(outputs, labels)["attribute"] / network.attribute_weight
    torch.testing.assert_close(found, expected)


def test_student_and_teacher_that_agree_are_not_apart():
    network = classifier().eval()
    outputs = network(torch.rand(3, 3, SIDE, SIDE))
    other = CellOutputs(outputs.features, outputs.logits.flip(-1), SIDE)
    labelled = torch.ones(5, dtype=torch.bool)
    (same,) = network.pairs(outputs, network, outputs, labelled)
    (apart,) = network.pairs(outputs, network, other, labelled)
    assert same.apart.abs().max() < 1e-6
    log = outputs.logits.log_softmax(-1)
    q = other.logits.softmax(-1)
    expected = (q * (q.log() - log)).sum(-1, keepdim=True)
    torch.testing.assert_close(apart.apart, expected)


# --- backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, "resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_networks_of_every_kind_give_one_vector(name):
    backbone = CellBackbone(name, SIDE)
    assert backbone(torch.rand(2, 3, SIDE, SIDE)).shape == (2, backbone.width)


def test_group_norm_replaces_batch_norm_and_frozen_norms_stay_as_they_are():
    kinds = {type(m).__name__ for m in CellBackbone("resnet10t", SIDE, norm="group").modules()}
    assert "GroupNorm" in kinds
    assert not any("BatchNorm" in k for k in kinds)
    frozen = CellBackbone("resnet10t", SIDE, norm="frozen").train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())
    assert all(p.grad is None for n, p in frozen.named_parameters() if ".bn" in n)
    assert frozen.body.conv1[0].weight.grad is not None


def test_wrong_networks_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="timm has no 'resnet5O'; did you mean"):
        check_settings(Detector(kind="classifier", backbone="resnet5O"), SIDE)
    with pytest.raises(ConfigError, match="has no BatchNorm"):
        check_settings(Detector(kind="classifier", backbone="convnext_atto", norm="group"), SIDE)


@pytest.mark.parametrize("name", [TINY, "resnet10t", "convnext_atto"])
def test_a_detector_starts_from_the_backbone_of_a_classifier(tmp_path, name):
    cells = build_detector(Detector(kind="classifier", backbone=name), WBC5, SIDE)
    state = {f"detector.{k}": v for k, v in cells.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    settings = Detector(backbone=name, strides=[8, 16, 32], init_from=str(tmp_path / "last.ckpt"))
    detector = build_detector(settings, WBC5)
    given = {k.replace(".", "_"): v for k, v in cells.state_dict().items()}
    own = {k: v for k, v in detector.state_dict().items() if k.startswith("backbone.body.")}
    same = [k for k, v in own.items() if torch.equal(v, given.get(k.replace(".", "_"), v * 0 + 7))]
    assert len(same) == len(own) > 20


def test_settings_reach_the_loss():
    own = Classifier(loss="focal", gamma=1.5, smoothing=0.1, conflicts="own")
    network = classifier(classifier=own)
    assert vars(network.cell_loss) == {
        "kind": "focal", "beta": 0.999, "tau": 1.0, "gamma": 1.5, "smoothing": 0.1,
        "conflicts": "own",
    }  # fmt: skip
    assert np.isfinite(
        float(
            network.loss(network(torch.rand(2, 3, SIDE, SIDE)), targets(0, 1, attributes=7))[
                "class"
            ]
        )
    )
