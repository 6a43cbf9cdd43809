"""Settings -> causal language model: from the hub, from a folder, or `tiny` from a config."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmcoref.data.tokenizer import TINY, first_line, pad_token_id
from mmcoref.errors import UserError

# The smallest Llama that learnt the generated dialogues in trials; a width of 64 stayed at chance.
# initializer_range is 4 times Llama's: at 0.02 a model this narrow starts with logits too flat to leave chance in time.
_TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The shape of `tiny`, around its tokenizer's vocabulary."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id(tokenizer),
        **_TINY_SHAPE,
    )


def load_backbone(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The pretrained model `name` in fp32 and train mode; `tiny` is initialised at random from the global seed.

    fp32 is asked for because transformers keeps the file's dtype, which for Llama is bf16: mixed precision would
    train bf16 master weights. Train mode, because `from_pretrained` returns a model in eval mode and Lightning
    leaves it so, which turns gradient checkpointing and dropout off.

    Raises:
        UserError: no such folder or repository, or files that are not a causal language model.
    """
    if name == TINY:
        return build_backbone(tiny_config(tokenizer).to_dict())
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"model.name {name!r}: cannot be loaded as a causal language model: {first_line(error)}") from None
    return _ready(model)


def build_backbone(config: dict[str, Any]) -> PreTrainedModel:
    """A model of this shape whose weights are still to come from a checkpoint."""
    shape: PretrainedConfig = AutoConfig.for_model(**config)
    return _ready(AutoModelForCausalLM.from_config(shape, dtype=torch.float32))  # type: ignore[no-untyped-call]


def _ready(model: Any) -> PreTrainedModel:
    model.train()
    return model  # type: ignore[no-any-return]  # transformers' Auto classes are untyped
