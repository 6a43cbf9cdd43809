"""What a run needs and this machine lacks, found out before anything is downloaded or allocated."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
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
from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.tokenizer import TINY_NAMES
from mmcoref.errors import UserError, first_line
from mmcoref.model import windows
from mmcoref.model.capacity import machine_memory
from mmcoref.model.memory import PUBLISHED_SHAPES, Shape, shape_of
from mmcoref.model.module import MMCorefModule
from mmcoref.model.need import Need, Terms, need_of
from mmcoref.run.checkpoint import Stored
from mmcoref.run.terms import LORA_RANK, count_devices, machine_of, processes, terms_of

log = logging.getLogger(__name__)

# Shares of a device's memory: the arithmetic is right within a tenth.
_REFUSED, _WARNED = 1.1, 0.9
_ON_CPU = "--trainer.accelerator cpu --trainer.devices 1"
# Two files stand beside each other while one is written: the new one and the one that it replaces.
_CHECKPOINTS_ON_DISK = 2


def check_devices(settings: dict[str, Any], *, training: bool) -> None:
    """Whether the machine has the GPUs that the settings ask for.

    Args:
        settings: sections of plain values.
        training: whether the run is a fit.

    Raises:
        UserError: it has fewer; the sentence names what fits this machine, with the accumulation that keeps the records of an
            optimizer step.
    """
    trainer, rows = settings["trainer"], settings["data"]["batch_size"]
    asked, there = count_devices(trainer["devices"]), torch.cuda.device_count()
    if asked is None or trainer["accelerator"] not in ("gpu", "cuda") or there >= asked:
        return
    said = f"the settings ask for {asked} GPU{'s' * (asked != 1)} and this machine has {there or 'none'}"
    if not there and (size := _beyond_processors(settings, training=training)):
        raise UserError(f"{said}, nor the memory to do without ({size}): `mmcoref plan` says what a fit needs.")
    step = asked * trainer["num_nodes"] * rows * trainer["accumulate_grad_batches"]
    usable = max((n for n in range(1, there + 1) if step % (n * rows) == 0), default=0) if training else there
    device = f"--trainer.devices {usable}" if usable else _ON_CPU
    if not training:
        raise UserError(f"{said}: use {device}.")
    accumulate = step // (max(usable, 1) * rows)
    raise UserError(f"{said}: use {device} --trainer.accumulate_grad_batches {accumulate}, which keeps {step} records an optimizer step.")


def _beyond_processors(settings: dict[str, Any], *, training: bool) -> str:
    """That this machine's own memory is too small for the model, as figures; nothing where it is not, or nobody knows without the hub."""
    if (config := known_config(settings["model"]["name"])) is None:
        return ""
    alone = settings | {"trainer": settings["trainer"] | {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}}
    terms, need = _least(alone, config)
    least = need.training.total if training else need.training.weights
    if least <= _REFUSED * machine_memory():
        return ""
    return f"{terms.shape.parameters / 1e9:.2f} B parameters take at least {least / 1e9:.1f} GB, it has {machine_memory() / 1e9:.1f} GB"


def known_config(name: str) -> PretrainedConfig | None:
    """A model's config, where no hub has to be asked for it: of a folder, or one of the published models."""
    if name in PUBLISHED_SHAPES:
        return LlamaConfig(**PUBLISHED_SHAPES[name])
    try:
        return AutoConfig.from_pretrained(Path(name).expanduser()) if Path(name).expanduser().is_dir() else None
    except (OSError, ValueError):
        return None  # told when it is loaded


def _least(settings: dict[str, Any], config: PretrainedConfig) -> tuple[Terms, Need]:
    """What a fit takes at least, whatever its records: as if each had one token."""
    trainer = settings["trainer"]
    if trainer["accelerator"] == "auto" and not torch.cuda.device_count():
        settings = settings | {"trainer": trainer | {"accelerator": "cpu"}}
    ones = [1] * settings["data"]["batch_size"]
    terms = terms_of(settings, config, machine_of(settings["trainer"]), lengths=ones, targets=ones, option=1)
    return terms, need_of(terms)


def check_known_model(settings: dict[str, Any], *, training: bool) -> None:
    """Whether the devices here can hold a model at all, where no hub has to be asked for its shape; before one is asked for anything.

    Args:
        settings: sections of plain values.
        training: whether the run is a fit; otherwise the weights alone are looked at.

    Raises:
        UserError: they cannot, whatever the records.
    """
    model = settings["model"]
    if not model["check_memory"] or (config := known_config(model["name"])) is None:
        return
    terms, need = _least(settings, config)
    if training:
        if need.peak > _REFUSED * (terms.capacity or math.inf):  # what is nearly too large is told when the records are known
            raise UserError(memory_sentence(terms, need))
    elif need.training.weights > _REFUSED * (terms.capacity or math.inf):
        weights, there = need.training.weights / 1e9, (terms.capacity or 0) / 1e9
        raise UserError(
            f"{terms.shape.parameters / 1e9:.2f} B parameters take {weights:.1f} GB on every device, and a device here has {there:.1f} GB: "
            f"use {', '.join(_other_devices(terms))} or a smaller model; --model.check_memory false lets it run all the same."
        )


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


