"""Standard output and standard error of the command: they take any text, and a full disk under them ends no run."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

from mmcoref.errors import USER_ERROR_EXIT

_NAMES = {"stdout": "standard output", "stderr": "standard error"}


class _Raw(io.FileIO):
    """Bytes on their way out. What cannot be written is noted instead of raised: a run has more to do than to print."""

    failure: OSError | None = None

    def write(self, data: object) -> int:
        """Write, or note why not."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:  # the reader has seen enough, which ends a program
            raise
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes  # type: ignore[arg-type]


def protect_outputs() -> None:
    """Have both streams write what their encoding cannot as `\\u…`, and note what cannot be written at all.

    A console of Windows, and a stream that a test has put in place, keep their own way to write.
    """
    for name in _NAMES:
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="backslashreplace")
        if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:
            continue
        stream.flush()
        raw = _Raw(stream.fileno(), "w", closefd=False)
        protected = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),  # as Python itself does, with -u
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, protected)


def end_outputs(code: int) -> int:
    """Write what is still in the streams, and report once what could not be written.

    Args:
        code: the exit code without regard to output.

    Returns:
        The exit code: that of a mistake if all went well but the output could not be written, and 141 if nobody reads it.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return broken_pipe()
    failure = next(filter(None, (_failure(name) for name in _NAMES)), "")
    if not failure:
        return code
    with contextlib.suppress(OSError):
        print(f"mmcoref: error: {failure}; what was printed is lost, files that were written are not.", file=sys.stderr, flush=True)
    return code or USER_ERROR_EXIT


def broken_pipe() -> int:
    """Turn standard output away from a pipe that nobody reads, and return the exit code that a shell expects."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _failure(name: str) -> str:
    """Say why a stream could not be written; nothing if it could."""
    buffer = getattr(getattr(sys, name), "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    failure = raw.failure if isinstance(raw, _Raw) else None
    return f"{_NAMES[name]} could not be written ({failure.strerror})" if failure else ""
