"""How much a forward pass should hold."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from mmcoref.model.capacity import most_records


def test_a_cpus_passes_hold_the_records_whose_mlp_was_fastest_and_a_gpus_what_its_memory_holds() -> None:
    measured = LlamaConfig(hidden_size=512, intermediate_size=2048)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert most_records(cpu, measured, [200, 290, 380]) == 4  # as measured: by the mean record, not the longest
    assert most_records(cpu, LlamaConfig(hidden_size=2048, intermediate_size=8192), [290]) == 1
    assert most_records(cpu, LlamaConfig(hidden_size=8192, intermediate_size=28672), [500]) == 1
    assert most_records(gpu, measured, [290]) is None
