"""Encoded records, held as numbers; an `Example` is made when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.example import Example
from mmcoref.data.order import Order, reorder
from mmcoref.data.record import LETTERS, Record
from mmcoref.data.table import Columns, Fill, Table, build

OPTIONS = len(LETTERS)
_SCHEMA = {
    "ids": "int32",  # of each example its prompt's, then its options', one after another
    "end": "int64",  # where they end
    "lengths": "int32",  # (N, 5) tokens of the prompt and of each option
    "index": "int64",
    "order": "int8",  # (N, 4)
    "gold": "int8",  # the place of the right option in that order; -1 without a solution
    "text": "uint8",  # of a record that was trimmed, as JSON
    "text_end": "int64",
}
NO_SOLUTION = -1
_BLOCK = 1000  # examples whose columns are written at once


class Examples(Sequence[Example]):
    """Examples of one part.

    Args:
        table: of their ids.
        records: of the file that their indices count in; unchanged unless they were trimmed.
    """

    def __init__(self, table: Table, records: Sequence[Record]) -> None:
        self.table = table
        self.records = records

    def __len__(self) -> int:
        return len(self.table["end"])

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        """Make an example, or those of a slice."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        index = int(self.table["index"][place])
        a, b, c, d = self.table["order"][OPTIONS * place : OPTIONS * (place + 1)].tolist()
        prompt, *options = self._ids(place)
        return Example(index, self._record(place, index, (a, b, c, d)), prompt, tuple(options), (a, b, c, d))

    def _ids(self, place: int) -> Iterator[tuple[int, ...]]:
        ids: list[int] = _cut(self.table["ids"], self.table["end"], place).tolist()
        start = 0
        for length in self._lengths[place].tolist():
            yield tuple(ids[start : start + length])
            start += length

    def own_text(self, place: int) -> bytes:
        """The JSON of the record that was encoded, if it is not the file's; otherwise nothing."""
        return _cut(self.table["text"], self.table["text_end"], place).tobytes()

    def _record(self, place: int, index: int, order: Order) -> Record:
        own = self.own_text(place)
        return Record.model_validate_json(own) if own else reorder(self.records[index], order)

    def record_of(self, index: int) -> Record:
        """Return the record, as it was encoded, that has a place in the file; examples are by ascending place.

        Raises:
            KeyError: it was not encoded.
        """
        place = int(np.searchsorted(self.indices, index))
        if place == len(self) or self.indices[place] != index:
            raise KeyError(index)
        own = self.own_text(place)
        return Record.model_validate_json(own) if own else self.records[index]

    @property
    def _lengths(self) -> NDArray[np.int32]:
        return self.table["lengths"].reshape(-1, OPTIONS + 1)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(N,) each example's place in its file."""
        return self.table["index"]

    @property
    def gold(self) -> NDArray[np.int8]:
        """(N,) the place of each example's right option; -1 where it has no solution."""
        return self.table["gold"]

    @property
    def prompt_tokens(self) -> NDArray[np.int32]:
        """(N,) tokens of each prompt."""
        return self._lengths[:, 0]

    @cached_property
    def answer_tokens(self) -> NDArray[np.int32]:
        """(N,) tokens of each gold answer, stop token included; every example has a solution."""
        options = self._lengths[:, 1:]
        answers: NDArray[np.int32] = np.take_along_axis(options, self.gold[:, None].astype(np.intp), 1)
        return answers.reshape(-1)

    @property
    def trained_tokens(self) -> NDArray[np.int32]:
        """(N,) tokens of each prompt and its gold answer."""
        return self.prompt_tokens + self.answer_tokens

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """(N,) tokens of each prompt and its longest answer."""
        longest: NDArray[np.int32] = self._lengths[:, 1:].max(1, initial=0)
        return self.prompt_tokens + longest

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest option of any example, stop token included; 0 if there is none."""
        return int(self._lengths[:, 1:].max(initial=0))

    @property
    def largest_id(self) -> int:
        """The largest id of any example; 0 if there is none."""
        return int(self.table.about["largest_id"])

    @property
    def dropped(self) -> list[int]:
        """File indices of records that were too long, and left out."""
        return list(self.table.about["dropped"])

    @property
    def trimmed(self) -> list[int]:
        """File indices of records that were too long, and shortened."""
        return list(self.table.about["trimmed"])


def _cut(column: NDArray[Any], ends: NDArray[np.int64], place: int) -> NDArray[Any]:
    start = int(ends[place - 1]) if place else 0
    return column[start : int(ends[place])]


Row = tuple[Example, bool]  # an example, and whether its record differs from the file's: it was trimmed


def collect(examples: Iterable[Example]) -> Examples:
    """Hold examples in memory, with their records as they are."""
    return Examples(build(_SCHEMA, lambda columns: write(columns, ((example, True) for example in examples)), None), ())


def keep(fill: Fill, records: Sequence[Record], key: str | None) -> Examples:
    """Build examples, or find them in the cache.

    Args:
        fill: writes them with `write`.
        records: of the file that their indices count in.
        key: under which they are kept; None keeps them in memory.
    """
    return Examples(build(_SCHEMA, fill, key), records)


def write(columns: Columns, rows: Iterable[Row]) -> dict[str, Any]:
    """Write examples; the plain values about them have their largest id, and say that none was left out or shortened."""
    end = text_end = largest = 0
    rest = iter(rows)
    while block := list(islice(rest, _BLOCK)):
        ids: list[int] = []
        texts: list[bytes] = []
        ends, text_ends, lengths, gold = [], [], [], []
        for example, own in block:
            tokens = [example.prompt_ids, *example.option_ids]
            for some in tokens:
                ids += some
            lengths.append([len(some) for some in tokens])
            end += sum(lengths[-1])
            ends.append(end)
            texts.append(example.record.model_dump_json(exclude_none=True).encode() if own else b"")
            text_end += len(texts[-1])
            text_ends.append(text_end)
            gold.append(NO_SOLUTION if example.record.solution is None else example.gold_place)
        largest = max(largest, *ids)
        columns.write("ids", ids)
        columns.write("end", ends)
        columns.write("lengths", lengths)
        columns.write("index", [example.index for example, _ in block])
        columns.write("order", [example.order for example, _ in block])
        columns.write("gold", gold)
        columns.write("text", b"".join(texts))
        columns.write("text_end", text_ends)
    return {"dropped": [], "trimmed": [], "largest_id": largest}


NO_EXAMPLES = collect(())
