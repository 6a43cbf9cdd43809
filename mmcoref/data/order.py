"""A record's options in another order: letters go by place; text, owner and the right answer go along."""

from __future__ import annotations

import itertools
import random
from typing import Literal

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
