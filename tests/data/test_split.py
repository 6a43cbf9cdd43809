"""File order decides train and test; whole clusters decide validation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data.record import Record
from mmcoref.data.records import Records, collect
from mmcoref.data.split import Split, cluster_ids, connected, group_numbers, split_records
from mmcoref.errors import UserError


@cache
def record(dialogue: int, options: int) -> Record:
    """Records share their dialogue text where the first number is equal, their option list where the second is."""
    choices = (f"A) A가 올린 {options}", "B) A가 올린 컵", "C) B가 올린 컵", "D) B가 올린 기타")
    return Record(
        image_descriptions=("A의 사진: x", "B의 사진: y"),
        conversation=(f"A: {dialogue}", "B: 응"),
        problem="?",
        choices=choices,
        solution=choices[0],
    )


def records_of(keys: list[tuple[int, int]]) -> list[Record]:
    return [record(*key) for key in keys]


def closure(keys: list[tuple[int, int]]) -> list[int]:
    """Plain reference: grow the relation until nothing changes, then number by first member."""
    n = len(keys)
    linked = [[keys[i][0] == keys[j][0] or keys[i][1] == keys[j][1] for j in range(n)] for i in range(n)]
    for k in range(n):
        for i in range(n):
            for j in range(n):
                linked[i][j] = linked[i][j] or (linked[i][k] and linked[k][j])
    first = [row.index(True) for row in linked]
    return [sorted(set(first)).index(f) for f in first]


def split(records: Sequence[Record], **options: int) -> Split:
    """The split, its parts as tuples."""
    return Split(*map(tuple, split_records(records, **options)))


KEYS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=2, max_size=16)
DISTINCT = [(i, i) for i in range(40)]


def test_the_published_split_is_1380_and_346(published: tuple[Record, ...]) -> None:
    assert split(published) == Split(tuple(range(1380)), (), tuple(range(1380, 1726)))


def test_texts_that_differ_in_their_encoding_or_spaces_only_belong_together() -> None:
    one, other = record(1, 1), record(2, 2)
    said = tuple(unicodedata.normalize("NFD", text) for text in one.conversation)
    listed = tuple(text.replace(" ", "  ") for text in other.choices)
    copies = [record(3, 3).model_copy(update={"conversation": said}), record(4, 4).model_copy(update={"choices": listed})]
    assert cluster_ids([one, other, *copies]) == [0, 1, 0, 1]


def test_exactly_138_published_records_are_held_out_in_whole_clusters(published: tuple[Record, ...]) -> None:
    parts = split(published, val_size=138)
    assert [len(part) for part in parts] == [1242, 138, 346]
    assert parts.test == tuple(range(1380, 1726))
    clusters = cluster_ids(published[:1380])
    assert {clusters[i] for i in parts.val}.isdisjoint(clusters[i] for i in parts.train)
    assert {published[i].conversation for i in parts.val}.isdisjoint(published[i].conversation for i in parts.train)
    assert {published[i].choices for i in parts.val}.isdisjoint(published[i].choices for i in parts.train)
    assert split(published, val_size=138, seed=1).val != parts.val


@pytest.mark.parametrize(("n", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (9, 7), (10, 8), (40, 32)])
def test_the_train_share_is_rounded_down(n: int, train: int) -> None:
    assert split(records_of(DISTINCT[:n])) == Split(tuple(range(train)), (), tuple(range(train, n)))


@settings(deadline=None)
@given(keys=KEYS, data=st.data())
def test_parts_are_disjoint_complete_in_order_and_whole_in_clusters(keys: list[tuple[int, int]], data: st.DataObject) -> None:
    records = records_of(keys)
    n_train = data.draw(st.integers(1, len(keys)), "n_train")
    val_size = data.draw(st.integers(0, n_train - 1), "val_size")
    seed = data.draw(st.integers(0, 5), "seed")
    parts = split(records, n_train=n_train, val_size=val_size, seed=seed)
    assert sorted([*parts.train, *parts.val, *parts.test]) == list(range(len(keys)))
    assert all(list(part) == sorted(part) for part in parts)
    assert parts.test == tuple(range(n_train, len(keys)))
    assert parts.train  # something is left to learn from

    clusters = closure(keys[:n_train])
    held = {clusters[i] for i in parts.val}
    assert held.isdisjoint(clusters[i] for i in parts.train)
    missing = val_size - len(parts.val)
    assert missing >= 0
    assert all(clusters.count(cluster) > missing for cluster in {clusters[i] for i in parts.train})

    assert split(records, n_train=n_train, val_size=val_size, seed=seed) == parts
    alone = split(records[:n_train], n_train=n_train, val_size=val_size, seed=seed)
    assert alone == Split(parts.train, parts.val, ())  # what is tested plays no part in what is held out


def test_a_test_record_links_no_train_records() -> None:
    keys = [(0, 0), (1, 1), (0, 1)]  # the third would make one cluster of all
    assert cluster_ids(records_of(keys)) == [0, 0, 0]
    assert len(split_records(records_of(keys), val_size=1).val) == 1


@given(size=st.integers(0, 31), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_unrelated_records_are_held_out_to_the_exact_size(size: int, seed: int) -> None:
    assert len(split_records(records_of(DISTINCT), val_size=size, seed=seed).val) == size


@pytest.mark.parametrize(("seed", "held"), [(0, (1, 4, 5, 11)), (1, (2, 6, 10, 11))])
def test_the_held_out_records_are_pinned(seed: int, held: tuple[int, ...]) -> None:
    assert split(records_of(DISTINCT[:20]), val_size=4, seed=seed).val == held


@pytest.mark.parametrize("size", [-1, 8, 10])
def test_a_validation_part_that_leaves_nothing_to_train_on_is_refused(size: int) -> None:
    with pytest.raises(UserError) as caught:
        split_records(records_of(DISTINCT[:10]), val_size=size)
    assert str(caught.value) == f"data.val_size: expected 0 to 7 of the 8 train records, got {size}."


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_records_are_refused(n: int) -> None:
    with pytest.raises(UserError) as caught:
        split_records(records_of(DISTINCT[:n]))
    assert str(caught.value) == f"expected at least 2 records to split into train and test, got {n}."


@settings(deadline=None)
@given(keys=KEYS)
def test_clusters_are_the_transitive_closure_of_equal_dialogues_and_equal_options(keys: list[tuple[int, int]]) -> None:
    records = records_of(keys)
    assert cluster_ids(records) == cluster_ids(collect(records)) == closure(keys)
    held = collect(records)
    assert isinstance(held, Records)
    assert split(held, n_train=len(keys) - 1, val_size=len(keys) // 3) == split(records, n_train=len(keys) - 1, val_size=len(keys) // 3)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_equal_digests_have_one_number(pairs: list[tuple[int, int]]) -> None:
    digests = np.array(pairs, np.uint64).reshape(-1, 2)
    numbers = group_numbers(digests).tolist()
    assert len(set(numbers)) == len(set(pairs))
    assert [numbers[i] == numbers[j] for i in range(len(pairs)) for j in range(len(pairs))] == [a == b for a in pairs for b in pairs]
    assert connected([digests]).tolist() == [sorted(set(pairs), key=pairs.index).index(pair) for pair in pairs]


def test_a_dialogue_and_an_option_list_link_records_through_a_third() -> None:
    assert cluster_ids(records_of([(0, 0), (1, 1), (2, 2), (0, 1), (3, 2)])) == [0, 0, 1, 0, 1]


def test_options_in_another_order_do_not_link_records() -> None:
    one, other = record(0, 0), record(1, 0)
    swapped = tuple(f"{letter}) {other.options[i].body}" for letter, i in zip("ABCD", (1, 0, 2, 3), strict=True))
    assert cluster_ids([one, other.model_copy(update={"choices": swapped})]) == [0, 1]
