"""Records and examples as columns: what is asked for is what was put in, from memory or from the cache, whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mmcoref.data import encoding, records, table
from mmcoref.data.encode import Encoder
from mmcoref.data.example import Example
from mmcoref.data.examples import Examples
from mmcoref.data.examples import collect as collect_examples
from mmcoref.data.file import dump_records
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.order import orders
from mmcoref.data.record import Record
from mmcoref.data.records import Records, collect, open_records, sha256_of
from mmcoref.data.table import Columns, Table, build, cache_folder
from mmcoref.errors import UserError
from tests.data.test_record import any_record

SCHEMA = {"numbers": "int32", "text": "uint8", "nothing": "int64"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in which the tables of every file are kept."""
    monkeypatch.setattr(records, "SMALL", 0)
    monkeypatch.setenv(table.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(columns: Columns) -> dict[str, Any]:
    columns.write("numbers", [1, -2])
    columns.write("text", "가".encode())
    columns.write("numbers", np.array([3]))
    return {"said": "so"}


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("it was built again")


def same(made: Table) -> bool:
    return made["numbers"].tolist() == [1, -2, 3] and made["text"].tobytes() == "가".encode() and made.about == {"said": "so"}


def entries(cache: Path) -> list[Path]:
    """Tables in the cache, and what is left of some."""
    return sorted(path for path in cache.iterdir() if path.suffix != ".lock")


def test_a_table_is_what_was_written_in_memory_and_in_the_cache(cache: Path) -> None:
    memory = build(SCHEMA, fill, None)
    assert not cache.exists()
    kept, found = build(SCHEMA, fill, "key"), build(SCHEMA, never, "key")
    for made in (memory, kept, found, pickle.loads(pickle.dumps(memory)), pickle.loads(pickle.dumps(kept))):
        assert same(made)
        assert len(made["nothing"]) == 0
    for made in (memory, kept, found):
        with pytest.raises(ValueError, match="read-only"):
            made["numbers"][0] = 7
    assert isinstance(found["numbers"], np.memmap)
    assert len(pickle.dumps(kept)) < 300  # a path, not what is in the files
    assert entries(cache) == [cache / "key"]


def test_the_cache_is_where_the_variable_says_or_in_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOREF_CACHE", "~/somewhere")
    assert cache_folder() == Path("~/somewhere").expanduser()
    monkeypatch.delenv("MMCOREF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/mmcoref")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/mmcoref").expanduser()


@pytest.mark.parametrize("error", [UserError("bad"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_table_that_is_not_finished_is_not_there(error: BaseException, cache: Path) -> None:
    def stop(columns: Columns) -> dict[str, Any]:
        columns.write("numbers", [1])
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            build(SCHEMA, stop, "key")
        assert entries(cache) == []
    assert same(build(SCHEMA, fill, "key"))


def test_what_a_killed_process_left_is_removed_and_no_table(cache: Path) -> None:
    build(SCHEMA, fill, "other")
    left = table.temporary_of(cache / "key")
    left = left.with_name(left.name.replace(str(os.getpid()), "999999999"))
    left.mkdir()
    (left / "numbers").write_bytes(b"half")
    assert same(build(SCHEMA, fill, "key"))
    assert entries(cache) == [cache / "key", cache / "other"]


@pytest.mark.parametrize("damage", ["cut", "missing", "no meta", "bad meta", "list"])
def test_a_damaged_table_is_built_again(damage: str, cache: Path) -> None:
    build(SCHEMA, fill, "key")
    folder = cache / "key"
    if damage == "cut":
        os.truncate(folder / "numbers", 4)
    elif damage == "missing":
        (folder / "text").unlink()
    else:
        (folder / "meta.json").write_text({"no meta": "", "bad meta": "{}", "list": "[]"}[damage])
    assert same(build(SCHEMA, fill, "key"))
    assert same(build(SCHEMA, never, "key"))


def test_the_second_process_waits_says_so_and_maps(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While another process holds the lock it builds the table."""
    monkeypatch.setattr(table, "_PATIENCE", 0.01)
    cache.mkdir()
    held = FileLock(cache / "key.lock")
    held.acquire()

    def finish() -> None:
        table._written(cache / "key", SCHEMA, fill)
        held.release()

    class Telling(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            finish()

    handler = Telling()
    table.log.addHandler(handler)
    try:
        with caplog.at_level("INFO", logger=table.log.name):
            assert same(build(SCHEMA, never, "key"))
    finally:
        table.log.removeHandler(handler)
    assert f"another process is reading these data into {cache}: waiting for it" in caplog.messages


@pytest.mark.parametrize("place", ["write", "fsync", "mkdir"])
def test_a_disk_that_refuses_is_told_and_leaves_nothing(place: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"write": (Columns, "write"), "fsync": (os, "fsync"), "mkdir": (Path, "mkdir")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(UserError) as caught:
            build(SCHEMA, fill, "key")
    message = str(caught.value)
    assert message.startswith(f"{cache / 'key'}: could not be written: the disk is full")
    assert "make room, or choose another folder with MMCOREF_CACHE." in message
    assert not cache.exists() or entries(cache) == []


# Records.


@settings(deadline=None, max_examples=40)
@given(held=st.lists(any_record(solved=False), max_size=4))
def test_records_come_back_as_they_were(held: list[Record]) -> None:
    made = collect(held)
    assert list(made) == held
    assert made[:] == tuple(held)
    assert made[1:3] == tuple(held[1:3])
    assert [made[-i - 1] for i in range(len(held))] == held[::-1]
    assert made.gold.tolist() == [-1 if one.solution is None else one.choices.index(one.solution) for one in held]
    for beyond in (len(held), -len(held) - 1):
        with pytest.raises(IndexError):
            made[beyond]


def test_a_file_is_validated_once_and_found_again(
    cache: Path, data_file: Path, dialogues: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_records(str(data_file))
    assert (tuple(first.records), first.sha256, first.path) == (dialogues, sha256_of(str(data_file)), str(data_file))
    monkeypatch.setattr(records, "stream_records", never)
    again = open_records(str(data_file))
    assert tuple(again.records) == dialogues
    assert again.sha256 == first.sha256
    assert pickle.loads(pickle.dumps(again.records))[3] == dialogues[3]
    with pytest.raises(AssertionError, match="built again"):
        open_records(str(data_file), require_solution=False)


def test_another_file_has_records_of_its_own(cache: Path, dialogues: tuple[Record, ...], tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    for some in (dialogues[:5], dialogues[5:]):
        file.write_text(dump_records(some), "utf-8")
        assert tuple(open_records(str(file)).records) == some


def test_a_file_that_changes_while_it_is_read_is_refused(cache: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "sha256_of", lambda _: "0" * 64)
    with pytest.raises(UserError, match="it was changed while it was read"):
        open_records(str(data_file))
    assert entries(cache) == []


def test_bad_records_are_told_and_nothing_is_kept(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="2 of 2 records are not valid"):
        open_records(str(tmp_path / "bad.json"))
    assert entries(cache) == []


def test_a_small_file_leaves_no_trace(cache: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMALL", data_file.stat().st_size)
    assert len(open_records(str(data_file)).records) == 12
    assert not cache.exists()


# Examples.


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


def all_equal(made: Examples, expected: list[Example]) -> None:
    assert list(made) == expected
    assert made[1:3] == expected[1:3]
    assert made.tokens.tolist() == [one.tokens for one in expected]
    assert made.trained_tokens.tolist() == [one.trained_tokens for one in expected]
    assert made.answer_tokens.tolist() == [len(one.answer_ids) for one in expected]
    assert made.prompt_tokens.tolist() == [len(one.prompt_ids) for one in expected]
    assert made.gold.tolist() == [one.gold_place for one in expected]
    assert made.longest_answer == max(len(ids) for one in expected for ids in one.option_ids)
    assert made.largest_id == max(max(*one.prompt_ids, *(max(ids) for ids in one.option_ids)) for one in expected)


@pytest.mark.parametrize("kept", [False, True])
def test_examples_come_back_as_they_were(kept: bool, encoder: Encoder, dialogues: tuple[Record, ...], cache: Path, data_file: Path) -> None:
    held = open_records(str(data_file)).records if kept else collect(dialogues)
    indices = [7, 2, 11]
    expected = encoder.encode([(i, dialogues[i]) for i in indices]).examples
    for _ in range(2):
        made = encoding.encode_part(encoder, held, indices)
        all_equal(made, expected)
        assert made.indices.tolist() == indices
        asked = encoding.encode_orders(encoder, made, held, orders("cyclic"))
        all_equal(asked, list(encoder.in_orders(expected, orders("cyclic"))))
        assert encoding.encode_orders(encoder, made, held, orders("none")) is made
    all_equal(collect_examples(expected), expected)
    assert (made.table.folder is not None) == (asked.table.folder is not None) == kept


def test_what_was_trimmed_and_dropped_is_kept_too(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...], cache: Path, tmp_path: Path
) -> None:
    long = dialogues[1].model_copy(
        update={"conversation": (*dialogues[1].conversation[:2], "A: " + "정말 " * 60, *dialogues[1].conversation[2:])}
    )
    file = tmp_path / "data.json"
    file.write_text(dump_records([dialogues[0], long]), "utf-8")
    held = open_records(str(file)).records
    limit = max(one.tokens for one in Encoder(tokenizer).encode(list(enumerate(dialogues))).examples) + 5
    for _ in range(2):
        trims = Encoder(tokenizer, overlength="trim", max_tokens=limit)
        expected = trims.encode([(0, dialogues[0]), (1, long)])
        made = encoding.encode_part(trims, held, range(2))
        assert (list(made), made.dropped, made.trimmed) == (expected.examples, [], [1])
        assert made[1].record != long
        asked = encoding.encode_orders(trims, made, held, orders("cyclic"))
        assert list(asked) == list(trims.in_orders(expected.examples, orders("cyclic")))
        drops = encoding.encode_part(Encoder(tokenizer, overlength="drop", max_tokens=limit), held, range(2))
        assert ([one.index for one in drops], drops.dropped, drops.trimmed) == ([0], [1], [])
    for _ in range(2):
        with pytest.raises(UserError, match="1 records have more than"):
            encoding.encode_part(Encoder(tokenizer, max_tokens=limit), held, range(2))


CHANGES: dict[str, Any] = {
    "indices": lambda encoder, held: (encoder, held, [0, 2]),
    "max_tokens": lambda encoder, held: (Encoder(encoder.tokenizer, max_tokens=400), held, [0, 1]),
    "overlength": lambda encoder, held: (Encoder(encoder.tokenizer, overlength="drop"), held, [0, 1]),
    "recipe": lambda encoder, held: (Encoder(encoder.tokenizer, recipe="published"), held, [0, 1]),
    "tokenizer": lambda encoder, held: (Encoder(other_tokenizer(encoder.tokenizer)), held, [0, 1]),
}


def other_tokenizer(tokenizer: Any) -> Any:
    made = pickle.loads(pickle.dumps(tokenizer))
    made.add_tokens(["사진"])
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_ids_decides_the_key(change: str, encoder: Encoder, cache: Path, data_file: Path) -> None:
    held = open_records(str(data_file)).records
    key = encoding._part_key(encoder, held, [0, 1])
    assert key == encoding._part_key(Encoder(encoder.tokenizer), open_records(str(data_file)).records, range(2))
    assert key != encoding._part_key(*CHANGES[change](encoder, held))


def test_a_prompt_that_is_written_otherwise_is_encoded_again(
    encoder: Encoder, cache: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = open_records(str(data_file)).records
    key = encoding._part_key(encoder, held, [0])
    monkeypatch.setattr("mmcoref.data.encode.question_text", lambda _: "?")
    assert encoding._part_key(encoder, held, [0]) != key


def test_the_warning_of_an_encoding_is_given_when_it_is_found_again(
    cache: Path, data_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        caplog.clear()
        data = MMCorefDataModule(path=str(data_file), recipe="published")
        data.setup("fit")
        assert sum("tokenized apart" in record.getMessage() for record in caplog.records) >= 1
        monkeypatch.setattr(Encoder, "stream", never)


def test_a_datamodule_is_the_same_from_memory_and_from_the_cache(cache: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for small in (10**9, 0, 0):
        monkeypatch.setattr(records, "SMALL", small)
        data = MMCorefDataModule(path=str(data_file), val_size=2, shuffle_options=True)
        data.setup("fit")
        made.append([list(part) for part in (data.train, data.val, data.test)] + [list(data.train_dataloader().sampler)])
    assert made[0] == made[1] == made[2]
    assert isinstance(data.file.records, Records)  # type: ignore[union-attr]
    assert not list(cache.rglob("*.pkl"))
    metas = [json.loads(path.read_text()) for path in cache.glob("*/meta.json")]
    assert {name for meta in metas for name in meta} == {"columns", "about"}
