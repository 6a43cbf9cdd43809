"""The validated records of a data file, held as bytes and digests; a `Record` is made when one is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.file import open_data, stream_records
from mmcoref.data.record import Record
from mmcoref.data.table import Columns, Table, build, check_same, key_of
from mmcoref.data.unicode import normalise

SMALL = 32 * 2**20  # bytes of a data file whose tables stay in memory: some 25,000 records
_PIECE = 2**20
_NO_SOLUTION = -1
_SCHEMA = {"text": "uint8", "end": "int64", "gold": "int8", "dialogue": "uint64", "options": "uint64"}
_BLOCK = 1000  # records whose columns are written at once


class Records(Sequence[Record]):
    """Records in file order.

    Args:
        table: of their texts and digests.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._text, self._end = table["text"], table["end"]

    def __len__(self) -> int:
        return len(self._end)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        """Make a record, or those of a slice."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._end[index - 1]) if index else 0
        return Record.model_validate_json(self._text[start : int(self._end[index])].tobytes())

    @property
    def gold(self) -> NDArray[np.int8]:
        """(N,) the place of each record's right option; -1 where it has no solution."""
        return self.table["gold"]

    @property
    def dialogue_digests(self) -> NDArray[np.uint64]:
        """(N, 2) of each record's dialogue, in the form in which dialogues are compared."""
        return self.table["dialogue"].reshape(-1, 2)

    @property
    def options_digests(self) -> NDArray[np.uint64]:
        """(N, 2) of each record's list of options, in the form in which they are compared."""
        return self.table["options"].reshape(-1, 2)


class Selection(Sequence[Record]):
    """Some records of a file.

    Attributes:
        records: of the file.
        indices: which of them.
    """

    def __init__(self, records: Records, indices: Sequence[int]) -> None:
        self.records = records
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Selection: ...
    def __getitem__(self, place: int | slice) -> Record | Selection:
        """Make a record, or select fewer."""
        if isinstance(place, slice):
            return Selection(self.records, self.indices[place])
        return self.records[self.indices[place]]


@dataclass(frozen=True)
class DataSource:
    """What a run says about the file it read.

    Attributes:
        path: as the user gave it.
        sha256: hex digest of the file's bytes.
        records: all records of the file, in file order.
    """

    path: str
    sha256: str
    records: Records


def open_records(path: str, *, require_solution: bool = True) -> DataSource:
    """Read and validate a data file; a large one only if the cache does not have its records.

    Args:
        path: the file; see `read_records` for its forms.
        require_solution: whether a record without `solution` is an error (False only for `predict`).

    Raises:
        UserError: see `read_records`; or the cache cannot be written.
    """
    file = Path(path)
    digest = sha256_of(path) if file.is_file() and os.path.getsize(file) > SMALL else None

    def fill(columns: Columns) -> dict[str, Any]:
        with stream_records(path, require_solution=require_solution) as stream:
            _write(columns, stream)
        check_same(path, digest or stream.sha256, stream.sha256)
        return {"sha256": stream.sha256}

    table = build(_SCHEMA, fill, digest and key_of("records", digest, require_solution))
    return DataSource(path, table.about["sha256"], Records(table))


def collect(records: Iterable[Record]) -> Records:
    """Hold records in memory."""

    def fill(columns: Columns) -> dict[str, Any]:
        _write(columns, records)
        return {}

    return Records(build(_SCHEMA, fill, None))


def sha256_of(path: str) -> str:
    """Return the hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open_data(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(texts: Iterable[str], form: Callable[[str], str] = normalise) -> bytes:
    """Return 16 bytes that are equal for lists of texts that are the same when compared.

    Args:
        texts: in their order.
        form: in which they are compared.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in map(form, texts):
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def digests_of(lists: Iterable[Sequence[str]]) -> NDArray[np.uint64]:
    """Return (N, 2), the digests of N lists of texts."""
    return digests_from(b"".join(map(digest_of, lists)))


def digests_from(raw: bytes | bytearray) -> NDArray[np.uint64]:
    """Return (N, 2) of N digests of 16 bytes."""
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _write(columns: Columns, records: Iterable[Record]) -> None:
    end = 0
    ends: list[int] = []
    gold: list[int] = []
    for record in records:
        raw = record.model_dump_json(exclude_none=True).encode()
        end += len(raw)
        ends.append(end)
        gold.append(_NO_SOLUTION if record.solution is None else record.choices.index(record.solution))
        columns.write("text", raw)
        columns.write("dialogue", digest_of(record.conversation))
        columns.write("options", digest_of(record.choices))
        if len(ends) == _BLOCK:
            columns.write("end", ends)
            columns.write("gold", gold)
            ends, gold = [], []
    columns.write("end", ends)
    columns.write("gold", gold)


def iterate(records: Sequence[Record], indices: Iterable[int]) -> Iterator[tuple[int, Record]]:
    """Yield (index, record) pairs."""
    for index in indices:
        yield index, records[index]
