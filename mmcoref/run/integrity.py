"""Checksums of checkpoints: whether the bytes are those that were written, and a digest that names them.

A checkpoint file is a zip archive, whose entries have a CRC-32 each, which torch writes and does not read. A sharded run's
folder has a file `SHA256SUMS` beside its data, in the form that `sha256sum --check` reads. Both find damage, not malice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from mmcoref.errors import UserError, first_line
from mmcoref.together import once_per_machine

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
_STRUCTURE = "/data.pkl"  # the entry that holds all but the tensors
_TENSORS = "/data/"  # what their entries are called
_AT_ONCE = 2**22  # bytes
_THREADS = 16  # reading from memory, eight of them keep up with the fastest disks

Entries = list[zipfile.ZipInfo]


# ---------------------------------------------------------------------- digests


def digest(path: Path) -> str | None:
    """Name a checkpoint by what it holds: the same for every copy, another for every change.

    Of a file it covers the names, sizes and checksums of all entries, and the structure; of a folder its `SHA256SUMS`. No
    tensor is read.

    Args:
        path: of a checkpoint that can be read.

    Returns:
        Hex digest; None for a folder that was written before there were checksums.

    Raises:
        UserError: the file's table of entries is damaged.
    """
    if path.is_dir():
        sums = path / SUMS
        return hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else None
    found = hashlib.sha256()
    with _archive(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            name = entry.filename.partition("/")[2]  # the first part is that of the temporary file's name
            found.update(f"{name}\0{entry.file_size}\0{entry.CRC}\n".encode())
            if entry.filename.endswith(_STRUCTURE):
                found.update(archive.read(entry))
    return found.hexdigest()


# ---------------------------------------------------------------------- checks


def check_structure(path: Path) -> None:
    """Check what is not a tensor, which takes milliseconds.

    Args:
        path: of a checkpoint, a file or a folder.

    Raises:
        UserError: it is damaged.
    """
    if path.is_dir():
        sums = _read_sums(path) or {}
        _check_files(path, {name: value for name, value in sums.items() if not name.endswith(".distcp")})
        return
    with _archive(path) as archive:
        _check_entries(path, archive, [entry for entry in archive.infolist() if _TENSORS not in entry.filename])


def check(path: Path, *, training: bool) -> None:
    """Check every byte that will be used.

    Args:
        path: of a checkpoint, a file or a folder.
        training: whether the optimizer's state will be; of a file it is left out otherwise, which is two thirds of it.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_dir():
        with _archive(path) as archive:
            unused = set() if training else _optimizer_entries(archive)
            _check_entries(path, archive, [entry for entry in archive.infolist() if entry.filename not in unused])
        return
    sums = _read_sums(path)
    if sums is None:
        log.warning("%s has no %s, as an earlier version wrote it: damage to it is not noticed", path, SUMS)
    else:
        _check_files(path, sums)


def check_together(path: Path, *, training: bool) -> None:
    """Check a checkpoint on the first process of each machine, for all of its processes; each must call this.

    Args:
        path: as for `check`.
        training: as for `check`.

    Raises:
        UserError: on every process, if one has found damage.
    """
    once_per_machine(lambda: check(path, training=training))


# ---------------------------------------------------------------------- sums of a folder


def sums_of(folder: Path, rank: int) -> dict[str, str]:
    """Compute the checksums of what a process has written into a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        rank: of the process; the first one has written what is not any process's own, too.

    Returns:
        File name -> SHA-256.
    """
    own = [file for file in folder.iterdir() if file.name.startswith(f"__{rank}_")]
    shared = [file for file in folder.iterdir() if not file.name.startswith("__")] if rank == 0 else []
    return {file.name: _sha256(file) for file in own + shared}


