"""AdamW's parameter groups, clipping, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a factor of its peak, by optimizer step: a linear warm-up, then a linear decay to 0.

    Unlike transformers' `get_linear_schedule_with_warmup` the first step is not spent at a rate of 0. A run that ends within
    its warm-up only rises.

    Attributes:
        warmup_steps: steps in which the rate rises to its peak.
        total_steps: steps of the run; the decay would reach 0 at this one.
        start: the step at which a resumed run got a schedule of another length, 0 otherwise.
        start_factor: the factor of that step by the schedule before it; the new one continues from there.
    """

    warmup_steps: int
    total_steps: int
    start: int = 0
    start_factor: float = 0.0

    def factor(self, step: int) -> float:
        """Return the factor of a step, counting from 0."""
        if step < self.warmup_steps:
            if not self.start:
                return (step + 1) / self.warmup_steps
            rise = max(1, self.warmup_steps - 1 - self.start)
            return min(1.0, self.start_factor + (1 - self.start_factor) * (step - self.start) / rise)
        if self.start <= self.warmup_steps:
            return max(0.0, (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps))
        return self.start_factor * max(0.0, (self.total_steps - step) / max(1, self.total_steps - self.start))

    def resumed(self, step: int, *, warmup_steps: int, total_steps: int) -> Schedule:
        """Return the schedule of a run resumed at a step, with settings that may have changed.

        The same settings give the same schedule. Others change it from this step on, at which it does not jump. A run whose
        rate had reached 0 has none to continue from: it gets the schedule that a run of the new length would have had.
        """
        if (warmup_steps, total_steps) == (self.warmup_steps, self.total_steps):
            return self
        factor = self.factor(step)
        if not step or not factor:
            return Schedule(warmup_steps, total_steps)
        return Schedule(warmup_steps, total_steps, step, factor)
