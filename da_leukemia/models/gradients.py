"""What a gradient meets on its way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradients[0], None


def scale_gradient(features: Tensor, factor: float) -> Tensor:
    """Identity forwards; multiplies the gradient by ``factor`` backwards.

    Below 0 it is the gradient reversal of Ganin et al. (JMLR 2016).
    """
    out: Tensor = _Scale.apply(features, factor)
    return out
