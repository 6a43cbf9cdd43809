"""What a fit's settings say of the machine and of the fit's needs, before there is a trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from mmcoref.errors import UserError, at_least, first_line
from mmcoref.model.adapters import NOT_SHARDED, Adapters, layers_of
from mmcoref.model.capacity import device_memory, machine_memory
from mmcoref.model.loading import lay_out
from mmcoref.model.memory import Shape, shape_of
from mmcoref.model.need import Terms
from mmcoref.run.strategy import check_strategy

LORA_RANK = 16  # of configs/lora.yaml
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_ASSUMED_GPU = 80 * 10**9


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Whether the trainer's settings say on what the run is to be: `plan` has no trainer that would look at them.

    Raises:
        UserError: one that cannot be read, or that this program cannot train with.
    """
    at_least(1, trainer__num_nodes=trainer["num_nodes"], trainer__accumulate_grad_batches=trainer["accumulate_grad_batches"])
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    if isinstance(accelerator, str) and accelerator not in _ACCELERATORS:
        raise UserError(f"trainer.accelerator: expected {', '.join(_ACCELERATORS[:-1])} or {_ACCELERATORS[-1]}, got {accelerator}.")
    if str(devices) not in ("auto", "-1") and not count_devices(devices):
        raise UserError(f"trainer.devices: expected auto, a number above 0 or a list such as [0, 1], got {devices}.")
    check_strategy(trainer["strategy"])


@dataclass(frozen=True)
class Machine:
    """Where the fit would run.

    Attributes:
        processes: of all nodes, one for each device.
        nodes: machines.
        cpu: whether the devices are processors.
        capacity: bytes of a device; on processors a process's share of the machine's.
        source: where the capacity is known from.
        note: what was taken for granted, or nothing.
    """

    processes: int
    nodes: int
    cpu: bool
    capacity: int
    source: str
    note: str = ""


def on_cpu(accelerator: Any) -> bool:
    """Whether a run with this setting computes on processors, here."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def processes(trainer: Mapping[str, Any]) -> int:
    """Processes of all machines that the settings ask for."""
    here = count_devices(trainer["devices"])
    if here is None:
        here = max(1, torch.cuda.device_count()) if trainer["accelerator"] != "cpu" else 1
    return here * int(trainer["num_nodes"])


def count_devices(devices: Any) -> int | None:
    """How many devices a setting names; None for `auto` and -1, which take what is there, and for what names none."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices).replace(" ", "")
    if re.fullmatch(r"\d+(,\d+)*,?", text) is None:
        return None
    return len(text.strip(",").split(",")) if "," in text else int(text)


def machine_of(trainer: Mapping[str, Any], gpu_memory: str | None = None) -> Machine:
    """The devices that the trainer's settings name, and their memory.

    Raises:
        UserError: a memory that cannot be read, or one of GPUs for a fit without them.
    """
    asked, nodes = processes(trainer), int(trainer["num_nodes"])
    if trainer["accelerator"] == "cpu":
        if gpu_memory is not None:
            raise UserError("--gpu_memory: the settings have trainer.accelerator cpu: leave it out, or add --trainer.accelerator gpu.")
        sharing = asked // nodes
        return Machine(asked, nodes, True, machine_memory() // sharing, f"this machine's, shared by {sharing}")
    gpus, devices = torch.cuda.device_count(), trainer["devices"]
    if gpu_memory is not None:
        capacity, source = parse_memory(gpu_memory), "given"
    elif gpus:
        capacity, source = min(device_memory(torch.device("cuda", i)) or 0 for i in range(gpus)), "the smallest here"
    else:
        capacity, source = _ASSUMED_GPU, "assumed, as there is no GPU here"
    note = f"trainer.devices {devices} counts as 1, as there is no GPU here." if str(devices) in ("auto", "-1") and not gpus else ""
    return Machine(asked, nodes, False, capacity, source, note)


def parse_memory(text: str) -> int:
    """Bytes of `80GB`, `80 GiB` or `1.5TB`.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT])(i?)B\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"--gpu_memory {text!r}: expected a number above 0 and a unit, such as 80GB, 80GiB or 1.5TB.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (2 + "MGT".index(found[2].upper())))


def terms_of(
    settings: Mapping[str, Any],
    config: PretrainedConfig,
    machine: Machine,
    *,
    lengths: Sequence[int],
    targets: Sequence[int],
    option: int,
) -> Terms:
    """What decides the needs of a fit with these settings; `windows.terms_of` says it of a trainer.

    Args:
        settings: sections of plain values.
        config: of the model.
        machine: that it would run on.
        lengths: tokens of each train record.
        targets: answer tokens of each.
        option: tokens of the longest option.

    Raises:
        UserError: adapters that the model cannot have, or a model that is no causal language model.
    """
    data, trainer = settings["data"], settings["trainer"]
    return Terms(
        config=config,
        shape=shape_of_fit(config, settings),
        lengths=lengths,
        targets=targets,
        option=option,
        rows=data["batch_size"],
        accumulate=trainer["accumulate_grad_batches"],
        micro_batch_size=data["micro_batch_size"],
        counted=any(isinstance(trainer[key], int) for key in ("limit_train_batches", "val_check_interval")),
        published=data["recipe"] == "published",
        eval_rows=0 if trainer["limit_val_batches"] == 0 else data["eval_batch_size"],
        precision=str(trainer["precision"] or "32-true"),
        processes=machine.processes,
        sharded=is_sharded(trainer),
        checkpointing=settings["model"]["gradient_checkpointing"],
        device=torch.device("cpu" if machine.cpu else "cuda"),
        capacity=machine.capacity,
    )


def shape_of_fit(config: PretrainedConfig, settings: Mapping[str, Any]) -> Shape:
    """The model's sizes, with the adapters that the settings ask for. Nothing is allocated.

    Raises:
        UserError: it has no such layers, its frozen weights are to be cut over the processes, or it is no causal language model.
    """
    model = settings["model"]
    adapters = Adapters.of(model)
    if adapters is not None and is_sharded(settings["trainer"]):
        raise UserError(NOT_SHARDED)
    try:
        if adapters is not None:
            layers_of(lay_out(config), adapters)
        return shape_of(config, model["lora_rank"], model["lora_targets"])
    except ValueError as error:
        raise UserError(f"model.name {model['name']}: not a causal language model: {first_line(error)}") from None


def is_sharded(trainer: Mapping[str, Any]) -> bool:
    """Whether the strategy, a name or a class path, cuts the model over the processes."""
    strategy = trainer["strategy"]
    name = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy).rpartition(".")[2].lower()
    return any(word in name for word in ("shard", "fsdp", "modelparallel"))
