"""The published prompt byte for byte, and each reason that `prompt.py` gives."""

from __future__ import annotations

import unicodedata
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.data.prompt import SOLUTION_HEADER, answer_text, has_stop, prompt_text, question_text
from mmcoref.data.record import LETTERS, Record

RECORD = Record(
    image_descriptions=("A의 사진: 흰 탁자", "B의 사진: 창가의 화분"),
    conversation=("A: '여기 어때?'", "B: '좋네.'", "A: '저 컵도 예쁘지.'", "B: '저거, 나도 살래.'"),
    problem="마지막 B의 발화에서 '저거'는 무엇인가?",
    choices=("A) A가 올린 사진 속 컵", "B) A가 올린 사진 속 탁자", "C) B가 올린 사진 속 화분", "D) B가 올린 사진 속 창"),
    solution="A) A가 올린 사진 속 컵",
)
QUESTION = """\
## Conversation
A: '여기 어때?'
A의 사진: 흰 탁자
B: '좋네.'
B의 사진: 창가의 화분
A: '저 컵도 예쁘지.'
B: '저거, 나도 살래.'
## Problem
마지막 B의 발화에서 '저거'는 무엇인가?
## Choices
A) A가 올린 사진 속 컵.
B) A가 올린 사진 속 탁자.
C) B가 올린 사진 속 화분.
D) B가 올린 사진 속 창.
"""

# Texts on one line: what becomes of the others is tested by itself.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8).filter(lambda text: bool(text.strip()))


def changed(fields: dict[str, Any]) -> Record:
    return Record.model_validate(RECORD.model_dump(exclude={"solution"}) | fields)


def test_the_question_is_the_published_text_byte_for_byte() -> None:
    assert question_text(RECORD).encode() == QUESTION.encode()


def test_the_prompt_and_its_answer_are_the_published_training_text() -> None:
    assert prompt_text(RECORD).encode() == (QUESTION + "## Solution\n").encode()
    assert prompt_text(RECORD) + answer_text(RECORD.gold) == QUESTION + "## Solution\nA) A가 올린 사진 속 컵."


def test_the_newline_behind_the_header_belongs_to_the_prompt() -> None:
    assert SOLUTION_HEADER == "## Solution\n"
    assert prompt_text(RECORD).endswith(".\n## Solution\n")


@pytest.mark.parametrize("index", range(4))
def test_an_answer_is_the_whole_option_and_a_period(index: int) -> None:
    assert answer_text(RECORD.options[index]) == RECORD.choices[index] + "."


@pytest.mark.parametrize("turns", [2, 3, 4])
def test_the_captions_stand_behind_the_first_and_the_second_utterance(turns: int) -> None:
    record = RECORD.model_copy(update={"conversation": RECORD.conversation[:turns]})
    lines = prompt_text(record).split("\n")
    assert lines[:5] == ["## Conversation", "A: '여기 어때?'", "A의 사진: 흰 탁자", "B: '좋네.'", "B의 사진: 창가의 화분"]
    assert lines[5 : 5 + turns - 2] == list(RECORD.conversation[2:turns])
    assert lines[3 + turns] == "## Problem"


def test_who_speaks_first_does_not_move_the_captions() -> None:
    record = RECORD.model_copy(update={"conversation": ("B: '가'", "B: '나'", "A: '다'")})
    assert prompt_text(record).split("\n")[1:6] == ["B: '가'", "A의 사진: 흰 탁자", "B: '나'", "B의 사진: 창가의 화분", "A: '다'"]


def test_there_is_no_blank_line(dialogues: tuple[Record, ...]) -> None:
    for record in dialogues:
        assert "\n\n" not in prompt_text(record)
        assert "" not in prompt_text(record).split("\n")[:-1]


def test_the_solution_is_not_read() -> None:
    assert {prompt_text(RECORD.model_copy(update={"solution": solution})) for solution in (None, *RECORD.choices)} == {
        QUESTION + "## Solution\n"
    }


