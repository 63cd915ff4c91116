"""What is done to a trained network with unlabelled training images of the target."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from da_leukemia.adaptation.base import Component, Images
from da_leukemia.adaptation.settings import AdaBN as AdaBNSettings
from da_leukemia.adaptation.settings import Tent as TentSettings
from da_leukemia.errors import ConfigError
from da_leukemia.models.base import AnyDetector
from da_leukemia.models.classifier import CellClassifier

_LEAST = 1e-7
"""Entropies are of probabilities this far from 0 and 1, where their slope is infinite and one place
that is beyond doubt would make every weight NaN."""

_MOST = 4.0
"""A type counts at most so much more than it was found: of one that is hardly ever named, most that
is taken for it is something else."""


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

        def batches() -> Iterator[Tensor]:
            full = 0
            for batch in itertools.islice(images(), self.settings.batches):
                full = max(full, len(batch))
                if len(batch) == full:  # the statistics of a rest of one or two images are none
                    yield batch

        if not self.settings.rounds:
            _estimate(network, layers, ((batch, torch.ones(len(batch))) for batch in batches()))
        # The first weights are of the source's statistics: those of the unweighted target make the
        # mistakes that are to be mended.
        for _ in range(self.settings.rounds):
            weights = type_weights(cast(CellClassifier, network), batches())
            _estimate(network, layers, zip(batches(), weights, strict=True))
        for layer, (mean, variance) in zip(layers, before, strict=True):
            _of(layer.running_mean).lerp_(mean, 1 - self.settings.weight)
            _of(layer.running_var).lerp_(variance, 1 - self.settings.weight)


def type_weights(network: CellClassifier, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return weights ``(B,)`` of the images of each batch, with which types come as in training.

    An image counts by the types that it may be of, each as much rarer or more frequent as training
    showed it than it is here. What the target's mix is, is the mean of the network's own
    probabilities (as Lipton et al., ICML 2018, estimate it, without their inverse of the confusion
    matrix, which a shift of the device changes, too). To draw by predicted type was found to
    mend adapted norm statistics by Gong et al. (NOTE, NeurIPS 2022).
    """
    answers = [network.places(network(batch)).scores[:, 0] for batch in batches]
    if not answers:
        return []
    mix = torch.cat(answers).mean(0)
    ratio = (network.shown / mix.clamp(min=_LEAST)).clamp(max=_MOST)
    return [answer @ ratio for answer in answers]


def _estimate(
    network: AnyDetector, layers: list[_BatchNorm], weighted: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Set the statistics of ``layers`` to the weighted mean over batches of images.

    Within a batch each layer sees what the layers before it make of that batch's own statistics, as
    in training.
    """
    share: Tensor
    sums = [torch.zeros_like(torch.stack([_of(m.running_mean)] * 2)) for m in layers]

    def measure(layer: nn.Module, given: tuple[Tensor, ...], own: Tensor) -> None:
        flat = given[0].detach().float().flatten(2)  # (B, C, H * W)
        each = share.to(flat) / share.sum() / flat.shape[-1]
        mean = torch.einsum("b,bcl->c", each, flat)
        variance = torch.einsum("b,bcl->c", each, (flat - mean[:, None]).square())
        n = flat.shape[0] * flat.shape[-1]
        _of(cast(_BatchNorm, layer).running_mean).copy_(mean)
        _of(cast(_BatchNorm, layer).running_var).copy_(variance)
        own += share.sum().to(own) * torch.stack([mean, variance * n / max(n - 1, 1)])

    hooks = [
        m.register_forward_pre_hook(lambda layer, x, own=own: measure(layer, x, own))
        for m, own in zip(layers, sums, strict=True)
    ]
    total = 0.0
    for batch, share in weighted:
        network(batch)
        total += float(share.sum())
    for hook, layer, own in zip(hooks, layers, sums, strict=True):
        hook.remove()
        if total:
            _of(layer.running_mean).copy_(own[0] / total)
            _of(layer.running_var).copy_(own[1] / total)


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
