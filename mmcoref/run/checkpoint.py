"""Checkpoints: written whole or not at all, found again, and complete enough to stand alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from mmcoref.atomic import whole_bytes
from mmcoref.data.decode import shown
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.tokenizer import TokenizerFiles
from mmcoref.errors import UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.model.optim import Schedule
from mmcoref.run.files import kept, link, meta_of, read_file, read_folder
from mmcoref.run.folder import VERSION, versions
from mmcoref.run.integrity import check, check_structure, check_together, digest
from mmcoref.run.provenance import DATA_KEY, DataIdentity

log = logging.getLogger(__name__)

CONFIG_KEY = "mmcoref_config"
WINDOW_KEY = "mmcoref_window"
LAST = "last.ckpt"
_NEEDED = ("mmcoref_backbone", "mmcoref_tokenizer", "global_step")
# What is read of a checkpoint, which may come from anyone.
_FORM: dict[str, Any] = {
    "mmcoref_backbone": dict[str, Any],
    "mmcoref_tokenizer": dict[str, str],
    "global_step": NonNegativeInt,
    CONFIG_KEY: dict[str, Any],
    WINDOW_KEY: PositiveInt,
    "mmcoref_base": str,
    "mmcoref_schedule": Schedule,
    DATA_KEY: DataIdentity,
    "hyper_parameters": dict[str, Any],
    "datamodule_hyper_parameters": dict[str, Any],
    "callbacks": dict[str, dict[str, Any]],
}
_SCORES = list[tuple[int, float]]  # of each validation: its step, and its score


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
        """Check a file's bytes, then map it, so that processes on one machine share its pages and nobody copies what it skips.

        The folder of a sharded run is put together in memory. Every process must take part.

        Raises:
            UserError: it is damaged, or holds what no checkpoint needs.
        """
        check_together(Path(path), training=self.training)
        return _read(Path(path), training=self.training)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that a better one replaces.

        A resumed checkpoint says which one that is, and could name any folder of the user's: Lightning sees that it begins
        with the run's folder, or is no local file, and removes it.
        """
        if ".." in Path(path).parts or "::" in str(path) or "://" in str(path):
            log.warning("%s: not removed, as no checkpoint of a run has such a name", path)
        else:
            super().remove_checkpoint(path)


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
        schedule: of the learning rate, as `Schedule` has it; None where the file does not say.
        data: that the run was trained on; None where the file does not say.
        digest: that names the checkpoint; None for a folder without checksums.
        best_step: of the best validated step before this checkpoint; None without a validation part.
    """

    path: Path
    config: dict[str, Any]
    step: int
    backbone: dict[str, Any]
    tokenizer: TokenizerFiles
    base: str | None
    window: int | None
    schedule: dict[str, Any] | None = None
    best_step: int | None = None
    data: DataIdentity | None = None
    digest: str | None = None

    def restore(self, model: MMCorefModule, data: MMCorefDataModule) -> None:
        """Lets both rebuild what they were trained with, from this file alone."""
        model.restore_backbone(self.backbone, self.base)
        model.restore_schedule(self.schedule, self.step)
        data.restore_tokenizer(self.tokenizer)

    def named(self) -> dict[str, Any]:
        """Name the checkpoint in results: where it is, and what is in it."""
        return {"path": str(self.path.absolute()), "step": self.step, "digest": self.digest}

    def check_unchanged(self) -> None:
        """Check that the checkpoint is still the one that was read.

        Raises:
            UserError: another has taken its place.
        """
        if digest(self.path) != self.digest:
            raise UserError(f"{self.path}: was replaced while this run started, perhaps by a training run: start again, or name a copy.")

    @property
    def run_folder(self) -> Path | None:
        """`…/version_N`, where the file still lies in the run that wrote it."""
        folder = self.path.resolve().parent.parent
        return folder if VERSION.fullmatch(folder.name) and self.path.resolve().parent.name == "checkpoints" else None

    @property
    def is_newest(self) -> bool:
        """Whether no checkpoint of its folder has more optimizer steps."""
        return not any(step > self.step for step in _look_into(self.path.parent).steps.values())


def read_stored(path: str | Path) -> Stored:
    """Everything but the tensors, which are not read.

    Raises:
        UserError: no such file, a broken one, or one that this package did not write.
    """
    path = Path(path)
    structure = meta_of(path) if path.is_dir() else path
    if structure.exists():  # else it is reported when it is read
        check_structure(path)
    checkpoint = read_file(structure, "meta")
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"{path}: expected a checkpoint that mmcoref wrote, but it has no {' and '.join(missing)}.")
    for key, kind in _FORM.items():
        _checked(path, checkpoint.get(key), kind if key in _NEEDED else kind | None, key)
    config = checkpoint.get(CONFIG_KEY) or {
        "model": dict(checkpoint.get("hyper_parameters", {})),
        "data": dict(checkpoint.get("datamodule_hyper_parameters", {})),
    }
    return Stored(
        path,
        config,
        checkpoint["global_step"],
        checkpoint["mmcoref_backbone"],
        checkpoint["mmcoref_tokenizer"],
        checkpoint.get("mmcoref_base"),
        checkpoint.get(WINDOW_KEY),
        checkpoint.get("mmcoref_schedule"),
        _best_step(path, checkpoint),
        _checked(path, checkpoint.get(DATA_KEY), DataIdentity | None, DATA_KEY),
        digest(path),
    )


def _checked(path: Path, value: Any, kind: Any, what: str) -> Any:
    """Give a value as its type has it."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise UserError(f"{path}: is damaged, or not one of mmcoref's: it holds {shown(value)} as {what}.") from None


