"""Files that are whole under their final name or not there, and what to say when a disk refuses them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from mmcoref.errors import UserError, first_line

_TEMPORARY = re.compile(r"\.?.+\.tmp-(?:(?P<host>.+)-)?(?P<process>\d+)")
_FULL = 2**20  # bytes; no checkpoint is that small
_DAY = 24 * 60 * 60.0
_FOLDER = "--trainer.default_root_dir"


class CannotWrite(UserError):
    """A disk has refused a file."""


@contextmanager
def whole_bytes(target: Path, *, then: str = "", option: str = _FOLDER) -> Iterator[BinaryIO]:
    """Open a file that takes its final name when the block ends without an error.

    Args:
        target: the final name; missing folders above it are made.
        then: what the user should know or do besides, for the message of a disk that refuses.
        option: the option that names another place.

    Yields:
        A buffered binary file.

    Raises:
        UserError: it cannot be written; what was there before stays.
    """
    temporary = temporary_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        raw = _Raw(temporary, "wb")
    except OSError as error:
        raise cannot_write(target, error, then, option=option) from error
    file = io.BufferedWriter(raw)
    try:
        yield cast(BinaryIO, file)
        file.flush()
        raw.sync()
        file.close()
        raw.rename(target)
    except BaseException as error:
        if raw.refused is None:
            raise
        # Whatever a library makes of a failed write (torch: an enforce failure), the cause is known here.
        raise cannot_write(target, raw.refused, then, option=option) from error
    finally:
        with contextlib.suppress(OSError):  # closing flushes, and what the disk refused once it refuses again
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_text(target: Path, *, then: str = "", option: str = _FOLDER) -> Iterator[TextIO]:
    """Do the same as `whole_bytes` for text in UTF-8, written as given: line ends are not translated.

    Raises:
        UserError: it cannot be written; what was there before stays.
    """
    with whole_bytes(target, then=then, option=option) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        yield text
        text.flush()
        text.detach()  # so that it does not close the file itself


def write_text(target: Path, text: str, *, then: str = "", option: str = _FOLDER) -> None:
    """Write a text file whole or not at all.

    Raises:
        UserError: it cannot be written; what was there before stays.
    """
    with whole_text(target, then=then, option=option) as file:
        file.write(text)


class _Raw(io.FileIO):
    """A file that remembers what the disk said, as libraries forget it.

    Attributes:
        refused: the error of a write, a sync or a rename.
    """

    refused: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write some bytes."""
        with self._remembered():
            return super().write(data)

    def sync(self) -> None:
        """Have the disk take everything."""
        with self._remembered():
            os.fsync(self.fileno())

    def rename(self, target: Path) -> None:
        """Give the file its final name."""
        with self._remembered():
            os.replace(cast(Path, self.name), target)
            sync(target.parent)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.refused = error
            raise


def temporary_of(target: Path) -> Path:
    """Name a neighbour of a file or folder under which it is written: with the machine and the process that do so."""
    return target.with_name(f".{target.name}.tmp-{_host()}-{os.getpid()}")


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node()) or "unknown"


def sync(path: Path) -> None:
    """Have the disk take a file, or a folder's entries: a rename is lasting only then."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks do not sync folders
            raise
    finally:
        os.close(number)


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove what interrupted writes have left in a folder.

    A process of this machine has left it if it is gone. Processes of other machines, which share the disk, cannot be
    asked: theirs goes when nothing has been written to it for a day.

    Args:
        folder: where files were written; it need not exist.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(folder.glob("*.tmp-*")):
        name = _TEMPORARY.fullmatch(path.name)
        if name is None or not _abandoned(path, name["host"], int(name["process"])):
            continue
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path)
    return removed


def _abandoned(path: Path, host: str | None, process: int) -> bool:
    if host == _host():
        return not _runs(process)
    try:
        newest = max(entry.stat().st_mtime for entry in [path, *path.glob("*")])
    except OSError:
        return False  # it is being renamed or removed
    return time.time() - newest > _DAY


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def cannot_write(target: Path, error: BaseException, then: str = "", *, option: str = _FOLDER) -> CannotWrite:
    """Say why something could not be written, and what to do about it.

    Args:
        target: what was to be written.
        error: the disk's.
        then: what the user should know or do besides; sentences.
        option: the option that names another place.
    """
    why, do = _reason(target, error)
    elsewhere = f"choose another folder with {option}"
    return CannotWrite(_sentences(f"{target}: could not be written: {why}; {f'{do}, or ' if do else ''}{elsewhere}.", then))


def _reason(target: Path, error: BaseException) -> tuple[str, str]:
    """What is wrong, and what helps besides another folder."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and _free_bytes(target) < _FULL:
        number = errno.ENOSPC  # a library has kept the cause to itself
    reasons = {
        errno.ENOSPC: (f"the disk is full ({_free(target)})", "make room"),
        errno.EDQUOT: ("your quota of that disk is used up", "remove files of yours"),
        errno.EACCES: ("permission denied", f"get the permission to write in {target.parent}"),
        errno.EPERM: ("permission denied", f"get the permission to write in {target.parent}"),
        errno.EROFS: ("the disk is read-only", ""),
        errno.ENOENT: (f"{target.parent} is not there any more", "leave it where it is during a run"),
        errno.ENOTDIR: ("a file is where its folder should be", ""),
        errno.EEXIST: ("a file is where its folder should be", ""),
        errno.EISDIR: ("a folder of that name is there", ""),
        errno.EFBIG: ("the file is larger than is allowed", "raise the limit (ulimit -f)"),
    }
    said = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return reasons.get(number or 0, (f"{said} ({_free(target)})", ""))


def _free(target: Path) -> str:
    free = _free_bytes(target)
    return f"{free / 2**30:.1f} GiB are free" if free >= 2**30 else f"{free / 2**20:.1f} MiB are free"


def _free_bytes(target: Path) -> int:
    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
