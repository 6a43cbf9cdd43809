import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import LETTERS, Option, Record, owner_of
from mmcoref.evaluation.answer import exactly, failure, parse_answer, same_photo


def options_of(*bodies: str) -> tuple[Option, ...]:
    texts = [f"{letter}) {body}" for letter, body in zip(LETTERS, bodies, strict=True)]
    return tuple(Option(letter, text, owner_of(text)) for letter, text in zip(LETTERS, texts, strict=True))


# B is the beginning of C.
OPTIONS = options_of("A가 올린 사진 속 책", "B가 올린 사진 속 컵", "B가 올린 사진 속 컵 받침", "B가 올린 사진 속 커피잔")
RECORD = Record(
    image_descriptions=("A의 사진: 책이 있다.", "B의 사진: 컵과 커피잔이 있다."),
    conversation=("A: '책 샀어.'", "B: '나는 카페야.'", "A: '저거 예쁘다.'"),
    problem="마지막 A의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
    choices=tuple(option.text for option in OPTIONS),
    solution=OPTIONS[3].text,
)
LIST = "A) A가 올린 사진 속 책{0}B) B가 올린 사진 속 컵{0}C) B가 올린 사진 속 컵 받침{0}D) B가 올린 사진 속 커피잔"

LETTER = [
    ("D) B가 올린 사진 속 커피잔.", "D"),
    ("D) B가 올린 사진 속 커피잔", "D"),
    ("D)B가 올린 사진 속 커피잔", "D"),
    ("  \n D) B가 올린 사진 속 커피잔.\n", "D"),
    ("D", "D"),
    ("D)", "D"),
    ("D.", "D"),
    ("D: B가 올린 사진 속 커피잔", "D"),
    ("(D) B가 올린 사진 속 커피잔", "D"),
    ("[D]", "D"),
    ("**D**) B가 올린 사진 속 커피잔", "D"),
    ("**D)** B가 올린 사진 속 커피잔", "D"),
    ("'D'", "D"),
    ("- D) B가 올린 사진 속 커피잔", "D"),
    ("## Solution\nD) B가 올린 사진 속 커피잔.", "D"),  # the header once more
    ("Ｄ） B가 올린 사진 속 커피잔．", "D"),  # full width
    ("D입니다.", "D"),
    ("D 입니다.", "D"),
    ("D번입니다.", "D"),
    ("D) 이 사진에는 커피잔이 있습니다.", "D"),
    # The letter is the answer, whatever text follows it.
    ("A) B가 올린 사진 속 커피잔.", "A"),
    ("D) 모르겠습니다.", "D"),
    # The first sentence is the answer: an explanation or a model that never learnt to stop comes after it.
    ("D\nB가 올린 사진 속 컵", "D"),
    ("D) B가 올린 사진 속 커피잔.\nA) A가 올린 사진 속 책.", "D"),
    ("D) B가 올린 사진 속 커피잔. A가 올린 사진 속 책은 이미 언급되었습니다.", "D"),
    ("D) B가 올린 사진 속 커피잔.\n\nA)와 C)는 아닙니다. 정답은 D)입니다.", "D"),
    ("D) B가 올린 사진 속 커피잔. D) B가 올린 사진 속 커피잔. D) B가", "D"),
    ("D) B가 올린 사진 속 커피잔 D) B가 올린 사진 속 커피잔", "D"),
    ("A) A가 올린 사진 속 책입니다. B) 컵은 아닙니다. C) 컵받침도 아닙니다.", "A"),
    ("A) A가 올린 사진 속 책.\nB: '그래, 저거 좋다.'\nA: '응.'", "A"),  # goes on with the dialogue
    ("D) B가 올린 사진 속 커피잔.\n## Conversation\nA: '안녕'\n## Solution\nA) A가 올린 사진 속 책.", "D"),
    # Read as a letter although it may be an utterance of speaker A: the two look the same.
    ("A: '저거 정말 예쁘다.'", "A"),
]

