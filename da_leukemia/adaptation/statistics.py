"""What is done to a trained network with unlabelled training images of the target."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from da_leukemia.adaptation.base import Component, Images
from da_leukemia.adaptation.settings import AdaBN as AdaBNSettings
from da_leukemia.adaptation.settings import Tent as TentSettings
from da_leukemia.errors import ConfigError
from da_leukemia.models.base import AnyDetector

_LEAST = 1e-7
"""Entropies are of probabilities this far from 0 and 1, where their slope is infinite and one place
that is beyond doubt would make every weight NaN."""


class AdaBN(Component):
    """BatchNorm statistics of the target in place of the source's (Li et al., 2016)."""

    finishes = True

    def __init__(self, settings: AdaBNSettings) -> None:
        super().__init__()
        self.settings = settings

    @torch.no_grad()
    def finish(self, network: AnyDetector, images: Images) -> None:
        """Average mean and variance over the target's batches.

        Raises:
            ConfigError: the backbone has no BatchNorm.
        """
        layers = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        if not layers:
            raise ConfigError(
                "adabn: this detector has no BatchNorm layer, whose statistics could be estimated "
                "anew; take a backbone with BatchNorm or leave the component out"
            )
        before = [(_of(m.running_mean).clone(), _of(m.running_var).clone()) for m in layers]
        momenta = [m.momentum for m in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # an average in which all batches count alike
            layer.train()
        full = 0
        for batch in itertools.islice(images(), self.settings.batches):
            full = max(full, len(batch))
            if len(batch) == full:  # a rest of one or two images would count as much as a batch
                network(batch)
        for layer, momentum, (mean, variance) in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            layer.eval()
            share = self.settings.weight if full else 0.0
            _of(layer.running_mean).lerp_(mean, 1 - share)
            _of(layer.running_var).lerp_(variance, 1 - share)


def _of(statistics: Tensor | None) -> Tensor:
    assert statistics is not None, "BatchNorm without running statistics"
    return statistics


def detection_entropy(scores: Tensor) -> Tensor:
    """Return the mean binary entropy of class scores, weighted by each place's best score.

    Args:
        scores: ``(B, L, C)`` in 0..1. Nearly all places are certain background; unweighted they
            would be all that counts.
    """
    weight = scores.detach().amax(-1)
    scores = scores.clamp(_LEAST, 1 - _LEAST)
    certain = torch.special.entr(scores) + torch.special.entr(1 - scores)
    mean: Tensor = (certain.sum(-1) * weight).sum() / weight.sum().clamp(min=1e-6)
    return mean


def cell_entropy(scores: Tensor) -> Tensor:
    """Return the mean entropy of class probabilities ``(B, 1, C)`` of single cells."""
    # At 0, where the score of a class never seen is, its slope is infinite.
    mean: Tensor = torch.special.entr(scores.clamp(min=_LEAST)).sum(-1).mean()
    return mean


class Tent(Component):
    """Entropy minimisation on the scales and shifts of the norm layers alone (Wang et al., 2021).

    The statistics of BatchNorm stay as they are: put `adabn` before it for the target's.
    """

    finishes = True

    def __init__(self, settings: TentSettings) -> None:
        super().__init__()
        self.settings = settings

    def finish(self, network: AnyDetector, images: Images) -> None:
        """Take a few steps of Adam, one batch each, going round the images where they are few."""
        kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
        layers = [m for m in network.modules() if isinstance(m, kinds)]
        weights = [p for m in layers for p in m.parameters(recurse=False)]
        frozen = [(p, p.requires_grad) for p in network.parameters()]
        network.requires_grad_(False)
        for p in weights:
            p.requires_grad_(True)
        optimizer = torch.optim.Adam(weights, lr=self.settings.learning_rate)
        done = 0
        with torch.enable_grad():
            while done < self.settings.steps:
                begun = done
                for batch in itertools.islice(images(), self.settings.steps - done):
                    optimizer.zero_grad()
                    scores = network.places(network(batch)).scores
                    entropy = cell_entropy if network.exclusive else detection_entropy
                    entropy(scores).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    done += 1
                if done == begun:  # no image
                    break
        for p, wanted in frozen:
            p.requires_grad_(wanted)
            p.grad = None
