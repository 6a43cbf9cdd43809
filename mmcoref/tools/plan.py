"""`mmcoref plan`: what a fit would need, before anything is loaded, and whether it fits. Nothing is downloaded."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from huggingface_hub import constants, snapshot_download
from rich.console import Console
from transformers import AutoConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerBase

from mmcoref.data.encode import Encoder
from mmcoref.data.file import read_records
from mmcoref.data.module import SAMPLE, MMCorefDataModule
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Record
from mmcoref.data.sample import sample_records
from mmcoref.data.split import split_records
from mmcoref.data.tokenizer import TINY_NAMES, load_tokenizer
from mmcoref.errors import UserError, first_line
from mmcoref.model import memory
from mmcoref.model.backbone import tiny_config
from mmcoref.model.capacity import device_memory, machine_memory, most_records
from mmcoref.model.packing import can_pack
from mmcoref.run import preflight

NOT_FITTING_EXIT = 1
_ASSUMED_GPU = 80 * 10**9
_NO_ADAPTERS = {"lora_rank": 0, "lora_alpha": 1.0, "lora_dropout": 0.0, "lora_targets": None}
# Tokens by Llama 3's tokenizer of what the published train records are trained on, at these shares of them: measured.
_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_PUBLISHED_TOKENS = (230, 261, 285, 307, 330, 360, 389, 431)
_PUBLISHED_ANSWERS = (9, 11, 12, 13, 14, 15, 17, 24)
_PUBLISHED_TRAIN = 1380
# The most that a published record has by that tokenizer, in its prompt (the mean is 0.60) and its answer (0.71); and its chat template.
_TOKENS_A_CHARACTER, _ANSWER_TOKENS_A_CHARACTER, _CHAT_TOKENS = 0.68, 0.87, 34


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


@dataclass(frozen=True)
class Lengths:
    """Tokens of the train records.

    Attributes:
        trained: of each record's prompt and gold answer, stop token included.
        answers: of each gold answer.
        option: of the longest answer.
        source: where they are known from.
        estimated: whether they were not counted in the run's own records by the model's own tokenizer.
    """

    trained: tuple[int, ...]
    answers: tuple[int, ...]
    option: int
    source: str
    estimated: bool


class Need(NamedTuple):
    """What one set of settings takes of a device.

    Attributes:
        shape: of the model.
        step: as a fit would choose it.
        packed: whether its records share a row.
        training: bytes at the peak of a training step.
        validation: the same of an evaluation batch between two epochs, when gradients and moments are there, too.
        capacity: bytes that there are.
    """

    shape: memory.Shape
    step: memory.Step
    packed: bool
    training: memory.Memory
    validation: memory.Memory
    capacity: int

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(self.training.total, self.validation.total)

    @property
    def fits(self) -> bool:
        """Whether enough is left for what the arithmetic leaves out."""
        return self.peak <= memory.FULL * self.capacity


@dataclass(frozen=True)
class Plan:
    """The settings of a fit, the machine, model and records that they name, and what the fit needs."""

    settings: dict[str, Any]
    machine: Machine
    config: PretrainedConfig
    lengths: Lengths
    need: Need


def run(settings: dict[str, Any], *, gpu_memory: str | None) -> int:
    """Prints the plan of a fit, and returns 0 where it fits and 1 where it does not.

    Args:
        settings: of the fit: sections of plain values.
        gpu_memory: of each GPU, such as `80GB`; by default of the smallest one here.

    Raises:
        UserError: settings that no fit could have, or a model or a data file that is not here.
    """
    from mmcoref.tools.plan_table import show

    plan = plan_of(settings, gpu_memory)
    show(plan, Console())
    return 0 if plan.need.fits else NOT_FITTING_EXIT


def plan_of(settings: dict[str, Any], gpu_memory: str | None) -> Plan:
    """The plan of a fit; see `run`."""
    machine = machine_of(settings["trainer"], gpu_memory)
    records = _records(settings["data"])
    config, tokenizer = _model(settings["model"]["name"], records)
    lengths = _lengths(settings["data"], records, tokenizer)
    return Plan(settings, machine, config, lengths, need_of(settings, config, lengths, machine))


def machine_of(trainer: Mapping[str, Any], gpu_memory: str | None) -> Machine:
    """The devices that the trainer's settings name, and their memory.

    Raises:
        UserError: a memory that cannot be read, or one of GPUs for a fit without them.
    """
    processes, nodes = preflight.processes(trainer), int(trainer.get("num_nodes") or 1)
    if trainer.get("accelerator") == "cpu":
        if gpu_memory is not None:
            raise UserError("--gpu_memory: the settings have trainer.accelerator cpu: leave it out, or add --trainer.accelerator gpu.")
        sharing = processes // nodes
        return Machine(processes, nodes, True, machine_memory() // sharing, f"this machine's, shared by {sharing}")
    gpus, devices = torch.cuda.device_count(), trainer.get("devices", "auto")
    if gpu_memory is not None:
        capacity, source = parse_memory(gpu_memory), "given"
    elif gpus:
        capacity, source = min(device_memory(torch.device("cuda", i)) or 0 for i in range(gpus)), "the smallest here"
    else:
        capacity, source = _ASSUMED_GPU, "assumed, as there is no GPU here"
    note = f"trainer.devices {devices} counts as 1, as there is no GPU here." if str(devices) in ("auto", "-1") and not gpus else ""
    return Machine(processes, nodes, False, capacity, source, note)


def parse_memory(text: str) -> int:
    """Bytes of `80GB`, `80 GiB` or `1.5TB`.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT])(i?)B\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"--gpu_memory {text!r}: expected a number and a unit, such as 80GB, 80GiB or 1.5TB.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (2 + "MGT".index(found[2].upper())))


