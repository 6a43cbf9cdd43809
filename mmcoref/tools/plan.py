"""`mmcoref plan`: what a fit would need, before anything is loaded, and whether it fits. Nothing is downloaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from huggingface_hub import constants, snapshot_download
from transformers import LlamaConfig, PretrainedConfig, PreTrainedTokenizerBase

from mmcoref.data.encode import Encoder
from mmcoref.data.encoding import encode_whole
from mmcoref.data.module import SAMPLE, MMCorefDataModule
from mmcoref.data.pretrained import read_config
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Option, Record
from mmcoref.data.records import Selection, collect, open_records
from mmcoref.data.sample import sample_records
from mmcoref.data.split import split_records
from mmcoref.data.tokenizer import TINY_NAMES, load_tokenizer
from mmcoref.errors import UserError
from mmcoref.model.backbone import tiny_config
from mmcoref.model.memory import FULL, PUBLISHED_SHAPES
from mmcoref.model.module import MMCorefModule
from mmcoref.model.need import Need, Terms, need_of
from mmcoref.paths import user_path
from mmcoref.run.callbacks import Checkpoints
from mmcoref.run.terms import Machine, check_trainer, machine_of, terms_of
from mmcoref.text import plain_console

NOT_FITTING_EXIT = 1
HOST_BYTES_PER_PROCESS = 3 * 10**9  # of Python, PyTorch and CUDA's libraries: assumed
# Tokens by Llama 3's tokenizer of what the published train records are trained on, at these shares of them: measured.
_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_PUBLISHED_TOKENS = (230, 261, 285, 307, 330, 360, 389, 431)
_PUBLISHED_ANSWERS = (9, 11, 12, 13, 14, 15, 17, 24)
_PUBLISHED_TRAIN = 1380
# The mean of the published records by that tokenizer, in prompts and in answers (a single record has at most 0.68 and 0.87); so reckoned,
# their tokens are 1 % too many in all, and the longest record's 0.5 %. And what its chat template adds.
_TOKENS_A_CHARACTER, _ANSWER_TOKENS_A_CHARACTER, _CHAT_TOKENS = 0.60, 0.71, 34


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


@dataclass(frozen=True)
class Plan:
    """The settings of a fit, the machine and records that they name, what decides its needs, and what these are."""

    settings: dict[str, Any]
    machine: Machine
    lengths: Lengths
    terms: Terms
    need: Need

    @property
    def fits(self) -> bool:
        """Whether enough of a device is left for what the arithmetic leaves out; of a machine's own memory, also for its libraries."""
        machine = self.machine
        whole = machine.capacity * (machine.processes // machine.nodes)
        return self.need.peak <= FULL * machine.capacity and (not machine.cpu or self.host_memory <= whole)

    @property
    def host_memory(self) -> int:
        """Bytes of each machine's memory. Weights pass through it a matrix at a time, unless it is there that they are used."""
        shape, machine = self.terms.shape, self.machine
        each = HOST_BYTES_PER_PROCESS + (self.need.peak if machine.cpu else 4 * max(shape.head, shape.widest))
        return each * (machine.processes // machine.nodes)


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
    show(plan, plain_console())
    return 0 if plan.fits else NOT_FITTING_EXIT


def plan_of(settings: dict[str, Any], gpu_memory: str | None) -> Plan:
    """The plan of a fit; see `run`."""
    _check(settings)
    machine = machine_of(settings["trainer"], gpu_memory)
    records = _records(settings["data"])
    config, tokenizer = _model(settings["model"]["name"], records)
    return planned(settings, config, _lengths(settings["data"], records, tokenizer), machine)


def _check(settings: dict[str, Any]) -> None:
    """Has all settings looked at that a fit would look at before it reads anything."""
    check_trainer(settings["trainer"])
    MMCorefModule(**settings["model"])
    MMCorefDataModule(**settings["data"])
    Checkpoints(**settings["checkpoint"]).choose_by(settings)


def _model(name: str, records: Sequence[Record] | None) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """A model's config, and its tokenizer if it is here."""
    if name in TINY_NAMES:
        known = records or sample_records(_PUBLISHED_TRAIN)
        tokenizer = load_tokenizer(name, (prompt_text(record) + answer_text(record.gold) for record in known))
        return tiny_config(tokenizer), tokenizer
    if (folder := _local(name)) is None or not (folder / "config.json").is_file():
        if name in PUBLISHED_SHAPES:
            return LlamaConfig(**PUBLISHED_SHAPES[name]), None
        raise UserError(
            f"model.name {name}: no folder with a config.json, and not in the cache ({constants.HF_HUB_CACHE}); plan downloads nothing: "
            f"`hf download {name} config.json` does."
        )
    config = read_config(folder, name)
    has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
    return config, load_tokenizer(str(folder), ()) if has_tokenizer else None


def _local(name: str) -> Path | None:
    """A model's folder, or its place in the hub's cache."""
    if (folder := user_path(name)).is_dir():
        return folder
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no hub name
        return None


def _records(data: Mapping[str, Any]) -> Selection | None:
    """The train records; None where the file that a fit looks for by itself is not there."""
    path = data["path"]
    if path == SAMPLE:
        sample = collect(sample_records(data["sample_train"], seed=data["sample_seed"])[: data["limit"]])
        return Selection(sample, range(len(sample)))
    if path == inspect.signature(MMCorefDataModule).parameters["path"].default and not Path(path).exists():
        return None
    records = open_records(path).records
    return Selection(records, split_records(records, val_size=data["val_size"]).train[: data["limit"]])


def _lengths(data: Mapping[str, Any], records: Selection | None, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Counted by the model's tokenizer if it is here, else estimated."""
    style, most = data["prompt"], data["max_tokens"]
    if records is None:
        n = _PUBLISHED_TRAIN - data["val_size"]
        if n < 1:
            raise UserError(
                f"data.val_size: expected 0 to {_PUBLISHED_TRAIN - 1} of the {_PUBLISHED_TRAIN} train records, got {data['val_size']}."
            )
        kept = slice(-(data["limit"] or n), None)  # the longest
        whole, answers = _spread(_PUBLISHED_TOKENS, n)[kept], _spread(_PUBLISHED_ANSWERS, n)[kept]
        prompts = [tokens - answer for tokens, answer in zip(whole, answers, strict=True)]
        option, source = _PUBLISHED_ANSWERS[-1], "those of the published train records, as there is no data file"
    elif tokenizer is None:
        prompts = [math.ceil(_TOKENS_A_CHARACTER * len(prompt_text(record))) + 1 for record in records]
        answers = [_estimated(record.gold) for record in records]
        option = max(_estimated(option) for record in records for option in record.options)
        source = f"{_TOKENS_A_CHARACTER:.2f} tokens a character, as the model's tokenizer is not here"
    else:
        how: Any = {key: data[key] for key in ("overlength", "recipe")}
        encoder = Encoder(tokenizer, style=style, max_tokens=most, **how)
        examples = encode_whole(encoder, records.records, records.indices, "train ")
        answers, prompts = examples.answer_tokens.tolist(), examples.prompt_tokens.tolist()
        option, source = examples.longest_answer, "counted by the model's tokenizer"
    estimated = records is None or tokenizer is None
    template = _CHAT_TOKENS if estimated and style == "chat" else 0
    if data["recipe"] == "published":
        prompts = [most - answer for answer in answers]
    sums = tuple(min(prompt + template + answer, most) for prompt, answer in zip(prompts, answers, strict=True))
    return Lengths(sums, tuple(answers), option, source, estimated)


def _estimated(option: Option) -> int:
    """Tokens of an answer, stop token included."""
    return math.ceil(_ANSWER_TOKENS_A_CHARACTER * len(answer_text(option))) + 1


def _spread(known: Sequence[int], n: int) -> list[int]:
    """n numbers, the smallest first, from what is known at some shares of them."""
    return [round(float(number)) for number in numpy.interp(numpy.linspace(0, 1, n), _SHARES, known)]


def planned(settings: dict[str, Any], config: PretrainedConfig, lengths: Lengths, machine: Machine) -> Plan:
    """The plan of settings whose model, records and machine are known.

    Raises:
        UserError: adapters or micro-batches that a fit would refuse, or a model that is no causal language model.
    """
    terms = terms_of(settings, config, machine, lengths=lengths.trained, targets=lengths.answers, option=lengths.option)
    return Plan(settings, machine, lengths, terms, need_of(terms))
