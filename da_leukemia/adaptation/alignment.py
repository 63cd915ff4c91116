"""Distances between the two devices' features, without a discriminator: MMD and CORAL."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from da_leukemia.adaptation.adversarial import reversal_schedule
from da_leukemia.adaptation.base import Component, StepContext
from da_leukemia.adaptation.regions import cell_features, pool_maps, true_regions
from da_leukemia.adaptation.settings import Coral as CoralSettings
from da_leukemia.adaptation.settings import Mmd as MmdSettings


class Compared(NamedTuple):
    """Features of both devices, and who belongs to which group.

    Attributes:
        source: ``(N, D)`` float32.
        target: ``(M, D)`` float32.
        of_source: ``(N, G)``, 1 where a feature is of that group; all 0 for an empty place.
        of_target: ``(M, G)``.
    """

    source: Tensor
    target: Tensor
    of_source: Tensor
    of_target: Tensor


def mmd(given: Compared, kernels: int = 5) -> Tensor:
    """Squared maximum mean discrepancy, unbiased, mean over the groups that both devices show.

    The kernel is the mean of Gaussians whose squared widths are the mean squared distance times
    powers of two (Long et al., ICML 2015; widths as in their released code). A group needs two
    features on each device: without that it counts for nothing.
    """
    x = torch.cat([given.source, given.target])
    norms = x.square().sum(1)
    distance = (norms[:, None] + norms[None, :] - 2 * x @ x.T).clamp(min=0)
    others = 1 - torch.eye(len(x), device=x.device)
    with torch.no_grad():
        real = torch.cat([given.of_source, given.of_target]).amax(1)
        pairs = real[:, None] * real[None, :] * others
        width = ((distance * pairs).sum() / pairs.sum().clamp(min=1)).clamp(min=1e-6)
    powers = [2.0 ** (k - kernels // 2) for k in range(kernels)]
    kernel = torch.stack([torch.exp(-distance / (width * p)) for p in powers]).mean(0)
    kernel = kernel * others  # a feature beside itself says nothing
    a, b, split = given.of_source, given.of_target, len(given.source)
    n, m = a.sum(0), b.sum(0)
    within = (a * (kernel[:split, :split] @ a)).sum(0) / (n * (n - 1)).clamp(min=1)
    within = within + (b * (kernel[split:, split:] @ b)).sum(0) / (m * (m - 1)).clamp(min=1)
    between = (a * (kernel[:split, split:] @ b)).sum(0) / (n * m).clamp(min=1)
    present = ((n > 1) & (m > 1)).float()
    return ((within - 2 * between) * present).sum() / present.sum().clamp(min=1)


def coral(given: Compared) -> Tensor:
    """Squared distance of covariances over ``4 D^2`` (Sun and Saenko, ECCV 2016), groups averaged.

    A group needs two features on each device, as in `mmd`.
    """

    def covariance(x: Tensor, members: Tensor) -> Tensor:
        count = members.sum(0)[:, None]  # (G, 1)
        mean = members.T @ x / count.clamp(min=1)
        apart = (x - mean.unsqueeze(1)) * members.T.unsqueeze(-1)  # (G, N, D)
        return apart.transpose(1, 2) @ apart / (count.unsqueeze(-1) - 1).clamp(min=1)

    gap = covariance(given.source, given.of_source) - covariance(given.target, given.of_target)
    enough = (given.of_source.sum(0) > 1) & (given.of_target.sum(0) > 1)
    found = gap.square().sum((1, 2)) / (4 * given.source.shape[1] ** 2) * enough
    return found.sum() / enough.sum().clamp(min=1)


class _Alignment(Component):
    """What MMD and CORAL share: whose features are compared."""

    teaches_head = False

    def __init__(self, settings: MmdSettings | CoralSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.classes = classes

    def wants_target(self, progress: float) -> bool:
        """Always: it compares both devices in every step."""
        del progress
        return True

    def distance(self, given: Compared) -> Tensor:
        """Return what is to become small."""
        raise NotImplementedError

    def losses(self, context: StepContext) -> dict[str, Tensor]:
        """Distance of the features, 0 where one of the devices has too few of them."""
        # In float32: differences of nearly equal numbers.
        with torch.autocast(context.source.features[0].device.type, enabled=False):
            found = self.distance(self._compared(context))
        name = type(self).__name__.lower()
        context.log(f"health/{name}", found.detach())
        rise = reversal_schedule(context.progress, self.settings.ramp)
        return {name: self.settings.weight * rise * found}

    def _compared(self, context: StepContext) -> Compared:
        settings, target, detector = self.settings, context.target, context.detector
        assert target is not None
        if settings.features == "map":
            a, b = pool_maps(context.source), pool_maps(target)
            return Compared(a, b, a.new_ones(len(a), 1), b.new_ones(len(b), 1))
        own = true_regions(
            detector, context.source, context.source_targets, settings.regions, context.draw
        )
        found = detector.confident(target, settings.threshold, settings.regions)
        context.log("health/target_regions_per_image", found.mask.float().sum(1).mean())
        features, members = [], []
        for outputs, regions in ((context.source, own), (target, found)):
            pooled = cell_features(
                detector, outputs, regions.boxes, settings.features, settings.resolution
            )
            features.append(pooled.flatten(0, 1))
            mask = regions.mask.flatten().float().unsqueeze(1)
            kinds = F.one_hot(regions.labels.flatten(), self.classes)
            members.append(kinds * mask if settings.by_class else mask)
        return Compared(features[0], features[1], members[0], members[1])


class Mmd(_Alignment):
    """Multi-kernel maximum mean discrepancy: see `mmd`."""

    def distance(self, given: Compared) -> Tensor:
        """Return the squared discrepancy."""
        return mmd(given)


class Coral(_Alignment):
    """Correlation alignment: see `coral`."""

    def distance(self, given: Compared) -> Tensor:
        """Return the squared distance of the covariances."""
        return coral(given)
