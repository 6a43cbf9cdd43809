"""What a run's processes have predicted: written away while it runs, brought together and read again in file order."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from mmcoref.data.examples import Examples
from mmcoref.data.order import Order, reorder
from mmcoref.data.record import LETTERS, Record
from mmcoref.evaluation.prediction import Prediction
from mmcoref.run.spool import Spool

_IN_MEMORY = 2**24  # bytes of a process's predictions that need no file: some 50,000
_AT_ONCE = 1000  # predictions that a process sends at a time
_OPTIONS = len(LETTERS)


class Predictions:
    """Predictions of one process, or of all; beyond some megabytes in a temporary file, which no crash leaves behind."""

    def __init__(self) -> None:
        self._lines = Spool(_IN_MEMORY)
        self._index = array("q")
        self._order = array("b")
        self._end = array("q", [0])

    def __len__(self) -> int:
        return len(self._index)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write predictions away; their records can be had from the data."""
        for one in predictions:
            fields = [one.text, one.stopped, one.option_logprobs, one.by_letter, one.newline_in_prompt]
            self._add(one.index, one.order, json.dumps(fields).encode())

    def _add(self, index: int, order: Order, line: bytes) -> None:
        self._lines.append(line)
        self._index.append(index)
        self._order.extend(order)
        self._end.append(self._end[-1] + len(line))

    def gather(self, trainer: pl.Trainer) -> Predictions | None:
        """Bring all processes' predictions to the first process, some at a time; None on the others."""
        if trainer.world_size == 1:
            return self
        rounds = trainer.strategy.reduce(torch.tensor(-(-len(self) // _AT_ONCE), device=trainer.strategy.root_device), reduce_op="max")
        everyone = Predictions() if trainer.is_global_zero else None
        for number in range(int(rounds)):
            mine = [self._sent(i) for i in range(number * _AT_ONCE, min((number + 1) * _AT_ONCE, len(self)))]
            parts: list[list[tuple[int, Order, bytes]]] | None = [[] for _ in range(trainer.world_size)] if everyone is not None else None
            distributed.gather_object(mine, parts)
            for part in parts or ():
                for sent in part:
                    assert everyone is not None
                    everyone._add(*sent)
        return everyone

    def _sent(self, number: int) -> tuple[int, Order, bytes]:
        a, b, c, d = self._order[_OPTIONS * number : _OPTIONS * (number + 1)]
        return self._index[number], (a, b, c, d), self._line(number)

    def _line(self, number: int) -> bytes:
        return self._lines.read(self._end[number], self._end[number + 1])

    def check(self, expected: int, *, whole: bool) -> None:
        """Check that each prediction is there once.

        Args:
            expected: how many there are if none was left out on purpose.
            whole: whether none was.

        Raises:
            RuntimeError: one is missing, or there twice.
        """
        different = len(np.unique(np.stack([self._indices, self._codes]), axis=1).T)
        if different != len(self) or (whole and len(self) != expected):
            raise RuntimeError(f"expected {expected} predictions, one of each, got {len(self)}, of which {different} differ")

    @property
    def _indices(self) -> NDArray[np.int64]:
        return np.frombuffer(self._index, np.int64)

    @property
    def _codes(self) -> NDArray[np.int64]:
        """Numbers that rank as the orders do."""
        orders = np.frombuffer(self._order, np.int8).reshape(-1, _OPTIONS).astype(np.int64)
        return orders @ (_OPTIONS ** np.arange(_OPTIONS)[::-1])

    def by_record(self, examples: Examples) -> Iterator[list[Prediction]]:
        """Yield the predictions of each record, in file order, and of one record by their orders.

        Left out are records that limited batches left in some orders only, which can be compared to none.

        Args:
            examples: that were asked, in the file's order of options and by ascending place in the file.
        """
        ranked = np.lexsort((self._codes, self._indices))
        _, counts = np.unique(self._indices, return_counts=True)
        most = counts.max(initial=0)
        for index, numbers in groupby(ranked.tolist(), key=lambda number: self._index[number]):
            asked = list(numbers)
            if len(asked) == most:
                record = examples.record_of(index)
                yield [self._prediction(number, record) for number in asked]

    def _prediction(self, number: int, record: Record) -> Prediction:
        index, order, line = self._sent(number)
        text, stopped, logprobs, by_letter, newline_in_prompt = json.loads(line)
        return Prediction(index, reorder(record, order), text, stopped, tuple(logprobs), by_letter, order, newline_in_prompt)
