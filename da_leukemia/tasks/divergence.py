"""Which loss went wrong first: a training that diverges is to say so by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from da_leukemia.errors import UserError


class DivergedError(UserError):
    """A loss, a gradient or the weights became infinite or not a number."""


class FirstBad:
    """Remembers which losses were not finite in the first step in which one was not.

    One bad loss spoils the weights, and through them all losses of the next step. Noting asks the
    device nothing, so it costs no waiting; answering does.
    """

    def __init__(self) -> None:
        self._sound: Tensor | bool = True
        self._bad: dict[str, Tensor | bool] = {}
        self._last: dict[str, Tensor] = {}

    @torch.no_grad()
    def note(self, losses: dict[str, Tensor]) -> None:
        """Look at the losses of a step, each a number."""
        sound: Tensor | bool = self._sound
        for name, value in losses.items():
            finite = torch.isfinite(value)
            self._bad[name] = self._bad.get(name, False) | (self._sound & ~finite)
            sound = sound & finite
        self._sound = sound
        self._last = {name: value.detach() for name, value in losses.items()}

    def complaint(self) -> str | None:
        """Return what was wrong first, None if nothing was."""
        if bool(self._sound):
            return None
        names = [name for name, bad in self._bad.items() if bool(bad)]
        return f"the loss of {', '.join(names)} is not finite"

    def complaint_of_gradient(self, parameters: Iterable[torch.nn.Parameter]) -> str | None:
        """Return what is wrong with a gradient though every loss is finite, None if nothing is."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return None
        largest = sorted(self._last.items(), key=lambda item: -abs(float(item[1])))
        values = ", ".join(f"{name} {float(value):.3g}" for name, value in largest)
        return f"the gradient is not finite; the losses were {values}"