def write_sums(folder: Path, sums: Iterable[Mapping[str, str]]) -> None:
    """Write the checksums of all processes into a checkpoint's folder."""
    every = {name: value for part in sums for name, value in part.items()}
    (folder / SUMS).write_text("".join(f"{every[name]}  {name}\n" for name in sorted(every)), "utf-8")


def _read_sums(folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256 of a folder; None for one without them."""
    file = folder / SUMS
    if not file.is_file():
        return None
    try:
        lines = [line.split("  ", 1) for line in file.read_text("utf-8").splitlines()]
        sums = {name: value for value, name in lines}
    except ValueError as error:
        raise _damaged(folder, f"{SUMS}: {first_line(error)}") from None
    if any(PurePath(name).name != name for name in sums):
        raise _damaged(folder, f"{SUMS} names files outside the folder")
    parts = {file.name for file in folder.iterdir() if file.suffix in (".distcp", ".pt") or file.name == ".metadata"}
    if parts - sums.keys():
        raise _damaged(folder, f"{SUMS} has no checksum of {min(parts - sums.keys())}")
    return sums


def _check_files(folder: Path, sums: Mapping[str, str]) -> None:
    def wrong(name: str) -> str | None:
        try:
            return None if _sha256(folder / name) == sums[name] else f"{name} has another checksum than when it was written"
        except OSError as error:
            return str(error)

    _raise_first(folder, wrong, sums)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---------------------------------------------------------------------- entries of a file


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, first_line(error)) from None


def _check_entries(path: Path, archive: zipfile.ZipFile, entries: Entries) -> None:
    def wrong(entry: zipfile.ZipInfo) -> str | None:
        try:
            with archive.open(entry) as opened:  # compares its name with that in front of the data
                while opened.read(_AT_ONCE):  # compares the checksum at the end
                    pass
        except Exception as error:  # whatever `zipfile` makes of broken bytes
            return first_line(error)
        return None

    _raise_first(path, wrong, entries)


def _raise_first(path: Path, wrong: Callable[[Any], str | None], parts: Iterable[Any]) -> None:
    """Look at all parts, several at once, and raise what is wrong with the first one that is."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for said in pool.map(wrong, parts):
            if said is not None:
                raise _damaged(path, said)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: is not a whole checkpoint: its bytes are not those that were written (a damaged or interrupted copy); choose another "
        f"with --ckpt_path. ({what})"
    )


class _Made:
    """Stands for an object that is not made: what it would have been made of."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)


class _Outline(pickle.Unpickler):
    """Reads what a structure is made of, and makes nothing but dictionaries, lists and texts."""

    def find_class(self, module: str, name: str) -> Any:
        """Find what stands for any class and function."""
        return _Dictionary if name == "OrderedDict" else _Made

    def persistent_load(self, pid: Any) -> Any:
        """Give a tensor's storage by its description, the third of which is its entry's name."""
        return _Made(_Storage(str(pid[2])))


class _Dictionary(dict[Any, Any]):
    """Takes attributes, as that of a model's weights has some."""


class _Storage(str):
    """Name of the entry of a tensor's numbers."""


def _optimizer_entries(archive: zipfile.ZipFile) -> set[str]:
    """Names of the entries that only the optimizer's state needs; none where that cannot be told."""
    try:
        (structure,) = (entry for entry in archive.infolist() if entry.filename.endswith(_STRUCTURE))
        with archive.open(structure) as opened:
            outline = _Outline(opened).load()
        states = set(_storages(outline["optimizer_states"]))
        needed = set(_storages({key: value for key, value in outline.items() if key != "optimizer_states"}))
    except Exception:  # the file is checked as a whole, then
        return set()
    place = structure.filename.removesuffix(_STRUCTURE)
    return {f"{place}{_TENSORS}{name}" for name in states - needed}


def _storages(value: Any) -> Iterator[str]:
    """Walk through a structure's outline."""
    if isinstance(value, _Storage):
        yield value
    elif isinstance(value, _Made):
        yield from _storages(value.parts)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _storages(part)
