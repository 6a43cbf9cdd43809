"""A record's options in another order: letters go by place; text, owner and the right answer go along."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.record import LETTERS, Record

Order = tuple[int, ...]  # which option of the file stands at place 0, 1, 2, 3
Permutations = Literal["none", "cyclic", "all"]

FILE_ORDER: Order = (0, 1, 2, 3)


def orders(permutations: Permutations) -> tuple[Order, ...]:
    """The orders in which each record is asked, the file's own first.

    `cyclic` are the 4 rotations, in which each option stands once at each letter; `all` are the 24 permutations.
    """
    if permutations == "none":
        return (FILE_ORDER,)
    if permutations == "cyclic":
        return tuple(FILE_ORDER[turn:] + FILE_ORDER[:turn] for turn in range(4))
    return tuple(itertools.permutations(FILE_ORDER))


def reorder(record: Record, order: Order) -> Record:
    """The same record with its options in `order`, lettered anew; its solution is the same option under its new letter."""
    if order == FILE_ORDER:
        return record
    choices = tuple(f"{letter}) {record.options[place].body}" for letter, place in zip(LETTERS, order, strict=True))
    solution = None if record.solution is None else choices[order.index(record.choices.index(record.solution))]
    # Made anew: a copy would carry the cached options of the old order.
    return Record.model_validate(record.model_dump() | {"choices": choices, "solution": solution})


def shuffled_order(seed: int, epoch: int, index: int) -> Order:
    """A random order that depends on these three numbers alone, and so not on what was drawn before or where."""
    places = list(FILE_ORDER)
    random.Random(f"mmcoref/options/{seed}/{epoch}/{index}").shuffle(places)
    return tuple(places)


@dataclass(frozen=True)
class ShuffledOptions:
    """The orders of the train examples' options; an object and no closure, so that it can be pickled.

    Attributes:
        seed: of the orders.
        indices: each example's place in its file.
        gold: the place of its right option, in the file's order.
        lengths: tokens of its gold answer under the letters A to D.
    """

    seed: int
    indices: NDArray[np.int64]
    gold: NDArray[np.int8]
    lengths: NDArray[np.int32]

    def __call__(self, epoch: int, i: int) -> tuple[Order, int]:
        """Return the order of example i's options in this epoch, and its answer's tokens under its letter there."""
        order = shuffled_order(self.seed, epoch, int(self.indices[i]))
        return order, int(self.lengths[i, order.index(int(self.gold[i]))])
