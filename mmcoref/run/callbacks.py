"""What a training run keeps and when it ends: `last.ckpt`, `best.ckpt`, early stopping and the time limit.

One rule makes a kill at any moment harmless: a checkpoint is written at the end of an optimizer step, and before the
validation that judges it. A run resumed from a checkpoint that was not yet validated validates it first. So
`best.ckpt` need not be written at all: it is `last.ckpt` as it was when its score came in, under a second name.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loops.evaluation_loop import RestartStage

from mmcoref.atomic import write_text
from mmcoref.errors import UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.ranges import in_ranges
from mmcoref.run import slurm
from mmcoref.run.checkpoint import CONFIG_KEY, LAST, WINDOW_KEY
from mmcoref.run.files import link
from mmcoref.run.folder import run_folder
from mmcoref.run.provenance import DATA_KEY, identity

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """One validation of a training run.

    Attributes:
        step: optimizer steps that were done.
        value: of the metric that chooses the best checkpoint.
    """

    step: int
    value: float


class Checkpoints(Checkpoint):
    """Keep `checkpoints/last.ckpt` and `best.ckpt`, and stop a run that no longer gets better.

    `last.ckpt` is written before each validation, at the end of each epoch, every n optimizer steps if asked to, and
    where the run ends. `best.ckpt` is the one with the highest score on the validation part, the first of equals.

    Args:
        every_n_steps: optimizer steps between saves within an epoch; by default none.
        patience: validations without a better score after which the run ends; by default it runs to its end.
        requeue: whether Slurm is asked to run the job again when its notice (SIGUSR1) has stopped the run.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, every_n_steps: int | None = None, patience: int | None = None, requeue: bool = True) -> None:
        in_ranges({"every_n_steps": every_n_steps, "patience": patience}, "checkpoint")
        self.every_n_steps = every_n_steps
        self.patience = patience
        slurm.wanted = requeue
        self.monitor: str | None = None  # set by `choose_by`; without it nothing is chosen
        self.scores: list[Score] = []
        self.saved_step: int | None = None  # of this process's newest checkpoint
        self._step = 0
        self._before_validation = False  # whether a checkpoint is being written that is yet to be validated
        self._validate_first = False
        self._resumed_step: int | None = None  # of `last.ckpt`, if the run was resumed from it
        self._stop_after_step = False

    def choose_by(self, settings: dict[str, Any]) -> None:
        """Set the metric that chooses the best checkpoint, if records are held out for that.

        Raises:
            UserError: the run is to stop early, and holds out no records to decide by.
        """
        if settings["data"]["val_size"]:
            generated = settings["model"]["val_generate"]
            self.monitor = "val/object_accuracy" if generated else "val/likelihood_accuracy"
        elif self.patience is not None:
            raise UserError("--checkpoint.patience: needs a validation part to choose by; hold one out with --data.val_size, such as 138.")

    @property
    def best(self) -> Score | None:
        """The best score so far, the first of equals."""
        return max(self.scores, key=lambda score: score.value, default=None)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought no better score."""
        if self.patience is None or self.best is None:
            return False
        return len(self.scores) - 1 - self.scores.index(self.best) >= self.patience

    # ------------------------------------------------------------------ state in the checkpoint

    def state_dict(self) -> dict[str, Any]:
        """The scores so far, and whether this checkpoint is yet to be validated."""
        return {
            "monitor": self.monitor,
            "scores": [[score.step, score.value] for score in self.scores],
            "validate_first": self._before_validation,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the scores of the run that wrote the checkpoint, if they are of the same metric."""
        self._validate_first = bool(state_dict["validate_first"])
        if state_dict["monitor"] == self.monitor:
            self.scores = [Score(int(step), float(value)) for step, value in state_dict["scores"]]
        elif state_dict["scores"] and self.monitor is not None:
            log.info("best.ckpt is chosen anew: its scores were %s, and are %s now", state_dict["monitor"], self.monitor)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take a finished epoch that awaits its validation for done, if this run does not validate it.

        Lightning would wait for that validation with the next epoch's batches. What it needs to know is what `on_train_epoch_end`
        would have saved: the epoch is processed, and its last step is counted.
        """
        loops, mine = checkpoint.get("loops", {}).get("fit_loop", {}), checkpoint.get("callbacks", {}).get(self.state_key, {})
        awaits = mine.get("validate_first") and loops["epoch_loop.batch_progress"]["is_last_batch"]
        if trainer.state.fn != "fit" or not awaits:
            return
        progress, every = loops["epoch_progress"], trainer.check_val_every_n_epoch
        validated = every is None or (progress["current"]["completed"] + 1) % every == 0
        if trainer.enable_validation and validated:
            return
        for count in (progress["current"], progress["total"]):
            count["processed"] = count["started"]
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        mine["validate_first"] = False

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Align validation with optimizer steps, and redo the validation that a resumed run did not finish."""
        self._step = trainer.global_step
        self.saved_step = None
        here = last_checkpoint(trainer)
        resumed_here = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == here.resolve()
        self._resumed_step = self._step if resumed_here else None
        window, batches = trainer.accumulate_grad_batches, trainer.val_check_batch
        if isinstance(batches, int) and batches < trainer.num_training_batches and batches % window:
            trainer.val_check_batch = math.ceil(batches / window) * window
        if self._validate_first:
            # Lightning would skip it: in its eyes a validation that has seen no batch yet was not interrupted.
            trainer.fit_loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            self._validate_first = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if that is due or the run ends here; a run that is to end in the middle of a step ends after it."""
        if trainer.global_step == self._step:
            self._stop_after_step |= trainer.should_stop
            trainer.should_stop = False
            return
        self._step = trainer.global_step
        trainer.should_stop |= self._stop_after_step
        due = self.every_n_steps is not None and self._step % self.every_n_steps == 0
        ends = trainer.should_stop or self._step == trainer.max_steps
        if (due or ends) and not trainer.is_last_batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save an epoch that no validation has saved. One that ended early is saved as what it is, unfinished."""
        if trainer.is_last_batch and self.saved_step != trainer.global_step:
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is about to be validated, unless it is the very file that the run was resumed from."""
        if _validates_training(trainer) and self._between_steps(trainer):
            if trainer.global_step == self._resumed_step:
                self.saved_step = trainer.global_step
                return
            self._before_validation = True
            self.save(trainer)
            self._before_validation = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the best checkpoint, and stop a run that no longer gets better."""
        if self.monitor is None or not _validates_training(trainer) or not self._between_steps(trainer):
            return
        value = float(trainer.callback_metrics[self.monitor])
        if math.isnan(value):  # no record was validated
            return
        score = Score(trainer.global_step, value)
        self.scores = [*(earlier for earlier in self.scores if earlier.step < score.step), score]
        if self.best == score and not trainer.fast_dev_run and trainer.is_global_zero:  # type: ignore[attr-defined]
            link(last_checkpoint(trainer), last_checkpoint(trainer).with_name("best.ckpt"))
        if self.out_of_patience:
            trainer.should_stop = True

    def _between_steps(self, trainer: pl.Trainer) -> bool:
        """Whether the last micro-batch ended an optimizer step; in the middle of one, its gradients would be lost."""
        return not trainer.fit_loop._should_accumulate()

    def save(self, trainer: pl.Trainer) -> None:
        """Write `last.ckpt` now; every process must take part."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(last_checkpoint(trainer))
            self.saved_step = trainer.global_step


class TimeLimit(Timer):
    """End a run after the optimizer step in which its time is up. Each start has all of it: a resumed run, too."""

    def __init__(self, duration: Any) -> None:
        super().__init__(duration, interval="epoch", verbose=False)
        self._step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock after each optimizer step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._check_time_remaining(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the time is this process's own."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is continued."""


class StoredConfig(pl.Callback):
    """Write the run's settings into its folder, as `config.yaml`, and into its checkpoints.

    Args:
        config: by section, of plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write `config.yaml`, on the first process."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False)
            write_text(run_folder(trainer) / "config.yaml", text)
            # TensorBoard's own list of settings is written where there is none: a resumed run's would stay the first start's.
            (run_folder(trainer) / "hparams.yaml").unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add them, with what the run has decided itself."""
        assert isinstance(pl_module, MMCorefModule)
        decided = {
            "model": {"gradient_checkpointing": pl_module.hparams["gradient_checkpointing"]},
            "data": {"micro_batch_size": pl_module.data.hparams["micro_batch_size"]},
        }
        replicas = pl_module.data.replicas(trainer)["num_replicas"]
        checkpoint[DATA_KEY] = identity(pl_module.data)._asdict()
        checkpoint[WINDOW_KEY] = pl_module.data.rows * trainer.accumulate_grad_batches * replicas
        checkpoint[CONFIG_KEY] = self.config | {section: self.config[section] | values for section, values in decided.items()}


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """Return the place of a run's `last.ckpt`, the same on every process."""
    return run_folder(trainer) / "checkpoints" / LAST


def _validates_training(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
