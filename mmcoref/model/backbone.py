"""Settings -> causal language model: from the hub, from a folder, or `tiny` from a config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmcoref.data.tokenizer import TINY, TINY_RANDOM, first_line, pad_token_id
from mmcoref.errors import UserError

TINY_WEIGHTS = Path(__file__).with_name("tiny.safetensors")
_BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")  # (V, H): a row belongs to a token, whose id the data decide
# Hangul outside the parts of the published form that never vary.
_WORD = re.compile(r"^(?!.*(?:## |사진 속$|의 사진:$|^[AB]: |발화에서$|물건인가)).*[가-힣]", re.DOTALL)

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
    if name in (TINY, TINY_RANDOM):
        model = build_backbone(tiny_config(tokenizer).to_dict())
        if name == TINY:
            transplant(model, tokenizer, TINY_WEIGHTS)
        return model
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"model.name {name!r}: cannot be loaded as a causal language model: {first_line(error)}") from None
    return _ready(model)


def build_backbone(config: dict[str, Any]) -> PreTrainedModel:
    """A model of this shape whose weights are still to come from a checkpoint."""
    shape: PretrainedConfig = AutoConfig.for_model(**config)
    return _ready(AutoModelForCausalLM.from_config(shape, dtype=torch.float32))  # type: ignore[no-untyped-call]


def transplant(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Copies a backbone that `save_backbone` wrote into a model of its shape, whose tokenizer may have other tokens.

    Rows of tokens that the backbone does not know keep their random weights.
    """
    with safe_open(file, framework="pt") as stored:
        known: list[str] = json.loads(stored.metadata()["vocabulary"])
        theirs: dict[str, Tensor] = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118  # no dict
    ids = tokenizer.get_vocab()
    pairs = [(ids[token], place) for place, token in enumerate(known) if token in ids]
    mine, places = (torch.tensor(column) for column in zip(*pairs, strict=True))
    state = model.state_dict()
    with torch.no_grad():
        for name, weights in theirs.items():
            if name in _BY_TOKEN:
                state[name][mine] = weights[places]
            else:
                state[name].copy_(weights)


def save_backbone(state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Writes the blocks of a trained `tiny-random` in float16, and the rows of tokens that are no words.

    It knows the form of the question, then, but not one word: a fit has those to learn.
    """
    ids = {token: number for token, number in tokenizer.get_vocab().items() if not _WORD.search(str(tokenizer.decode([number])))}
    rows = torch.tensor(list(ids.values()))
    kept = {name: (weights[rows] if name in _BY_TOKEN else weights).to(torch.float16).contiguous() for name, weights in state.items()}
    save_file(kept, file, {"vocabulary": json.dumps(list(ids))})


def _ready(model: Any) -> PreTrainedModel:
    model.train()
    return model  # type: ignore[no-any-return]  # transformers' Auto classes are untyped
