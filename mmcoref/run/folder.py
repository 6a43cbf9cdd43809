"""The folder of a run: `lightning_logs/version_N`, claimed so that no two runs ever share one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from filelock import FileLock, Timeout

from mmcoref.atomic import cannot_write
from mmcoref.errors import UserError
from mmcoref.run.launchers import is_first
from mmcoref.run.signals import SIGNALS

VERSION = re.compile(r"version_(\d+)")
_LOCK = ".lock"
# These tell the processes that a run starts which folder its first one has claimed, and that it holds the lock.
_CLAIMED, _WRITES = "MMCOREF_RUN_FOLDER", "MMCOREF_LOCKED_FOLDER"


def versions(root: Path) -> list[tuple[int, Path]]:
    """List the runs under `root` by number, the newest first."""
    numbered = {folder: VERSION.fullmatch(folder.name) for folder in root.glob("version_*") if folder.is_dir()}
    return sorted(((int(match[1]), folder) for folder, match in numbered.items() if match), reverse=True)


@contextmanager
def run_folder_under(root: Path) -> Iterator[Path]:
    """Claim the next `version_N` under `root` for the run inside the `with` block; unused, it is removed again.

    Runs that start at the same moment get different folders, since making a folder either succeeds or finds that it exists.
    A process that the run's first one has started gets that one's folder. One that a launcher has started gets a name that is
    not used: see `RunFolder`.
    """
    claimed = os.environ.get(_CLAIMED)
    if claimed or not is_first_process():
        yield Path(claimed or root / "version_of_the_first_process")
        return
    made = not root.exists()
    folder = _claim(root)
    os.environ[_CLAIMED] = str(folder)
    remove = partial(_remove_unused, folder, [root] if made else [])
    SIGNALS.at_end.append(remove)
    try:
        yield folder
    finally:
        os.environ.pop(_CLAIMED, None)
        remove()


def _remove_unused(folder: Path, above: Sequence[Path]) -> None:
    with suppress(OSError):  # not empty: it is used
        if [path.name for path in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
        for path in (folder, *above):
            path.rmdir()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other training runs out of a run's folder while the `with` block lasts; a process that ends, however, gives it free.

    Raises:
        UserError: another process writes there.
    """
    if not is_first_process() or os.environ.get(_WRITES) == str(folder):
        yield
        return
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another process is training this run; wait for its end, or stop it, or start a run of its own with "
            "--trainer.default_root_dir."
        ) from None
    except (OSError, NotImplementedError):  # a disk that knows no locks
        yield
        return
    os.environ[_WRITES] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_WRITES, None)
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()


def is_first_process() -> bool:
    """Whether this process is the first of its run, as its launcher's variables say before the processes have met."""
    return is_first()


def _claim(root: Path) -> Path:
    number = max((version for version, _ in versions(root)), default=-1) + 1
    while True:
        folder = root / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise cannot_write(folder, error) from error


def share_version(loggers: Any, version: str) -> None:
    """Have the loggers of a run that number their own folders use the run's number, in place.

    Args:
        loggers: `trainer.logger` before anything is made of it: a bool, a logger's class and arguments, or several of these.
        version: name of the run's folder.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        name = "" if isinstance(logger, bool) or logger is None else logger.get("class_path", "")
        if name.rpartition(".")[2] in ("TensorBoardLogger", "CSVLogger"):
            arguments = logger.get("init_args")
            if arguments is not None and arguments.get("version") is None:
                arguments["version"] = version


class RunFolder(pl.Callback):
    """Tell a run's processes in which folder it writes.

    Args:
        path: the folder, as the first process knows it; the others learn it when the processes have met.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the first process's folder on every process."""
        self.path = Path(trainer.strategy.broadcast(str(self.path)))


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a trainer's run: the one claimed for it, else that of its logger."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunFolder):
            return callback.path
    return Path(trainer.log_dir or trainer.default_root_dir)


def typed(path: Path) -> str:
    """Return a path as a user types it from here: relative where it lies below, quoted where a shell needs that."""
    absolute = path.absolute()
    below = absolute.is_relative_to(Path.cwd())
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if below else absolute))
