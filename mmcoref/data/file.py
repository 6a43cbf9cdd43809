"""Data file -> validated records, and back. Every error names the file, the record's index, the field, what was expected and what came."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmcoref.data.items import Items, unreadable
from mmcoref.data.record import Record, validate_record
from mmcoref.errors import UserError
from mmcoref.paths import user_path

PUBLISHED_SOURCE = "github.com/MMC-K/multimodal_dialogue_coreference_resolution (data/ai_responses.json)"
_SHOWN_RECORDS = 20


@dataclass(frozen=True)
class DataFile:
    """What a run says about the file it read.

    Attributes:
        path: as the user gave it.
        sha256: hex digest of the file's bytes.
        records: all records of the file, in file order.
    """

    path: str
    sha256: str
    records: tuple[Record, ...]


def read_records(path: str, *, require_solution: bool = True) -> DataFile:
    """Read and validate a data file: a list of JSON strings (the published form), a list of objects, or JSON Lines.

    All records are in memory at once; `stream_records` gives them one after another.

    Args:
        path: the file.
        require_solution: whether a record without `solution` is an error (False only for `predict`).

    Raises:
        UserError: see `RecordStream`.
    """
    with stream_records(path, require_solution=require_solution) as stream:
        records = tuple(stream)
    return DataFile(path=path, sha256=stream.sha256, records=records)


class RecordStream:
    """The valid records of a data file in file order, one after another. It can be iterated once.

    Args:
        path: the file, for messages.
        items: of the file.
        require_solution: whether a record without `solution` is an error.

    Raises:
        UserError: while it is iterated: not UTF-8, not JSON; and at its end: no records, or records that do not validate,
            all of them counted in one message, of which the first 20 are shown.
    """

    def __init__(self, path: str, items: Items, *, require_solution: bool) -> None:
        self._path = path
        self._items = items
        self._require_solution = require_solution

    def __iter__(self) -> Iterator[Record]:
        total = bad = 0
        shown: list[str] = []
        for index, item in enumerate(self._items):
            total += 1
            record, problems = validate_record(item, require_solution=self._require_solution)
            if record is not None:
                yield record
                continue
            bad += 1
            if bad <= _SHOWN_RECORDS:
                shown += [f"  record {index}, {problem}" for problem in problems]
        if bad:
            head = f"{self._path}: {bad} of {total} records are not valid (indices count from 0); mend or remove them:"
            more = [f"  … and {bad - _SHOWN_RECORDS} more records"] if bad > _SHOWN_RECORDS else []
            raise UserError(head, *shown, *more)
        if not total:
            raise UserError(f"{self._path}: expected at least one record, got none.")

    @property
    def sha256(self) -> str:
        """Hex digest of the file's bytes, once all records have been read."""
        return self._items.sha256

    @property
    def form(self) -> str:
        """The form of the file's top level, once all records have been read."""
        return self._items.form


@contextmanager
def stream_records(path: str, *, require_solution: bool = True) -> Iterator[RecordStream]:
    """Open a data file; see `read_records` for its forms.

    Args:
        path: the file.
        require_solution: whether a record without `solution` is an error.

    Yields:
        Its records.

    Raises:
        UserError: it cannot be read, or see `RecordStream`.
    """
    with open_data(path) as file:
        yield RecordStream(path, Items(path, file), require_solution=require_solution)


def dump_records(records: Sequence[Record]) -> str:
    """Records in the published form: a JSON list of strings, each a JSON object; `read_records` reads it back."""
    strings = [json.dumps(record.model_dump(mode="json", exclude_none=True), ensure_ascii=False) for record in records]
    return json.dumps(strings, ensure_ascii=False, indent=0) + "\n"


def open_data(path: str) -> BinaryIO:
    """Open a data file for reading bytes.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    file = user_path(path)
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise UserError(_missing(file)) from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a data file, got a folder; name the file inside it.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise unreadable(path, error) from None


def _missing(file: Path) -> str:
    siblings = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, siblings, n=1, cutoff=0.75)
    hint = f" Did you mean {file.with_name(near[0])}?" if near else ""
    return (
        f"{file}: no such data file.{hint} The published file is at {PUBLISHED_SOURCE}: "
        "download it and name its place, or say `sample` for generated dialogues."
    )