def _model(name: str, records: Sequence[Record] | None) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """A model's config, and its tokenizer if it is here."""
    if name in TINY_NAMES:
        known = records or sample_records(_PUBLISHED_TRAIN)
        tokenizer = load_tokenizer(name, (prompt_text(record) + answer_text(record.gold) for record in known))
        return tiny_config(tokenizer), tokenizer
    if (folder := _local(name)) is None or not (folder / "config.json").is_file():
        if name in memory.PUBLISHED_SHAPES:
            return LlamaConfig(**memory.PUBLISHED_SHAPES[name]), None
        raise UserError(
            f"model.name {name}: no folder with a config.json, and not in the cache ({constants.HF_HUB_CACHE}); plan downloads nothing: "
            f"`hf download {name} config.json` does."
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model.name {name}: its config cannot be read: {first_line(error)}") from None
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
    return config, load_tokenizer(str(folder), ()) if has_tokenizer else None


def _local(name: str) -> Path | None:
    """A model's folder, or its place in the hub's cache."""
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no hub name
        return None


def _records(data: Mapping[str, Any]) -> Sequence[Record] | None:
    """The train records; None where the file that a fit looks for by itself is not there."""
    path = data["path"]
    if path == SAMPLE:
        return sample_records(data.get("sample_train") or _PUBLISHED_TRAIN, seed=data.get("sample_seed") or 0)[: data.get("limit")]
    if path == inspect.signature(MMCorefDataModule).parameters["path"].default and not Path(path).exists():
        return None
    records = read_records(path).records
    return [records[index] for index in split_records(records, val_size=data.get("val_size") or 0).train[: data.get("limit")]]


def _lengths(data: Mapping[str, Any], records: Sequence[Record] | None, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Counted by the model's tokenizer if it is here, else estimated."""
    style, most = data.get("prompt") or "base", data.get("max_tokens") or 512
    if records is None:
        n = max(1, _PUBLISHED_TRAIN - (data.get("val_size") or 0))
        kept = slice(-(data.get("limit") or n), None)  # the longest
        whole, answers = _spread(_PUBLISHED_TOKENS, n)[kept], _spread(_PUBLISHED_ANSWERS, n)[kept]
        prompts = [tokens - answer for tokens, answer in zip(whole, answers, strict=True)]
        option, source = _PUBLISHED_ANSWERS[-1], "those of the published train records, as there is no data file"
    elif tokenizer is None:
        prompts = [math.ceil(_TOKENS_A_CHARACTER * len(prompt_text(record))) + 1 for record in records]
        answers = [math.ceil(_ANSWER_TOKENS_A_CHARACTER * len(answer_text(record.gold))) + 1 for record in records]
        option, source = max(answers), f"{_TOKENS_A_CHARACTER} tokens a character, as the model's tokenizer is not here"
    else:
        how: Any = {key: data[key] for key in ("overlength", "recipe") if data.get(key)} | {"style": style}
        examples = Encoder(tokenizer, max_tokens=most, **how).encode(list(enumerate(records))).examples
        answers, prompts = [len(example.answer_ids) for example in examples], [len(example.prompt_ids) for example in examples]
        option, source = max(len(ids) for example in examples for ids in example.option_ids), "counted by the model's tokenizer"
    estimated = records is None or tokenizer is None
    template = _CHAT_TOKENS if estimated and style == "chat" else 0
    if data.get("recipe") == "published":
        prompts = [most - answer for answer in answers]
    sums = tuple(min(prompt + template + answer, most) for prompt, answer in zip(prompts, answers, strict=True))
    return Lengths(sums, tuple(answers), option, source, estimated)


def _spread(known: Sequence[int], n: int) -> list[int]:
    """n numbers, the smallest first, from what is known at some shares of them."""
    return [round(float(number)) for number in numpy.interp(numpy.linspace(0, 1, n), _SHARES, known)]


def need_of(settings: Mapping[str, Any], config: PretrainedConfig, lengths: Lengths, machine: Machine) -> Need:
    """What settings take of a device, in the micro-batches that a fit would choose.

    Raises:
        UserError: adapters or micro-batches that a fit would refuse.
    """
    model, data, trainer = settings["model"], settings["data"], settings["trainer"]
    sharded = is_sharded(trainer)
    try:
        shape = preflight.check_adapters(config, _NO_ADAPTERS | model, {"strategy": "sharded" if sharded else "ddp"})
    except ValueError as error:
        raise UserError(f"model.name {model['name']}: not a causal language model: {first_line(error)}") from None
    longest, published = max(lengths.trained), data.get("recipe") == "published"
    given, window = data.get("micro_batch_size"), data["batch_size"] * (trainer.get("accumulate_grad_batches") or 1)
    if given is None and (published or any(isinstance(trainer.get(key), int) for key in ("limit_train_batches", "val_check_interval"))):
        given = data["batch_size"]  # settings that count micro-batches keep them as they are
    if given is not None and window % given:
        raise UserError(
            f"data.micro_batch_size: expected a divisor of the {window} records that a process has of an optimizer step, got {given}."
        )
    packed, precision = not published and can_pack(config, longest), str(trainer.get("precision") or "32-true")
    step = memory.choose_step(
        shape, lengths.trained, lengths.answers, window=window, given=given, packed=packed, precision=precision,
        processes=machine.processes, sharded=sharded, checkpointing=model.get("gradient_checkpointing"), capacity=machine.capacity,
        most=most_records(torch.device("cpu"), config, lengths.trained) if machine.cpu else None,
    )  # fmt: skip
    training = memory.training_memory(shape, step)
    asked = memory.inference_memory(
        shape, rows=data.get("eval_batch_size") or 16, prompt=longest, answer=lengths.option, precision=precision,
        processes=machine.processes, sharded=sharded,
    )._replace(buckets=training.buckets, optimizer=training.optimizer, gradients=training.optimizer // 2)  # fmt: skip
    return Need(shape, step, packed, training, asked, machine.capacity)


def is_sharded(trainer: Mapping[str, Any]) -> bool:
    """Whether the strategy, a name or a class path, cuts the model over the processes."""
    strategy = trainer.get("strategy") or "auto"
    name = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy).rpartition(".")[2].lower()
    return any(word in name for word in ("shard", "fsdp", "modelparallel"))
