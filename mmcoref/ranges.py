"""The range of every setting that is a number, once; the sections' classes and the command line check the same table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mmcoref.errors import UserError

_NO_LIMIT = 10**12  # of counts: more than any run reaches, and what is computed with it stays exact
_FINITE = sys.float_info.max
_MANY = 10**6  # records or tokens at a time: more than any machine holds, and few enough to lay out lists of them
MOST_DEVICES = 1024  # of a machine

RANGES: Mapping[str, tuple[float, float]] = {
    "seed_everything": (0, 2**32 - 1),  # of NumPy
    "model.lr": (0, _FINITE),
    "model.weight_decay": (0, _FINITE),
    "model.warmup_steps": (0, _NO_LIMIT),
    "model.max_new_tokens": (1, _MANY),
    "model.lora_rank": (0, 10**5),
    "model.lora_alpha": (-_FINITE, _FINITE),  # `Adapters.check` knows the open ends of these two
    "model.lora_dropout": (-_FINITE, _FINITE),
    "data.val_size": (0, 10**9),
    "data.limit": (1, 10**9),
    "data.max_tokens": (1, _MANY),
    "data.batch_size": (1, _MANY),
    "data.micro_batch_size": (1, _MANY),
    "data.eval_batch_size": (1, _MANY),
    "data.num_workers": (0, 256),  # processes
    "data.sample_train": (1, 10**7),
    "data.sample_seed": (-(2**63), 2**63),
    "checkpoint.every_n_steps": (1, _NO_LIMIT),
    "checkpoint.patience": (1, _NO_LIMIT),
    "trainer.num_nodes": (1, 10**4),
    "trainer.fast_dev_run": (0, _NO_LIMIT),
    "trainer.max_epochs": (-1, _NO_LIMIT),
    "trainer.min_epochs": (0, _NO_LIMIT),
    "trainer.max_steps": (-1, _NO_LIMIT),
    "trainer.min_steps": (0, _NO_LIMIT),
    "trainer.limit_train_batches": (0, _NO_LIMIT),
    "trainer.limit_val_batches": (0, _NO_LIMIT),
    "trainer.limit_test_batches": (0, _NO_LIMIT),
    "trainer.limit_predict_batches": (0, _NO_LIMIT),
    "trainer.overfit_batches": (0, _NO_LIMIT),
    "trainer.val_check_interval": (0, _NO_LIMIT),
    "trainer.check_val_every_n_epoch": (1, _NO_LIMIT),
    "trainer.num_sanity_val_steps": (-1, _NO_LIMIT),
    "trainer.log_every_n_steps": (0, _NO_LIMIT),
    "trainer.accumulate_grad_batches": (1, _MANY),
    "trainer.gradient_clip_val": (0, _FINITE),
    "trainer.reload_dataloaders_every_n_epochs": (0, _NO_LIMIT),
}


def in_ranges(settings: Mapping[str, Any], section: str = "") -> None:
    """Check numbers; None means "not set", and what is not a number is for others to judge.

    Args:
        settings: values by name.
        section: of the settings, such as `model`; by default their names are whole.

    Raises:
        UserError: one is out of its range.
    """
    prefix = f"{section}." if section else ""
    for name, (least, most) in RANGES.items():
        value = settings.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if not isinstance(value, int | float) or least <= value <= most:
            continue
        if value < least:
            expected = f"{least} or more"
        elif value > most:
            expected = "a finite number" if value == float("inf") else f"at most {most:,}"
        else:
            expected = "a number"  # NaN is in no range
        raise UserError(f"{name}: expected {expected}, got {value}.")


def check_share(batch_size: int, accumulate: int) -> None:
    """Check that a process's records of an optimizer step can be counted with.

    Raises:
        UserError: they are more than `_MANY`.
    """
    if batch_size * accumulate > _MANY:
        raise UserError(
            f"data.batch_size × trainer.accumulate_grad_batches: expected at most {_MANY:,} records of an optimizer step on a process, "
            f"got {batch_size * accumulate:,}."
        )
