"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and norms and biases (fewer than 2 dimensions), which do not."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def linear_warmup_decay(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate at optimizer step `step`, counting from 0.

    It rises linearly to 1 over `warmup_steps` steps, then falls linearly and would reach 0 at `total_steps`. Unlike
    transformers' `get_linear_schedule_with_warmup` the first step is not spent at a rate of 0. A run that ends within its
    warm-up only rises.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
