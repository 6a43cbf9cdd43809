"""Three forms of one file, every message word for word, and what the published file holds."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data.file import dump_records, read_records
from mmcoref.data.record import LETTERS, Option, Record, owner_of, speaker_of
from mmcoref.errors import UserError

GOOD: dict[str, Any] = {
    "image_descriptions": ["A의 사진: 탁자 위", "B의 사진: 창가 곁"],
    "conversation": ["A: '찍었어.'", "B: 나도."],
    "problem": "'저거'는?",
    "choices": ["A) A가 올린 컵", "B) A가 올린 모자", "C) B의 기타", "D) 화분"],
    "solution": "C) B의 기타",
}
PUBLISHED_AT = (
    "The published file is at github.com/MMC-K/multimodal_dialogue_coreference_resolution (data/ai_responses.json): "
    "download it and name its place, or say `sample` for generated dialogues."
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
UTTERANCE = st.tuples(st.sampled_from("AB"), TEXT.filter(lambda text: not text[0].isspace())).map(": ".join)
BODIES = st.lists(TEXT.filter(str.strip), min_size=4, max_size=4)


@st.composite
def any_record(draw: st.DrawFn, *, solved: bool) -> Record:
    choices = tuple(f"{letter}) {body}" for letter, body in zip(LETTERS, draw(BODIES), strict=True))
    return Record(
        image_descriptions=(f"A의 사진:{draw(TEXT)}", f"B의 사진:{draw(TEXT)}"),
        conversation=tuple(draw(st.lists(UTTERANCE, min_size=2, max_size=5))),
        problem=draw(TEXT.filter(str.strip)),
        choices=choices,  # type: ignore[arg-type]
        solution=draw(st.sampled_from(choices) if solved else st.none() | st.sampled_from(choices)),
        id=draw(st.none() | st.integers() | TEXT),
    )


def write(folder: Path, content: str | bytes, name: str = "data.json") -> str:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def refusal(path: str) -> str:
    """The message, without the path that it begins with."""
    with pytest.raises(UserError) as caught:
        read_records(path)
    head, colon, message = str(caught.value).partition(": ")
    assert (head, colon) == (path, ": ")
    return message


def complaints(folder: Path, *items: object) -> list[str]:
    """The lines about single records, of a list of objects; each line's indent removed."""
    head, *lines = refusal(write(folder, json.dumps(items))).split("\n")
    bad = len({line.split(",")[0] for line in lines})
    assert head == f"{bad} of {len(items)} records are not valid (indices count from 0); mend or remove them:"
    assert all(line.startswith("  ") for line in lines)
    return [line[2:] for line in lines]


def as_strings(items: list[Any]) -> str:
    return json.dumps([json.dumps(item, ensure_ascii=False) for item in items], ensure_ascii=False)


def as_objects(items: list[Any]) -> str:
    return json.dumps(items, ensure_ascii=False, indent=2)


def as_lines(items: list[Any]) -> str:
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)


def as_lines_of_strings(items: list[Any]) -> str:
    return "\n".join(json.dumps(json.dumps(item, ensure_ascii=False), ensure_ascii=False) for item in items)


def with_bom(items: list[Any]) -> str:
    return "\N{BYTE ORDER MARK}" + as_strings(items)


def lines_with_bom(items: list[Any]) -> str:
    return "\N{BYTE ORDER MARK}" + as_lines(items)


def with_blank_lines(items: list[Any]) -> str:
    return "\n \n" + as_lines(items).replace("\n", "\n\n\t\n") + "\n\n"


def with_windows_line_ends(items: list[Any]) -> str:
    return as_lines(items).replace("\n", "\r\n") + "\r\n"


@pytest.mark.parametrize(
    "form",
    [
        as_strings,
        as_objects,
        as_lines,
        as_lines_of_strings,
        with_bom,
        lines_with_bom,
        with_blank_lines,
        with_windows_line_ends,
    ],
)
def test_every_form_of_a_file_gives_equal_records(form: Callable[[list[Any]], str], dialogues: tuple[Record, ...], tmp_path: Path) -> None:
    content = form([record.model_dump(mode="json") for record in dialogues])
    read = read_records(write(tmp_path, content))
    assert read.records == dialogues
    assert read.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert read.path == str(tmp_path / "data.json")


