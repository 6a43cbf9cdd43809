"""Settings -> causal language model: from the hub, from a folder, or `tiny` from a config."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmcoref.data.hub import fetch
from mmcoref.data.pretrained import read_config, restored_config
from mmcoref.data.tokenizer import TINY, TINY_NAMES, pad_token_id
from mmcoref.errors import UserError
from mmcoref.model.adapters import Adapters, add_adapters, freeze
from mmcoref.model.loading import fill, give_memory, lay_out
from mmcoref.model.sharding import shard

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


@dataclass(frozen=True)
class Place:
    """Where a model is put, and how it is computed.

    Attributes:
        device: of this process.
        mesh: the processes over which the model is cut; None where each holds all of it.
        compute_dtype: what autocast computes in, if it does.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    compute_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, trainer: pl.Trainer | None) -> Place:
        """That of a trainer's process; without a trainer, the CPU.

        Raises:
            UserError: a strategy that cuts the model and has its processes see the same records.
        """
        if trainer is None:
            return HERE
        strategy = trainer.strategy
        mesh = strategy.device_mesh["data_parallel"] if isinstance(strategy, ModelParallelStrategy) else None
        if mesh is not None and mesh.size() != trainer.world_size:
            raise UserError(
                f"trainer.strategy: {mesh.size()} of {trainer.world_size} processes would see records of their own: "
                "use --trainer.strategy sharded."
            )
        compute = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(str(trainer.precision))
        return cls(strategy.root_device, mesh, compute)


HERE = Place()


def backbone_config(name: str, tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """The shape of the model `name`.

    Args:
        name: of the model.
        tokenizer: its own; only `tiny` is made to its measure.

    Raises:
        UserError: its config cannot be read.
    """
    if name in TINY_NAMES:
        assert tokenizer is not None
        return tiny_config(tokenizer)
    return read_config(fetch(name), name)


def load_backbone(
    name: str, tokenizer: PreTrainedTokenizerBase | None, place: Place = HERE, adapters: Adapters | None = None
) -> PreTrainedModel:
    """The pretrained model `name` in fp32 and train mode; `tiny` is initialised at random from the global seed.

    Args:
        name: of the model.
        tokenizer: its own; only `tiny` is made to its measure.
        place: where it is put.
        adapters: what stands beside it, frozen, if anything does.

    Raises:
        UserError: no such folder or repository, files that are not a causal language model, or adapters that do not fit it.
    """
    config = backbone_config(name, tokenizer)
    if name in TINY_NAMES:
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).train()  # type: ignore[no-untyped-call]
        if name == TINY and tokenizer is not None:
            transplant(lm, tokenizer, TINY_WEIGHTS)
        return _with_adapters(_placed(lm, place, adapters).to(place.device), adapters)  # type: ignore[arg-type]  # untyped .to()
    lm = _placed(lay_out(config), place, adapters)
    give_memory(lm, place.device)
    fill(lm, fetch(name, weights=True))
    return _with_adapters(lm, adapters)


def build_backbone(config: dict[str, Any], place: Place = HERE, adapters: Adapters | None = None) -> PreTrainedModel:
    """A model of this shape, without values: its weights are still to come from a checkpoint."""
    lm = _placed(lay_out(restored_config(config)), place, adapters)
    give_memory(lm, place.device)
    return _with_adapters(lm, adapters)


def _placed(lm: PreTrainedModel, place: Place, adapters: Adapters | None) -> PreTrainedModel:
    if adapters is not None:
        if place.mesh is not None:
            raise UserError(
                "model.lora_rank: adapters are trained with every process holding the frozen model: use --trainer.strategy ddp."
            )
        freeze(lm, place.compute_dtype)
    return lm if place.mesh is None else shard(lm, place.mesh, place.compute_dtype)


def _with_adapters(lm: PreTrainedModel, adapters: Adapters | None) -> PreTrainedModel:
    if adapters is not None:
        add_adapters(lm, adapters)
    return lm


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
