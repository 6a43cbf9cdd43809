"""Items are read piece by piece as if the file had been read at once; what is not a list of records is told by its kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcoref.data import items as items_module
from mmcoref.data.file import read_records, stream_records
from mmcoref.data.items import Items
from mmcoref.errors import UserError
from tests.data.test_record import GOOD, refusal, write

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
BLANK = st.sampled_from(["", " ", "\n", "\r\n\t", "  \n \n"])


def in_pieces(raw: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> Items:
    """The items of a file that gives so many bytes at a time."""

    class Slow(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    monkeypatch.setattr(items_module, "_PIECE", size)
    return Items("x", Slow(raw))


def outcome(items: Items) -> Any:
    """All items, or the message."""
    try:
        return [str(item) if isinstance(item, ValueError) else item for item in items]
    except UserError as error:
        return str(error)


@settings(deadline=None, max_examples=30)
@given(values=st.lists(VALUES.filter(lambda value: not isinstance(value, str)), max_size=4), blank=BLANK, size=st.integers(1, 40))
def test_a_list_in_pieces_is_the_list(values: list[Any], blank: str, size: int) -> None:
    raw = (blank + "[" + f"{blank},{blank}".join(map(json.dumps, values)) + "]" + blank).encode()
    with pytest.MonkeyPatch.context() as patch:
        items = in_pieces(raw, size, patch)
        assert outcome(items) == values
        assert items.sha256 == hashlib.sha256(raw).hexdigest()


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=1, max_size=4), size=st.integers(1, 40))
def test_lines_and_strings_in_pieces_are_the_objects(values: list[Any], size: int) -> None:
    strings = [json.dumps(value, ensure_ascii=False) for value in values]
    with pytest.MonkeyPatch.context() as patch:
        assert outcome(in_pieces(json.dumps(strings, ensure_ascii=False).encode(), size, patch)) == values
        if len(values) > 1 or not any(isinstance(value, (list, dict)) for value in values[0].values()):
            assert outcome(in_pieces("\n".join(strings).encode(), size, patch)) == values


BROKEN = [
    "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1] x", "[tru]", '["a]', '["\\x"]', "[1\n,\n2\n", "[-]", "[1e]", '[{"a":}]', '[{"a" 1}]',
    '["a\nb"]', "[" * 3000, "[1,\n  [2,\n   3}", '["\\ud83d\\u"]', "[" + "9" * 5000 + "]",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_is_told_with_the_standard_librarys_words_and_place(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        json.loads(text)
        raise AssertionError("not broken")
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except RecursionError:
        where = "nested too deeply"
    except ValueError:
        where = "a number of too many digits"
    for size in (1, 2, 3, 7, 19, 10_000):
        assert outcome(in_pieces(text.encode(), size, monkeypatch)) == f"x: expected a JSON list or JSON Lines, got broken JSON: {where}."


def test_a_broken_list_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO(b"[1, 2, oops, " + b"3, " * 10_000 + b"4]")
    monkeypatch.setattr(items_module, "_PIECE", 100)
    with pytest.raises(UserError, match="Expecting value, line 1, column 8"):
        list(Items("x", file))
    assert file.tell() == 100


def test_no_more_than_a_piece_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items_module, "_PIECE", 1000)
    for raw in (json.dumps([{"a": i} for i in range(5000)]).encode(), b'{"a": 1}\n' * 5000):
        items = Items("x", io.BytesIO(raw))
        longest = 0
        for _ in items:
            longest = max(longest, len(items._text.buffer))
        assert 1000 <= longest <= 2100


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("raw", "byte", "offset"), [(b'["\xea\xb0"]', "ea", 2), (b'\xef\xbb\xbf["a\xff"]', "ff", 6), (b"[1]\xec", "ec", 3)]
)
def test_a_byte_that_is_no_utf8_is_told_with_its_offset_in_the_file(
    raw: bytes, byte: str, offset: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"x: expected UTF-8 text, got byte 0x{byte} at offset {offset}; save it as UTF-8."
    assert outcome(in_pieces(raw, size, monkeypatch)) == said


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def feed() -> None:
        with (tmp_path / "pipe").open("w", encoding="utf-8") as pipe:
            for _ in range(3):
                pipe.write(json.dumps(GOOD) + "\n")
                pipe.flush()

    feeder = threading.Thread(target=feed)
    feeder.start()
    with stream_records(str(tmp_path / "pipe")) as stream:
        assert len(list(stream)) == 3
    feeder.join()
    assert stream.form == "JSON Lines"


def test_a_disk_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    assert outcome(Items("x", Failing())) == "x: cannot be read: Input/output error."


# One object instead of a list.

WRAPPED: dict[str, tuple[Any, str]] = {
    "under a key": ({"version": 2, "data": [GOOD] * 3}, '"data"'),
    "under two": ({"about": {"year": 2025}, "data": {"licence": "x", "train": [GOOD], "test": [GOOD]}}, '"data"."train"'),
    "empty": ({"data": []}, '"data"'),
    "of strings": ({"data": [json.dumps(GOOD)] * 3}, '"data"'),
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_list_inside_an_object_is_found(name: str, indent: int | None, tmp_path: Path) -> None:
    value, where = WRAPPED[name]
    assert refusal(write(tmp_path, json.dumps(value, indent=indent))) == (
        f"expected a JSON list or JSON Lines, got one JSON object, in which the list is under {where}: save that list as a file of its own."
    )


def test_a_list_inside_an_object_longer_than_a_piece_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items_module, "_PIECE", 500)
    monkeypatch.setattr(items_module, "_HEAD", 700)
    assert 'the list is under "data"' in refusal(write(tmp_path, json.dumps({"data": [GOOD] * 30})))


def test_a_record_of_several_lines_is_told(tmp_path: Path) -> None:
    said = (
        "expected a JSON list or JSON Lines, got a JSON object of several lines: put each record on a line of its own, or all of them "
        "into one list, [ … ]."
    )
    record = json.dumps(GOOD, indent=1)
    for text in (record, f"{record}\n{record}\n", '{\n"id": 3}'):
        assert refusal(write(tmp_path, text)) == said


def test_json_lines_that_begin_with_an_object_are_json_lines(tmp_path: Path) -> None:
    line = json.dumps(GOOD)
    tagged = json.dumps({"tags": ["a"]} | GOOD)
    for text in (line, tagged, f"{tagged}\n{line}\n"):
        assert read_records(write(tmp_path, text)).records
    foreign = json.dumps({"messages": [1]})
    assert refusal(write(tmp_path, f"{foreign}\n{line}")).startswith("1 of 2 records are not valid")
    assert refusal(write(tmp_path, "{'a': 1}\n" + line)).startswith("1 of 2 records are not valid")
    assert refusal(write(tmp_path, '{"a": 1}')).startswith("1 of 1 records are not valid")


# Texts that no record may hold.


@pytest.mark.parametrize("form", ["list", "lines", "strings"])
def test_a_key_of_two_values_is_refused(form: str, tmp_path: Path) -> None:
    twice = json.dumps(GOOD)[:-1] + ', "problem": "다른 질문?", "note": 1, "note": 2}'
    same = json.dumps(GOOD)[:-1] + f', "problem": {json.dumps(GOOD["problem"])}, "note": 1, "note": 2}}'
    items = {"list": lambda *some: f"[{','.join(some)}]", "lines": lambda *some: "\n".join(some), "strings": lambda *some: json.dumps(some)}
    assert refusal(write(tmp_path, items[form](json.dumps(GOOD), twice, same))) == (
        "1 of 3 records are not valid (indices count from 0); mend or remove them:\n"
        "  record 1, problem: expected one value, got several that differ"
    )
    assert len(read_records(write(tmp_path, items[form](same, same))).records) == 2


SOMEWHERE = {
    "image_descriptions.1": {"image_descriptions": [GOOD["image_descriptions"][0], "B의 사진: {}"]},
    "conversation.1": {"conversation": [GOOD["conversation"][0], "B: {}"]},
    "problem": {"problem": "{}"},
    "choices.3": {"choices": [*GOOD["choices"][:3], "D) {}"]},
    "id": {"id": "{}"},
}


def filled(field: str, text: str) -> dict[str, Any]:
    changes = json.loads(json.dumps(SOMEWHERE[field]).replace("{}", json.dumps(text)[1:-1]))
    return GOOD | changes


@pytest.mark.parametrize("field", SOMEWHERE)
def test_a_nul_is_refused_in_every_field(field: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, json.dumps([GOOD, filled(field, "컵\0모자")])))
    assert f"record 1, {field}: expected a text without NUL characters, got " in message
    assert "\0" not in message


@pytest.mark.parametrize("heading", ["## Solution", "## Conversation", " ##  Problem", "## Choices"])
@pytest.mark.parametrize("around", ["말\n{}\n정답", "말\r\n{}", "말\u2028{}: A"])
@pytest.mark.parametrize("field", SOMEWHERE)
def test_a_line_with_a_heading_of_the_prompt_is_refused(field: str, around: str, heading: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, json.dumps([filled(field, around.format(heading))])))
    assert f"record 0, {field}: expected a text without a line that begins with a heading of the prompt, got " in message


@pytest.mark.parametrize("text", ["우리 ## Solution 컵", "## Solutions", "# Solution", "말\n### Solution"])
def test_a_heading_inside_a_line_is_no_heading(text: str, tmp_path: Path) -> None:
    assert read_records(write(tmp_path, json.dumps([filled("problem", text), filled("conversation.1", text)]))).records


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000\t"])
def test_a_blank_question_is_refused(blank: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, json.dumps([filled("problem", blank)])))
    assert message.endswith(
        f"record 0, problem: expected a question, got {json.dumps(blank, ensure_ascii=False)}".replace("\u3000", "\u3000")
    )