@settings(deadline=None, max_examples=60)
@given(records=st.lists(any_record(solved=False), min_size=1, max_size=3))
def test_what_is_dumped_is_read_back(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    plain = [record.model_dump(mode="json") for record in records]
    for content in (dump_records(records), as_objects(plain), as_lines(plain)):
        assert read_records(write(folder, content, "property.json"), require_solution=False).records == tuple(records)


def test_the_dump_has_the_published_form(dialogues: tuple[Record, ...]) -> None:
    strings = json.loads(dump_records(dialogues))
    assert [type(string) for string in strings] == [str] * 12
    fields = ["image_descriptions", "conversation", "problem", "choices", "solution"]
    assert [list(json.loads(string)) for string in strings] == [fields] * 12
    assert "카페" in dump_records(dialogues)


def test_unknown_fields_are_left_aside_and_an_id_is_kept(tmp_path: Path) -> None:
    (record,) = read_records(write(tmp_path, as_objects([GOOD | {"source": "x", "id": "k-1"}]))).records
    assert record == Record(**GOOD, id="k-1")
    assert "source" not in record.model_dump()


CAPTIONS, TURNS, FOUR, ONE_OF = (
    "a list of two captions",
    "a list of at least two utterances",
    "a list of four options",
    "one of the four choices",
)


@pytest.mark.parametrize(
    ("field", "form"),
    [("image_descriptions", CAPTIONS), ("conversation", TURNS), ("problem", "a question"), ("choices", FOUR), ("solution", ONE_OF)],
)
def test_a_missing_field_is_named(field: str, form: str, tmp_path: Path) -> None:
    item = {key: value for key, value in GOOD.items() if key != field}
    assert complaints(tmp_path, GOOD, item) == [f"record 1, {field}: expected {form}, got nothing"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_descriptions", "A의 사진: x", f'{CAPTIONS}, got "A의 사진: x"'),
        ("image_descriptions", ["A의 사진: x", "B의 사진: y", "z"], f'{CAPTIONS}, got ["A의 사진: x", "B의 사진: y", "z"]'),
        ("image_descriptions", ["B의 사진: y", "A의 사진: x"], "caption A to start with 'A의 사진:', got \"B의 사진: y\""),
        ("image_descriptions", ["A의 사진: x", "B 사진: y"], "caption B to start with 'B의 사진:', got \"B 사진: y\""),
        ("conversation", None, f"{TURNS}, got null"),
        ("conversation", {"A": "x"}, f'{TURNS}, got {{"A": "x"}}'),
        ("conversation", ["A: x"], f'{TURNS}, got ["A: x"]'),
        ("conversation", ["A: x", "C: y"], "utterance 2 to start with 'A: ' or 'B: ', got \"C: y\""),
        ("conversation", ["A: x", "B: y", "A:z"], "utterance 3 to start with 'A: ' or 'B: ', got \"A:z\""),
        ("conversation", ["A: ", "B: y"], "utterance 1 to start with 'A: ' or 'B: ', got \"A: \""),
        ("problem", 3, "a string, got 3"),
        ("problem", None, "a string, got null"),
        ("problem", ["x"], 'a string, got ["x"]'),
        ("problem", "", 'a string that is not empty, got ""'),
        ("choices", "x", f'{FOUR}, got "x"'),
        ("choices", [*GOOD["choices"], "E) x"], f'{FOUR}, got ["A) A가 올린 컵", "B) A가 올린 모자", "C) B의 기타", "D) 화분", "E) x"]'),
        ("choices", ["B) x", "A) y", "C) z", "D) w"], "option A to start with 'A) ' and a text, got \"B) x\""),
        ("choices", ["A) x", "B) y", "D) z", "C) w"], "option C to start with 'C) ' and a text, got \"D) z\""),
        ("choices", ["A) x", "B)y", "C) z", "D) w"], "option B to start with 'B) ' and a text, got \"B)y\""),
        ("choices", ["A) x", "B) y", "C) z", "D)  "], "option D to start with 'D) ' and a text, got \"D)  \""),
        ("solution", 2, "a string, got 2"),
        ("solution", "", 'a string that is not empty, got ""'),
        ("solution", "C", f'{ONE_OF}, got "C"'),
        ("solution", "C) B의 기타.", f'{ONE_OF}, got "C) B의 기타."'),
        ("solution", None, f"{ONE_OF}, got nothing"),
    ],
)
def test_a_wrong_field_is_told_with_what_was_expected_and_what_came(field: str, value: object, said: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD, GOOD, GOOD | {field: value}) == [f"record 2, {field}: expected {said}"]


