"""Statistics mixed inside the backbone, and GroupNorm in the place of BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from da_leukemia.adaptation.mixstyle import MixStyle, beta, mix_statistics
from da_leukemia.adaptation.settings import Method
from da_leukemia.adaptation.settings import MixStyle as Settings
from da_leukemia.config import Data, Detector, Domain, Experiment, complete
from da_leukemia.data.views import Draw
from da_leukemia.errors import ConfigError
from da_leukemia.models.backbone import Backbone
from da_leukemia.sweep import worker

MIXED = Method(components=[{"name": "mixstyle", "probability": 1.0}])


def draw(seed=0):
    return Draw(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    found = beta(alpha, draw(), 20000)
    assert ((found >= 0) & (found <= 1)).all()
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_map_takes_the_mean_and_spread_of_another():
    x = torch.randn(3, 5, 8, 8) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] + 4
    other = torch.tensor([1, 2, 0])
    same = mix_statistics(x, other, torch.ones(3))
    assert torch.allclose(same, x, atol=1e-5)
    taken = mix_statistics(x, other, torch.zeros(3))
    assert torch.allclose(taken.mean((2, 3)), x.mean((2, 3))[other], atol=1e-4)
    assert torch.allclose(taken.std((2, 3)), x.std((2, 3))[other], atol=1e-3)
    half = mix_statistics(x, other, torch.full((3,), 0.5))
    assert torch.allclose(
        half.mean((2, 3)), (x.mean((2, 3)) + x.mean((2, 3))[other]) / 2, atol=1e-4
    )
    # What is where in the map stays.
    for a, b in zip(x.flatten(0, 1), taken.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.999


def test_no_gradient_goes_through_the_statistics():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    mix_statistics(x, torch.tensor([1, 0]), torch.zeros(2)).sum().backward()
    spread = x.detach().std((2, 3), unbiased=False)
    wanted = (spread[[1, 0]] / spread)[:, :, None, None].expand_as(x)
    torch.testing.assert_close(x.grad, wanted, atol=1e-4, rtol=1e-4)


def test_only_the_student_in_training_is_mixed(make_job):
    task = worker.build_task(make_job(MIXED, target=None))
    images = torch.rand(4, 3, 96, 96)
    component = task.components[0]
    detector = task.detector

    def seen(seed):
        component.begin(draw(seed), 0.0)
        return detector.backbone(images)[0]

    detector.train()
    for m in detector.modules():  # what changes is the mixing alone
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.0
    assert torch.equal(seen(1), seen(1))
    assert not torch.allclose(seen(1), seen(2))
    detector.eval()
    assert torch.equal(seen(1), seen(2))
    before = [len(m._forward_hooks) for m in task.ema.network.modules()]
    assert sum(before) == 0
    task.ema.network.train(True)
    assert sum(len(m._forward_hooks) for m in detector.modules()) >= 2


def test_a_stride_that_the_backbone_has_not_is_refused():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Backbone("resnet18", (8, 16))

    with pytest.raises(ConfigError, match="no map at stride 1 or below"):
        MixStyle(Settings(stride=1)).attach(Network())


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "resnet18", "efficientnet_b0"])
def test_group_norm_takes_the_place_of_batch_norm(name):
    torch.manual_seed(0)
    network = Backbone(name, (8, 16), norm="group").eval()
    kinds = [type(m).__name__ for m in network.modules()]
    assert not any("BatchNorm" in k for k in kinds)
    plain = Backbone(name, (8, 16))
    norms = sum("BatchNorm" in type(m).__name__ for m in plain.modules())
    assert kinds.count("GroupNorm") == norms
    # The activations are still there: as many as before.
    acts = [sum(isinstance(m, (nn.ReLU, nn.SiLU)) for m in n.modules()) for n in (network, plain)]
    assert acts[0] == acts[1] > 0
    # An image is seen alike whatever is beside it, in training, too.
    network.train()
    images = torch.rand(3, 3, 64, 64)
    for m in network.modules():
        if isinstance(m, nn.Dropout) or "Drop" in type(m).__name__:
            m.eval()
    for whole, alone in zip(network(images), network(images[:1]), strict=True):
        assert torch.allclose(whole[:1], alone, atol=1e-4)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(ConfigError, match="no BatchNorm that GroupNorm could replace"):
        Backbone("convnext_atto", (8, 16), norm="group")


def test_adabn_is_refused_where_there_is_no_batch_norm():
    made = Experiment(
        data=Data(domains={"a": Domain(), "b": Domain()}),
        detector=Detector(norm="group"),
        methods=["adabn"],
    )
    with pytest.raises(ConfigError, match="'adabn' estimates BatchNorm anew"):
        complete(made)