CONCLUSION = [
    ("정답은 D) B가 올린 사진 속 커피잔입니다.", "D"),
    ("정답은 D입니다.", "D"),
    ("정답은 D 입니다", "D"),
    ("정답은 D", "D"),
    ("정답은 D)", "D"),
    ("정답은 (D)입니다.", "D"),
    ("정답은 D번입니다.", "D"),
    ("정답: D", "D"),
    ("정답 : D) B가 올린 사진 속 커피잔", "D"),
    ("답은 D", "D"),
    ("답: D.", "D"),
    ("따라서 정답은 'D'입니다", "D"),
    ("따라서 정답은 **D) B가 올린 사진 속 커피잔**입니다.", "D"),
    ("따라서 정답은 B가 올린 사진 속 커피잔입니다.", "D"),
    ("정답은 A가 올린 사진 속 책입니다.", "A"),
    ("정답은 바로 D) B가 올린 사진 속 커피잔이다.", "D"),
    ("정답은 다음과 같습니다:\nD) B가 올린 사진 속 커피잔", "D"),
    ("## 정답\n\n**D)** B가 올린 사진 속 커피잔", "D"),
    ("정답은 A) B가 올린 사진 속 커피잔입니다.", "A"),  # the letter again
    ("D가 정답입니다.", "D"),
    ("D)가 정답이다.", "D"),
    ("B가 올린 사진 속 커피잔이 정답입니다.", "D"),
    ("A가 올린 사진 속 책과 B가 올린 사진 속 컵이 있다. 정답은 D) B가 올린 사진 속 커피잔입니다.", "D"),
    ("A)와 B)는 저것이 아니다. 따라서 정답은 D입니다.", "D"),
    ("정답은 A입니다. 아니, 다시 보면 정답은 D입니다.", "D"),  # the last one
    ("정답은 A가 아닙니다. 정답은 D입니다.", "D"),
    (LIST.format("\n") + "\n정답은 D) B가 올린 사진 속 커피잔입니다.", "D"),
    (LIST.format(", ") + " 중에서 정답은 C입니다.", "C"),
    ("정답은 D입니다.\n## Conversation\n## Solution\n정답은 A입니다.", "D"),  # not of this record
]

OPTION_TEXT = [
    ("B가 올린 사진 속 커피잔", "D"),
    ("B가 올린 사진 속 커피잔입니다.", "D"),
    ("B가 올린 사진 속 커피잔이에요", "D"),
    ("B가 올린 사진 속 '커피잔'을 가리킵니다.", "D"),
    ("B가 올린 사진 속 커피 잔입니다.", "D"),  # spacing varies
    ("A가 올린 사진 속 책", "A"),  # an owner opens it, not a letter
    ("저거는 B가 올린 사진 속 커피잔인 것 같아요.", "D"),
    ("제 생각에는 D) B가 올린 사진 속 커피잔입니다.", "D"),
    ("B가 올린 사진 속 컵입니다.", "B"),
    ("B가 올린 사진 속 컵 받침입니다.", "C"),  # the longest text wins
    ("B가 올린 사진 속 컵받침입니다.", "C"),
    ("B가 올린 사진 속 커피잔입니다. 네, B가 올린 사진 속 커피잔이요.", "D"),
    ("A가 올린 사진 속 책이 아니라 B가 올린 사진 속 커피잔입니다.", "D"),
    ("A) A가 올린 사진 속 책이 아니라 D) B가 올린 사진 속 커피잔입니다.", "D"),
    ("정답은 D, 즉 B가 올린 사진 속 커피잔입니다.", "D"),
]

UNPARSABLE = [
    "",
    " \n",
    "모르겠습니다.",
    "A가 올린 사진",
    "B가 올린 사진 속 컵케이크입니다.",  # a longer noun than option B's
    "E) B가 올린 사진 속 접시",
    "Dog) 저거",
    "대답은 A)",  # `답은` inside another word
    "A, D",
    "A) 또는 D)",
    "A) A가 올린 사진 속 책 또는 D) B가 올린 사진 속 커피잔",
    "A가 올린 사진 속 책과 B가 올린 사진 속 커피잔",
    "정답은 A 또는 D입니다.",
    "정답은 A) A가 올린 사진 속 책 또는 D) B가 올린 사진 속 커피잔입니다.",
    "A와 D가 정답입니다.",
    "정답은 D가 아닙니다.",
    "B가 올린 사진 속 커피잔이 아닙니다.",
    "A) A가 올린 사진 속 책은 아닙니다.",
    "A)는 책이고 D)는 커피잔입니다.",
    LIST.format(" "),
    LIST.format(".\n"),
    LIST.format("\n\n"),
    LIST.format(", "),
    "A) 책, B) 컵, C) 컵받침, D) 커피잔",
    "## Conversation\nA: '안녕'\n## Solution\nD) B가 올린 사진 속 커피잔.",
]

