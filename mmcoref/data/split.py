"""Train / validation / test by file order, and clusters of records that must not be torn apart."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.record import Record
from mmcoref.data.records import Records, digests_of
from mmcoref.errors import UserError

TRAIN_SHARE = 0.8  # the published split: the first int(0.8 n) records in file order


class Split(NamedTuple):
    """Indices into the file's records, each part in file order; together every record once."""

    train: Sequence[int]
    val: Sequence[int]
    test: Sequence[int]


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
    return split_by(len(records), lambda n: cluster_numbers(records, n), n_train=n_train, val_size=val_size, seed=seed)


def split_by(
    n: int, clusters: Callable[[int], NDArray[np.int64]], *, n_train: int | None = None, val_size: int = 0, seed: int = 0
) -> Split:
    """Split n records; see `split_records`.

    Args:
        n: records of the file.
        clusters: gives the cluster numbers of the first so many records.
        n_train: see `split_records`, as the others.
        val_size: the same.
        seed: the same.
    """
    n_train = int(TRAIN_SHARE * n) if n_train is None else n_train
    if n_train == 0:
        raise UserError(f"expected at least 2 records to split into train and test, got {n}.")
    if not 0 <= val_size < n_train:
        raise UserError(f"data.val_size: expected 0 to {n_train - 1} of the {n_train} train records, got {val_size}.")
    test = range(n_train, n)
    if val_size == 0:
        return Split(range(n_train), range(0), test)
    held = _hold_out(clusters(n_train), val_size, seed)
    return Split(_indices(~held), _indices(held), test)


def _indices(mask: NDArray[np.bool_]) -> array[int]:
    """Return where a mask is true; as numbers of 8 bytes, not as Python objects."""
    return array("q", np.flatnonzero(mask).astype(np.int64).tobytes())


def _hold_out(clusters: NDArray[np.int64], size: int, seed: int) -> NDArray[np.bool_]:
    """Choose whole clusters in a seeded random order while they fit; True for each record that is held out."""
    sizes = np.bincount(clusters).tolist()
    order = list(range(len(sizes)))
    random.Random(f"mmcoref/val/{seed}").shuffle(order)
    chosen = np.zeros(len(sizes), np.bool_)
    for cluster in order:
        if sizes[cluster] <= size:
            chosen[cluster] = True
            size -= sizes[cluster]
    return chosen[clusters]


def cluster_ids(records: Sequence[Record]) -> list[int]:
    """One cluster number per record, counting from 0 in file order.

    Two records belong together when their dialogue text or their ordered option list is the same, directly or
    through other records: a model that saw one has seen part of the other. Texts that differ only in the encoding
    of their characters or in spaces are the same.
    """
    return [int(cluster) for cluster in cluster_numbers(records, len(records))]


def cluster_numbers(records: Sequence[Record], n: int) -> NDArray[np.int64]:
    """Return (n,), the cluster numbers of the first n records, as `cluster_ids` gives them."""
    if isinstance(records, Records):
        digests = [records.dialogue_digests[:n], records.options_digests[:n]]
    else:
        first = records[:n]
        digests = [digests_of(record.conversation for record in first), digests_of(record.choices for record in first)]
    return connected(digests)


def connected(digests: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Number the sets of records that share a digest, directly or through other records, by their first members.

    Args:
        digests: (N, 2) each; records share one when the same row of the same array is equal.

    Returns:
        (N,) numbers that count from 0 in the records' order.
    """
    from scipy.sparse import coo_array  # takes a while to import, and most splits hold nothing out
    from scipy.sparse.csgraph import connected_components

    n = len(digests[0])
    # A graph of records and of digests, with an edge from each record to each of its digests.
    nodes, edges = n, []
    for table in digests:
        groups = group_numbers(table)
        edges.append(nodes + groups)
        nodes += int(groups.max(initial=-1)) + 1
    rows, columns = np.tile(np.arange(n), len(edges)), np.concatenate(edges)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    return _by_first(labels[:n])


def group_numbers(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) a number for each of N digests (N, 2), the same for equal ones."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    differs = np.ones(len(ranked), np.bool_)
    differs[1:] = (ranked[1:] != ranked[:-1]).any(1)
    numbers = np.empty(len(ranked), np.int64)
    numbers[order] = np.cumsum(differs) - 1
    return numbers


def _by_first(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber labels in the order in which they first occur."""
    _, first, member_of = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[member_of]
