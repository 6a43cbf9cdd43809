"""A model cut into shards: every process keeps its part of the weights, gradients and optimizer state, and no more.

Blocks are gathered one at a time, forwards and backwards (PyTorch's FSDP2, `fully_shard`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel


def shard(lm: PreTrainedModel, mesh: DeviceMesh, compute_dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Cuts a model's parameters over the processes of a mesh, in place; those on the meta device stay there.

    Args:
        lm: the model; nothing of it may have been trained yet.
        mesh: one dimension.
        compute_dtype: what autocast computes in, if it does. Blocks are then sent in it, which halves the traffic; that
            changes no product, as autocast would cast the same weights. Gradients are summed over processes in fp32.
    """
    # Inputs are left as they are: the residual stream stays fp32, as without shards.
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    computed = whole if compute_dtype is None else MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    # Norms are computed in fp32, and their gradients, sums over all tokens, would overflow in float16 where products do not.
    # They are small: one group that is sent once.
    fully_shard(_norms(lm), mesh=mesh, mp_policy=whole, reshard_after_forward=False)
    base: Any = lm.base_model
    for block in base.layers:
        fully_shard(block, mesh=mesh, mp_policy=computed)
    embedding: nn.Module = lm.get_input_embeddings()
    head: nn.Module = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head.weight is not embedding.weight:
        fully_shard(embedding, mesh=mesh, mp_policy=whole)
        # Needed at the end of the forward pass and the start of the backward pass: not sent twice.
        fully_shard(head, mesh=mesh, mp_policy=computed, reshard_after_forward=False)
    # Tied, embedding and head are one weight and stay in fp32, as what is looked up in it is the residual stream.
    fully_shard(lm, mesh=mesh, mp_policy=whole, reshard_after_forward=False)
    return lm


def _norms(lm: PreTrainedModel) -> list[nn.Module]:
    """Modules that have vectors and nothing else."""
    return [module for module in lm.modules() if (weights := list(module.parameters())) and all(weight.ndim < 2 for weight in weights)]
