"""Exponential moving average of a network, buffers included."""

from __future__ import annotations

import copy
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


_PAST_THE_RAMP = 10**9


class MovingAverage(nn.Module, Generic[Network]):
    """A frozen copy in evaluation mode that follows a network.

    The decay is ramped, ``min(decay, (1 + t) / (10 + t))``: with 0.9996 from the start, a run of
    2,500 steps would never leave its random weights. Floating-point buffers (BatchNorm statistics)
    are averaged like weights, integer ones are copied.
    """

    def __init__(self, network: Network, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._count = 0  # the same number without a device synchronisation

    @property
    def network(self) -> Network:
        """The averaged network."""
        return self.model

    @torch.no_grad()
    def start_from(self, network: nn.Module) -> None:
        """Copy a trained network and skip the ramp: it is worth keeping from the first step."""
        self.model.load_state_dict(network.state_dict())
        self._count = _PAST_THE_RAMP
        self.updates.fill_(_PAST_THE_RAMP)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever the parent does."""
        del mode
        return super().train(False)

    def decay_at(self, update: int) -> float:
        """Decay of the given update."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's present state."""
        self._count += 1
        self.updates += 1
        decay = self.decay_at(self._count)
        own, other = self.model.state_dict(), network.state_dict()
        floats = [k for k in own if own[k].is_floating_point()]
        torch._foreach_lerp_([own[k] for k in floats], [other[k] for k in floats], 1 - decay)
        for key in own.keys() - set(floats):
            own[key].copy_(other[key])

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        # The hook that runs when this module is loaded as a part of a larger one, too.
        super()._load_from_state_dict(*args, **kwargs)
        self._count = int(self.updates)
