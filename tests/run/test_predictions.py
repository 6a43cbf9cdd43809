"""Predictions come back in file order as they were made, from memory or a file, of one process or of several."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data.example import Example
from mmcoref.data.examples import Examples, collect
from mmcoref.data.order import orders, reorder
from mmcoref.evaluation.prediction import Prediction
from mmcoref.run import predictions as module
from mmcoref.run.predictions import Predictions
from tests.conftest import dialogue

LOGPROBS = st.floats(max_value=0, allow_nan=False, allow_infinity=True)
EXAMPLES = collect(Example(index, dialogue(index), (1,), ((2,),) * 4) for index in (0, 3, 4, 9, 11))


def predicted(
    index: int, order: Any = (0, 1, 2, 3), text: str = "말", logprobs: tuple[float, ...] = (-1.0, -2.0, -3.0, -0.1)
) -> Prediction:
    return Prediction(index, reorder(dialogue(index), order), text, index % 2 == 0, logprobs, index % 4, order, index % 3 == 0)


def kept(*some: Prediction) -> Predictions:
    made = Predictions()
    made.add(some)
    return made


def all_of(made: Predictions, examples: Examples = EXAMPLES) -> list[list[Prediction]]:
    return list(made.by_record(examples))


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=10, max_size=10),
    logprobs=st.tuples(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS),
    seed=st.integers(0, 9),
    memory=st.sampled_from([1, 10**6]),
)
def test_what_was_predicted_comes_back_in_file_order(texts: list[str], logprobs: Any, seed: int, memory: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_IN_MEMORY", memory)
        asked = [(index, order) for index in EXAMPLES.indices.tolist() for order in orders("cyclic")[:2]]
        expected = [predicted(index, order, text, logprobs) for (index, order), text in zip(asked, texts, strict=True)]
        shuffled = list(expected)
        random.Random(seed).shuffle(shuffled)
        found = all_of(kept(*shuffled))
        assert [one for group in found for one in group] == expected
        assert [len(group) for group in found] == [2] * 5


def test_a_record_that_was_trimmed_is_the_one_that_was_asked() -> None:
    shorter = dialogue(3).model_copy(update={"conversation": dialogue(3).conversation[1:]})
    examples = collect([Example(3, shorter, (1,), ((2,),) * 4)])
    turned = orders("cyclic")[1]
    [[one]] = all_of(kept(predicted(3, turned)), examples)
    assert one.record == reorder(shorter, turned)
    with pytest.raises(KeyError):
        all_of(kept(predicted(4)), examples)


def test_records_that_were_left_in_some_orders_only_are_left_out() -> None:
    a, b = orders("cyclic")[:2]
    found = all_of(kept(predicted(9, b), predicted(0, a), predicted(4, a), predicted(4, b), predicted(9, a)))
    assert [(one.index, one.order) for group in found for one in group] == [(4, a), (4, b), (9, a), (9, b)]
    assert all_of(Predictions()) == []


def test_each_is_there_once() -> None:
    a, b = orders("cyclic")[:2]
    made = kept(predicted(0, a), predicted(0, b), predicted(3, a))
    made.check(3, whole=True)
    made.check(4, whole=False)
    with pytest.raises(RuntimeError, match="expected 4 predictions, one of each, got 3, of which 3 differ"):
        made.check(4, whole=True)
    for whole in (True, False):
        with pytest.raises(RuntimeError, match="got 3, of which 2 differ"):
            kept(predicted(0), predicted(3), predicted(0)).check(3, whole=whole)


def test_all_processes_predictions_reach_the_first_one_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = EXAMPLES.indices.tolist()
    parts = [kept(predicted(indices[4]), predicted(indices[0]), predicted(indices[2])), kept(predicted(indices[1]), predicted(indices[3]))]
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    sent: dict[int, list[Any]] = {0: [], 1: []}

    def trainer(rank: int) -> Any:
        strategy = SimpleNamespace(reduce=lambda _, reduce_op: torch.tensor(3), root_device=torch.device("cpu"))
        return SimpleNamespace(world_size=2, is_global_zero=rank == 0, strategy=strategy)

    monkeypatch.setattr(module.distributed, "gather_object", lambda mine, into: sent[1].append(mine))
    assert parts[1].gather(trainer(1)) is None
    assert [len(some) for some in sent[1]] == [1, 1, 0]

    def receive(mine: Any, into: Any) -> None:
        into[0], into[1] = mine, sent[1].pop(0)

    monkeypatch.setattr(module.distributed, "gather_object", receive)
    everyone = parts[0].gather(trainer(0))
    assert everyone is not None
    assert all_of(everyone) == [[predicted(index)] for index in indices]


def test_one_process_sends_nothing() -> None:
    made = kept(predicted(0))
    assert made.gather(SimpleNamespace(world_size=1)) is made  # type: ignore[arg-type]