def checkpoint_bytes(shape: Shape, name: str) -> int:
    """Bytes of a fit's checkpoint: weights and AdamW's two moments, in fp32; of adapters alone, where the frozen weights have a place."""
    alone = shape.frozen and name not in TINY_NAMES
    return 4 * (shape.trainable if alone else shape.parameters) + 8 * shape.trainable


def check_memory(model: MMCorefModule, data: MMCorefDataModule, trainer: pl.Trainer) -> None:
    """Whether a device holds the fit that is to come, by the arithmetic of `mmcoref plan`; before any weights are loaded.

    Raises:
        UserError: it needs more than `_REFUSED` of what there is.
    """
    terms = windows.terms_of(model.shape_config(data), model.hparams, data, trainer)
    need = need_of(terms)
    if terms.capacity is None or not model.hparams["check_memory"]:
        return
    share = need.peak / terms.capacity
    if share > _REFUSED:
        raise UserError(memory_sentence(terms, need))
    if share > _WARNED:
        log.warning(
            "this fit needs about %.1f GB of the %.1f GB on each device (%.0f %%): it may run out of memory; "
            "`mmcoref plan` shows what for", need.peak / 1e9, terms.capacity / 1e9, 100 * share,
        )  # fmt: skip


def memory_sentence(terms: Terms, need: Need) -> str:
    """The two figures, such as `8.03 B parameters × 16 bytes = 128.5 GB` and what a device has, and the way out."""
    assert terms.capacity is not None
    shape, training = terms.shape, need.training
    static = training.weights + training.gradients + training.optimizer
    if shape.frozen:
        how = f"{shape.parameters / 1e9:.2f} B parameters, {shape.trainable / 1e9:.3f} B of them trained, take {static / 1e9:.1f} GB"
    else:
        parts = terms.processes if terms.sharded else 1
        each = f"{static * parts / shape.parameters:.0f} bytes" + (f" / {parts} processes" if terms.sharded else "")
        how = f"{shape.parameters / 1e9:.2f} B parameters × {each} = {static / 1e9:.1f} GB"
    all_else = "with all else"
    if training.total <= _REFUSED * terms.capacity:  # it is the validation that is too large
        all_else = f"while {terms.eval_rows} records are validated at a time"
        ways = [f"--data.eval_batch_size {_validated_at_a_time(terms)}"]
    else:
        ways = _ways_out(terms)
    return (
        f"{how} on every device, {need.peak / 1e9:.1f} GB {all_else}, and a device here has {terms.capacity / 1e9:.1f} GB: use "
        f"{', '.join([*ways, *_other_devices(terms)])} or a smaller model; `mmcoref plan` shows what fits, and "
        "--model.check_memory false lets it run all the same."
    )


def _ways_out(terms: Terms) -> list[str]:
    """Options with which the fit would be in the memory that there is."""
    if terms.shape.frozen:
        return []
    cut, adapters = replace(terms, sharded=True), replace(terms, sharded=False, shape=shape_of(terms.config, LORA_RANK))
    ways = {"--config configs/lora.yaml": adapters}
    if terms.processes > 1 and not terms.sharded:
        ways = {"--trainer.strategy sharded": cut} | ways
    return [options for options, other in ways.items() if need_of(other).peak <= _WARNED * (terms.capacity or 0)]


def _other_devices(terms: Terms) -> list[str]:
    if terms.device.type != "cpu":
        return ["more or larger devices"]
    return [*(["fewer processes (--trainer.devices 1)"] if terms.processes > 1 else []), "GPUs, a machine with more memory"]


def _validated_at_a_time(terms: Terms) -> int:
    """The most records, halved again and again, that are validated in the memory that there is; 1 where not even that is."""
    rows = terms.eval_rows
    while rows > 1 and need_of(replace(terms, eval_rows=rows)).validation.total > (terms.capacity or 0):
        rows //= 2
    return rows


def check_torchrun(trainer: Mapping[str, Any]) -> None:
    """Whether the processes that torchrun has started are those that the settings ask for: others would each run by themselves.

    Raises:
        UserError: they are not.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or (started := int(os.environ["WORLD_SIZE"])) == processes(trainer):
        return
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    raise UserError(
        f"torchrun has started {started} processes, {here} on this machine, and the settings ask for {processes(trainer)}: use "
        f"--trainer.devices {here} --trainer.num_nodes {started // here}."
    )


def check_window(stored: Stored | None, data: MMCorefDataModule, trainer: pl.Trainer) -> None:
    """Whether a fit goes on in optimizer steps of as many records as before: steps, epochs and the learning rate are counted in them.

    Raises:
        UserError: it does not; the sentence names the accumulation that would.
    """
    each = data.rows * data.replicas(trainer)["num_replicas"]
    if stored is None or stored.window in (None, each * trainer.accumulate_grad_batches):
        return
    accumulate, rest = divmod(stored.window, each)
    keeps = f"--trainer.accumulate_grad_batches {accumulate} keeps them"
    if rest:
        keeps = f"processes and a --data.batch_size that divide {stored.window} keep them"
    raise UserError(
        f"the checkpoint's optimizer steps have {stored.window} records, and those of this fit would have "
        f"{each * trainer.accumulate_grad_batches}: {keeps}, and with them the learning rate's schedule."
    )


def check_writable(folder: Path) -> None:
    """Whether runs can be written there.

    Raises:
        UserError: they cannot.
    """
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}: no run can be written there (read-only, not yours, or a file): name a folder with --trainer.default_root_dir."
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
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
