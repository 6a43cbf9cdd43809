"""The figures of a run, against plain counts over predictions written by hand."""

from __future__ import annotations

import json
import math

import pytest

from mmcoref.data.order import orders, reorder
from mmcoref.data.record import LETTERS
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.report import report
from mmcoref.evaluation.stats import cluster_bootstrap, wilson
from mmcoref.evaluation.tally import tally
from tests.conftest import dialogue

SURE, HALF = -0.01, -0.7


def said(index: int, text: str, *, likeliest: int, by_letter: int, stopped: bool = True) -> Prediction:
    logprobs = tuple(SURE if place == likeliest else -5.0 for place in range(4))
    return Prediction(index, dialogue(index), text, stopped, logprobs, by_letter)


def option(index: int, place: int) -> str:
    return dialogue(index).choices[place]


# Gold places are 0, 1, 2, 3, 0, 1.
PREDICTIONS = [
    said(0, f"{option(0, 0)}.", likeliest=0, by_letter=0),  # exact
    said(1, f"{option(1, 1)}.\n{option(1, 1)}.", likeliest=1, by_letter=1),  # repeated
    said(2, f"{option(2, 2)}. 그리고", likeliest=2, by_letter=0, stopped=False),  # does not stop
    said(3, f"A) {dialogue(3).options[3].body}.", likeliest=3, by_letter=0),  # wrong letter for the right text
    said(4, "글쎄요.", likeliest=1, by_letter=1),  # unparsable
    said(5, f"{option(5, 0)}.", likeliest=1, by_letter=0),  # wrong option, right photo
]
MAJORITY = "D"
CLUSTERS = [0, 0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def found() -> dict:  # type: ignore[type-arg]
    return report(tally(PREDICTIONS, MAJORITY), CLUSTERS)


def test_counts_and_intervals(found) -> None:
    counts = {name: score["k"] for name, score in found["metrics"].items()}
    assert counts["object_accuracy"] == 3
    assert counts["exact_match"] == 1
    assert counts["photo_accuracy"] == 4
    assert counts["letter_accuracy"] == 2
    assert counts["likelihood_accuracy"] == 5
    assert found["n"] == 6
    for name, score in found["metrics"].items():
        assert found["intervals"][name] == list(wilson(score["k"], 6))
    hits = [True, True, True, False, False, False]
    [interval] = cluster_bootstrap([[hit] for hit in hits], CLUSTERS)
    assert found["bootstrap"]["object_accuracy"] == pytest.approx(list(interval))
    assert found["clusters"] == 5


def test_recall_failures_and_agreement(found) -> None:
    assert {letter: (found["recall"][letter]["k"], found["recall"][letter]["n"]) for letter in LETTERS} == {
        "A": (1, 2),
        "B": (1, 2),
        "C": (1, 1),
        "D": (0, 1),
    }
    assert found["recall"]["macro"] == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert found["recall"]["spread"] == pytest.approx(math.sqrt((0.25 + 0.25) / 4))
    assert found["failures"] == {
        "unparsable": 1,
        "wrong_letter_for_right_text": 1,
        "wrong_option": 1,
        "repeated_option": 1,
        "no_stop": 1,
        "right_option_with_extra_text": 0,
        "right_option_in_other_form": 0,
    }
    assert {name: same["k"] for name, same in found["agreement"].items()} == {
        "letter_and_likelihood": 3,  # records 0, 1, 4
        "letter_and_text": 4,  # 0, 1, 3, 5
        "likelihood_and_text": 3,  # 0, 1, 2
        "all_three": 2,
    }
    assert (found["unparsable"], found["cut"]) == (1, 1)


def test_brier_score_and_likelihood_are_means_over_records(found) -> None:
    weights = [math.exp(SURE), *[math.exp(-5.0)] * 3]
    sure, other = weights[0] / sum(weights), weights[1] / sum(weights)
    right, wrong = (1 - sure) ** 2 + 3 * other**2, sure**2 + (1 - other) ** 2 + 2 * other**2
    assert found["brier_score"] == pytest.approx((5 * right + wrong) / 6)
    assert found["negative_log_likelihood"] == pytest.approx(-(5 * math.log(sure) + math.log(other)) / 6)
    low, high = found["bootstrap"]["brier_score"]
    assert right - 1e-9 <= low <= found["brier_score"] <= high <= wrong


def test_the_best_floor_is_compared_record_by_record(found) -> None:
    floors = {floor["name"]: floor for floor in found["floors"]}
    assert floors["always D"]["object"] == 1
    above = found["above_best_floor"]["object"]
    best = max(floor["object"] or 0 for floor in floors.values())
    assert floors[above["floor"]]["object"] == best
    assert above["value"] == pytest.approx((3 - best) / 6)
    assert above["interval"][0] <= above["value"] <= above["interval"][1]


def test_a_run_equal_to_its_floor_is_no_point_above_it() -> None:
    # In these dialogues the right thing is always mentioned last.
    for place_of, value in ((lambda i: i % 4, 0.0), (lambda i: (i + 1) % 4, -1.0)):
        predictions = [said(i, f"{option(i, place_of(i))}.", likeliest=0, by_letter=0) for i in (3, 7, 0)]
        above = report(tally(predictions, MAJORITY), [0, 1, 2])["above_best_floor"]["object"]
        assert above == {"floor": "mentioned last, whole noun", "value": value, "interval": [value, value]}


def test_other_orders_leave_the_files_own_figures_alone(found) -> None:
    turned = [
        Prediction(i, reorder(dialogue(i), order), "D.", True, (-1.0, -2.0, -3.0, -4.0), 0, order)
        for i in range(6)
        for order in orders("cyclic")[1:]
    ]
    with_orders = report(tally([*turned, *PREDICTIONS], MAJORITY), CLUSTERS)
    assert with_orders["permutations"]["orders"] == 4
    assert {key: value for key, value in with_orders.items() if key != "permutations"} == {
        key: value for key, value in found.items() if key != "permutations"
    }
    assert found["permutations"] is None


def test_a_report_is_json(found) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
