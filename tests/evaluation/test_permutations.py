"""What is said of several orders of the options, against plain counts and known truths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data.order import FILE_ORDER, Order, orders, reorder
from mmcoref.data.record import LETTERS
from mmcoref.evaluation import permutations
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.stats import cluster_bootstrap
from mmcoref.evaluation.tally import tally
from tests.conftest import dialogue


def asked(index: int, order: Order, place: int | None, likeliest: int = 0) -> Prediction:
    """Record `index` of the twelve, asked in an order; the answer is the option at that place, or nothing."""
    record = reorder(dialogue(index), order)
    logprobs = tuple(-0.5 if i == likeliest else -3.0 for i in range(4))
    text = "모르겠습니다." if place is None else f"{record.options[place].text}."
    return Prediction(index, record, text, True, logprobs, likeliest, order)


def follows_the_text(index: int, order: Order, option: int) -> Prediction:
    """Names one option of the file wherever it stands."""
    return asked(index, order, order.index(option))


def permutation_report(predictions: Sequence[Prediction], clusters: Sequence[int], choice: str) -> dict[str, Any]:
    counted = tally(predictions, "A")
    return permutations.permutation_report(counted.chosen(choice), counted.asked_gold, clusters)


def values(predictions: Sequence[Prediction], clusters: Sequence[int]) -> list[float]:
    found = permutation_report(predictions, clusters, "by_text")
    return [found[name]["value"] for name in ("mean_accuracy", "all_right", "majority_vote", "flip_rate")]


def test_a_model_that_follows_the_text_is_the_same_in_every_order() -> None:
    predictions = [follows_the_text(i, order, i) for i in range(4) for order in orders("all")]  # i is its gold place
    assert values(predictions, [0, 1, 2, 3]) == [1, 1, 1, 0]
    wrong = [follows_the_text(i, order, (i + 1) % 4) for i in range(4) for order in orders("all")]
    assert values(wrong, [0, 1, 2, 3]) == [0, 0, 0, 0]


def test_a_model_that_follows_the_letter_is_at_a_quarter_and_its_recall_shows_it() -> None:
    predictions = [asked(i, order, 3) for i in range(4) for order in orders("cyclic")]
    assert values(predictions, [0, 1, 2, 3]) == [0.25, 0, 0, 1]  # each option is named once: no majority
    found = permutation_report(predictions, [0, 1, 2, 3], "by_text")
    assert found["recall"] == {"A": {"k": 0, "n": 4}, "B": {"k": 0, "n": 4}, "C": {"k": 0, "n": 4}, "D": {"k": 4, "n": 4}}
    assert found["recall_spread"] == pytest.approx(3**0.5 / 4)


def test_votes_ties_and_outputs_that_name_nothing() -> None:
    a, b, c, d = orders("cyclic")
    gold = 2  # of dialogue 2
    won = [follows_the_text(2, a, 0), follows_the_text(2, b, gold), follows_the_text(2, c, gold), asked(2, d, None)]
    assert values(won, [0]) == [0.5, 0, 1, 1]  # 2 votes to 1; the three others differ from the file's order
    tied = [follows_the_text(2, a, gold), follows_the_text(2, b, gold), follows_the_text(2, c, 1), follows_the_text(2, d, 1)]
    assert values(tied, [0]) == [0.5, 0, 0, pytest.approx(2 / 3)]
    silent = [asked(2, order, None) for order in (a, b, c, d)]
    assert values(silent, [0]) == [0, 0, 0, 0]
    assert permutation_report(silent, [0], "by_text")["unparsable"] == {"k": 4, "n": 4}


CHOICES = st.lists(st.lists(st.none() | st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(CHOICES, st.randoms(use_true_random=False))
def test_every_figure_equals_a_plain_count(chosen: list[list[int | None]], mix: random.Random) -> None:
    """`chosen`: for each record and cyclic order the place that is named."""
    predictions = [asked(i, order, place) for i, row in enumerate(chosen) for order, place in zip(orders("cyclic"), row, strict=True)]
    named = [[None if place is None else order[place] for order, place in zip(orders("cyclic"), row, strict=True)] for row in chosen]
    gold = [i % 4 for i in range(len(chosen))]
    n = len(chosen)
    right = [[option == g for option in row] for row, g in zip(named, gold, strict=True)]
    majority = [
        all(row.count(g) > row.count(other) for other in range(4) if other != g) and g in row for row, g in zip(named, gold, strict=True)
    ]
    expected = [
        sum(map(sum, right)) / (4 * n),
        sum(map(all, right)) / n,
        sum(majority) / n,
        sum(option != row[0] for row in named for option in row) / (3 * n),
    ]
    mix.shuffle(predictions)
    assert values(predictions, range(n)) == pytest.approx(expected)


def test_intervals_resample_records_and_never_orders() -> None:
    """24 copies of one record's evidence are worth one record: the interval is that of six records."""
    right = [True, True, False, True, False, True]
    predictions = [follows_the_text(i, order, i % 4 if hit else (i + 1) % 4) for i, hit in enumerate(right) for order in orders("all")]
    found = permutation_report(predictions, range(6), "by_text")
    [interval] = cluster_bootstrap([[hit] for hit in right], range(6))
    assert found["mean_accuracy"]["interval"] == pytest.approx(list(interval))
    together = permutation_report(predictions, [0, 0, 0, 1, 1, 1], "by_text")
    assert together["mean_accuracy"]["interval"] != found["mean_accuracy"]["interval"]


def test_the_likeliest_option_is_another_reading_of_the_same_askings() -> None:
    predictions = [asked(0, order, 3, likeliest=order.index(0)) for order in orders("cyclic")]
    assert permutation_report(predictions, [0], "by_likelihood")["all_right"]["value"] == 1
    assert permutation_report(predictions, [0], "by_text")["all_right"]["value"] == 0


def test_records_in_unequal_orders_are_no_comparison() -> None:
    whole = [asked(i, order, 0) for i in range(2) for order in orders("cyclic")]
    for broken in (whole[:-1], [one for one in whole if one.order != FILE_ORDER]):
        with pytest.raises(ValueError, match="same orders"):
            permutation_report(broken, [0, 1], "by_text")
    assert len(LETTERS) == len(FILE_ORDER)
