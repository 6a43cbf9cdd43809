"""AdamW's parameter groups, clipping, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and norms and biases (fewer than 2 dimensions), which do not."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def clip_gradients(
    optimizer: torch.optim.Optimizer, most: float, *, by_value: bool = False, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """Clips in place, over all shards of a model, and gives the norm before; all processes must ask.

    Args:
        optimizer: whose parameters' gradients are meant.
        most: their norm may be, or each of their values.
        by_value: which of the two.
        scaler: of float16's losses, if there is one.
    """
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)  # Lightning leaves the gradients of a fused optimizer scaled, and then refuses to clip them
    clipped = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    if by_value:
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in clipped])
        torch.nn.utils.clip_grad_value_(clipped, most)
    else:
        norm = torch.nn.utils.clip_grad_norm_(clipped, most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def linear_warmup_decay(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate at optimizer step `step`, counting from 0.

    It rises linearly to 1 over `warmup_steps` steps, then falls linearly and would reach 0 at `total_steps`. Unlike
    transformers' `get_linear_schedule_with_warmup` the first step is not spent at a rate of 0. A run that ends within its
    warm-up only rises.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