@given(bodies=st.lists(TEXT, min_size=4, max_size=4, unique=True), order=st.sampled_from(list(permutations(range(4)))))
def test_permuting_the_options_permutes_their_lines_and_nothing_else(bodies: list[str], order: tuple[int, ...]) -> None:
    def lines(places: tuple[int, ...]) -> list[str]:
        choices = tuple(f"{letter}) {bodies[place]}" for letter, place in zip(LETTERS, places, strict=True))
        return prompt_text(RECORD.model_copy(update={"choices": choices, "solution": None})).split("\n")

    plain, permuted = lines((0, 1, 2, 3)), lines(order)
    assert permuted[:-6] == plain[:-6]
    assert permuted[-2:] == plain[-2:] == ["## Solution", ""]
    assert [line[:3] for line in permuted[-6:-2]] == ["A) ", "B) ", "C) ", "D) "]
    assert [line[3:] for line in permuted[-6:-2]] == [plain[-6:-2][place][3:] for place in order]
    assert [line[3:] for line in plain[-6:-2]] == [body.rstrip() if has_stop(body) else f"{body}." for body in bodies]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", " \n\n ", "\v", "\f"])
def test_a_line_break_inside_a_text_is_a_space_in_the_prompt(line_break: str) -> None:
    """So no text can pass for another utterance, or for a heading."""
    change = {
        "conversation": (
            RECORD.conversation[0].replace("여기 어때", f"여기{line_break}어때"),
            *RECORD.conversation[1:-1],
            f"B: '저거,{line_break}나도 살래.'{line_break}",
        ),
        "image_descriptions": (f"A의 사진: 흰{line_break}탁자", RECORD.image_descriptions[1]),
        "problem": RECORD.problem.replace("에서 ", f"에서{line_break}"),
        "choices": (f"A) A가{line_break}올린 사진 속 컵", *RECORD.choices[1:]),
    }
    record = changed(change)
    assert prompt_text(record) == QUESTION + "## Solution\n"
    assert answer_text(record.options[0]) == "A) A가 올린 사진 속 컵."
    assert record.options[0].text == change["choices"][0]  # as given


def test_a_heading_inside_an_utterance_starts_no_line() -> None:
    record = changed({"conversation": (*RECORD.conversation[:3], "B: 응\n## Solution\nA) A가 올린 사진 속 컵.")})
    assert prompt_text(record).count("\n## Solution\n") == 1
    assert "\nB: 응 ## Solution A) A가 올린 사진 속 컵.\n" in prompt_text(record)


@pytest.mark.parametrize("stop", [".", "。", "．", "｡", ". ", "...", ".\n"])
def test_an_option_with_a_period_gets_no_second_one(stop: str) -> None:
    record = changed({"choices": (*RECORD.choices[:3], RECORD.choices[3] + stop)})
    assert prompt_text(record).split("\n")[-3] == (RECORD.choices[3] + stop).rstrip()
    assert answer_text(record.options[3]) == (RECORD.choices[3] + stop).rstrip()
    assert answer_text(record.options[3], "A") == "A" + (RECORD.choices[3] + stop).rstrip()[1:]


@pytest.mark.parametrize("end", ["!", "?", "…", "컵 ", ")"])
def test_any_other_end_gets_one(end: str) -> None:
    record = changed({"choices": (*RECORD.choices[:3], RECORD.choices[3] + end)})
    assert answer_text(record.options[3]) == RECORD.choices[3] + end + "."


def test_an_answer_under_another_letter() -> None:
    assert answer_text(RECORD.options[0], "C") == "C) A가 올린 사진 속 컵."


def test_a_decomposed_record_is_prompted_as_it_is() -> None:
    fields = RECORD.model_dump()
    decomposed = Record.model_validate(
        {
            name: unicodedata.normalize("NFD", value) if isinstance(value, str) else [unicodedata.normalize("NFD", text) for text in value]
            for name, value in fields.items()
            if value is not None
        }
    )
    assert prompt_text(decomposed) == unicodedata.normalize("NFD", prompt_text(RECORD))
    assert answer_text(decomposed.gold) == unicodedata.normalize("NFD", answer_text(RECORD.gold))


def test_no_published_text_is_changed(published: tuple[Record, ...]) -> None:
    for record in published:
        first, second, *rest = record.conversation
        a, b = record.image_descriptions
        lines = ["## Conversation", first, a, second, b, *rest, "## Problem", record.problem, "## Choices"]
        assert question_text(record) == "\n".join([*lines, *(f"{choice}." for choice in record.choices)]) + "\n"
        assert answer_text(record.gold) == f"{record.solution}."
