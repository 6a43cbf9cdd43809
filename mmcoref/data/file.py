"""Data file -> validated records, and back. Every error names the file, the record's index, the field, what was expected and what came."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcoref.data.record import Record, shown, validate_record
from mmcoref.errors import UserError

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
    """Reads and validates a data file: a list of JSON strings (the published form), a list of objects, or JSON Lines.

    Args:
        path: the file.
        require_solution: whether a record without `solution` is an error (False only for `predict`).

    Raises:
        UserError: no such file, not UTF-8, not JSON, no records, or records that do not validate: all of them are
            counted in one message and the first 20 are shown.
    """
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte 0x{raw[error.start]:02x} at offset {error.start}; save it as UTF-8."
        ) from None
    records: list[Record] = []
    problems: dict[int, list[str]] = {}
    for index, item in _items(path, text):
        record, found = validate_record(item, require_solution=require_solution)
        if record is not None:
            records.append(record)
        else:
            problems[index] = found
    if problems:
        total = len(problems) + len(records)
        message = [f"{path}: {len(problems)} of {total} records are not valid (indices count from 0); mend or remove them:"]
        for index in list(problems)[:_SHOWN_RECORDS]:
            message += [f"  record {index}, {problem}" for problem in problems[index]]
        if len(problems) > _SHOWN_RECORDS:
            message.append(f"  … and {len(problems) - _SHOWN_RECORDS} more records")
        raise UserError(*message)
    if not records:
        raise UserError(f"{path}: expected at least one record, got none.")
    return DataFile(path=path, sha256=hashlib.sha256(raw).hexdigest(), records=tuple(records))


def dump_records(records: Sequence[Record]) -> str:
    """Records in the published form: a JSON list of strings, each a JSON object; `read_records` reads it back."""
    strings = [json.dumps(record.model_dump(mode="json", exclude_none=True), ensure_ascii=False) for record in records]
    return json.dumps(strings, ensure_ascii=False, indent=0) + "\n"


def _read_bytes(path: str) -> bytes:
    file = Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(_missing(file)) from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a data file, got a folder; name the file inside it.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _missing(file: Path) -> str:
    siblings = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, siblings, n=1, cutoff=0.75)
    hint = f" Did you mean {file.with_name(near[0])}?" if near else ""
    return (
        f"{file}: no such data file.{hint} The published file is at {PUBLISHED_SOURCE}: "
        "download it and name its place, or say `sample` for generated dialogues."
    )


def _items(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """(index, decoded item) pairs; an item that is not JSON comes as the `ValueError` that says so."""
    if text.lstrip()[:1] == "[":
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected a JSON list or JSON Lines, got broken JSON: {_where(error)}.") from None
        for index, item in enumerate(items):
            yield index, _decoded(item) if isinstance(item, str) else item
        return
    lines = (line for line in text.split("\n") if line.strip())
    for index, line in enumerate(lines):
        yield index, _decoded(line, twice=True)


def _decoded(text: str, *, twice: bool = False) -> Any:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(f"expected a JSON object, got {shown(text)} ({_where(error)})")
    return _decoded(item) if twice and isinstance(item, str) else item


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
