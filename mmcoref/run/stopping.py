"""Where a run that was asked to stop does so: on all processes at the same place, with nothing lost."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from mmcoref.errors import Stopped
from mmcoref.run.callbacks import Checkpoints, last_checkpoint
from mmcoref.run.checkpoint import over_processes
from mmcoref.run.folder import typed
from mmcoref.run.signals import Signals


class StopWhenAsked(pl.Callback):
    """Stops a fit after its current optimizer step, saved, whichever of its processes was asked to.

    Lightning's own handlers broadcast from inside the signal, which hangs under data parallelism.
    """

    def __init__(self) -> None:
        self.signals = Signals()
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over, after Lightning's own handlers."""
        self._step = trainer.global_step
        self.signals.take()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop if asked to, after an optimizer step.

        Raises:
            Stopped: the run was asked to stop, and has been saved.
        """
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        number = self._agreed(trainer)
        if number and not trainer.is_last_batch:  # the epoch's end saves its last step, after validation
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save(trainer)
            self._stop(trainer, number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs: the first one's end has saved it.

        Raises:
            Stopped: the run was asked to stop.
        """
        if trainer.global_step == self._step and trainer.current_epoch > 0:
            self._stop(trainer, self._agreed(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the last epoch, which is saved.

        Raises:
            Stopped: the run was asked to stop.
        """
        self._stop(trainer, self._agreed(trainer))

    def _agreed(self, trainer: pl.Trainer) -> int:
        """Number of the signal that any process got; every process must ask."""
        return int(over_processes(trainer, self.signals.received))

    def _stop(self, trainer: pl.Trainer, number: int) -> None:
        if number:
            file = typed(last_checkpoint(trainer))
            raise Stopped(f"stopped at step {self._step}, checkpoint saved; resume with: mmcoref fit --ckpt_path {file}", number)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.signals.give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.signals.give_back()