TABLE = [
    *((output, letter, "letter") for output, letter in LETTER),
    *((output, letter, "conclusion") for output, letter in CONCLUSION),
    *((output, letter, "option_text") for output, letter in OPTION_TEXT),
    *((output, None, "unparsable") for output in UNPARSABLE),
]


def read(output: str) -> tuple[str | None, str]:
    option, found_by = parse_answer(output, OPTIONS)
    return option.letter if option else None, found_by


@pytest.mark.parametrize(("output", "letter", "found_by"), TABLE)
def test_sentence_form(output: str, letter: str | None, found_by: str) -> None:
    assert read(output) == (letter, found_by)


@pytest.mark.parametrize(("output", "letter", "found_by"), TABLE)
def test_decomposed_hangul_and_order_of_options_do_not_matter(output: str, letter: str | None, found_by: str) -> None:
    assert read(unicodedata.normalize("NFD", output)) == (letter, found_by)
    option, found = parse_answer(output, OPTIONS[::-1])
    assert (option.letter if option else None, found) == (letter, found_by)


@pytest.mark.parametrize(("output", "letter", "found_by"), TABLE)
def test_what_runs_on_after_the_answer_is_not_read(output: str, letter: str | None, found_by: str) -> None:
    assert read(output + "\n## Conversation\nA: '안녕'\n## Solution\n정답은 B) B가 올린 사진 속 컵입니다.") == (letter, found_by)


def test_a_text_that_two_options_share_needs_its_letter() -> None:
    shared = options_of("A가 올린 사진 속 옷", "B가 올린 사진 속 신", "B가 올린 사진 속 가방", "A가 올린 사진 속 옷")
    assert parse_answer("A가 올린 사진 속 옷입니다.", shared) == (None, "unparsable")
    assert parse_answer("정답은 A가 올린 사진 속 옷입니다.", shared) == (None, "unparsable")
    assert parse_answer("D) A가 올린 사진 속 옷.", shared) == (shared[3], "letter")
    assert parse_answer("저는 D) A가 올린 사진 속 옷이라고 봅니다.", shared) == (shared[3], "option_text")
    assert parse_answer("저는 D) A가 올린 사진 속 옷이라고 봅니다. A가 올린 사진 속 옷이 예뻐서요.", shared) == (shared[3], "option_text")


NOUNS = st.lists(st.text("가나다라마바사차카파하책컵옷이은입니다", min_size=1, max_size=5), min_size=1, max_size=3).map(" ".join)
BODIES = st.builds("{}가 올린 사진 속 {}".format, st.sampled_from("AB"), NOUNS)


@given(st.lists(BODIES, min_size=4, max_size=4), st.sampled_from(range(4)), st.sampled_from(["NFC", "NFD"]))
def test_parse_of_render_is_the_option(bodies: list[str], index: int, form: str) -> None:
    options = options_of(*bodies)
    assert parse_answer(unicodedata.normalize(form, answer_text(options[index])), options) == (options[index], "letter")


@given(
    st.lists(BODIES, min_size=4, max_size=4, unique_by=lambda body: body.replace(" ", "")),
    st.sampled_from(range(4)),
    st.permutations(range(4)),
    st.sampled_from(
        ["{text}.", "{letter}", "정답은 {text}입니다.", "{body}", "{body}.", "{letter}가 정답입니다.", "제 생각에는 '{body}'."]
    ),
)
def test_permuting_options_permutes_the_answer(bodies: list[str], index: int, order: list[int], form: str) -> None:
    def answer(options: tuple[Option, ...], chosen: Option) -> Option | None:
        return parse_answer(form.format(text=chosen.text, letter=chosen.letter, body=chosen.body), options).option

    before, after = options_of(*bodies), options_of(*(bodies[i] for i in order))
    moved = after[order.index(index)]
    found, found_after = answer(before, before[index]), answer(after, moved)
    assert found == before[index]
    assert found_after == moved


