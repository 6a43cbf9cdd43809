"""How a fit cuts each process's share of an optimizer step into forward passes: decided once, before it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import PretrainedConfig

from mmcoref.data.module import MMCorefDataModule
from mmcoref.model.capacity import device_memory
from mmcoref.model.memory import shape_of
from mmcoref.model.need import Terms, need_of

log = logging.getLogger(__name__)


def terms_of(config: PretrainedConfig, settings: Mapping[str, Any], data: MMCorefDataModule, trainer: pl.Trainer) -> Terms:
    """A fit on a device like this process's; known as soon as the data are, before the processes have met.

    Args:
        config: the model's shape.
        settings: the module's.
        data: whose windows are cut.
        trainer: that will run.
    """
    device = trainer.strategy.root_device
    return Terms(
        config=config,
        shape=shape_of(config, settings["lora_rank"], settings["lora_targets"]),
        lengths=[data.hparams["max_tokens"]] * len(data.train) if data.as_published else data.train.trained_tokens.tolist(),
        targets=data.train.answer_tokens.tolist(),
        option=data.train.longest_answer,
        rows=data.rows,
        accumulate=trainer.accumulate_grad_batches,
        micro_batch_size=data.hparams["micro_batch_size"],
        # Lightning's trainer has no interval if it is a time.
        counted=any(isinstance(count, int) for count in (trainer.limit_train_batches, getattr(trainer, "val_check_interval", None))),
        published=data.as_published,
        eval_rows=0 if trainer.limit_val_batches == 0 else data.hparams["eval_batch_size"],
        precision=str(trainer.precision),
        processes=trainer.world_size,
        sharded=isinstance(trainer.strategy, ModelParallelStrategy),
        checkpointing=settings["gradient_checkpointing"],
        device=device,
        capacity=device_memory(device, trainer.num_devices),
    )


def cut_windows(config: PretrainedConfig, settings: Mapping[str, Any], data: MMCorefDataModule, trainer: pl.Trainer) -> bool:
    """Sets the records of a forward pass and the accumulation, the same on all processes, and says so.

    Returns:
        Whether blocks have to be computed twice for it to fit.

    Raises:
        UserError: see `need_of`; the arguments are those of `terms_of`.
    """
    need = need_of(terms_of(config, settings, data, trainer))
    records, checkpointing = trainer.strategy.broadcast((need.step.records, need.step.checkpointing))
    data.cut_windows(trainer, records, packed=need.packed)
    size = "1 record" if records == 1 else f"{records} records in one row" if need.packed else f"{records} records"
    twice = "; gradient checkpointing" if checkpointing else ""
    log.info("micro-batches of %s, %d a step on each process%s", size, trainer.accumulate_grad_batches, twice)
    return bool(checkpointing)