def test_a_short_list_is_told_as_a_whole(tmp_path: Path) -> None:
    two = GOOD | {"choices": GOOD["choices"][:2]}
    assert complaints(tmp_path, two) == [f"record 0, choices: expected {FOUR}, got a shorter one"]
    one = GOOD | {"image_descriptions": GOOD["image_descriptions"][:1]}
    assert complaints(tmp_path, one) == [f"record 0, image_descriptions: expected {CAPTIONS}, got a shorter one"]


def test_a_wrong_element_is_named_by_its_place(tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD | {"choices": [*GOOD["choices"][:2], 7, ""]}) == [
        "record 0, choices.2: expected a string, got 7",
        'record 0, choices.3: expected a string that is not empty, got ""',
    ]


def test_an_utterance_that_is_no_string_gets_one_line(tmp_path: Path) -> None:
    # pydantic counts valid elements only: it adds that the list is too short, which it is not.
    assert complaints(tmp_path, GOOD | {"conversation": [1, "B: y"]}) == ["record 0, conversation.0: expected a string, got 1"]


@pytest.mark.parametrize(("value", "shown"), [([1], "[1]"), (1.5, "1.5"), (True, "true"), (1.0, "1.0")])
def test_an_id_that_is_neither_integer_nor_string_is_told_and_never_changed(value: object, shown: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD | {"id": value}) == [f"record 0, id: expected an integer or a string, got {shown}"]


def test_all_that_is_wrong_with_a_record_is_told_at_once(tmp_path: Path) -> None:
    assert complaints(tmp_path, {"problem": 1}) == [
        f"record 0, image_descriptions: expected {CAPTIONS}, got nothing",
        f"record 0, conversation: expected {TURNS}, got nothing",
        "record 0, problem: expected a string, got 1",
        f"record 0, choices: expected {FOUR}, got nothing",
    ]


@pytest.mark.parametrize(("item", "shown"), [(3, "3"), (None, "null"), ([1], "[1]")])
def test_an_item_that_is_no_object_is_shown(item: object, shown: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD, item) == [f"record 1, expected a JSON object, got {shown}"]


def test_a_long_value_is_cut_to_sixty_characters(tmp_path: Path) -> None:
    assert complaints(tmp_path, GOOD | {"solution": "x" * 58}) == [f'record 0, solution: expected {ONE_OF}, got "{"x" * 58}"']
    assert complaints(tmp_path, GOOD | {"solution": "x" * 59}) == [f'record 0, solution: expected {ONE_OF}, got "{"x" * 58}…']


BROKEN = "expected a JSON object, got \"{'a': 1}\" (Expecting property name enclosed in double quotes, line 1, column 2)"


def test_broken_json_in_one_string_is_told_with_its_place(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, json.dumps([json.dumps(GOOD), "{'a': 1}", json.dumps(GOOD)])))
    assert message == f"1 of 3 records are not valid (indices count from 0); mend or remove them:\n  record 1, {BROKEN}"


def test_broken_json_in_one_line_is_told_without_counting_blank_lines(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, f"{json.dumps(GOOD)}\n\n{{'a': 1}}\n"))
    assert message == f"1 of 2 records are not valid (indices count from 0); mend or remove them:\n  record 1, {BROKEN}"


def test_a_broken_list_is_told_with_its_place(tmp_path: Path) -> None:
    assert (
        refusal(write(tmp_path, '["{}",\n"{}"'))
        == "expected a JSON list or JSON Lines, got broken JSON: Expecting ',' delimiter, line 2, column 5."
    )


def test_nesting_beyond_all_measure_is_a_message(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "[" * 200_000)) == "expected a JSON list or JSON Lines, got broken JSON: nested too deeply."


