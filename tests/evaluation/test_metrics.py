import math
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import LETTERS, Record
from mmcoref.evaluation.metrics import ObjectAccuracy, Unparsable, answer_metrics, judge

NAMES = ["object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "photo_published_rule", "unparsable"]
NOUNS = ("책", "커피잔", "쿠션", "피자")


def dialogue(owners: Sequence[str] = "AABB", gold: int = 3, order: Sequence[int] = range(4)) -> Record:
    """Option `gold` of the owners' options is right; `order` says which of them becomes A), B), C), D)."""
    bodies = [f"{owner}가 올린 사진 속 {noun}" for owner, noun in zip(owners, NOUNS, strict=True)]
    choices = tuple(f"{letter}) {bodies[i]}" for letter, i in zip(LETTERS, order, strict=True))
    return Record(
        image_descriptions=("A의 사진: 방.", "B의 사진: 카페."),
        conversation=("A: '내 방이야.'", "B: '나는 카페야.'", "A: '저거 예쁘다.'"),
        problem="마지막 A의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
        choices=choices,
        solution=choices[list(order).index(gold)],
    )


# How an option is said: (form, is it the exact answer, does the letter come first).
FORMS = {"{text}.": (True, True), "{text}": (False, True), "{letter}": (False, True), "정답은 {text}입니다.": (False, False)}
SAID = st.tuples(st.permutations("AABB"), st.integers(0, 3), st.none() | st.integers(0, 3), st.sampled_from(list(FORMS)))
Said = tuple[list[str], int, int | None, str]


def spoken(said: Said, order: Sequence[int] = range(4)) -> tuple[str, Record]:
    owners, gold, answer, form = said
    record = dialogue(owners, gold, order)
    if answer is None:
        return "모르겠습니다.", record
    option = record.options[list(order).index(answer)]
    return form.format(text=option.text, letter=option.letter), record


def photo_rule_as_published(g: str, a: str) -> bool:
    if g == "A" or g == "B" and a == "A" or a == "B":  # noqa: RUF021, SIM114 - verbatim
        return True
    elif g == "C" or g == "D" and a == "C" or a == "D":  # noqa: RUF021 - verbatim
        return True
    return False


def reference(batch: Sequence[Said]) -> dict[str, float]:
    """Counted one by one from what was said, so without parsing anything."""
    counts = dict.fromkeys(NAMES, 0)
    for owners, gold, answer, form in batch:
        exact, letter_first = FORMS[form]
        g, a = LETTERS[gold], LETTERS[answer] if answer is not None and letter_first else "정모"[answer is None]
        counts["object_accuracy"] += answer == gold
        counts["photo_accuracy"] += answer is not None and owners[answer] == owners[gold]
        counts["exact_match"] += answer == gold and exact
        counts["object_published_rule"] += g == a
        counts["photo_published_rule"] += photo_rule_as_published(g, a)
        counts["unparsable"] += answer is None
    return {name: count if name == "unparsable" else count / len(batch) for name, count in counts.items()}


def computed(metrics) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


def counted(batch: Sequence[Said]):
    metrics = answer_metrics()
    metrics.update(*zip(*map(spoken, batch), strict=True))
    return metrics


@given(st.lists(SAID, min_size=1, max_size=12))
def test_metrics_equal_a_plain_count(batch: list[Said]) -> None:
    assert computed(counted(batch)) == reference(batch)


@given(SAID, st.permutations(range(4)))
def test_relettering_the_options_changes_no_verdict(said: Said, order: list[int]) -> None:
    before, after = judge(*spoken(said)), judge(*spoken(said, order))
    for name in ("object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "unparsable", "found_by"):
        assert getattr(before, name) == getattr(after, name)  # the faulty photo rule does change


@settings(max_examples=30)
@given(st.lists(SAID, min_size=2, max_size=12), st.data())
def test_batches_and_merged_states_equal_the_whole(batch: list[Said], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(batch) - 1))
    whole, first, second = computed(counted(batch)), counted(batch[:cut]), counted(batch[cut:])
    split = answer_metrics()
    for part in (batch[:cut], batch[cut:]):
        split.update(*zip(*map(spoken, part), strict=True))
    assert computed(split) == whole
    for name in NAMES:
        first[name].merge_state(second[name])
    assert computed(first) == whole


@pytest.mark.parametrize(
    ("output", "newline_in_prompt", "right"),
    [
        ("D) x", True, True),
        ("D) x", False, False),  # as published, the first two characters are then "D)"
        ("\nD) x", False, True),
        (" D) x", False, True),
        ("\nD) x", True, False),  # behind the prompt's newline this is an empty line
    ],
)
def test_the_published_rule_cuts_what_follows_the_header(output: str, newline_in_prompt: bool, right: bool) -> None:
    record = dialogue(gold=3)
    assert judge(output, record, newline_in_prompt=newline_in_prompt).object_published_rule is right
    assert judge(output, record, newline_in_prompt=newline_in_prompt).object_accuracy  # ours reads all of them
    metrics = answer_metrics()
    metrics.update([output], [record], newline_in_prompt=newline_in_prompt)
    assert computed(metrics)["object_published_rule"] == right


@pytest.mark.parametrize("g", LETTERS)
@pytest.mark.parametrize("a", ["A", "B", "C", "D", ""])
def test_photo_rule_as_published(g: str, a: str) -> None:
    assert judge(a, dialogue(gold="ABCD".index(g))).photo_published_rule == photo_rule_as_published(g, a)


def test_published_rules_read_two_characters_of_which_the_first_is_our_newline() -> None:
    record = dialogue()
    assert judge("D", record).object_published_rule
    assert judge("D가 아닙니다", record).object_published_rule  # one character is read, and no more
    for unseen in (" D) ", "\nD) ", "**D**", "정답은 D입니다."):
        assert judge(unseen, record).object_accuracy
        assert not judge(unseen, record).object_published_rule


def test_an_option_without_owner_is_the_wrong_photo() -> None:
    choices = ("A) A가 올린 사진 속 책", "B) B가 올린 사진 속 컵", "C) 우주선", "D) 우주 배경")
    record = dialogue().model_copy(update={"choices": choices, "solution": choices[2]})
    assert judge("C", record).object_accuracy
    assert not judge("C", record).photo_accuracy
    assert not judge("D", record).photo_accuracy


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("D", {"object_accuracy": 196, "photo_accuracy": 238, "photo_published_rule": 346, "object_published_rule": 196, "unparsable": 0}),
        ("B", {"object_accuracy": 19, "photo_published_rule": 346, "object_published_rule": 19}),
        ("", {"object_accuracy": 0, "photo_accuracy": 0, "photo_published_rule": 131, "object_published_rule": 0, "unparsable": 346}),
        (None, {**dict.fromkeys(NAMES, 346), "unparsable": 0}),
    ],
    ids=["always D", "always B", "nothing", "gold"],
)
def test_published_test_part(published, output: str | None, expected: dict[str, int]) -> None:
    metrics = answer_metrics()
    metrics.update([answer_text(r.gold) if output is None else output for r in published.test], published.test)
    assert {name: int(metrics[name].k) for name in expected} == expected
    assert {int(metric.n) for metric in metrics.values()} == {346}


