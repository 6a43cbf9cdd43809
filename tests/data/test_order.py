"""Reordering changes letters and places, and nothing else."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmcoref.data.order import FILE_ORDER, Order, orders, reorder, shuffled_order
from mmcoref.data.record import LETTERS, Record
from tests.conftest import dialogue

ORDERS = st.permutations(FILE_ORDER).map(tuple)
DIALOGUES = st.integers(0, 11).map(dialogue)


def test_the_orders() -> None:
    assert orders("none") == (FILE_ORDER,)
    assert orders("cyclic") == ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))
    every = orders("all")
    assert every[0] == FILE_ORDER
    assert len(every) == len(set(every)) == 24


def test_each_option_stands_equally_often_at_each_letter() -> None:
    for kind in ("cyclic", "all"):
        asked = orders(kind)  # type: ignore[arg-type]
        assert set(Counter((place, option) for order in asked for place, option in enumerate(order)).values()) == {len(asked) // 4}


def test_an_order_written_out_by_hand() -> None:
    record = dialogue(9)  # owners B, A, A, B; the second option is right
    turned = reorder(record, (3, 1, 0, 2))
    texts = [option.body for option in record.options]
    assert turned.choices == (f"A) {texts[3]}", f"B) {texts[1]}", f"C) {texts[0]}", f"D) {texts[2]}")
    assert [option.owner for option in turned.options] == ["B", "A", "B", "A"]
    assert turned.gold.letter == "B"
    assert reorder(record, (1, 2, 3, 0)).gold.letter == "A"


@given(DIALOGUES, ORDERS)
def test_text_owner_and_answer_go_along_and_all_else_stays(record: Record, order: Order) -> None:
    _ = record.options  # cached before it is reordered
    turned = reorder(record, order)
    assert [option.letter for option in turned.options] == list(LETTERS)
    assert [(option.body, option.owner) for option in turned.options] == [(record.options[i].body, record.options[i].owner) for i in order]
    assert (turned.gold.body, turned.gold.owner) == (record.gold.body, record.gold.owner)
    assert turned.model_dump(exclude={"choices", "solution"}) == record.model_dump(exclude={"choices", "solution"})


@given(DIALOGUES, ORDERS)
def test_the_inverse_order_gives_the_record_back(record: Record, order: Order) -> None:
    assert reorder(reorder(record, order), tuple(order.index(place) for place in range(4))) == record


def test_a_record_without_a_solution_stays_without_one() -> None:
    record = dialogue(0).model_copy(update={"solution": None})
    assert reorder(record, (1, 0, 2, 3)).solution is None


def test_of_two_options_with_one_text_the_gold_one_stays_gold() -> None:
    twins = ("A) A가 올린 사진 속 컵", "B) A가 올린 사진 속 컵", "C) B가 올린 사진 속 책", "D) B가 올린 사진 속 펜")
    record = Record.model_validate(dialogue(0).model_dump() | {"choices": twins, "solution": twins[1]})
    assert reorder(record, (2, 1, 0, 3)).gold.letter == "B"
    assert reorder(record, (1, 2, 0, 3)).gold.letter == "A"


def test_shuffled_orders_depend_on_seed_epoch_and_record_and_are_even() -> None:
    assert shuffled_order(1, 2, 3) == shuffled_order(1, 2, 3)
    drawn = {(seed, epoch, index): shuffled_order(seed, epoch, index) for seed in range(2) for epoch in range(6) for index in range(200)}
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):  # each of the three numbers counts
        assert any(drawn[0, 0, i] != shuffled_order(other[0], other[1], i + other[2]) for i in range(20))
    counts = Counter(drawn.values())
    assert len(counts) == 24
    assert max(counts.values()) < 2 * min(counts.values())  # 100 expected of each