def test_a_number_beyond_all_measure_is_a_message(tmp_path: Path) -> None:
    line = json.dumps(GOOD | {"id": 1}).replace('"id": 1', '"id": ' + "1" * 5000)
    said = "a number of too many digits"
    assert refusal(write(tmp_path, f"[{line}]")) == f"expected a JSON list or JSON Lines, got broken JSON: {said}."
    assert refusal(write(tmp_path, line)).endswith(f"… ({said})")


@pytest.mark.parametrize(("raw", "byte", "offset"), [(b"\xff\xfe[\x00", "ff", 0), ('["가'.encode("cp949"), "b0", 2)])
def test_other_encodings_are_told_by_their_first_byte(raw: bytes, byte: str, offset: int, tmp_path: Path) -> None:
    assert refusal(write(tmp_path, raw)) == f"expected UTF-8 text, got byte 0x{byte} at offset {offset}; save it as UTF-8."


@pytest.mark.parametrize("content", ["", " \n\n", "\N{BYTE ORDER MARK}", "[]"])
def test_a_file_without_records_is_refused(content: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path, content)) == "expected at least one record, got none."


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == "expected a data file, got a folder; name the file inside it."


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "[]") + "/x") == "cannot be read: Not a directory."


def test_a_missing_file_brings_up_the_one_with_nearly_its_name(tmp_path: Path) -> None:
    near = write(tmp_path, "[]", "ai_responses.json")
    write(tmp_path, "[]", "notes.txt")
    assert refusal(str(tmp_path / "ai_response.json")) == f"no such data file. Did you mean {near}? {PUBLISHED_AT}"


def test_a_missing_file_without_a_near_name_brings_up_none(tmp_path: Path) -> None:
    write(tmp_path, "[]", "notes.json")
    (tmp_path / "ai_responses.json").mkdir()  # a folder is no data file
    assert refusal(str(tmp_path / "ai_response.json")) == f"no such data file. {PUBLISHED_AT}"
    assert refusal(str(tmp_path / "nowhere" / "ai_response.json")) == f"no such data file. {PUBLISHED_AT}"


def test_only_the_first_twenty_bad_records_are_shown(tmp_path: Path) -> None:
    bad = GOOD | {"solution": "E"}
    head, *lines = refusal(write(tmp_path, as_strings([GOOD, *[bad] * 23, GOOD]))).split("\n")
    assert head == "23 of 25 records are not valid (indices count from 0); mend or remove them:"
    assert lines[:-1] == [f'  record {index}, solution: expected {ONE_OF}, got "E"' for index in range(1, 21)]
    assert lines[-1] == "  … and 3 more records"


def test_twenty_bad_records_are_all_shown(tmp_path: Path) -> None:
    lines = complaints(tmp_path, *[GOOD | {"solution": "E"}] * 20)
    assert lines == [f'record {index}, solution: expected {ONE_OF}, got "E"' for index in range(20)]


@pytest.mark.parametrize("gone", [{}, {"solution": None}])
def test_a_solution_may_be_missing_only_where_it_is_not_required(gone: dict[str, None], tmp_path: Path) -> None:
    item = {key: value for key, value in GOOD.items() if key != "solution"} | gone
    path = write(tmp_path, as_strings([item]))
    assert refusal(path).endswith("\n  record 0, solution: expected one of the four choices, got nothing")
    (record,) = read_records(path, require_solution=False).records
    assert record.solution is None
    with pytest.raises(ValueError, match=r"^this record has no solution$"):
        _ = record.gold


def test_a_wrong_solution_is_refused_even_where_none_is_required(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'record 0, solution: expected {ONE_OF}, got "E"'):
        read_records(write(tmp_path, as_strings([GOOD | {"solution": "E"}])), require_solution=False)


@pytest.mark.parametrize(
    ("option", "owner"),
    [
        ("A) A가 올린 사진 속 컵", "A"),
        ("A) B가 올린 사진 속 컵", "B"),
        ("D) A의 사진 속 컵", "A"),
        ("C) B의 사진 속 컵", "B"),
        # These name nobody, or somebody who is not one of the two.
        ("C) 관람객 중 한 명", None),
        ("C) 우주선", None),
        ("D) 영화관의 스크린", None),
        ("A) C가 올린 사진 속 컵", None),
        ("A) A는 컵", None),
        ("A) A 가 올린 사진 속 컵", None),
        ("B) 사진 속 A가 든 컵", None),
        ("E) A가 올린 사진 속 컵", None),
        ("A가 올린 사진 속 컵", None),
        ("A)A가 올린 사진 속 컵", None),
    ],
)
def test_the_owner_is_read_from_the_options_beginning(option: str, owner: str | None) -> None:
    assert owner_of(option) == owner


