"""Progress for logs: where output is no terminal, the progress bar shows nothing until its end."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0


class PlainProgress(pl.Callback):
    """A line a minute with step, loss and the time left, when standard output is not a terminal."""

    def __init__(self) -> None:
        self._said = self._start = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._said = self._start = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Says where the fit is, once a minute."""
        now, done = time.monotonic(), trainer.global_step - self._first_step
        if now - self._said < _EVERY_SECONDS or done == 0 or sys.stdout.isatty():
            return
        self._said = now
        total = trainer.datamodule.total_steps(trainer)  # type: ignore[attr-defined]
        left = (now - self._start) / done * (total - trainer.global_step) / 60
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        log.info("step %d of %d, loss %.3f, about %.0f min left", trainer.global_step, total, loss, left)
