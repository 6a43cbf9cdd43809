"""What a run needs and this machine lacks, found out before anything is downloaded or allocated."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import AutoConfig, PretrainedConfig

from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.tokenizer import TINY_NAMES
from mmcoref.errors import UserError, first_line
from mmcoref.model.adapters import NOT_SHARDED, Adapters, layers_of
from mmcoref.model.loading import lay_out
from mmcoref.model.memory import Memory, Shape, shape_of, training_memory
from mmcoref.model.module import MMCorefModule
from mmcoref.model.windows import Cut, choose_cut

log = logging.getLogger(__name__)

# Shares of a device's memory: the arithmetic is right within a tenth.
_REFUSED, _WARNED = 1.1, 0.9
# Two files stand beside each other while one is written: the new one and the one that it replaces.
_CHECKPOINTS_ON_DISK = 2


def check_devices(trainer: Mapping[str, Any], batch_size: int) -> None:
    """Whether the machine has the GPUs that the settings ask for.

    Args:
        trainer: the trainer's settings.
        batch_size: rows of a micro-batch.

    Raises:
        UserError: it has fewer; the sentence names the accumulation that keeps the records of an optimizer step.
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    asked = _count(devices)
    if asked is None or accelerator not in ("gpu", "cuda"):
        return
    there = torch.cuda.device_count()
    if there >= asked:
        return
    step = asked * int(trainer.get("num_nodes") or 1) * batch_size * int(trainer.get("accumulate_grad_batches") or 1)
    usable = max((n for n in range(1, there + 1) if step % (n * batch_size) == 0), default=0)
    device = f"--trainer.devices {usable}" if usable else "--trainer.accelerator cpu --trainer.devices 1"
    accumulate = step // (max(usable, 1) * batch_size)
    raise UserError(
        f"the settings ask for {asked} GPUs and this machine has {there}: use {device} --trainer.accumulate_grad_batches {accumulate}, "
        f"which keeps {step} records an optimizer step."
    )


def processes(trainer: Mapping[str, Any]) -> int:
    """Processes of all machines that the settings ask for."""
    here = _count(trainer.get("devices", "auto"))
    if here is None:
        here = max(1, torch.cuda.device_count()) if trainer.get("accelerator", "auto") != "cpu" else 1
    return here * int(trainer.get("num_nodes") or 1)


def _count(devices: Any) -> int | None:
    """How many devices a setting names; None for `auto` and -1, which take what is there."""
    if isinstance(devices, list):
        return len(devices)
    try:
        count = int(devices)
    except (TypeError, ValueError):
        return len(str(devices).split(",")) if "," in str(devices) else None
    return count if count >= 0 else None


def check_model(name: str) -> Any:
    """Whether the model can be had: a folder with a config, or a hub repository that this login may read.

    Only config.json is fetched. Returns the config (None for `tiny` and `tiny-random`).

    Raises:
        UserError: no such folder or repository, no access, or no network and nothing in the cache.
    """
    if name in TINY_NAMES:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        _check_hub(name)
    elif not (folder / "config.json").is_file():
        raise UserError(f"model.name {name}: expected a folder with config.json, weights and a tokenizer, found no config.json in it.")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"model.name {name}: its config cannot be read: {first_line(error)}") from None


def _check_hub(name: str) -> None:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"model.name {name!r}: no such folder, and not a hub name either (owner/model), nor `tiny`.")
    page = f"{constants.ENDPOINT}/{name}"
    try:
        hf_hub_download(name, "config.json")
    except GatedRepoError:
        raise UserError(
            f"model.name {name}: its licence must be accepted first: open {page}, accept it, then log in with `hf auth login` "
            "(or set HF_TOKEN); or give the folder of a copy you have."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"model.name {name}: no such repository at {page}, or a private one: check the name, or log in with `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"model.name {name}: not in the cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot be reached: "
            "connect, or give the folder of a copy you have."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"model.name {name}: {page} has no config.json: it is not a transformers model.") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"model.name {name}: {page} answered: {first_line(error)}") from None


def check_adapters(config: PretrainedConfig, model: Mapping[str, Any], trainer: Mapping[str, Any]) -> Shape:
    """Whether the model has the layers that are to get adapters; its sizes. Nothing is allocated.

    Args:
        config: of the model.
        model: the model's settings.
        trainer: the trainer's.

    Raises:
        UserError: it has not, or its frozen weights are to be cut over the processes.
    """
    adapters = Adapters.of(model)
    if adapters is not None:
        if trainer["strategy"] == "sharded":
            raise UserError(NOT_SHARDED)
        layers_of(lay_out(config), adapters)
    return shape_of(config, model["lora_rank"], model["lora_targets"])


