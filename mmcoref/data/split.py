"""Train / validation / test by file order, and clusters of records that must not be torn apart."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mmcoref.data.record import Record
from mmcoref.data.unicode import normalise
from mmcoref.errors import UserError

TRAIN_SHARE = 0.8  # the published split: the first int(0.8 n) records in file order


class Split(NamedTuple):
    """Indices into the file's records, each part in file order; together every record once."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def split_records(records: Sequence[Record], *, n_train: int | None = None, val_size: int = 0, seed: int = 0) -> Split:
    """The published split by file order, with whole clusters of its train part held out for validation.

    Args:
        records: all records of the file.
        n_train: how many records of the file are its train part; by default the published share.
        val_size: how many train records to hold out; 0 holds out none. Whole clusters are taken in a seeded random
            order while they fit, so that fewer are held out only where no cluster of the missing size is left.
        seed: chooses which clusters.

    Raises:
        UserError: one record only, or a validation part that would leave no train record.
    """
    n_train = int(TRAIN_SHARE * len(records)) if n_train is None else n_train
    if n_train == 0:
        raise UserError(f"expected at least 2 records to split into train and test, got {len(records)}.")
    if not 0 <= val_size < n_train:
        raise UserError(f"data.val_size: expected 0 to {n_train - 1} of the {n_train} train records, got {val_size}.")
    val = frozenset(_hold_out(cluster_ids(records[:n_train]), val_size, seed))
    return Split(
        train=tuple(i for i in range(n_train) if i not in val),
        val=tuple(sorted(val)),
        test=tuple(range(n_train, len(records))),
    )


def _hold_out(clusters: Sequence[int], size: int, seed: int) -> list[int]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(clusters):
        members[cluster].append(index)
    order = list(members.values())
    random.Random(f"mmcoref/val/{seed}").shuffle(order)
    held: list[int] = []
    for cluster_members in order:
        if len(held) + len(cluster_members) <= size:
            held += cluster_members
    return held


def cluster_ids(records: Sequence[Record]) -> list[int]:
    """One cluster number per record, counting from 0 in file order.

    Two records belong together when their dialogue text or their ordered option list is the same, directly or
    through other records: a model that saw one has seen part of the other. Texts that differ only in the encoding
    of their characters or in spaces are the same.
    """
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[tuple[str, tuple[str, ...]], int] = {}
    for index, record in enumerate(records):
        for kind, texts in (("dialogue", record.conversation), ("options", record.choices)):
            key = kind, tuple(map(normalise, texts))
            a, b = root(first_with.setdefault(key, index)), root(index)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(records))]
