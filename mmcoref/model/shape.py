"""What arithmetic needs to know of a causal language model: its sizes, what a token costs in it, and how wide numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from mmcoref.model.scoring import last_mlp


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, in numbers (of weights, of channels), never in bytes.

    Attributes:
        parameters: all of them, tied ones once, adapters included.
        trainable: those that the optimizer moves: all, or the adapters.
        linear: matrices that autocast casts, of all blocks and the LM head, adapters left out.
        block: parameters of the largest block, adapters left out.
        head: of the LM head, which are the embedding's where they are tied.
        mlp: of the last block's MLP, if it is computed at answer positions only (see `scoring.forward_at`), else 0.
        widest: of the largest matrix of a block.
        hidden: channels of the residual stream.
        intermediate: channels inside the MLP.
        layers: blocks.
        heads: of the queries.
        kv_heads: of keys and values.
        head_width: channels of one head.
        vocabulary: rows of the embedding.
        tied: whether LM head and embedding are one matrix.
        adapted: channels that go into a block's adapted layers, summed over those layers; 0 where all weights are trained.
    """

    parameters: int
    trainable: int
    linear: int
    block: int
    head: int
    mlp: int
    widest: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    adapted: int = 0

    @property
    def frozen(self) -> bool:
        """Whether adapters are trained beside weights that no optimizer moves."""
        return self.trainable < self.parameters


class Widths(NamedTuple):
    """Bytes of a number.

    Attributes:
        stored: as weights are stored, and as it stands on the residual stream.
        computed: as linear layers and attention compute with it.
    """

    stored: int
    computed: int

    @property
    def autocast(self) -> bool:
        """Whether weights are cast before they are used."""
        return self.computed < self.stored

    @property
    def softmax(self) -> int:
        """Over the vocabulary: never in half precision."""
        return max(4, self.stored)


_MIXED, _HALF, _DOUBLE = Widths(4, 2), Widths(2, 2), Widths(8, 8)
_WIDTHS = {"16-mixed": _MIXED, "bf16-mixed": _MIXED, "16": _MIXED, "bf16": _MIXED, "16-true": _HALF, "bf16-true": _HALF}
_WIDTHS |= {"64-true": _DOUBLE, "64": _DOUBLE}


def widths(precision: str) -> Widths:
    """Of a precision as Lightning spells it; 4 bytes throughout for `32-true` and any that is not known."""
    return _WIDTHS.get(precision, Widths(4, 4))


# ---------------------------------------------------------------------- what a forward pass leaves for the backward pass


def norm_kept(shape: Shape, width: Widths) -> int:
    """Bytes of a token: a norm's input in fp32, and what it makes of it, for the gradient of its own weight."""
    return 4 * shape.hidden + (0 if shape.frozen else width.stored * shape.hidden)


