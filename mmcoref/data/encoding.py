"""Records of a part -> its examples, encoded once: in memory for a small file, in the cache for a large one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

import mmcoref
from mmcoref.data.encode import Encoder, Fates
from mmcoref.data.examples import Examples, Row, keep, write
from mmcoref.data.order import FILE_ORDER, Order
from mmcoref.data.records import Records, iterate
from mmcoref.data.table import Columns, key_of
from mmcoref.data.tokenizer import pack_tokenizer
from mmcoref.errors import UserError

_PACKAGES = ("transformers", "tokenizers")  # whose versions decide ids


def encode_part(encoder: Encoder, records: Records, indices: Sequence[int]) -> Examples:
    """Encode some records of a file.

    Args:
        encoder: of the run.
        records: of the file.
        indices: which of them.

    Raises:
        UserError: see `Encoder.stream`; or the cache cannot be written.
    """

    def fill(columns: Columns) -> dict[str, Any]:
        fates = Fates()
        examples = encoder.stream(iterate(records, indices), len(indices), fates)
        about = write(columns, ((example, example.index in fates.shortened) for example in examples))
        return about | {"dropped": fates.dropped, "trimmed": fates.trimmed, "merges": encoder.merges}

    return _kept(encoder, fill, records, _part_key(encoder, records, indices))


def encode_whole(encoder: Encoder, records: Records, indices: Sequence[int], part: str) -> Examples:
    """Encode a part of which something has to be left.

    Args:
        encoder: of the run.
        records: of the file.
        indices: of the part.
        part: its name and a space, for the message.

    Raises:
        UserError: all of its records were too long, and dropped; or see `encode_part`.
    """
    examples = encode_part(encoder, records, indices)
    if len(indices) and not len(examples):
        raise UserError(
            f"data.overlength drop leaves none of the {len(indices)} {part}records, as each has more than data.max_tokens = "
            f"{encoder.max_tokens} tokens: raise --data.max_tokens."
        )
    return examples


def encode_orders(encoder: Encoder, examples: Examples, records: Records, orders: Sequence[Order]) -> Examples:
    """Encode examples, whose options are in the file's order, in several orders of their options.

    Args:
        encoder: of the run.
        examples: of the part.
        records: of the file.
        orders: of the options.
    """
    if tuple(orders) == (FILE_ORDER,):
        return examples

    def rows() -> Iterator[Row]:
        for number, example in enumerate(encoder.in_orders(examples, orders)):
            yield example, bool(examples.own_text(number // len(orders)))

    def fill(columns: Columns) -> dict[str, Any]:
        return write(columns, rows()) | {"merges": encoder.merges}

    folder = examples.table.folder
    return _kept(encoder, fill, records, None if folder is None else key_of("orders", folder.name, list(orders)))


def _kept(encoder: Encoder, fill: Any, records: Records, key: str | None) -> Examples:
    examples = keep(fill, records, key)
    if examples.table.about["merges"]:
        encoder.say_merges()
    return examples


def _part_key(encoder: Encoder, records: Records, indices: Sequence[int]) -> str | None:
    """Return the key of a part of a large file: all that decides its ids."""
    folder = records.table.folder
    if folder is None:
        return None
    part = hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest()
    files = json.dumps(pack_tokenizer(encoder.tokenizer), sort_keys=True)
    tokenizer = hashlib.sha256(files.encode()).hexdigest()
    settings = (encoder.style, encoder.max_tokens, encoder.overlength, encoder.recipe)
    # What a prompt looks like is the template's and our own code's: one of them stands for all.
    probe = encoder.render(records[indices[0]]) if len(indices) else ""
    versions = (mmcoref.__version__, *map(version, _PACKAGES))
    return key_of("examples", folder.name, part, tokenizer, settings, probe, versions)
