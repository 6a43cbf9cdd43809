"""Files of checkpoints: one of a run whose processes hold the whole model each, a folder of one that is sharded."""

from __future__ import annotations

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from torch.distributed.checkpoint.api import CheckpointException

from mmcoref.atomic import cannot_write, sync, temporary_of
from mmcoref.errors import UserError, first_line
from mmcoref.run.sharded_folder import METADATA, read_optimizer_states, read_weights

# torch's own message advises to run what was refused "if you trust the source".
_HOSTILE = "holds objects that no checkpoint needs and that could run code: they were not read; do not use this checkpoint."
_UNREADABLE = "is not a whole checkpoint (an interrupted copy, or another kind of file); choose another with --ckpt_path"


def kept(target: Path) -> str:
    """Say what a user has of a checkpoint whose new version could not be written."""
    return "The checkpoint before it is whole: resume with --ckpt_path last." if target.exists() else ""


def cannot_read(path: Path, error: BaseException) -> UserError:
    """What to say of a checkpoint that torch could not read."""
    if isinstance(cause(error), pickle.UnpicklingError) and "eights only load failed" in str(cause(error)):
        return UserError(f"{path}: {_HOSTILE}")
    return UserError(f"{path}: {_UNREADABLE}. ({reason(error)})")


def reason(error: BaseException) -> str:
    """An error's first line; of several processes' errors the first one's."""
    return first_line(cause(error))


def cause(error: BaseException) -> BaseException:
    """Of several processes' errors the first one, else the error itself."""
    failures = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    return failures[0][0] if failures else error


def read_folder(folder: Path, *, training: bool) -> dict[str, Any]:
    """A sharded run's checkpoint as one process saves it, in memory; without the optimizer's state unless the training goes on.

    Raises:
        UserError: it is not whole.
    """
    checkpoint = read_file(meta_of(folder))
    try:
        checkpoint["state_dict"] = read_weights(folder)
        if training:
            checkpoint["optimizer_states"] = read_optimizer_states(folder)
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # whatever torch makes of broken files
        raise cannot_read(folder, error) from None
    return checkpoint


def meta_of(folder: Path) -> Path:
    """The file of a sharded run's checkpoint that says what it says besides tensors.

    Raises:
        UserError: the folder holds no such checkpoint, or not all of it.
    """
    if not (folder / METADATA).is_file():  # written last, by the first process
        raise UserError(
            f"{folder}: expected a checkpoint, got a folder without one; name what is in it, such as {folder}/checkpoints/last.ckpt."
        )
    return folder / _METADATA_FILENAME


def read_file(path: Path, device: str = "cpu") -> dict[str, Any]:
    """A checkpoint file, mapped; on the device `meta` no tensor of it is ever read.

    Raises:
        UserError: no such file, or no whole one.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, mmap=True, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint.") from None
    except Exception as error:  # whatever the unpickler makes of hostile or broken bytes
        raise cannot_read(path, error) from None
    return checkpoint


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, whole or not at all; what had the name before is replaced.

    Checkpoints are never written into, only replaced, so that both names can share the bytes on disk. A file system that has
    no hard links gets a copy.

    Args:
        source: the checkpoint, a file or the folder of a sharded run.
        target: its second name, in the same folder or another.

    Raises:
        CannotWrite: the disk refuses the second name; the checkpoint itself is as it was.
    """
    temporary = temporary_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_file)
        else:
            _link_file(source, temporary)
        replace(target, temporary)
    except OSError as error:
        with suppress(OSError):
            remove(temporary)
        raise cannot_write(target, error, f"{source} is whole.") from error


def _link_file(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def replace(target: Path, new: Path) -> None:
    """Move a checkpoint to its final name.

    A folder cannot take another's place in one step: until it has, the old one is kept under a name that is found, too.
    """
    for path in [*(new.iterdir() if new.is_dir() else []), new]:
        sync(path)
    if new.is_file() and not target.is_dir():
        os.replace(new, target)
        sync(target.parent)
        return
    previous = target.with_name(f"previous-{target.name}")
    if target.exists():
        remove(previous)
        os.rename(target, previous)
    os.rename(new, target)
    sync(target.parent)
    remove(previous)


def remove(path: Path) -> None:
    """Remove a file or a folder; it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