def _attention_kept(shape: Shape, width: Widths) -> int:
    """Bytes of a token, in a block up to its MLP."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    numbers = 2 * queries + 2 * keys  # queries and the kernel's output, keys and values
    if not shape.frozen:
        # The input of q, k and v, which autocast casts once for each of them, and the output projection's, which is not the
        # kernel's output itself, as a row's records are put together again.
        numbers += (3 if width.autocast else 1) * shape.hidden + queries
    return 2 * norm_kept(shape, width) + width.computed * numbers + 4 * shape.heads  # and the kernel's log-sums in fp32


def _mlp_kept(shape: Shape, width: Widths) -> int:
    """Bytes of a token."""
    numbers = 3 * shape.intermediate  # the gate, before and after its activation, and the factor that it opens
    if not shape.frozen:
        numbers += (2 if width.autocast else 1) * shape.hidden + shape.intermediate  # inputs of gate and up, and of down
    return width.computed * numbers


def block_kept(shape: Shape, width: Widths, tokens: int, mlp_tokens: int) -> int:
    """Bytes of a block: the above, and what its adapters see."""
    return (_attention_kept(shape, width) + width.computed * shape.adapted) * tokens + _mlp_kept(shape, width) * mlp_tokens


# ---------------------------------------------------------------------- operations


def training_flops(shape: Shape, lengths: Sequence[int], targets: int, *, checkpointing: bool = False) -> int:
    """Floating-point operations of a forward and backward pass.

    A product of a token with a weight is 2 of them forwards, and 4 backwards, where a frozen weight has 2: 6 for each weight and
    token (Kaplan et al. 2020, section 2.1). Attention has 12 x heads x head width x record for each layer and token, as if it were
    not causal (Chowdhery et al. 2022, PaLM, appendix B, whose MFU is this number without checkpointing, a second, over the
    device's peak). The head, and the last block's MLP, are computed for answer tokens only. Embedding and norms are left out.

    Args:
        shape: of the model.
        lengths: tokens of each record, padding included.
        targets: answer tokens of all of them.
        checkpointing: whether all blocks but the last are computed a second time.
    """
    tokens = sum(lengths)
    blocks = shape.linear - shape.head
    adapters = shape.trainable if shape.frozen else 0
    attention = 4 * shape.layers * shape.heads * shape.head_width * sum(length * length for length in lengths)
    whole = 2 * (blocks + adapters) * tokens + attention
    forward = whole + 2 * shape.head * targets - 2 * shape.mlp * (tokens - targets)
    backward = forward + attention + 2 * adapters * tokens if shape.frozen else 2 * forward
    # A block's second forward pass ends where nothing is kept any more: before the product of the MLP's last layer.
    again = (whole // shape.layers - 2 * shape.hidden * shape.intermediate * tokens) * (shape.layers - 1) if checkpointing else 0
    return forward + backward + again


# ---------------------------------------------------------------------- counting


def shape_of(config: PretrainedConfig, lora_rank: int = 0, lora_targets: Sequence[str] | None = None) -> Shape:
    """Counts a model of this config.

    Args:
        config: of the model.
        lora_rank: of adapters beside frozen weights; 0 where all weights are trained.
        lora_targets: last names of the linear layers that get one; by default every linear layer of the blocks has one.
    """
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    blocks = _blocks(lm)
    embedding, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    mlp = last_mlp(lm)
    matrices = [weight.numel() for block in blocks for weight in block.parameters() if weight.ndim > 1]
    adapted = [_adapted(block, lora_targets) for block in blocks] if lora_rank else []
    # An adapter of a layer with `inside` channels in and `outside` out is two matrices, rank x inside and outside x rank.
    adapters = lora_rank * sum(inside + outside for layers in adapted for inside, outside in layers)
    parameters = sum(weight.numel() for weight in lm.parameters())
    heads = int(config.num_attention_heads)
    return Shape(
        parameters=parameters + adapters,
        trainable=adapters if lora_rank else parameters,
        linear=sum(matrices) + head.numel(),
        block=max(_count(block) for block in blocks),
        head=head.numel(),
        mlp=0 if mlp is None else _count(mlp),
        widest=max(matrices),
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        layers=len(blocks),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=embedding.shape[0],
        tied=head is embedding,
        adapted=max((sum(inside for inside, _ in layers) for layers in adapted), default=0),
    )


def _blocks(lm: nn.Module) -> nn.ModuleList:
    """The decoder's blocks: its longest list of modules."""
    return max((module for module in lm.modules() if isinstance(module, nn.ModuleList)), key=len)


def _adapted(block: nn.Module, targets: Sequence[str] | None) -> list[tuple[int, int]]:
    """(channels in, channels out) of the layers of a block that get an adapter."""
    linear = ((name.rpartition(".")[2], module) for name, module in block.named_modules() if isinstance(module, nn.Linear))
    return [(module.in_features, module.out_features) for name, module in linear if targets is None or name in targets]


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


_LLAMA: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8}
_8B: dict[str, Any] = {
    **_LLAMA,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}

# What decides the sizes of the four published models, for LlamaConfig: their repositories are gated, and sizes are asked for offline.
PUBLISHED_SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B": {
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B": _8B,
    "meta-llama/Llama-3.1-8B-Instruct": _8B,
}
