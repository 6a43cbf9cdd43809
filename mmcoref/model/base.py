"""The frozen model that a checkpoint's adapters were trained with, and that lies in a folder of its own: is it still the same?"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mmcoref.data.hub import fetch
from mmcoref.data.pretrained import read_config, restored_config
from mmcoref.errors import UserError
from mmcoref.model.loading import open_weights

log = logging.getLogger(__name__)

# What says nothing of what a model with given weights computes.
_NOTHING_COMPUTED = {
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "initializer_range"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "problem_type", "id2label", "label2id"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
_WHOLE = "sha256:"  # how fingerprints of all weights begin; those of earlier versions have nothing in front
_THREADS = 16
_SAMPLED = 16  # numbers of each tensor's first row that fingerprints of earlier versions looked at


def fingerprint(folder: Path) -> str:
    """Compute a digest of all weights in a folder: their names, types, shapes and numbers, however they are divided into files.

    Raises:
        UserError: the folder holds no weights, or broken ones.
    """

    def of_one(name: str) -> str:
        values = weights[name]()
        head = f"{name} {values.dtype} {list(values.shape)} "
        numbers: Any = values.contiguous().reshape(-1).view(torch.uint8).numpy()
        return head + hashlib.sha256(numbers).hexdigest()

    with ExitStack() as opened:
        weights = open_weights(folder, opened)
        if not weights:
            raise UserError(f"{folder}: holds no weights; expected model.safetensors or pytorch_model.bin.")
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            lines = list(pool.map(of_one, sorted(weights)))
    return _WHOLE + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def compared_fingerprint(name: str, was: str | None, trained_with: Mapping[str, Any] | None) -> str:
    """Compute a model's fingerprint, and see that it is the one that a checkpoint's adapters were trained with.

    Args:
        name: of the model.
        was: fingerprint in the checkpoint, if there is one.
        trained_with: the model's config in it.

    Raises:
        UserError: it is another model.
    """
    folder = fetch(name, weights=True)
    now = fingerprint(folder)
    if was is not None and trained_with is not None:
        check_base(folder, name, now=now, was=was, trained_with=trained_with)
    return now


def check_base(folder: Path, name: str, *, now: str, was: str, trained_with: Mapping[str, Any]) -> None:
    """Compare a folder's model with the one that adapters were trained with.

    Args:
        folder: of the model.
        name: of the model, as the user gave it.
        now: fingerprint of the folder.
        was: fingerprint in the adapters' checkpoint.
        trained_with: the model's config in that checkpoint.

    Raises:
        UserError: it is another.
    """
    differs = list(_differences(restored_config(trained_with), read_config(folder, name)))
    if differs:
        raise UserError(
            f"model.name {name}: its config is not the one that the checkpoint's adapters were trained with: {', '.join(differs)}: name "
            "the folder of that one with --model.name."
        )
    sampled = not was.startswith(_WHOLE)
    if (_sampled_fingerprint(folder) if sampled else now) != was:
        raise UserError(
            f"model.name {name}: its weights are not those that the checkpoint's adapters were trained with: name the folder of those "
            "with --model.name."
        )
    if sampled:
        log.warning(
            "model.name %s: the checkpoint, of an earlier version, knows a part of its weights only: the rest is not compared", name
        )


def _differences(was: PretrainedConfig, now: PretrainedConfig) -> Iterator[str]:
    old, new = (dict(_flat(config.to_dict())) for config in (was, now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key} is {new.get(key)}, and was {old.get(key)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key in _NOTHING_COMPUTED:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sampled_fingerprint(folder: Path) -> str:
    """Compute the fingerprint of earlier versions: names, shapes and a few numbers of each tensor, in safetensors only."""
    digest = hashlib.sha256()
    with ExitStack() as opened:
        weights: Mapping[str, Callable[[], Tensor]] = open_weights(folder, opened, pickled=False)
        for name in sorted(weights):
            values = weights[name]()[:1]
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.flatten()[:_SAMPLED].float().numpy().tobytes())
    return digest.hexdigest()
