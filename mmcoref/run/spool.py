"""Bytes that are written once and read again: in memory, beyond a size in a temporary file, in memory again if no disk takes them."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from io import BytesIO
from typing import IO

log = logging.getLogger(__name__)


class Spool:
    """Bytes that are appended to, and read from any place.

    Args:
        in_memory: bytes that need no file.
    """

    def __init__(self, in_memory: int) -> None:
        self._in_memory: float = in_memory
        self._memory = BytesIO()
        self._file: IO[bytes] | None = None
        self._size = 0

    def append(self, data: bytes) -> None:
        """Write at the end."""
        if self._file is None and self._size + len(data) > self._in_memory:
            self._to_disk()
        if self._file is not None:
            try:
                self._write(self._file, data)
            except OSError as error:
                self._to_memory(error)
        if self._file is None:
            self._memory.seek(self._size)
            self._memory.write(data)
        self._size += len(data)

    def read(self, start: int, end: int) -> bytes:
        """Read the bytes from `start` to before `end`."""
        if self._file is not None:
            return os.pread(self._file.fileno(), end - start, start)
        return bytes(self._memory.getbuffer()[start:end])

    def _to_disk(self) -> None:
        """Move everything into a temporary file, which the system removes when this process ends."""
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # it is closed, and so removed, with this object
            self._write(file, self._memory.getbuffer())
        except OSError as error:
            self._warn(error)
            return
        self._file, self._memory = file, BytesIO()

    def _to_memory(self, error: OSError) -> None:
        """Take back from the file what it holds."""
        assert self._file is not None
        self._memory = BytesIO(os.pread(self._file.fileno(), self._size, 0))
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None
        self._warn(error)

    def _warn(self, error: OSError) -> None:
        self._in_memory = float("inf")
        log.warning("%s takes no more (%s): what the run predicts is kept in memory", tempfile.gettempdir(), error.strerror)

    @staticmethod
    def _write(file: IO[bytes], data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
