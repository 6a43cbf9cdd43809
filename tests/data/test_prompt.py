"""The published prompt byte for byte, and each reason that `prompt.py` gives."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.data.prompt import SOLUTION_HEADER, answer_text, prompt_text, question_text
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

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(lambda text: bool(text.strip()))


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
    assert [line[3:] for line in plain[-6:-2]] == [f"{body}." for body in bodies]
