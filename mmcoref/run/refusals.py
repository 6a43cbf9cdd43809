"""Settings of Lightning's trainer that a program here cannot honour, or that leave it nothing to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl

from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.sampler import batches_per_epoch
from mmcoref.errors import UserError
from mmcoref.ranges import MOST_DEVICES, check_share, in_ranges
from mmcoref.run.terms import count_devices

_NOTHING = {  # program -> (setting, what nothing of is done)
    "fit": (("max_epochs", "trained"), ("max_steps", "trained"), ("limit_train_batches", "trained")),
    "validate": (("limit_val_batches", "measured"),),
    "test": (("limit_test_batches", "measured"),),
    "predict": (("limit_predict_batches", "answered"),),
}
_CALLBACKS = {  # class -> why it cannot work here, and what does
    "GradientAccumulationScheduler": "the loss is a mean over a whole optimizer step; set --trainer.accumulate_grad_batches",
    "BatchSizeFinder": "the largest forward pass that fits is chosen before a fit; leave --data.micro_batch_size out",
    "BackboneFinetuning": "it needs the weights before they are loaded; --model.lora_rank trains a part of them",
}


def check_settings(program: str, settings: Mapping[str, Any]) -> None:
    """Check numbers, and what the trainer would be told.

    Args:
        program: `fit`, `validate`, `test` or `predict`.
        settings: dotted name -> value.

    Raises:
        UserError: which setting is wrong, and what to do instead.
    """
    in_ranges(settings)
    check_share(settings["data.batch_size"], settings["trainer.accumulate_grad_batches"])
    trainer = {name.removeprefix("trainer."): value for name, value in settings.items() if name.startswith("trainer.")}
    if trainer["barebones"]:
        raise UserError("trainer.barebones: it forbids the checkpoint, the curves and the results that this program is for; leave it out.")
    if trainer["enable_checkpointing"] is False:
        raise UserError(
            "trainer.enable_checkpointing: a fit keeps its last checkpoint; leave it out (a trial: --trainer.fast_dev_run true)."
        )
    if trainer["overfit_batches"]:
        raise UserError(
            "trainer.overfit_batches: not supported, as batches are dealt by length; --data.limit 8 trains on the first 8 records, "
            "and --trainer.max_epochs says how often."
        )
    if trainer["val_check_interval"] in (0, "0"):
        raise UserError("trainer.val_check_interval: expected more than 0, got 0; --trainer.limit_val_batches 0 turns validation off.")
    if (count_devices(trainer["devices"]) or 0) > MOST_DEVICES:
        raise UserError(f"trainer.devices: expected at most {MOST_DEVICES} of a machine, got {trainer['devices']}.")
    for name, done in _NOTHING[program]:
        if not isinstance(trainer[name], bool) and trainer[name] == 0:
            raise UserError(f"trainer.{name}: expected more than 0, got 0, with which nothing is {done}.")
    for name in _class_names(trainer["callbacks"]):
        if reason := _CALLBACKS.get(name.rpartition(".")[2]):
            raise UserError(f"trainer.callbacks: {name} cannot work here: {reason}.")


def _class_names(callbacks: Any) -> Iterator[str]:
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if callback is not None and "class_path" in callback:
            yield str(callback["class_path"])


def check_validation_interval(data: MMCorefDataModule, trainer: pl.Trainer) -> None:
    """Check that an epoch has as many forward passes as `val_check_interval` counts between validations.

    Raises:
        UserError: it has fewer, so that it would never be validated.
    """
    interval = getattr(trainer, "val_check_interval", None)  # Lightning has none if it is a time
    if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None or trainer.limit_val_batches == 0:
        return
    passes = batches_per_epoch(
        len(data.train),
        batch_size=data.rows,
        accumulate=trainer.accumulate_grad_batches,
        num_replicas=data.replicas(trainer)["num_replicas"],
        whole_windows=data.as_published,
    )
    limit = trainer.limit_train_batches
    passes = min(passes, limit) if isinstance(limit, int) else int(passes * limit)
    if interval > passes:
        raise UserError(
            f"trainer.val_check_interval: expected at most {passes}, the forward passes of an epoch, each of {data.rows} records, "
            f"got {interval}; --trainer.check_val_every_n_epoch null counts them over epochs."
        )
