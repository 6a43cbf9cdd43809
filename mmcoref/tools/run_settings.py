"""Which settings decide what a run answers: two runs that differ in others only, or in the seed, are runs of one kind.

What follows lists what decides nothing, or is compared otherwise. A key of ours that the lists do not know counts, so that a new
setting separates runs instead of mixing them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, StrictBool, StrictInt

# The file is compared as its digest, the rows as the window that they make.
_FILE_AND_ROWS = ("path", "batch_size", "micro_batch_size", "eval_batch_size", "num_workers")
# The record names the decoding; the answers to other orders are not compared; the rest is how, not what.
_EITHER = ("decoding", "permutations", "val_generate", "gradient_checkpointing", "check_memory")
_DECIDES_NO_WEIGHT = {"model": (*_EITHER, "max_new_tokens"), "data": _FILE_AND_ROWS}
_DECIDES_NO_ANSWER = {"model": (*_EITHER, "lr", "weight_decay", "warmup_steps"), "data": _FILE_AND_ROWS}
# Of Lightning's forty keys few decide the weights; the others say where, how fast and how loudly.
_DECIDES_WEIGHTS = (
    *("max_epochs", "max_steps", "max_time", "limit_train_batches", "overfit_batches"),
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "callbacks", "plugins"),
)


class Settings(BaseModel):
    """The settings of a fit or a test, by section, as the run wrote them."""

    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed_everything: StrictBool | StrictInt | None = None


def decisive_test(test: Settings) -> dict[str, Any]:
    """What decides the answers of a given model to given records."""
    return {**_without(test, _DECIDES_NO_ANSWER), "precision": test.trainer.get("precision")}


def decisive_training(training: Settings, tested: str, digest: str, trained: str | None = None) -> dict[str, Any]:
    """What decides a fit's weights at a given step, but the seed.

    Args:
        training: the fit's settings.
        tested: the data file that the test read.
        digest: its SHA-256, which stands for the file if the fit read the same.
        trained: that of the file that the fit read, if the results say it.
    """
    path = training.data.get("path")
    return {
        **_without(training, _DECIDES_NO_WEIGHT),
        "trainer": {key: training.trainer.get(key) for key in _DECIDES_WEIGHTS},
        "file": trained or (digest if path == tested else path),
        "window": _window(training),
    }


def same_form(settings: Mapping[str, Any]) -> str:
    """Equal texts for equal settings."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def _window(training: Settings) -> Any:
    """Records of an optimizer step, however devices and micro-batches share them; the factors where one is no number, such as `auto`."""
    trainer, batch_size = training.trainer, training.data.get("batch_size")
    devices = trainer.get("devices")
    devices = len(devices) if isinstance(devices, list) else devices
    factors = [devices, trainer.get("num_nodes") or 1, batch_size, trainer.get("accumulate_grad_batches") or 1]
    if not all(isinstance(factor, int) and factor > 0 for factor in factors):
        return factors
    # The published recipe's loss is a mean of the micro-batches' means, which depends on their size.
    return [batch_size, math.prod(factors)] if training.data.get("recipe") == "published" else math.prod(factors)


def _without(settings: Settings, left_out: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    sections = {"model": settings.model, "data": settings.data}
    return {name: {key: value for key, value in section.items() if key not in left_out[name]} for name, section in sections.items()}
