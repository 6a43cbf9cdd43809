"""How a process ends that was one of several."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_one_of_several = False


@contextmanager
def parting() -> Iterator[None]:
    """End this process's groups after the block, if it is in any, and restore the environment variables.

    Lightning leaves its port, rank and seed in them: a run started later by the same Python process would take them for its own.
    After a failure the other processes may be gone, or wait for this one: a group that would ask them is left as it is.
    """
    from torch import distributed

    global _one_of_several
    before = dict(os.environ)
    try:
        yield
    finally:
        _one_of_several = _one_of_several or distributed.is_initialized()
        os.environ.clear()
        os.environ.update(before)
    part()


def part() -> None:
    """End this process's groups, if it is in any."""
    from torch import distributed

    global _one_of_several
    if distributed.is_initialized():
        _one_of_several = True
        distributed.destroy_process_group()


def was_one_of_several() -> bool:
    """Whether this process has met the others of its run."""
    return _one_of_several


def leave(code: int) -> NoReturn:
    """Ends the process as Python does: threads are waited for, exit handlers run, streams flushed.

    One of several then skips the interpreter's own end. Gloo's threads outlive `destroy_process_group` wherever the group is still
    referred to, as a device mesh and sharded parameters do; one that lets go of its last tensor while the interpreter ends asks for
    a lock that is no longer given, and the whole process aborts (torch 2.13).

    Args:
        code: the exit code.
    """
    if not _one_of_several:
        sys.exit(code)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
