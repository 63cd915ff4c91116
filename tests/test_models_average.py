"""The moving average: another object, that follows weights and statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from da_leukemia.models.ema import MovingAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def train_a_bit(net):
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net.train()(torch.randn(8, 3, 4, 4) * 3 + 5)


def test_the_teacher_is_not_the_student():
    net = network()
    average = MovingAverage(net, 0.9)
    assert average.network is not net
    own = {p.data_ptr() for p in average.parameters()} | {b.data_ptr() for b in average.buffers()}
    assert not own & {p.data_ptr() for p in [*net.parameters(), *net.buffers()]}
    before = {k: v.clone() for k, v in average.network.state_dict().items()}
    train_a_bit(net)
    for key, value in average.network.state_dict().items():
        assert torch.equal(value, before[key])


def test_it_is_frozen_and_stays_in_evaluation_mode():
    average = MovingAverage(network(), 0.9)
    holder = nn.Module()
    holder.average = average
    holder.train()
    assert not any(m.training for m in average.modules())
    assert not any(p.requires_grad for p in average.parameters())


def test_weights_and_floating_statistics_are_averaged_and_counts_copied():
    net = network()
    average = MovingAverage(net, 0.9)
    old = {k: v.clone() for k, v in net.state_dict().items()}
    train_a_bit(net)
    average.update(net)
    decay = 2 / 11  # (1 + 1) / (10 + 1)
    new = net.state_dict()
    for key, value in average.network.state_dict().items():
        if value.is_floating_point():
            assert not torch.equal(new[key], old[key]), key
            torch.testing.assert_close(value, decay * old[key] + (1 - decay) * new[key])
        else:
            assert torch.equal(value, new[key])
            assert value.dtype == new[key].dtype
    assert int(average.network[1].num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("update", "decay"), [(1, 2 / 11), (90, 91 / 100), (1000, 1001 / 1010), (10**6, 0.999)]
)
def test_the_decay_rises_to_its_value(update, decay):
    assert MovingAverage(network(), 0.999).decay_at(update) == pytest.approx(decay)


def test_a_short_run_leaves_its_start():
    net = network()
    average = MovingAverage(net, 0.9996)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    for _ in range(100):
        average.update(net)
    assert (average.network[0].weight - 1).abs().max() < 0.01


def test_its_state_and_its_count_survive_a_checkpoint(tmp_path):
    net = network()
    average = MovingAverage(net, 0.999)
    for _ in range(7):
        train_a_bit(net)
        average.update(net)
    holder = nn.ModuleDict({"ema": average})
    torch.save(holder.state_dict(), tmp_path / "state.pt")
    loaded = nn.ModuleDict({"ema": MovingAverage(network(), 0.999)})
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train_a_bit(net)
    average.update(net)
    loaded["ema"].update(net)
    assert int(loaded["ema"].updates) == 8
    for key, value in average.state_dict().items():
        assert torch.equal(value, loaded["ema"].state_dict()[key]), key