def _best_step(path: Path, checkpoint: dict[str, Any]) -> int | None:
    stored = (checkpoint.get("callbacks") or {}).get("Checkpoints", {}).get("scores") or []
    scores = _checked(path, stored, _SCORES, "its scores")
    return max(scores, key=lambda score: score[1])[0] if scores else None


def load_weights(module: MMCorefModule, path: Path) -> None:
    """Loads a checkpoint's weights into a module whose model has been built from it."""
    check(path, training=False)
    checkpoint = _read(path, training=False)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)


def _read(path: Path, *, training: bool) -> dict[str, Any]:
    return read_folder(path, training=training) if path.is_dir() else read_file(path)


def find_last(root: Path, *, best: bool = False) -> Path | None:
    """Find the newest checkpoint of the newest run under `root` that has one.

    Of a run's files the one with the most optimizer steps is the newest, whatever the files' times say.

    Args:
        root: the folder of the runs.
        best: whether only a `best.ckpt`, chosen by the validation part, will do.

    Raises:
        UserError: that run's newest checkpoint cannot be read. An older one is named, and never taken silently.
    """
    for _, run in versions(root):
        found = _look_into(run / "checkpoints", best=best)
        broken = [error for file, error in found.broken.items() if best or file.name == LAST or not found.steps]
        if broken:
            older = _newest_readable(root, best=best)
            hint = f" The newest that can be read is {older}: name it to use it." if older else ""
            raise UserError(f"{broken[0]}{hint}")
        if found.steps:
            return found.newest
    return None


def _newest_readable(root: Path, *, best: bool) -> Path | None:
    for _, run in versions(root):
        found = _look_into(run / "checkpoints", best=best)
        if found.steps:
            return found.newest
    return None


class _Found(NamedTuple):
    """The checkpoints in a folder: the optimizer steps of those that can be read, and what is wrong with the others."""

    steps: dict[Path, int]
    broken: dict[Path, UserError]

    @property
    def newest(self) -> Path:
        """The one with the most steps; `last.ckpt` of equals."""
        return max(self.steps, key=lambda file: (self.steps[file], file.name == LAST))


def _look_into(folder: Path, *, best: bool = False) -> _Found:
    found = _Found({}, {})
    for file in sorted(folder.glob("*best.ckpt" if best else "*.ckpt")):
        try:
            found.steps[file] = read_stored(file).step
        except UserError as error:
            found.broken[file] = error
    return found


def carry_best(stored: Stored, folder: Path) -> None:
    """Give a run that continues in another folder the best checkpoint of the one that it was resumed from."""
    best = stored.path.with_name("best.ckpt")
    target = folder / "checkpoints" / best.name
    if stored.best_step is None or not best.exists() or target.exists():
        return
    if read_stored(best).step == stored.best_step:  # else it is of a time after this checkpoint
        link(best, target)


def over_processes(trainer: pl.Trainer, value: float) -> float:
    """The largest value of any process; every process must ask."""
    if trainer.world_size == 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(float(value), device=trainer.strategy.root_device), reduce_op="max"))
