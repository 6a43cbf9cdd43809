"""Columns of numbers and of texts that are mapped into memory, not held there as Python objects.

A table is built once per machine and lies in the cache folder, whole or not at all; the processes of a machine share the
pages that they read. A small table has no file: its columns are arrays in memory. Nothing in a table is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from mmcoref.atomic import cannot_write, remove_abandoned, sync, temporary_of
from mmcoref.errors import UserError

log = logging.getLogger(__name__)

CACHE_VARIABLE = "MMCOREF_CACHE"
_FORMAT = 2  # of the files; part of every key
_META = "meta.json"
_PATIENCE = 5.0  # seconds

Schema = Mapping[str, str]  # name of a column -> numpy's name of its numbers


def cache_folder() -> Path:
    """Return where tables are kept: `MMCOREF_CACHE`, or `mmcoref` in the user's cache folder."""
    if place := os.environ.get(CACHE_VARIABLE):
        return Path(place).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~", ".cache").expanduser()) / "mmcoref"


def key_of(*parts: object) -> str:
    """Return the digest under which a table is kept, of all that decides what is in it."""
    return hashlib.sha256(json.dumps([_FORMAT, *map(str, parts)]).encode()).hexdigest()[:32]


class Table:
    """Columns by name, and a few plain values about them.

    Attributes:
        columns: name -> numbers, which cannot be written to.
        about: plain values.
        folder: where the columns lie; None if they are in memory.
    """

    def __init__(self, columns: dict[str, NDArray[Any]], about: dict[str, Any], folder: Path | None) -> None:
        self.columns = columns
        self.about = about
        self.folder = folder

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a worker process map the files by itself, instead of sending it what is in them."""
        if self.folder is None:
            return Table, (self.columns, self.about, None)
        return _mapped, (self.folder,)


class Columns:
    """Columns while they are written.

    Args:
        schema: of the columns.
        folder: where they are written; None writes into memory.
    """

    def __init__(self, schema: Schema, folder: Path | None) -> None:
        self._schema = schema
        self._folder = folder
        self._files: dict[str, BinaryIO] = {name: _open(folder, name) for name in schema}

    def write(self, name: str, values: ArrayLike | bytes) -> None:
        """Add numbers, or the bytes of a text, to the end of a column."""
        self._files[name].write(values if isinstance(values, bytes) else np.asarray(values, self._schema[name]).tobytes())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def table(self, about: dict[str, Any]) -> Table:
        """Finish: in memory give the table, in a folder see that the disk has all of it."""
        columns: dict[str, NDArray[Any]] = {}
        for name, kind in self._schema.items():
            file = self._files[name]
            if isinstance(file, io.BytesIO):
                columns[name] = np.frombuffer(file.getvalue(), kind)
                continue
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self._folder is None:
            return Table(columns, about, None)
        lengths = {name: (self._folder / name).stat().st_size // np.dtype(kind).itemsize for name, kind in self._schema.items()}
        meta = {"columns": {name: [kind, lengths[name]] for name, kind in self._schema.items()}, "about": about}
        (self._folder / _META).write_text(json.dumps(meta), "utf-8")
        sync(self._folder / _META)
        return _mapped(self._folder)


def _open(folder: Path | None, name: str) -> BinaryIO:
    return io.BytesIO() if folder is None else (folder / name).open("wb")


Fill = Callable[[Columns], dict[str, Any]]


def build(schema: Schema, fill: Fill, key: str | None) -> Table:
    """Make a table, or find it in the cache.

    The first process of a machine builds; the others wait for it, and map what it wrote.

    Args:
        schema: of the columns.
        fill: writes the columns, and returns plain values about them.
        key: under which the table is kept; None keeps it in memory.

    Raises:
        UserError: what `fill` raises, or the cache cannot be written; nothing is kept then.
    """
    if key is None:
        return _filled(schema, fill, None)
    folder = cache_folder() / key
    if (table := _found(folder, schema)) is not None:
        return table
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _turn(folder):
            if (table := _found(folder, schema)) is not None:
                return table
            remove_abandoned(folder.parent)
            return _written(folder, schema, fill)
    except OSError as error:
        raise cannot_write(folder, error, "It keeps large data files, encoded, for the next run.", option=CACHE_VARIABLE) from error


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine writes the table, and say so if that takes a while."""
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        log.info("another process is reading these data into %s: waiting for it", folder.parent)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _filled(schema: Schema, fill: Fill, folder: Path | None) -> Table:
    columns = Columns(schema, folder)
    try:
        return columns.table(fill(columns))
    finally:
        columns.close()


def _written(folder: Path, schema: Schema, fill: Fill) -> Table:
    """Write a neighbour and give it its final name."""
    temporary = temporary_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _filled(schema, fill, temporary)
        shutil.rmtree(folder, ignore_errors=True)  # one of another format, or damaged
        os.replace(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _mapped(folder)


def _found(folder: Path, schema: Schema) -> Table | None:
    """Map a table; None if it is not there, or not whole."""
    try:
        table = _mapped(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return table if table.columns.keys() == schema.keys() else None


def _mapped(folder: Path) -> Table:
    """Map a table's columns.

    Raises:
        ValueError: a file is not as long as was written.
    """
    meta = json.loads((folder / _META).read_text("utf-8"))
    columns: dict[str, NDArray[Any]] = {}
    for name, (kind, length) in meta["columns"].items():
        file = folder / name
        if file.stat().st_size != np.dtype(kind).itemsize * length:
            raise ValueError(f"{file}: not as long as it was written")
        columns[name] = np.memmap(file, kind, "r", shape=(length,)) if length else np.empty(0, kind)
    return Table(columns, meta["about"], folder)


def check_same(path: str, expected: str, read: str) -> None:
    """Check that a file was not written to between the two times it was read.

    Raises:
        UserError: it was.
    """
    if expected != read:
        raise UserError(f"{path}: it was changed while it was read; start again once nothing writes to it.")
