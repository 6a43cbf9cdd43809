"""Where a run that was asked to stop does so: on all its processes at the same place, with nothing lost."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from mmcoref.errors import Stopped
from mmcoref.run.callbacks import Checkpoints, last_checkpoint
from mmcoref.run.checkpoint import over_processes
from mmcoref.run.folder import typed
from mmcoref.run.signals import SIGNALS, Signals


class StopWhenAsked(pl.Callback):
    """Stops every program when any of its processes was asked to: a fit saved, after an optimizer step; others after a batch.

    All processes take the same batches, so that each can ask the others there. A fit that is asked during a validation stops
    after its current batch: it was saved before that validation, and does it again, whole, when it is resumed.

    Args:
        signals: what was asked; by default of this process.
    """

    def __init__(self, signals: Signals = SIGNALS) -> None:
        self.signals = signals
        self._step = self._done = 0
        self._number = 0  # of the signal for which the run has been saved

    # ------------------------------------------------------------------ fit

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals wait for safe places from now on."""
        self._step, self._number = trainer.global_step, 0
        self.signals.hold("after this optimizer step")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save after an optimizer step if asked to stop, unless the epoch's end or a validation comes next, which do so themselves."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.is_last_batch or _validation_follows(trainer):
            return
        self._number = self._agreed(trainer)
        if self._number:
            for checkpoints in _checkpoints(trainer):
                checkpoints.save(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop a run that was saved for it; only now are the last step's points of the curves written.

        Raises:
            Stopped: the run was asked to stop, and has been saved.
        """
        self._stop_saved(trainer, self._number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs; the end of the first one has saved it.

        Raises:
            Stopped: the run was asked to stop.
        """
        self._stop_saved(trainer, self._agreed(trainer))

    def _stop_saved(self, trainer: pl.Trainer, number: int) -> None:
        if not number:
            return
        saved = [one.saved_step for one in _checkpoints(trainer)]
        if trainer.global_step not in saved:
            raise Stopped(f"stopped at step {trainer.global_step}; nothing was saved", number)
        file = typed(last_checkpoint(trainer))
        raise Stopped(f"stopped at step {trainer.global_step}, checkpoint saved; resume with: mmcoref fit --ckpt_path {file}", number)

    # ------------------------------------------------------------------ evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals of `mmcoref validate` wait for the end of a batch from now on."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals wait for the end of a batch from now on."""
        self._done = 0
        self.signals.hold("after this batch")

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after a batch if asked to.

        Raises:
            Stopped: the run was asked to stop.
        """
        self._done += 1
        if number := self._agreed(trainer):
            raise Stopped(f"stopped after {self._done} batches; nothing was written", number)

    on_predict_batch_end = on_test_batch_end

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do the same for `mmcoref validate`, and within a fit that was saved before its validation.

        Raises:
            Stopped: the run was asked to stop.
        """
        if trainer.state.fn != "fit":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        elif any(one.saved_step == trainer.global_step for one in _checkpoints(trainer)):
            self._stop_saved(trainer, self._agreed(trainer))

    def _agreed(self, trainer: pl.Trainer) -> int:
        """Number of the signal that any process got; every process must ask."""
        return int(over_processes(trainer, self.signals.received))


def _checkpoints(trainer: pl.Trainer) -> list[Checkpoints]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch that is ending."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher) and trainer.enable_validation