@pytest.mark.parametrize("option", ["A) B가 올린 사진 속 컵", "A) B의 사진 속 컵"])
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_the_owner_is_read_from_any_encoding(option: str, form: str) -> None:
    assert owner_of(unicodedata.normalize(form, option)) == "B"
    assert owner_of(unicodedata.normalize(form, option.replace("B", "Ｂ").replace(")", "）"))) == "B"
    assert owner_of(unicodedata.normalize(form, option.replace(" ", "\u3000"))) == "B"


def decomposed(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFD", value)
    return [decomposed(item) for item in value]


def test_a_decomposed_record_is_valid_and_kept_as_it_is() -> None:
    record = Record(**{name: decomposed(value) for name, value in GOOD.items()})
    assert record.image_descriptions == tuple(map(decomposed, GOOD["image_descriptions"]))
    assert record.choices == tuple(map(decomposed, GOOD["choices"]))
    assert [option.owner for option in record.options] == ["A", "A", "B", None]
    assert record.gold == record.options[2]


@pytest.mark.parametrize(
    "solution",
    [decomposed("C) B의 기타"), "Ｃ） B의 기타", "C) B의  기타 ", "C) Ｂ의 기타", "C)\u00a0B의 기\u200b타"],
)
def test_a_solution_in_another_encoding_becomes_the_choice_that_it_is(solution: str) -> None:
    record = Record(**GOOD | {"solution": solution})
    assert record.solution == "C) B의 기타"
    assert record.gold is record.options[2]
    other = Record(**GOOD | {"choices": [*GOOD["choices"][:2], solution, GOOD["choices"][3]]})
    assert other.gold is other.options[2]
    assert other.gold.owner == "B"


def test_marks_in_full_width_are_read_and_options_get_the_mark_of_the_published_form() -> None:
    record = Record(
        **GOOD
        | {
            "image_descriptions": ["Ａ의 사진： 탁자 위", "B의 사진: 창가 곁"],
            "conversation": ["Ａ： '찍었어.'", "Ｂ：\u3000나도."],
            "choices": ["Ａ） Ａ가 올린 컵", "B) A가 올린 모자", "Ｃ）\u3000B의 기타", "D) 화분"],
        }
    )
    assert record.choices == ("A) Ａ가 올린 컵", "B) A가 올린 모자", "C) B의 기타", "D) 화분")
    assert [option.owner for option in record.options] == ["A", "A", "B", None]
    assert record.gold.letter == "C"
    assert record.conversation == ("Ａ： '찍었어.'", "Ｂ：\u3000나도.")
    assert [speaker_of(utterance) for utterance in record.conversation] == ["A", "B"]


def test_options_are_letter_text_and_owner() -> None:
    record = Record(**GOOD)
    assert record.options == (
        Option("A", "A) A가 올린 컵", "A"),
        Option("B", "B) A가 올린 모자", "A"),
        Option("C", "C) B의 기타", "B"),
        Option("D", "D) 화분", None),
    )
    assert record.gold == Option("C", "C) B의 기타", "B")
    assert [option.body for option in record.options] == ["A가 올린 컵", "A가 올린 모자", "B의 기타", "화분"]


def test_the_published_file_is_what_its_description_says(published: tuple[Record, ...]) -> None:
    assert len(published) == 1726
    owners = [tuple(option.owner for option in record.options) for record in published]
    without = [index for index, four in enumerate(owners) if None in four]
    assert (sum(four.count(None) for four in owners), len(without)) == (9, 5)
    assert max(without) < 1380
    assert owners.count(("A", "A", "B", "B")) == 1419
    assert sum(four != ("A", "A", "B", "B") for four in owners[1380:]) == 26
    assert Counter(record.gold.letter for record in published[:1380]) == {"A": 407, "B": 123, "C": 280, "D": 570}
    assert Counter(record.gold.letter for record in published[1380:]) == {"A": 91, "B": 19, "C": 40, "D": 196}
