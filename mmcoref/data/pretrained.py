"""Configs and tokenizers of somebody else's: read from a folder or a checkpoint, and never their code.

A folder may bring Python files and ask for them to be run; transformers then asks on standard input whether it may, where
`yes |` would say yes. Nothing here asks, and nothing here says yes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from mmcoref.errors import UserError, first_line

# Some classes drop the `trust_remote_code=False` that they are given before they call others: without seconds to wait for
# an answer, transformers does not ask, and refuses.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_OWN_CODE = "it brings code of its own, which this program never runs: choose a model of a type that transformers has"


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """Read a model's config.

    Args:
        folder: that holds config.json.
        name: of the model, as the user gave it.

    Raises:
        UserError: it cannot be read, or asks for code of its own.
    """
    try:
        asked = _json(folder / _CONFIG)
        if _brings_code(asked, "AutoConfig", "AutoModelForCausalLM") and not _known(asked.get("model_type")):
            raise ValueError(_OWN_CODE)
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever its classes make of hostile or broken values
        raise UserError(f"model.name {name!r}: its config cannot be read: {first_line(error)}") from None
    if kernel := _kernel(config):
        raise UserError(f"model.name {name!r}: its config asks for code from the hub, {kernel!r}: remove attn_implementation from it.")
    return config


def restored_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """Make the config of a causal language model from a checkpoint's plain values.

    Raises:
        UserError: no type of transformers' own, or values that it does not take.
    """
    values = {key: value for key, value in config.items() if key != "auto_map"}
    kind = values.pop("model_type", None)
    if not isinstance(kind, str) or not _known(kind):
        raise UserError(f"the checkpoint's model is of the type {kind!r}, which this version of transformers does not have.")
    try:
        restored: PretrainedConfig = AutoConfig.for_model(kind, **values)
    except Exception as error:  # whatever its class makes of hostile or broken values
        raise UserError(f"the checkpoint's model of the type {kind} cannot be made: {first_line(error)}") from None
    if type(restored) not in MODEL_FOR_CAUSAL_LM_MAPPING or _kernel(restored):
        raise UserError(f"the checkpoint's model of the type {kind} is not a causal language model of transformers' own.")
    return restored


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder.

    Raises:
        ValueError: it asks for code of its own, or for a class that is no tokenizer.
        Exception: whatever else a tokenizer's class raises.
    """
    for file in (_TOKENIZER_CONFIG, _CONFIG):
        asked = _json(folder / file) if (folder / file).is_file() else {}
        kind = asked.get("tokenizer_class")
        found: Any = tokenizer_class_from_name(kind) if isinstance(kind, str) else None
        # Any name of transformers' is looked up, models and functions included.
        if found is not None and not _is_tokenizer(found):
            raise ValueError(f"tokenizer_class {kind!r} is no tokenizer")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(_OWN_CODE) from None
        raise
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"expected a tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def _is_tokenizer(kind: Any) -> bool:
    """Whether it is a class of tokenizers, or stands for one whose requirements are not installed, and will say so."""
    return isinstance(kind, type) and (issubclass(kind, PreTrainedTokenizerBase) or hasattr(kind, "_backends"))


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file.name}: expected an object, got {type(values).__name__}")
    return values


def _known(kind: Any) -> bool:
    """Whether a model's type is one of transformers' own, and not one that some package has added."""
    return isinstance(kind, str) and kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].__module__.startswith("transformers.")


def _brings_code(asked: Mapping[str, Any], *classes: str) -> bool:
    """Whether a file names classes in Python files beside it, or in a repository."""
    code = asked.get("auto_map")
    return isinstance(code, (list, tuple)) or (isinstance(code, dict) and any(name in code for name in classes))


def _kernel(config: PretrainedConfig) -> str | None:
    """The repository of compiled code that a config asks for, as `owner/name`."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in parts:
        for kind in ("_attn_implementation", "_experts_implementation"):
            asked = getattr(part, kind, None)
            if isinstance(asked, str) and "/" in asked:
                return asked
    return None