def test_metrics_equal_after_one_batch_stay_apart() -> None:
    """With compute groups torchmetrics would merge object and photo accuracy here, and both would end at 1/2."""
    metrics = answer_metrics()
    record = dialogue()
    metrics.update([answer_text(record.gold)], [record])
    metrics.update(["C"], [record])  # the other object of the gold photo
    result = computed(metrics)
    assert (result["object_accuracy"], result["photo_accuracy"]) == (0.5, 1.0)


def test_names_prefix_types_and_bounds() -> None:
    metrics = answer_metrics("test/")
    metrics.update(["D", "C", "C"], [dialogue()] * 3)
    result = metrics.compute()
    assert set(result) == {f"test/{name}" for name in NAMES}
    assert set(answer_metrics()) == set(NAMES)
    assert result["test/object_accuracy"].dtype == torch.float64
    assert result["test/object_accuracy"].item() == 1 / 3
    for metric in metrics.values():
        assert metric.k.dtype == metric.n.dtype == torch.int64
        assert metric.full_state_update is False
    shares = [metric for metric in metrics.values() if not isinstance(metric, Unparsable)]
    assert [(metric.plot_lower_bound, metric.plot_upper_bound) for metric in shares] == [(0.0, 1.0)] * 5


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_nan_and_reset_forgets() -> None:
    metric = ObjectAccuracy()
    metric.update(["D"], [dialogue()])
    metric.reset()
    assert math.isnan(metric.compute().item())


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="got 2 outputs and 1 records"):
        ObjectAccuracy().update(["D", "D"], [dialogue()])
    with pytest.raises(ValueError, match="no solution"):
        judge("D", dialogue().model_copy(update={"solution": None}))


BATCH: list[Said] = [
    (list("AABB"), 3, 3, "{text}."),
    (list("ABAB"), 0, 2, "{letter}"),
    (list("ABBA"), 1, None, "{text}"),
    (list("AABB"), 2, 2, "정답은 {text}입니다."),
    (list("BBAA"), 0, 3, "{text}"),
]


def _share_of_process(rank: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        result = computed(counted(BATCH[rank::2]))  # 3 records and 2
        torch.save(result, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the child processes find this file's function
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_share_of_process, (port, str(tmp_path)), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [reference(BATCH)] * 2
