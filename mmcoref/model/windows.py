"""How a fit cuts each process's share of an optimizer step into forward passes: decided once, before it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import PretrainedConfig

from mmcoref.data.module import MMCorefDataModule
from mmcoref.errors import UserError
from mmcoref.model.capacity import device_memory, most_records
from mmcoref.model.memory import Shape, Step, choose_step, shape_of
from mmcoref.model.packing import can_pack

log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """How a window is cut.

    Attributes:
        shape: of the model.
        step: a forward pass, and the optimizer step that it is part of.
        packed: whether its records stand behind one another in one row.
        capacity: bytes of this process's device; None where nobody says.
    """

    shape: Shape
    step: Step
    packed: bool
    capacity: int | None


def choose_cut(config: PretrainedConfig, settings: Mapping[str, Any], data: MMCorefDataModule, trainer: pl.Trainer) -> Cut:
    """What a fit will do on a device like this process's; known as soon as the data are, before the processes have met.

    Args:
        config: the model's shape.
        settings: the module's.
        data: whose windows are cut.
        trainer: that will run.

    Raises:
        UserError: records of a forward pass that do not divide a process's share.
    """
    share = data.rows * trainer.accumulate_grad_batches
    longest = max(example.trained_tokens for example in data.train)
    packed = not data.as_published and can_pack(config, longest)
    given = data.hparams["micro_batch_size"]
    if given is None and (data.as_published or _counts_batches(trainer)):
        given = data.rows
    if given is not None and share % given:
        raise UserError(
            f"data.micro_batch_size: expected a divisor of the {share} records that a process has of an optimizer step, got {given}."
        )
    device = trainer.strategy.root_device
    capacity = device_memory(device, trainer.num_devices)
    shape = shape_of(config, settings["lora_rank"], settings["lora_targets"])
    lengths = [data.hparams["max_tokens"] if data.as_published else example.trained_tokens for example in data.train]
    step = choose_step(
        shape,
        lengths,
        [len(example.answer_ids) for example in data.train],
        window=share,
        given=given,
        packed=packed,
        precision=str(trainer.precision),
        processes=trainer.world_size,
        sharded=isinstance(trainer.strategy, ModelParallelStrategy),
        checkpointing=settings["gradient_checkpointing"],
        capacity=capacity,
        most=most_records(device, config, lengths),
    )
    return Cut(shape, step, packed, capacity)


def cut_windows(config: PretrainedConfig, settings: Mapping[str, Any], data: MMCorefDataModule, trainer: pl.Trainer) -> bool:
    """Sets the records of a forward pass and the accumulation, the same on all processes, and says so.

    Returns:
        Whether blocks have to be computed twice for it to fit.

    Raises:
        UserError: see `choose_cut`, which has the arguments.
    """
    _, step, packed, _ = choose_cut(config, settings, data, trainer)
    records, checkpointing = trainer.strategy.broadcast((step.records, step.checkpointing))
    data.cut_windows(trainer, records, packed=packed)
    size = "1 record" if records == 1 else f"{records} records in one row" if packed else f"{records} records"
    twice = "; gradient checkpointing" if checkpointing else ""
    log.info("micro-batches of %s, %d a step on each process%s", size, trainer.accumulate_grad_batches, twice)
    return bool(checkpointing)


def _counts_batches(trainer: pl.Trainer) -> bool:
    """Whether settings count micro-batches, which then have to stay what they are."""
    return any(isinstance(count, int) for count in (trainer.limit_train_batches, trainer.val_check_interval))
