"""Weights: from their files to where they are used, one tensor at a time.

A model is laid out on the meta device, which takes no memory, given its place (a device, or a part of it on each of several),
and filled from the files. No process ever holds a second copy of it.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mmcoref.errors import UserError, first_line

_SINGLE, _PICKLED = "model.safetensors", "pytorch_model.bin"  # of which an index beside them may name several


def lay_out(config: PretrainedConfig) -> PreTrainedModel:
    """A model in fp32 and train mode, on the meta device.

    fp32 because mixed precision would train bf16 master weights where the files, like Llama's, are bf16. Train mode because
    transformers hands models out in eval mode and Lightning leaves them so, which turns gradient checkpointing and dropout off.
    """
    with torch.device("meta"):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    lm.train()
    return lm


def give_memory(lm: PreTrainedModel, device: torch.device) -> None:
    """Puts a model of the meta device, sharded or not, onto a device. Its weights have no values yet."""
    lm.to_empty(device=device)
    lm.tie_weights()
    for module in lm.modules():
        if module._non_persistent_buffers_set:  # rotary frequencies and the like are in no file: the model computes them
            lm._init_weights(module)  # type: ignore[no-untyped-call]


def checkpoint_blocks(lm: PreTrainedModel) -> None:
    """Has a model's blocks computed a second time in the backward pass instead of kept (gradient checkpointing)."""
    enable = getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)  # its name since transformers 5.23
    enable({"use_reentrant": False})
    blocks: Any = lm.base_model.layers
    blocks[-1].gradient_checkpointing = False  # it keeps little, as its MLP sees answer positions only: see `forward_at`


@torch.no_grad()
def fill(lm: PreTrainedModel, folder: Path) -> None:
    """Copies a folder's weights into a model, each process its own part of them.

    Raises:
        UserError: the folder holds no causal language model, or one of another shape.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: holds an adapter, which is not read: merge it into its model, or remove adapter_config.json.")
    saved = lm.state_dict().keys()
    wanted = dict(lm.named_parameters()) | {name: buffer for name, buffer in lm.named_buffers() if name in saved}
    with ExitStack() as opened:
        stored = _open(folder, opened)
        if not wanted.keys() <= stored.keys():
            # Other names than the model's: transformers renames or joins tensors of some models while it loads them.
            return _copy(wanted, _converted(folder), folder)
        for name, target in wanted.items():
            part = stored[name](name)
            if list(part.get_shape()) != list(target.shape):
                raise _mismatch(folder, name, part.get_shape(), target.shape)
            _write(target, part)


def _open(folder: Path, opened: ExitStack) -> dict[str, Callable[[str], Any]]:
    """For each tensor of a folder's files what gives a slice of it; nothing is read yet."""
    found: dict[str, Callable[[str], Any]] = {}
    for file in _files(folder, _SINGLE):  # no safetensors: whatever else is there is transformers' business
        shard = _safetensors(file, opened)
        found |= dict.fromkeys(shard.keys(), shard.get_slice)
    return found


def open_weights(folder: Path, opened: ExitStack, *, pickled: bool = True) -> dict[str, Callable[[], Tensor]]:
    """Open a folder's weights as they are in its files, in whatever format transformers reads them.

    Args:
        folder: of the model.
        opened: what closes the files.
        pickled: whether pytorch_model.bin is read where there are no safetensors.

    Returns:
        For each tensor what gives it, as a view into its mapped file.

    Raises:
        UserError: a file is missing, or broken.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    for file in _files(folder, _SINGLE):
        shard = _safetensors(file, opened)
        found |= {name: partial(shard.get_tensor, name) for name in shard.keys()}  # noqa: SIM118  # no dict
    if found or not pickled:
        return found
    for file in _files(folder, _PICKLED):
        try:
            tensors = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
            found |= {name: partial(tensors.get, name) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        except Exception as error:  # whatever torch makes of hostile or broken bytes
            raise _broken(file, error) from None
    return found


def _files(folder: Path, single: str) -> list[Path]:
    """A folder's files of weights: those that an index names, or the single one; none where there are none."""
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return [folder / single] if (folder / single).is_file() else []
    try:
        names = sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: expected the names of the files of weights, got something else ({type(error).__name__}).") from None
    if outside:
        raise UserError(f"{index}: names a file outside its folder, {outside[0]!r}: it was not read.")
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing, which {index.name} names: complete the copy.")
    return [folder / name for name in names]


def _safetensors(file: Path, opened: ExitStack) -> Any:
    try:
        return opened.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({first_line(error)}): copy or download it again.") from None


def _broken(file: Path, error: Exception) -> UserError:
    """What to say of pickled weights; torch advises to run what it has refused "if you trust the source"."""
    refused = isinstance(error, pickle.UnpicklingError)
    what = "is broken, or holds objects that could run code" if refused else f"is broken ({first_line(error)})"
    return UserError(f"{file}: {what}: it was not read; choose a copy in safetensors.")


def _converted(folder: Path) -> dict[str, Tensor]:
    """A folder's weights as transformers loads them: a whole copy in the memory of each process."""
    try:
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    except pickle.UnpicklingError as error:
        raise _broken(folder / _PICKLED, error) from None
    except Exception as error:  # whatever transformers makes of hostile or broken files
        raise UserError(f"model.name {str(folder)!r}: cannot be loaded as a causal language model: {first_line(error)}") from None
    return dict(lm.state_dict())


def _copy(wanted: dict[str, Tensor], weights: dict[str, Tensor], folder: Path) -> None:
    for name, target in wanted.items():
        if weights[name].shape != target.shape:
            raise _mismatch(folder, name, weights[name].shape, target.shape)
        _write(target, weights[name])


def _write(target: Tensor, source: Any) -> None:
    """Fills a parameter, or this process's rows of it, from a tensor or a file's slice, which are read by indexing."""
    if not isinstance(target, DTensor):
        target.copy_(source[:])
        return
    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    if all(shape):
        target.to_local().copy_(source[offset[0] : offset[0] + shape[0]])


def _mismatch(folder: Path, name: str, found: Any, expected: Any) -> UserError:
    return UserError(f"{folder}: {name} has the shape {list(found)} and its config.json asks for {list(expected)}: they are of two models.")
