"""Predictions -> columns of numbers, one prediction after another: all that a report needs of them.

Legend of shapes: N records, K orders of each, M measures, O = 4 options.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.order import FILE_ORDER
from mmcoref.data.record import LETTERS, Letter
from mmcoref.evaluation.answer import Failure
from mmcoref.evaluation.floors import Floor, rules
from mmcoref.evaluation.permutations import by_likelihood, by_text, in_file
from mmcoref.evaluation.prediction import Prediction

OPTIONS = len(LETTERS)
VERDICTS = ("object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "photo_published_rule")
FAILURES: tuple[str, ...] = get_args(Failure)
NOTHING = -1  # in place of an option that is not named, or of a failure that there is not


class Tally:
    """The numbers of a run's answers, some 100 bytes for each.

    Args:
        majority: the letter that is right most often in the train part, for the rule that always says it.
    """

    def __init__(self, majority: Letter) -> None:
        self._rules = rules(majority)
        self._index = array("q")
        self._orders = array("b")
        self._chosen = {"by_text": array("b"), "by_likelihood": array("b")}  # the option's place in the file
        self._asked_gold = array("b")
        self._hits = array("b")
        self._choices = array("b")  # by letter, by likelihood, by text, gold: places
        self._logprobs = array("d")
        self._failures = array("b")
        self._floors = array("b")
        self.unparsable = 0
        self.cut = 0

    def add(self, prediction: Prediction) -> None:
        """Count a prediction; they come by place in the file, and of one record by order, the file's first."""
        text = by_text(prediction)
        self._index.append(prediction.index)
        self._orders.extend(prediction.order)
        self._chosen["by_text"].append(_place(in_file(prediction, text)))
        self._chosen["by_likelihood"].append(_place(in_file(prediction, by_likelihood(prediction))))
        self._asked_gold.append(prediction.gold_place)
        if prediction.order == FILE_ORDER:
            self._add_answer(prediction, text)

    def _add_answer(self, prediction: Prediction, text: int | None) -> None:
        verdict, failure = prediction.verdict, prediction.failure
        self._hits.extend(bool(getattr(verdict, name)) for name in VERDICTS)
        self._choices.extend((prediction.by_letter, prediction.by_likelihood, _place(text), prediction.gold_place))
        self._logprobs.extend(prediction.option_logprobs)
        self._failures.append(NOTHING if failure is None else FAILURES.index(failure))
        for rule in self._rules:
            named, photo = rule.right(prediction.record)
            self._floors.extend((NOTHING if named is None else named, photo))
        self.unparsable += verdict.unparsable
        self.cut += not prediction.stopped

    def __len__(self) -> int:
        """N, the records that were asked in the file's order of their options."""
        return len(self._failures)

    @property
    def asked(self) -> int:
        """N x K, all predictions."""
        return len(self._index)

    @property
    def indices(self) -> NDArray[np.int64]:
        """(N,) each record's place in its file."""
        return np.frombuffer(self._index, np.int64)[:: self.orders()]

    def hits(self, name: str) -> NDArray[np.bool_]:
        """(N,) whether each answer is right, by one of `VERDICTS`."""
        return _numbers(self._hits, len(VERDICTS))[:, VERDICTS.index(name)].astype(np.bool_)

    @property
    def by_letter(self) -> NDArray[np.int8]:
        """(N,) the place of the option whose letter is written if nothing but options can be."""
        return _numbers(self._choices, 4)[:, 0]

    @property
    def by_likelihood(self) -> NDArray[np.int8]:
        """(N,) the place of the most likely option."""
        return _numbers(self._choices, 4)[:, 1]

    @property
    def by_text(self) -> NDArray[np.int8]:
        """(N,) the place of the option that the text names; -1 if it names none."""
        return _numbers(self._choices, 4)[:, 2]

    @property
    def gold(self) -> NDArray[np.int8]:
        """(N,) the place of the right option."""
        return _numbers(self._choices, 4)[:, 3]

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """(N, O) of the options."""
        return np.frombuffer(self._logprobs, np.float64).reshape(-1, OPTIONS)

    @property
    def failures(self) -> dict[str, int]:
        """Count the answers that are no exact match, by the reason."""
        found = np.frombuffer(self._failures, np.int8)
        return {reason: int((found == number).sum()) for number, reason in enumerate(FAILURES)}

    @property
    def floors(self) -> list[Floor]:
        """Count how many records each rule is right on."""
        counts = []
        for number, rule in enumerate(self._rules):
            named, photo = self._floor_table[:, 2 * number : 2 * number + 2].sum(0, dtype=np.int64).tolist()
            counts.append(Floor(rule.name, named if rule.names_options else None, photo, len(self)))
        return counts

    def floor_hits(self, name: str, level: str) -> NDArray[np.int8]:
        """(N,) whether a rule is right on each record: on its `object` or its `photo`."""
        number = [rule.name for rule in self._rules].index(name)
        return self._floor_table[:, 2 * number + (level == "photo")]

    @property
    def _floor_table(self) -> NDArray[np.int8]:
        return _numbers(self._floors, 2 * len(self._rules))

    def orders(self) -> int:
        """Return K, in how many orders each record was asked.

        Raises:
            ValueError: a record has other orders than the first one, or the file's order is missing.
        """
        index, orders = np.frombuffer(self._index, np.int64), _numbers(self._orders, OPTIONS)
        K = int((index == index[0]).sum())
        grid = orders.reshape(-1, K, OPTIONS) if len(index) % K == 0 else None
        same = grid is not None and bool((grid == grid[:1]).all()) and bool((index.reshape(-1, K) == index[::K, None]).all())
        if not same or tuple(orders[0].tolist()) != FILE_ORDER:
            raise ValueError("expected every record in the same orders, the file's among them")
        return K

    def chosen(self, choice: str) -> NDArray[np.int8]:
        """(N, K) the place in the file of the option that was chosen `by_text` or `by_likelihood`; -1 for none."""
        return np.frombuffer(self._chosen[choice], np.int8).reshape(-1, self.orders())

    @property
    def asked_gold(self) -> NDArray[np.int8]:
        """(N, K) the place of the right option in the order asked."""
        return np.frombuffer(self._asked_gold, np.int8).reshape(-1, self.orders())


def tally(predictions: Iterable[Prediction], majority: Letter) -> Tally:
    """Count predictions in whatever order they come."""
    counted = Tally(majority)
    for prediction in sorted(predictions, key=lambda one: (one.index, one.order)):
        counted.add(prediction)
    return counted


def _numbers(column: array[Any], width: int) -> NDArray[np.int8]:
    return np.frombuffer(column, np.int8).reshape(-1, width)


def _place(place: int | None) -> int:
    return NOTHING if place is None else place
