"""What a run says of itself before and after: its first log lines and its last."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler

from mmcoref.data.module import MMCorefDataModule
from mmcoref.model.module import MMCorefModule
from mmcoref.run.callbacks import Checkpoints, TimeLimit, last_checkpoint
from mmcoref.run.checkpoint import Stored
from mmcoref.run.folder import typed
from mmcoref.run.launchers import launcher_of

log = logging.getLogger(__name__)


def fit(model: MMCorefModule, data: MMCorefDataModule, trainer: pl.Trainer, stored: Stored | None) -> None:
    """Records, split, tokens, effective batch, steps; and what should not be overlooked."""
    assert data.file is not None
    lengths = data.train.trained_tokens
    window = data.hparams["batch_size"] * trainer.accumulate_grad_batches * trainer.world_size
    steps = data.total_steps(trainer)
    per_epoch = len(lengths) // window if data.as_published else -(-len(lengths) // window)
    sizes = "/".join(str(len(part)) for part in data.split if part)
    log.info(
        "%d records, %s %s; tokens mean %.0f, longest %d; %d records an optimizer step; %d steps (%s epochs of %d)",
        len(data.file.records), "train/val/test" if data.split.val else "train/test", sizes,
        lengths.mean(), lengths.max(), window, steps, trainer.max_epochs, per_epoch,
    )  # fmt: skip
    if stored is not None and stored.step >= steps:
        limit = "max_steps" if trainer.max_steps == steps else "max_epochs"
        log.warning("this run is finished, %d of %d steps: raise --trainer.%s to go on", stored.step, steps, limit)
    _processes(trainer)
    _too_long(data)
    if len(data.split.val) < data.hparams["val_size"] and not data.partial:
        log.warning("data.val_size: %d held out, as no cluster of the missing size is left", len(data.split.val))
    if data.partial:
        log.warning("data.limit %d: a partial run, its scores are not comparable", data.hparams["limit"])
    if not data.split.val:
        log.warning(
            "data.val_size is 0: the curves (test_curve/…) are measured on the test records, as the published report did; "
            "no checkpoint is chosen by them"
        )
    warmup = model.hparams["warmup_steps"]
    if steps <= warmup:
        log.warning(
            "the run ends after %d optimizer steps, within its %d warm-up steps: the learning rate reaches %.0f %% of model.lr "
            "and does not decay; lower --model.warmup_steps", steps, warmup, 100 * steps / warmup,
        )  # fmt: skip


def _processes(trainer: pl.Trainer) -> None:
    """What a fit of several machines waits for, and how many of its processes share a processor."""
    if trainer.num_nodes > 1:
        meeting = getattr(trainer.strategy, "cluster_environment", None)
        where = f" at {meeting.main_address}:{meeting.main_port}" if meeting else ""
        launcher = launcher_of()
        name = launcher.name if launcher else "torchrun"
        log.info("waits for the processes of %d machines%s; %s starts them on each", trainer.num_nodes, where, name)
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        log.warning("%d processes share %d processors: this will be slow", trainer.num_devices, cores)


def trial(trainer: pl.Trainer) -> None:
    """Report before a trial run that it will leave nothing."""
    if batches := int(trainer.fast_dev_run):  # type: ignore[attr-defined]
        log.info("trainer.fast_dev_run: a trial of %d %s; nothing is written", batches, "batch" if batches == 1 else "batches")


def profile(trainer: pl.Trainer, folder: Path) -> None:
    """Have a profiler, if there is one, write into the run's folder: Lightning would log its figures where nobody sees them."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, PassThroughProfiler):
        return
    profiler.dirpath, profiler.filename = profiler.dirpath or folder, profiler.filename or "profile"
    log.info("trainer.profiler: writes to %s when the run ends", profiler.dirpath)


def fitted(trainer: pl.Trainer, stored: Stored | None) -> None:
    """Report why a run ended before its time, where its checkpoint is, and what comes next.

    Args:
        trainer: of the run.
        stored: the checkpoint that it was resumed from, if any.
    """
    [keeper] = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]
    best = keeper.best
    if best is not None and keeper.out_of_patience:
        log.info(
            "stopped after epoch %d: %s has not been above %.4f for %d validations; a higher --checkpoint.patience, or null, continues",
            trainer.current_epoch, keeper.monitor, best.value, keeper.patience,
        )  # fmt: skip
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TimeLimit) and (callback.time_remaining() or 0) <= 0:
            log.info("stopped at step %d: the time of --trainer.max_time is over", trainer.global_step)
    if trainer.fast_dev_run or (keeper.saved_step is None and stored is None):  # type: ignore[attr-defined]
        return
    last = last_checkpoint(trainer) if keeper.saved_step is not None else stored.path  # type: ignore[union-attr]
    module = trainer.lightning_module
    adapters = isinstance(module, MMCorefModule) and module.base_apart
    what = f"checkpoint (adapters, beside {module.hparams['name']})" if adapters else "checkpoint"
    hint = ""
    if best is not None and (file := last.with_name("best.ckpt")).exists():
        hint = f", or --ckpt_path {typed(file)}: {keeper.monitor} {best.value:.4f} at step {best.step}"
    log.info("step %d, %s: %s; next: mmcoref test --ckpt_path %s%s", trainer.global_step, what, typed(last), typed(last), hint)


def answering(stage: str, model: MMCorefModule, data: MMCorefDataModule, stored: Stored | None) -> None:
    """Which records a stage answers, and with what."""
    n = len({"test": data.test, "validate": data.curve, "predict": data.unlabelled}[stage])
    what = f"step {stored.step} of {stored.path}" if stored else f"{model.hparams['name']}, no checkpoint"
    log.info("%s: %d records; %s", stage, n, what)
    if stage == "validate" and not data.split.val:
        log.warning("data.val_size is 0: these are the test records")
    fitted_with = stored.config["data"].get("val_size", 0) if stored else data.hparams["val_size"]
    if stage == "validate" and data.split.val and fitted_with != data.hparams["val_size"]:
        log.warning(
            "data.val_size is %d and was %d in the fit: this model was trained on records that are measured here",
            data.hparams["val_size"], fitted_with,
        )  # fmt: skip
    _too_long(data)


def _too_long(data: MMCorefDataModule) -> None:
    for what, indices in (("dropped", data.dropped), ("cut" if data.as_published else "trimmed", data.trimmed)):
        if indices:
            log.warning("%d records longer than data.max_tokens %s: %s", len(indices), what, _some(indices))


def _some(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (", …" if len(indices) > 20 else "")
