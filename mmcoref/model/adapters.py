"""Adapters: small trained matrices beside frozen weights (LoRA, by peft)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmcoref.errors import UserError

NOT_SHARDED = (
    "model.lora_rank: adapters are trained with every process holding the frozen model: use --trainer.strategy ddp, as configs/lora.yaml "
    "does where it is the last --config."
)
_EVERY_LINEAR = "all-linear"  # peft's word for every linear layer but the LM head


@dataclass(frozen=True)
class Adapters:
    """What is trained beside a frozen model.

    Attributes:
        rank: of the two matrices beside a linear layer.
        alpha: their product is scaled by alpha / rank.
        dropout: of what goes into them.
        targets: names of the linear layers; None for all but the LM head.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None

    @staticmethod
    def check(rank: int, alpha: float, dropout: float, targets: list[str] | None) -> None:
        """Looks at the settings.

        Raises:
            UserError: one that no adapter can have, or that no adapter is there for.
        """
        if alpha <= 0:
            raise UserError(f"model.lora_alpha: expected a number above 0, got {alpha}.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.lora_dropout: expected 0 or more and less than 1, got {dropout}.")
        if targets is not None and not targets:
            raise UserError("model.lora_targets: expected names of linear layers, such as [q_proj, v_proj], got none.")
        if targets is not None and not rank:
            raise UserError("model.lora_targets: model.lora_rank is 0, so that there are no adapters: set it, too, such as to 16.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Adapters | None:
        """Those that a module's settings ask for, if any."""
        if not settings["lora_rank"]:
            return None
        targets = settings["lora_targets"]
        return cls(settings["lora_rank"], settings["lora_alpha"], settings["lora_dropout"], None if targets is None else tuple(targets))


def freeze(lm: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Freezes a model, and keeps its linear layers in the dtype that they are computed in.

    Autocast would cast the same fp32 weights to it in every forward pass, so that no product changes. Embeddings and norms
    stay fp32, and with them the residual stream; so does a head that is tied to the embedding.
    """
    lm.requires_grad_(False)
    tied = lm.get_input_embeddings().weight
    for module in lm.modules():
        if dtype is not None and isinstance(module, nn.Linear) and module.weight is not tied:
            module.to(dtype)


def layers_of(lm: PreTrainedModel, adapters: Adapters) -> list[str] | str:
    """What peft calls the layers that get one.

    Raises:
        UserError: a target that no linear layer of the model is called.
    """
    if adapters.targets is None:
        return _EVERY_LINEAR
    linear = sorted({name.rpartition(".")[2] for name, module in lm.named_modules() if isinstance(module, nn.Linear)})
    missing = [target for target in adapters.targets if target not in linear]
    if missing:
        raise UserError(f"model.lora_targets: this model has no linear layer {missing[0]!r}; it has {', '.join(linear)}.")
    return list(adapters.targets)


def add_adapters(lm: PreTrainedModel, adapters: Adapters) -> None:
    """Puts an adapter, in fp32, beside every linear layer that is meant.

    Raises:
        UserError: a target that no linear layer of the model is called.
    """
    from peft import LoraConfig

    settings = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,  # type: ignore[arg-type]  # a float will do
        lora_dropout=adapters.dropout,
        target_modules=layers_of(lm, adapters),
        task_type="CAUSAL_LM",
    )
    lm.add_adapter(settings)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft gives them the dtype of what they stand beside
