"""What a run needs and this machine lacks, found out before anything is downloaded or allocated."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from transformers import AutoConfig, AutoModelForCausalLM

from mmcoref.data.tokenizer import TINY_NAMES, first_line
from mmcoref.errors import UserError

# fp32 weights, gradients and AdamW's two moments: what data parallelism keeps of every parameter on every GPU.
TRAINING_BYTES_PER_PARAMETER = 16
CHECKPOINT_BYTES_PER_PARAMETER = 12  # the same without gradients
INFERENCE_BYTES_PER_PARAMETER = 4
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


def parameter_count(config: Any) -> int:
    """Parameters of a causal language model of this shape, tied ones counted once; nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters())


def check_memory(parameters: int, *, training: bool) -> None:
    """Whether each GPU holds the model under plain data parallelism.

    Raises:
        UserError: it does not; the sentence has the arithmetic.
    """
    if not torch.cuda.is_available():
        return
    bytes_each = TRAINING_BYTES_PER_PARAMETER if training else INFERENCE_BYTES_PER_PARAMETER
    needed = parameters * bytes_each
    smallest = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    if needed > smallest:
        raise UserError(memory_sentence(parameters, bytes_each, smallest))


def memory_sentence(parameters: int, bytes_each: int, available: int) -> str:
    """`8.03 B × 16 bytes = 128.5 GB …`, with the way out."""
    return (
        f"under ddp every GPU holds the whole model: {parameters / 1e9:.2f} B parameters × {bytes_each} bytes = "
        f"{parameters * bytes_each / 1e9:.1f} GB before activations, and the smallest GPU here has {available / 1e9:.1f} GB: "
        "use larger cards or a smaller model (configs/3b.yaml, configs/1b.yaml)."
    )


def check_disk(folder: Path, parameters: int, *, training: bool, model: str) -> None:
    """Whether the disks hold what will be written: the download, where the cache has none, and the checkpoints.

    Raises:
        UserError: one does not.
    """
    if training:
        needed = parameters * CHECKPOINT_BYTES_PER_PARAMETER * _CHECKPOINTS_ON_DISK
        free = _free(folder)
        if needed > free:
            raise UserError(
                f"{folder}: checkpoints of {parameters / 1e9:.2f} B parameters need {needed / 1e9:.1f} GB "
                f"({CHECKPOINT_BYTES_PER_PARAMETER} bytes a parameter, two files while one is replaced), and {free / 1e9:.1f} GB are free: "
                "make room, or choose another disk with --trainer.default_root_dir."
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