def test_every_published_option_is_read_back(published) -> None:
    forms = ("{0.text}.", "{0.body}", "정답은 {0.text}입니다.", "정답은 {0.body}입니다.", "제 생각에는 {0.body}인 것 같아요.")
    for record in published.test:
        for option in record.options:
            if [other.body for other in record.options].count(option.body) == 1:
                assert [parse_answer(form.format(option), record.options).option for form in forms] == [option] * len(forms)


def test_same_photo_compares_the_owners_in_the_texts() -> None:
    a, b, b_too, nobody = options_of("A가 올린 사진 속 책", "B의 사진 속 컵", "B가 올린 사진 속 접시", "우주선")
    assert same_photo(b_too, b)
    assert not same_photo(a, b)
    assert not same_photo(None, b)
    assert not same_photo(nobody, b)
    assert not same_photo(nobody, nobody)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_photo_and_exact_match_do_not_depend_on_the_encoding(form: str, written: str) -> None:
    """Tokenizers may compose what they read, so that a decomposed option is answered composed."""
    record = Record.model_validate(
        {
            name: unicodedata.normalize(form, value) if isinstance(value, str) else [unicodedata.normalize(form, text) for text in value]
            for name, value in RECORD.model_dump(exclude_none=True).items()
        }
    )
    output = unicodedata.normalize(written, answer_text(RECORD.gold))
    assert exactly(output, record.gold)
    assert parse_answer(output, record.options) == (record.gold, "letter")
    assert same_photo(record.options[1], record.gold)
    assert failure(output, record, stopped=True) is None
    assert failure(output + " 네", record, stopped=True) == "right_option_with_extra_text"


def test_exact_match_includes_the_period_and_strips_both_sides() -> None:
    gold = RECORD.gold
    assert exactly("\nD) B가 올린 사진 속 커피잔. ", gold)
    assert not exactly("D) B가 올린 사진 속 커피잔", gold)
    assert not exactly("D) B가 올린 사진 속 커피잔. A", gold)


@pytest.mark.parametrize(
    ("output", "stopped", "expected"),
    [
        ("D) B가 올린 사진 속 커피잔.", True, None),
        (" D) B가 올린 사진 속 커피잔.\n", False, None),
        ("모르겠습니다.", True, "unparsable"),
        ("모르겠습니다.", False, "unparsable"),
        ("A) B가 올린 사진 속 커피잔.", True, "wrong_letter_for_right_text"),
        ("정답은 A) B가 올린 사진 속 커피잔입니다.", False, "wrong_letter_for_right_text"),
        ("A) A가 올린 사진 속 책.", True, "wrong_option"),
        ("A", True, "wrong_option"),
        ("A) A가 올린 사진 속 책. D) B가 올린 사진 속 커피잔.", False, "wrong_option"),
        ("D) B가 올린 사진 속 커피잔. D) B가 올린 사진 속 커피잔.", True, "repeated_option"),
        ("D) B가 올린 사진 속 커피잔.\nD) B가 올린 사진 속 커피잔.\nD) B가", False, "repeated_option"),
        ("D) B가 올린 사진 속 커피잔.\n## Conversation\nA: '안녕", False, "no_stop"),
        ("D) B가 올린 사진 속 커피잔.\nA) A가 올린 사진 속 책.\nD) B가 올린 사진 속 커피잔.", False, "no_stop"),
        ("D) B가 올린 사진 속 커피잔. 저거는 커피잔을 가리킵니다.", True, "right_option_with_extra_text"),
        ("D) B가 올린 사진 속 커피잔", True, "right_option_in_other_form"),
        ("정답은 D입니다.", True, "right_option_in_other_form"),
    ],
)
def test_why_an_output_is_no_exact_match(output: str, stopped: bool, expected: str | None) -> None:
    assert failure(output, RECORD, stopped=stopped) == expected
