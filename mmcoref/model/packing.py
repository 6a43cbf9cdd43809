"""Several records in one row: attention that keeps them apart, so that nothing is padded.

transformers would build a mask of T × T for such a row and compute all of it. Here each record is attended to by itself,
causally and without a mask, which is what the fast kernels take; everything else in a model works token by token.

Legend of shapes: H heads, T tokens of the row, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "mmcoref_packed"
_EVERY_TOKEN = {"full_attention", "sliding_attention"}  # other layers, such as linear attention, would carry a state from record to record


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: tuple[int, ...] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each record of a row (1, H, T, D); without `lengths` it is transformers' own.

    Args:
        module: the attention layer.
        query: of all tokens.
        key: the same, possibly with fewer heads.
        value: the same.
        attention_mask: of an ordinary batch; a packed row has none.
        lengths: tokens of each record of a packed row.
        settings: scale and dropout.

    Returns:
        (1, T, H, D), and no weights.
    """
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    records = zip(*(torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **settings)[0] for q, k, v in records], dim=1), None


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def can_pack(config: PretrainedConfig, longest: int) -> bool:
    """Whether records of up to `longest` tokens can share a row of a model of this shape."""
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    softcap = getattr(config, "attn_logit_softcapping", None)  # scaled dot-product attention has no place for it
    takes = model is not None and model._supports_attention_backend and model._supports_sdpa
    return bool(takes and layers <= _EVERY_TOKEN and window >= longest and not softcap)


def allow_packing(model: PreTrainedModel) -> None:
    """Lets a model take packed rows. Ordinary batches are answered as before."""
    model.config._attn_implementation = PACKED


def packed_inputs(position_ids: Tensor, lengths: tuple[int, ...]) -> dict[str, Any]:
    """What tells a model that a row is packed, besides its ids."""
    # A mask of four dimensions is passed on as it is, so that none is built; `attend` does not look at it.
    return {"position_ids": position_ids, "lengths": lengths, "attention_mask": position_ids.new_zeros(1, 1, 1, 1)}
