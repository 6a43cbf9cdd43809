"""Whether the devices here hold a run, by the arithmetic of `mmcoref plan`; found out before anything is downloaded or allocated."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import LlamaConfig, PretrainedConfig

from mmcoref.data.examples import NO_EXAMPLES
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.pretrained import read_config
from mmcoref.errors import UserError
from mmcoref.model import limits, windows
from mmcoref.model.capacity import machine_memory
from mmcoref.model.memory import PUBLISHED_SHAPES, shape_of
from mmcoref.model.module import MMCorefModule
from mmcoref.model.need import Need, Terms, need_of
from mmcoref.paths import user_path
from mmcoref.run.terms import LORA_RANK, count_devices, machine_of, on_cpu, terms_of

log = logging.getLogger(__name__)

# Shares of a device's memory: the arithmetic is right within a tenth.
_REFUSED, _WARNED = 1.1, 0.9
_ON_CPU = "--trainer.accelerator cpu --trainer.devices 1"


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
    folder = user_path(name)
    try:
        return read_config(folder, name) if folder.is_dir() else None
    except UserError:
        return None  # told when it is loaded


def _least(settings: dict[str, Any], config: PretrainedConfig) -> tuple[Terms, Need]:
    """What a fit takes at least, whatever its records: as if each had one token."""
    trainer = settings["trainer"]
    if on_cpu(trainer["accelerator"]):
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


def check_limits(model: MMCorefModule, data: MMCorefDataModule, trainer: pl.Trainer, stage: str) -> None:
    """Check that the model has a row for every id and a position for every token of the run, which is known from its config.

    Args:
        model: whose config is looked at; no weights are needed.
        data: set up for the stage.
        trainer: of the run.
        stage: `fit`, `validate`, `test` or `predict`.

    Raises:
        UserError: it has not; otherwise the run would end with an IndexError, after an epoch or in the middle of a test.
    """
    config, settings = model.shape_config(data), model.hparams
    asked = {"fit": data.curve, "validate": data.curve, "test": data.test, "predict": data.unlabelled}[stage]
    train = data.train if stage == "fit" else NO_EXAMPLES
    limits.check_ids(config, data.encoder, [train, asked], settings["name"])
    if train:
        width = data.hparams["max_tokens"] if data.as_published else None
        limits.check_training_length(config, train, settings["name"], width=width)
    generates = stage in ("test", "predict") or settings["val_generate"]
    answers = stage != "fit" or trainer.limit_val_batches != 0
    if asked and answers:
        limits.check_answering_length(
            config, asked, settings["name"],
            max_new_tokens=model.most_new_tokens(data) if generates and settings["decoding"] == "greedy" else 0,
            as_published=generates and settings["decoding"] == "published",
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
