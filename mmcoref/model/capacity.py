"""How much memory a process has for a model, and how much of it a forward pass should use."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

# On two cores forward passes of 4 packed records were the fastest of 1, 2, 4 and 8 (38.6 M weights, 290 tokens a record): their
# widest activation, the MLP's, then had 9.5 MB. What is larger is slower by a tenth, and nothing gets faster by it.
_WIDEST_ON_CPU = 10 * 2**20


def device_memory(device: torch.device, sharing: int = 1) -> int | None:
    """Bytes of a GPU, or of the machine's memory divided by the processes that share it; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory() // sharing if device.type == "cpu" else None


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def most_records(device: torch.device, config: PretrainedConfig, lengths: Sequence[int]) -> int | None:
    """Records, of these lengths in the mean, beyond which a forward pass on this device gets no faster; None where memory alone decides."""
    if device.type != "cpu":
        return None
    widest = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    return max(1, _WIDEST_ON_CPU * len(lengths) // (4 * int(widest) * sum(lengths)))