def checkpoint_bytes(shape: Shape, name: str) -> int:
    """Bytes of a fit's checkpoint: weights and AdamW's two moments, in fp32; of adapters alone, where the frozen weights have a place."""
    alone = shape.frozen and name not in TINY_NAMES
    return 4 * (shape.trainable if alone else shape.parameters) + 8 * shape.trainable


def check_memory(model: MMCorefModule, data: MMCorefDataModule, trainer: pl.Trainer) -> None:
    """Whether a device holds the fit that is to come, by the arithmetic of `mmcoref plan`; before any weights are loaded.

    Raises:
        UserError: it needs more than `_REFUSED` of what there is.
    """
    cut = choose_cut(model.shape_config(data), model.hparams, data, trainer)
    if cut.capacity is None or not model.hparams["check_memory"]:
        return
    memory = training_memory(cut.shape, cut.step)
    share = memory.total / cut.capacity
    if share > _REFUSED:
        raise UserError(memory_sentence(cut, memory))
    if share > _WARNED:
        log.warning(
            "this fit needs about %.1f GB of the %.1f GB on each device (%.0f %%): it may run out of memory; "
            "`mmcoref plan` shows what for", memory.total / 1e9, cut.capacity / 1e9, 100 * share,
        )  # fmt: skip


def memory_sentence(cut: Cut, memory: Memory) -> str:
    """The two figures, such as `8.03 B parameters × 16 bytes = 128.5 GB` and what a device has, and the way out."""
    assert cut.capacity is not None
    shape, step = cut.shape, cut.step
    static = memory.weights + memory.gradients + memory.optimizer
    if shape.frozen:
        how = f"{shape.parameters / 1e9:.2f} B parameters, {shape.trainable / 1e9:.3f} B of them trained, take {static / 1e9:.1f} GB"
    else:
        parts = step.processes if step.sharded else 1
        each = f"{static * parts / shape.parameters:.0f} bytes" + (f" / {parts} processes" if step.sharded else "")
        how = f"{shape.parameters / 1e9:.2f} B parameters × {each} = {static / 1e9:.1f} GB"
    ways = ["--trainer.strategy sharded"] if step.processes > 1 and not step.sharded and not shape.frozen else []
    ways += [] if shape.frozen else ["--config configs/lora.yaml"]
    return (
        f"{how} on every device, {memory.total / 1e9:.1f} GB with all else, and a device here has {cut.capacity / 1e9:.1f} GB: use "
        f"{', '.join([*ways, 'more or larger devices'])} or a smaller model; `mmcoref plan` shows what fits, and "
        "--model.check_memory false lets it run all the same."
    )


def check_disk(folder: Path, checkpoint: int, *, model: str) -> None:
    """Whether the disks hold what will be written: the download, where the cache has none, and the checkpoints.

    Args:
        folder: of the runs.
        checkpoint: bytes of one; 0 where none is written.
        model: its name.

    Raises:
        UserError: one does not.
    """
    needed, free = checkpoint * _CHECKPOINTS_ON_DISK, _free(folder)
    if needed > free:
        raise UserError(
            f"{folder}: a checkpoint has {checkpoint / 1e9:.1f} GB, and two stand there while one is replaced: {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free: make room, or choose another disk with --trainer.default_root_dir."
        )
    if model in TINY_NAMES or Path(model).expanduser().is_dir():
        return
    needed, free = _download_bytes(model), _free(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise UserError(
            f"{model}: its files are {needed / 1e9:.1f} GB and {constants.HF_HUB_CACHE} has {free / 1e9:.1f} GB free: make room, or choose "
            "another disk with HF_HOME."
        )


def _download_bytes(name: str) -> int:
    """Bytes of the safetensors files that the cache does not have yet; 0 where the hub does not say."""
    try:
        files = HfApi().model_info(name, files_metadata=True).siblings or []
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return 0
    cache = Path(constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"), "snapshots")
    have = {file.name for file in cache.glob("*/*.safetensors")}
    wanted = [file for file in files if "/" not in file.rfilename and file.rfilename.endswith(".safetensors")]
    return sum(file.size or 0 for file in wanted if file.rfilename not in have)


def _free(folder: Path) -> int:
    """Free bytes of the disk that will hold `folder`, which need not exist yet."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
