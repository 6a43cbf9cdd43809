"""Answers in sentences: the table by grammatical kind, the laws, ambiguity, the published file, and hostile text."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import LETTERS, Option, Record, owner_of
from mmcoref.evaluation.answer import failure, parse_answer
from mmcoref.evaluation.metrics import judge
from tests.evaluation.answer_table import KINDS, Case


def options_of(*bodies: str) -> tuple[Option, ...]:
    texts = [f"{letter}) {body}" for letter, body in zip(LETTERS, bodies, strict=True)]
    return tuple(Option(letter, text, owner_of(text)) for letter, text in zip(LETTERS, texts, strict=True))


OPTIONS = options_of("A가 올린 사진 속 책", "B가 올린 사진 속 컵", "B가 올린 사진 속 컵 받침", "B가 올린 사진 속 커피잔")
README = options_of("A가 올린 사진 속 자서전", "A가 올린 사진 속 캠핑 의자", "B가 올린 사진 속 아메리카노", "B가 올린 사진 속 취침등")
CASES = [case for cases in KINDS.values() for case in cases]


def read(output: str, options: tuple[Option, ...] = OPTIONS) -> tuple[str | None, str]:
    option, found_by = parse_answer(output, options)
    return option.letter if option else None, found_by


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_forms(kind: str) -> None:
    expected = {output: (letter, found_by) for output, letter, found_by in KINDS[kind]}
    assert {output: read(output) for output in expected} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_spaces_and_decoration_do_not_matter(kind: str) -> None:
    for output, *expected in KINDS[kind]:
        changed = {
            "NFD": unicodedata.normalize("NFD", output),
            "full width": output.translate({ord(sign): chr(ord(sign) + 0xFEE0) for sign in "ABCD():.,"}),
            "spaces": f" \n {output.replace(' ', '   ')}\n\n ",
            "Windows lines": output.replace("\n", "\r\n"),
            "line separators": output.replace("\n", "\u2028"),
            "no-break spaces": output.replace(" ", "\u00a0"),
            "bold": f"**{output}**",
            "quoted": f"“{output}”",
            "invisible": "\ufeff" + "\u200b".join(output),
            "run on": f"{output}\n## Conversation\nA: '안녕'\n## Solution\n정답은 B) B가 올린 사진 속 컵입니다.",
        }
        for change, text in changed.items():
            assert (change, *read(text)) == (change, *expected), text


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_options_does_not_matter(kind: str) -> None:
    for output, *expected in KINDS[kind]:
        assert [*read(output, OPTIONS[::-1])] == expected
        assert [*read(output, (OPTIONS[2], OPTIONS[0], OPTIONS[3], OPTIONS[1]))] == expected


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("정답은 B다.", "B"),
        ("B였습니다", "B"),
        ("최종 답변: B", "B"),
        ("캠핑 의자입니다", "B"),
        ("캠핑의자예요", "B"),
        ("A의 캠핑 의자입니다.", "B"),
        ("정답은 D가 아니라 B입니다", "B"),
        ("B이지 D가 아니다", "B"),
        ("The answer is B", "B"),
        ("A는 자서전, D는 취침등이다. 앉는 것은 의자다.</think>\n\nB", "B"),
        ("A. 자서전은 책이므로 제외됩니다. 정답: B", "B"),
        ("자서전은 읽는 것이고, 앉을 수 있는 것은 캠핑 의자입니다.", "B"),
        ("B의 캠핑 의자입니다.", None),  # nobody's
        ("의자입니다.", None),  # no option's noun
        ("자서전과 캠핑 의자입니다.", None),
    ],
)
def test_the_dialogue_of_the_readme(output: str, letter: str | None) -> None:
    assert read(output, README)[0] == letter


# Nouns that two options share, or that contain each other.


def test_a_noun_that_two_options_share_needs_its_owner_or_letter() -> None:
    shared = options_of("A가 올린 사진 속 컵", "A가 올린 사진 속 책", "B가 올린 사진 속 컵", "B의 그림")
    assert read("컵입니다.", shared) == (None, "unparsable")
    assert read("정답은 컵입니다.", shared) == (None, "unparsable")
    assert read("B의 컵입니다.", shared) == ("C", "option_text")
    assert read("A가 올린 컵입니다.", shared) == ("A", "option_text")
    assert read("정답은 B 사진의 컵입니다.", shared) == ("C", "conclusion")
    assert read("정답은 C. 컵입니다.", shared) == ("C", "conclusion")
    assert read("컵입니다. B의 컵이요.", shared) == ("C", "option_text")
    assert read("그림입니다.", shared) == ("D", "option_text")
    assert read("A의 그림입니다.", shared) == (None, "unparsable")


def test_the_longest_noun_is_meant() -> None:
    nested = options_of("A가 올린 사진 속 의자", "A가 올린 사진 속 캠핑 의자", "B의 캠핑", "B가 올린 사진 속 의자 다리")
    for noun, letter in (("의자", "A"), ("캠핑 의자", "B"), ("캠핑", "C"), ("의자 다리", "D")):
        for form in ("{}", "{}입니다.", "정답은 {}였습니다.", "'저거'는 {}를 가리킵니다.", "{}가 맞습니다."):
            assert read(form.format(noun), nested)[0] == letter


def test_a_letter_as_a_noun_is_a_letter() -> None:
    letters = options_of("A가 올린 사진 속 D", "A가 올린 사진 속 A", "B가 올린 사진 속 B", "B가 올린 사진 속 C")
    assert read("D", letters) == ("D", "letter")
    assert read("정답은 A입니다.", letters) == ("A", "conclusion")
    assert read("A가 올린 사진 속 D입니다.", letters) == ("A", "option_text")


def test_an_options_own_period_is_no_part_of_its_text() -> None:
    closed = options_of("A가 올린 사진 속 책.", "B가 올린 사진 속 컵。", "B가 올린 사진 속 모자.", "B가 올린 사진 속 옷.")
    assert read(answer_text(closed[1]), closed) == ("B", "letter")
    assert read("정답은 B가 올린 사진 속 컵입니다.", closed) == ("B", "conclusion")
    assert read("모자입니다.", closed) == ("C", "option_text")


def test_decomposed_options_are_found_in_composed_answers() -> None:
    decomposed = options_of(*(unicodedata.normalize("NFD", option.body) for option in OPTIONS))
    for output, *expected in CASES:
        assert [*read(output, decomposed)] == expected


# Laws.

ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
NOUNS = st.text("가나다라마바사차카파하책컵옷이은", min_size=1, max_size=4)
CONTAINING = st.lists(NOUNS, min_size=4, max_size=4).map(lambda parts: ["".join(parts[: i + 1]) for i in range(4)])  # each begins the next


@settings(deadline=None)
@given(bodies=st.lists(ANY, min_size=4, max_size=4) | CONTAINING, place=st.integers(0, 3), form=st.sampled_from(["NFC", "NFD"]))
def test_an_option_that_is_written_out_is_read_back_whatever_its_text(bodies: list[str], place: int, form: str) -> None:
    options = options_of(*bodies)
    written = unicodedata.normalize(form, answer_text(options[place]))
    for output in (written, f"\n {written} \n", f"**{written}**", written.replace(" ", "  ")):
        assert parse_answer(output, options) == (options[place], "letter")


SENTENCES = (
    "{text}.",
    "{letter}였습니다.",
    "정답은 {letter}이다.",
    "정답은 {text}였습니다.",
    "최종 답변: {body}",
    "{body}입니다.",
    "{letter}가 맞습니다.",
    "{letter}를 선택하겠습니다.",
    "정답은 {other}가 아니라 {letter}입니다.",
    "{other}. 제외됩니다.\n정답: {letter}",
    "{other_body}이 아니라 {body}입니다.",
    "The answer is not {other} but {letter}.",
    "<think>{other}</think>{letter}",
    r"\boxed{{{letter}}}",
)
BODIES = st.builds("{}가 올린 사진 속 {}".format, st.sampled_from("AB"), NOUNS)


@settings(deadline=None)
@given(
    bodies=st.lists(BODIES, min_size=4, max_size=4, unique=True),
    places=st.permutations(range(4)),
    order=st.permutations(range(4)),
    form=st.sampled_from(SENTENCES),
)
def test_permuting_the_options_permutes_the_answer(bodies: list[str], places: list[int], order: list[int], form: str) -> None:
    def answered(options: tuple[Option, ...], chosen: Option, other: Option) -> Option | None:
        output = form.format(text=chosen.text, letter=chosen.letter, body=chosen.body, other=other.letter, other_body=other.body)
        return parse_answer(output, options).option

    before, after = options_of(*bodies), options_of(*(bodies[i] for i in order))
    place, other = places[:2]
    assert answered(before, before[place], before[other]) == before[place]
    assert answered(after, after[order.index(place)], after[order.index(other)]) == after[order.index(place)]


@settings(deadline=None, max_examples=60)
@given(
    pair=st.permutations(range(4)).map(lambda places: places[:2]),
    join=st.sampled_from([", ", " 또는 ", "와 ", "나 ", " 혹은 ", "/", " 아니면 ", " or ", " and "]),
    name=st.sampled_from(["letter", "text", "body"]),
    form=st.sampled_from(["{}", "{}입니다.", "정답은 {}입니다.", "정답: {}", "{}가 정답입니다.", "{} 중 하나입니다.", "The answer is {}."]),
)
def test_two_options_without_a_conclusion_are_no_answer(pair: list[int], join: str, name: str, form: str) -> None:
    one, other = (getattr(OPTIONS[place], name) for place in pair)
    assert read(form.format(one + join + other)) == (None, "unparsable")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([case[0] for case in CASES] + list("ABCD가이은는다.,?!:()[]{}<>\n '*-#") + ["</think>", "<think>", "사진 속"]))
)
def test_any_text_is_read_without_an_error(parts: list[str]) -> None:
    option, found_by = parse_answer("".join(parts), OPTIONS)
    assert (option is None) == (found_by == "unparsable")


# The published file.

TEMPLATES = (
    "{text}.",
    "{letter}였습니다.",
    "{letter}) {noun}",
    "**{letter})** {body}",
    "정답은 {text}입니다.",
    "최종 답변: {letter}",
    "{body}",
    "{body}일 것입니다.",
    "'저거'는 {body}를 가리킵니다.",
    "{body}이 정답입니다.",
    "{letter}를 선택하겠습니다.",
    "정답은 {other}가 아니라 {letter}입니다.",
    "{other_body}이 아니라 {body}입니다.",
    "{other}. {other_noun}은 아니므로 제외됩니다. 정답: {letter}",
    "The answer is {letter}.",
    "<think>{other}? {other_body}</think>\n\n{letter}",
    "{noun}입니다.",
    "정답은 {noun}입니다.",
)


def noun(option: Option) -> str:
    return option.body.partition("사진 속 ")[2] or option.body


def test_every_published_gold_answer_is_read_back(published) -> None:
    for record in (*published.train, *published.test):
        gold = record.gold
        assert parse_answer(answer_text(gold), record.options) == (gold, "letter")
        assert judge(answer_text(gold), record).exact_match


def test_sentences_about_every_published_gold_option_are_read_back(published) -> None:
    for record in (*published.train[::4], *published.test):
        gold, other = record.gold, next(option for option in record.options if option != record.gold)
        bodies = [option.body for option in record.options]
        nouns = [noun(option).replace(" ", "") for option in record.options]
        if bodies.count(gold.body) > 1:
            continue  # two options with one text
        words = {"text": gold.text, "letter": gold.letter, "body": gold.body, "noun": noun(gold)}
        words |= {"other": other.letter, "other_body": other.body, "other_noun": noun(other)}
        for template in TEMPLATES:
            if "{noun}" in template and "{letter}" not in template and nouns.count(noun(gold).replace(" ", "")) > 1:
                continue
            output = template.format(**words)
            assert parse_answer(output, record.options).option == gold, output


# Time.

HOSTILE = (
    *("A) 정답은 ", "A) ", "A.", "D 또는 ", "정답은 ", "정답\n", "D 정답\n", "정답 바로\n", "A 즉 ", "not the ", "final "),
    *("커피잔, ", "B가 올린 사진 속 커피잔 ", "A의 ", "하지 ", "지", "일 수도 있 ", "A) 책\nB) ", "맞맞맞면 "),
    *("<think>", "</think>", "\\boxed{\\a{", " ", "\n", "\n ", "* ", "\u0300\u0323", "a"),
)


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_text_takes_linear_time(part: str) -> None:
    """20,000 characters are more than any model writes here; what grows with their square takes seconds."""
    output = (part * 20_000)[:20_000]
    seconds = []
    for _ in range(3):  # the machine may have paused
        started = time.process_time()
        parse_answer(output, OPTIONS)
        seconds.append(time.process_time() - started)
        if seconds[-1] < 0.8:
            return
    assert min(seconds) < 0.8


# Reasons.

RECORD = Record(
    image_descriptions=("A의 사진: 책이 있다.", "B의 사진: 컵과 커피잔이 있다."),
    conversation=("A: '책 샀어.'", "B: '나는 카페야.'", "A: '저거 예쁘다.'"),
    problem="마지막 A의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
    choices=tuple(option.text for option in OPTIONS),
    solution=OPTIONS[3].text,
)


@pytest.mark.parametrize(
    ("output", "stopped", "expected"),
    [
        ("<think>음</think>\n\nD) B가 올린 사진 속 커피잔.", True, "right_option_with_extra_text"),
        ("<think>음</think>\n\nD", True, "right_option_in_other_form"),
        ("<think>정답은 D", False, "unparsable"),
        ("커피잔입니다.", True, "right_option_in_other_form"),
        ("A) 커피잔.", True, "wrong_option"),  # the noun alone is not the gold text
        ("정답은 A가 아니라 D입니다.", True, "right_option_in_other_form"),
        ("정답은 D가 아니라 A) B가 올린 사진 속 커피잔입니다.", True, "wrong_letter_for_right_text"),
        ("A. 책은 읽는 것이므로 제외됩니다. 정답: D", False, "no_stop"),
        ("B가 올린 사진 속 커피잔입니다. B가 올린 사진 속 커피잔이요.", True, "repeated_option"),
        ("책입니다. 커피잔입니다.", True, "unparsable"),
        ("B가 올린 사진 속 커피잔이 아니라고 했지만, B가 올린 사진 속 커피잔입니다.", True, "right_option_in_other_form"),
    ],
)
def test_why_a_sentence_is_no_exact_match(output: str, stopped: bool, expected: str) -> None:
    assert failure(output, RECORD, stopped=stopped) == expected


def test_no_case_is_there_twice() -> None:
    outputs: list[Case] = [case for cases in KINDS.values() for case in cases]
    assert len({output for output, _, _ in outputs}) == len(outputs) > 2 * 108
