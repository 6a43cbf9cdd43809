"""Which checkpoint a test, or another run's results, speak of: found from anywhere, and never another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mmcoref.errors import UserError
from mmcoref.run.checkpoint import Stored, read_stored

RECORD = "record.json"


class _Checkpoint(BaseModel):
    path: str
    step: int
    digest: str | None = None  # results of earlier versions have none


class _Results(BaseModel):
    """What results say of their model."""

    checkpoint: _Checkpoint | None
    training: dict[str, Any] | None = None


def tested_checkpoint(folder: Path) -> Stored:
    """Find the checkpoint that the results in a folder name.

    It is looked for at its place; beside the folder's run, as runs move together; and, where an earlier version has named it
    from a working directory that is unknown today, from each folder above.

    Args:
        folder: that holds a record.json.

    Raises:
        UserError: the results cannot be read, name no checkpoint, or name one that is not there any more.
    """
    file = folder / RECORD
    try:
        results = _Results.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        raise UserError(f"{file}: expected the results of a test, got something else ({type(error).__name__}).") from None
    if results.checkpoint is None:
        raise UserError(f"{folder}: the record of an untrained model, without a checkpoint; name the folder of a fit.")
    place = results.checkpoint.path
    found = [path for path in _places(Path(place), folder) if path.exists()]
    for path in found:
        stored = read_stored(path)
        if _is_same(stored, results):
            return stored
    if found:
        raise UserError(
            f"{folder}: the checkpoint that was tested, step {results.checkpoint.step} of {place}, has been replaced since by another: "
            "name a checkpoint file, or the folder of a fit, to load that."
        )
    raise UserError(f"{folder}: the checkpoint that was tested, {place}, is not there any more: name the file where it is now.")


def _places(path: Path, folder: Path) -> Iterator[Path]:
    above = folder.absolute().parents
    if path.is_absolute():
        yield path
    else:
        yield from (parent / path for parent in above)
    yield above[0].joinpath(*path.parts[-3:])  # version_N/checkpoints/last.ckpt


def _is_same(stored: Stored, results: _Results) -> bool:
    assert results.checkpoint is not None
    if results.checkpoint.digest is not None:
        return stored.digest == results.checkpoint.digest
    settings = json.loads(json.dumps(stored.config, default=str))
    return stored.step == results.checkpoint.step and settings == results.training
