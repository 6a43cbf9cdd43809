"""Curves and other logs that a disk refuses end with one warning; the training, which is worth more, continues."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.tensorboard import TensorBoardLogger
from tensorboard.summary.writer import event_file_writer

from mmcoref.atomic import cannot_write

log = logging.getLogger(__name__)

_WRITING = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


class _TolerantWriter(event_file_writer.RecordWriter):  # type: ignore[misc]  # tensorboard has no types
    """TensorBoard's writer of an event file, which drops what follows when the disk has refused something.

    TensorBoard writes in a thread: an error there prints a traceback, and ends the run at the next point of a curve.
    """

    def __init__(self, writer: Any) -> None:
        super().__init__(writer)
        self._lost = False

    def write(self, data: bytes) -> None:
        """Write an event."""
        self._try(functools.partial(super().write, data))

    def flush(self) -> None:
        """Have the disk take all events."""
        self._try(super().flush)

    def close(self) -> None:
        """Close the file."""
        self._try(super().close)

    def _try(self, action: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            action()
        except Exception as error:  # with TensorFlow installed, its own classes
            self._lost = True
            file = getattr(self._writer, "filename", b"the event file of TensorBoard")
            _warn(Path(file.decode(errors="replace") if isinstance(file, bytes) else str(file)), error)


def tolerate(loggers: list[Logger]) -> None:
    """Let a run outlive what its loggers cannot write.

    Args:
        loggers: of a trainer, before it runs.
    """
    event_file_writer.RecordWriter = _TolerantWriter
    for logger in loggers:
        for name in _WRITING:
            method = getattr(logger, name, None)
            if method is not None:
                setattr(logger, name, _tolerant(logger, method))


def _tolerant(logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(logger, "_mmcoref_lost", False):
            return None
        try:
            return method(*args, **kwargs)
        except OSError as error:
            logger._mmcoref_lost = True  # type: ignore[attr-defined]
            _remove_half(logger, method.__name__)
            _warn(Path(error.filename or logger.save_dir or "."), error)
            return None

    return call


def _remove_half(logger: Logger, method: str) -> None:
    """Remove a half-written hparams.yaml; what it says is in config.yaml, too."""
    if isinstance(logger, TensorBoardLogger) and method in ("save", "finalize"):
        Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)


def _warn(file: Path, error: Exception) -> None:
    log.warning("%s No more curves are written; the run continues.", cannot_write(file, error))
