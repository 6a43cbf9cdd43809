"""Checkpoints: written whole or not at all, found again, and complete enough to stand alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.tokenizer import TokenizerFiles
from mmcoref.errors import UserError, at_least
from mmcoref.model.module import MMCorefModule
from mmcoref.run.atomic import whole_bytes
from mmcoref.run.files import kept, meta_of, read_file, read_folder

_CONFIG_KEY = "mmcoref_config"
_WINDOW_KEY = "mmcoref_window"
_VERSION = re.compile(r"version_(\d+)")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole under their final name, written beside it and renamed, and read without a copy in memory.

    Lightning's own first fills a buffer as large as the checkpoint, then moves it from `$TMPDIR`, which on another
    file system is a plain copy: a full disk leaves half a file under the final name.

    Args:
        training: whether what is loaded goes on training, and needs the optimizer's state.
    """

    def __init__(self, *, training: bool = True) -> None:
        self.training = training

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the file whole or not at all.

        Raises:
            UserError: the disk is full or cannot be written; what was there before stays.
        """
        target = Path(path)
        with whole_bytes(target, then=kept(target)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Maps a file instead of reading it, so that processes on one machine share its pages and nobody reads what it skips.

        The folder of a sharded run is put together in memory.
        """
        return read_folder(Path(path), training=self.training) if Path(path).is_dir() else read_file(Path(path))


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says besides its tensors.

    Attributes:
        path: of the file.
        config: the settings of the run, by section: `model`, `data`, `trainer`, `seed_everything`.
        step: optimizer steps done.
        backbone: the model's config.
        tokenizer: its files.
        base: fingerprint of the frozen weights, where the checkpoint holds adapters only.
        window: records of an optimizer step; None where the file does not say.
    """

    path: Path
    config: dict[str, Any]
    step: int
    backbone: dict[str, Any]
    tokenizer: TokenizerFiles
    base: str | None
    window: int | None

    def restore(self, model: MMCorefModule, data: MMCorefDataModule) -> None:
        """Lets both rebuild what they were trained with, from this file alone."""
        model.restore_backbone(self.backbone, self.base)
        data.restore_tokenizer(self.tokenizer)

    @property
    def run_folder(self) -> Path | None:
        """`…/version_N`, where the file still lies in the run that wrote it."""
        folder = self.path.resolve().parent.parent
        return folder if _VERSION.fullmatch(folder.name) and self.path.resolve().parent.name == "checkpoints" else None


def read_stored(path: str | Path) -> Stored:
    """Everything but the tensors, which are not read.

    Raises:
        UserError: no such file, a broken one, or one that this package did not write.
    """
    path = Path(path)
    checkpoint = read_file(meta_of(path) if path.is_dir() else path, "meta")
    missing = [key for key in ("mmcoref_backbone", "mmcoref_tokenizer") if key not in checkpoint]
    if missing:
        raise UserError(f"{path}: expected a checkpoint that mmcoref wrote, but it has no {' and '.join(missing)}.")
    config = checkpoint.get(_CONFIG_KEY) or {
        "model": dict(checkpoint.get("hyper_parameters", {})),
        "data": dict(checkpoint.get("datamodule_hyper_parameters", {})),
    }
    return Stored(
        path,
        config,
        int(checkpoint["global_step"]),
        checkpoint["mmcoref_backbone"],
        checkpoint["mmcoref_tokenizer"],
        checkpoint.get("mmcoref_base"),
        checkpoint.get(_WINDOW_KEY),
    )


def load_weights(module: MMCorefModule, path: Path) -> None:
    """Loads a checkpoint's weights into a module whose model has been built from it."""
    checkpoint = AtomicCheckpointIO(training=False).load_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)


def find_last(root: Path, *, best: bool = False) -> Path | None:
    """The newest whole checkpoint of the newest run under `root` that has one; runs are numbered `version_N`.

    Args:
        root: the folder of the runs.
        best: whether only a `best.ckpt`, chosen by the validation part, will do.
    """
    runs = [(int(found[1]), folder) for folder in root.glob("version_*") if (found := _VERSION.fullmatch(folder.name))]
    for _, folder in sorted(runs, reverse=True):
        files = sorted(folder.glob(f"checkpoints/{'*best' if best else '*'}.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for file in files:
            try:
                read_stored(file)
            except UserError:
                continue
            return file
    return None


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt`: at the end of every epoch, every n optimizer steps if asked to, and when told to save.

    Args:
        every_n_steps: optimizer steps between saves within an epoch; by default none.
        patience: epochs without a better score on the validation part after which the fit ends; by default it runs to its end.
    """

    def __init__(self, every_n_steps: int | None = None, patience: int | None = None) -> None:
        at_least(1, checkpoint__every_n_steps=every_n_steps, checkpoint__patience=patience)
        self.every_n_steps = every_n_steps
        self.patience = patience  # for an `EarlyStopping` that the command line sets up, as it knows what is measured
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the step at which the fit starts."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves behind an optimizer step, if that is due."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        due = self.every_n_steps is not None and self._step % self.every_n_steps == 0
        if due and not trainer.is_last_batch:  # the epoch's end saves its last step, behind validation
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, behind validation."""
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Writes the checkpoint now; every process must take part."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(run_folder(trainer), "checkpoints", "last.ckpt"))


class StoredConfig(pl.Callback):
    """Writes the run's settings into its checkpoints.

    Args:
        config: by section, of plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds them, with what the fit has decided itself."""
        assert isinstance(pl_module, MMCorefModule)
        decided = {
            "model": {"gradient_checkpointing": pl_module.hparams["gradient_checkpointing"]},
            "data": {"micro_batch_size": pl_module.data.hparams["micro_batch_size"]},
        }
        replicas = pl_module.data.replicas(trainer)["num_replicas"]
        checkpoint[_WINDOW_KEY] = pl_module.data.rows * trainer.accumulate_grad_batches * replicas
        checkpoint[_CONFIG_KEY] = self.config | {section: self.config[section] | values for section, values in decided.items()}


def run_folder(trainer: pl.Trainer) -> Path:
    """`lightning_logs/version_N` of a run, the same on every process; without a logger, the trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def over_processes(trainer: pl.Trainer, value: float) -> float:
    """The largest value of any process; every process must ask."""
    if trainer.world_size == 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(float(value), device=trainer.strategy.root_device), reduce_op="max"))
