"""The optimizer and the learning-rate schedule of every training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from da_leukemia.config import Trainer


def adamw_with_cosine(
    parameters: Sequence[torch.nn.Parameter], settings: Trainer, learning_rate: float
) -> dict[str, Any]:
    """Return AdamW with linear warm-up and cosine decay to 1 %, both in steps.

    Args:
        parameters: what is trained; biases and norms (one dimension) are not decayed.
        settings: number of steps, share of them that warms up, weight decay.
        learning_rate: at the top of the schedule.

    Returns:
        What Lightning's ``configure_optimizers`` wants.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)
    warmup = max(1, round(settings.warmup * settings.steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
