"""Every figure of the published file, each check on dialogues made for it, the limits of training, and the two outputs."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmcoref.data import encode as encode_module
from mmcoref.data import module as data_module
from mmcoref.data import tokenizer as tokenizer_module
from mmcoref.data.encode import Encoder
from mmcoref.data.file import dump_records, read_records
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import LETTERS, Record
from mmcoref.data.sample import sample_records
from mmcoref.data.split import Split, split_records
from mmcoref.errors import UserError
from mmcoref.evaluation.floors import Floor, floors
from mmcoref.tools.audit import Report, audit_file, main
from mmcoref.tools.audit_checks import Finding, Lengths, Utterances, audit, lengths
from mmcoref.tools.audit_table import show
from tests.conftest import CHAT_TEMPLATE, published_path


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def plain(number: int, **changes: Any) -> Record:
    """A dialogue about which nothing is odd, and which shares nothing with another number's."""
    bodies = [f"{owner}가 올린 사진 속 {thing} {number}" for owner, thing in zip("AABB", ("컵", "모자", "기타", "화분"), strict=True)]
    choices = [f"{letter}) {body}" for letter, body in zip(LETTERS, bodies, strict=True)]
    fields = {
        "image_descriptions": [f"A의 사진: 탁자 {number}", f"B의 사진: 창가 {number}"],
        "conversation": ["A: '찍었어.'", "B: '나도.'", f"A: '{number}번째야.'", "B: '저거 좋다.'"],
        "problem": "마지막 B의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
        "choices": choices,
        "solution": choices[0],
    }
    return Record.model_validate(fields | changes)


def findings(records: list[Record], split: Split) -> dict[str, Finding]:
    """The warnings by name."""
    return {finding.name: finding for finding in audit(records, split).findings if finding.total}


def write(folder: Path, records: tuple[Record, ...] | list[Record]) -> str:
    file = folder / "data.json"
    file.write_text(dump_records(records), "utf-8")
    return str(file)


# The published file.


@pytest.fixture(scope="module")
def published_report() -> Report:
    return audit_file(published_path())


def test_published_file_and_split(published_report: Report) -> None:
    assert published_report.form == "JSON list of strings"
    assert published_report.sha256 == "995aaa70beb133239443ee4a6cd7e396f5eeed3b0c16770c7cd66a955e0cb892"
    assert published_report.refusals == ()
    found = published_report.audit
    assert found is not None
    assert found.records == 1726
    train, val, test = found.parts
    assert (train.name, train.records, train.gold) == ("train", 1380, {"A": 407, "B": 123, "C": 280, "D": 570})
    assert (val.name, val.records, val.gold, val.owner_orders) == ("val", 0, {"A": 0, "B": 0, "C": 0, "D": 0}, {})
    assert (test.name, test.records, test.gold) == ("test", 346, {"A": 91, "B": 19, "C": 40, "D": 196})
    assert train.owner_orders["AABB"] + test.owner_orders["AABB"] == 1419
    assert test.owner_orders == {"AABB": 320, "ABBA": 21, "ABBB": 3, "ABAB": 1, "BBAA": 1}
    assert train.demonstrative_last + test.demonstrative_last == 1424
    assert train.demonstrative_somewhere + test.demonstrative_somewhere == 1648


def test_published_lengths(published_report: Report) -> None:
    found = published_report.audit
    assert found is not None
    assert found.utterances == Utterances(total=12123, least=4, most=11, quoted=9050)
    assert round(100 * 9050 / 12123) == 75
    assert (found.characters.min, round(found.characters.mean), found.characters.max) == (301, 426, 621)
    assert (found.characters.p50, found.characters.p95, found.characters.p99) == (423, 508, 573)
    assert found.tokens is None


def test_published_oddities(published_report: Report) -> None:
    assert published_report.audit is not None
    found = {finding.name: finding for finding in published_report.audit.findings}
    assert {name: (finding.counts.get("train"), finding.counts["test"]) for name, finding in found.items()} == {
        "owner_order": (281, 26),
        "option_without_owner": (9, 0),
        "gold_without_owner": (0, 0),
        "gold_half": (78, 8),
        "same_options": (0, 1),
        "no_speaker": (0, 0),
        "speaker_not_last": (185, 52),
        "no_demonstrative": (0, 0),
        "demonstrative_not_last": (257, 45),
        "demonstrative_nowhere": (70, 8),
        "opening": (0, 0),
        "two_turns": (15, 0),
        "photo_in_utterance": (489, 162),
        "decomposed": (0, 0),
        "line_break": (0, 0),
        "option_with_period": (0, 0),
        "lost_character": (0, 0),
        "control_character": (0, 0),
        "blank_caption": (0, 0),
        "repeated_record": (86, 7),
        "repeated_dialogue": (88, 7),
        "dialogue_across": (None, 0),
        "captions_across": (None, 138),
        "options_across": (None, 39),
    }
    assert [found[name].total for name in ("owner_order", "gold_half", "speaker_not_last", "photo_in_utterance")] == [307, 86, 237, 651]
    assert [found[name].total for name in ("repeated_record", "repeated_dialogue")] == [93, 95]
    assert found["option_without_owner"].records == (1026, 1027, 1028, 1029, 1030)
    assert found["same_options"].records == (1513,)
    assert found["captions_across"].of["test"] == 692
    assert found["options_across"].of["test"] == 346
    for finding in found.values():
        assert finding.total == sum(finding.counts.values())
        assert len(finding.records) == finding.total or finding.name in ("option_without_owner", "captions_across")


def test_published_floors(published_report: Report) -> None:
    assert published_report.audit is not None
    assert published_report.audit.floors == (
        Floor("always D", 196, 238, 346),
        Floor("mentioned last, whole noun", 226, 276, 346),
        Floor("mentioned last, last word", 232, 281, 346),
        Floor("photo of the speaker not named", None, 255, 346),
        Floor("photo of the speaker not last to speak", None, 229, 346),
    )


def test_a_validation_part_is_cut_from_the_train_part() -> None:
    """Whole clusters are held out, so that no dialogue and no option list lies on both sides."""
    found = audit_file(published_path(), val_size=138).audit
    assert found is not None
    assert [part.records for part in found.parts] == [1242, 138, 346]
    by_name = {finding.name: finding for finding in found.findings}
    assert by_name["dialogue_across"].counts == {"val": 0, "test": 0}
    assert by_name["options_across"].counts == {"val": 0, "test": 39}
    assert by_name["captions_across"].counts["test"] == 138  # a caption in the validation part has been seen, too
    assert sum(by_name["repeated_dialogue"].counts.values()) == 95
    assert found.floors[0] == Floor("always D", 196, 238, 346)


# Each check.

TURNS = plain(0).conversation
OWNERS = {
    "AABB": ["A) A가 올린 사진 속 컵", "B) A의 모자", "C) B가 올린 사진 속 기타", "D) B가 올린 사진 속 화분"],
    "ABAB": ["A) A가 올린 사진 속 컵", "B) B의 모자", "C) A가 올린 사진 속 기타", "D) B가 올린 사진 속 화분"],
    "BAAB": ["A) B가 올린 사진 속 컵", "B) A의 모자", "C) A가 올린 사진 속 기타", "D) B가 올린 사진 속 화분"],
    "A--B": ["A) A가 올린 사진 속 컵", "B) 모자 중 하나", "C) 기타", "D) B가 올린 사진 속 화분"],
}
BOTH_CUPS = ["A) A가 올린 사진 속 컵", "B) A가 올린 사진 속 모자", "C) B가 올린 사진 속 컵", "D) B가 올린 사진 속 컵"]

ODD: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "owners A, B, A, B": ({"choices": OWNERS["ABAB"], "solution": OWNERS["ABAB"][0]}, {"owner_order": 1}),
    "the right half is the other's": ({"choices": OWNERS["BAAB"], "solution": OWNERS["BAAB"][0]}, {"owner_order": 1, "gold_half": 1}),
    "so is the second half": ({"choices": OWNERS["BAAB"], "solution": OWNERS["BAAB"][2]}, {"owner_order": 1, "gold_half": 1}),
    "the second letter's half": ({"choices": OWNERS["BAAB"], "solution": OWNERS["BAAB"][1]}, {"owner_order": 1}),
    "two options of nobody's": (
        {"choices": OWNERS["A--B"], "solution": OWNERS["A--B"][0]},
        {"owner_order": 1, "option_without_owner": 2},
    ),
    "nobody's is right": (
        {"choices": OWNERS["A--B"], "solution": OWNERS["A--B"][1]},
        {"owner_order": 1, "option_without_owner": 2, "gold_without_owner": 1},
    ),
    "two options alike": ({"choices": BOTH_CUPS, "solution": BOTH_CUPS[0]}, {"same_options": 1}),
    "no speaker": ({"problem": "'저거'는 무엇인가?"}, {"no_speaker": 1}),
    "the first speaker": ({"problem": "마지막 A의 발화에서 '저거'는 무엇인가?"}, {"speaker_not_last": 1}),
    "nothing quoted": ({"problem": "마지막 B의 발화에서 저거는 무엇인가?"}, {"no_demonstrative": 1}),
    "curly quotes": ({"problem": "마지막 B의 발화에서 ‘저거’는 무엇인가?"}, {}),
    "double quotes": ({"problem": '마지막 B의 발화에서 "저거"는 무엇인가?'}, {}),
    "quoted from before": ({"problem": "마지막 B의 발화에서 '나도'는 무엇인가?"}, {"demonstrative_not_last": 1}),
    "quoted from nowhere": (
        {"problem": "마지막 B의 발화에서 '저 산'은 무엇인가?"},
        {"demonstrative_not_last": 1, "demonstrative_nowhere": 1},
    ),
    "B opens": ({"conversation": ["B: '왔어.'", "A: '응.'", "B: '저거 좋다.'"]}, {"opening": 1}),
    "B twice": ({"conversation": [*TURNS[:2], "B: '저런.'", TURNS[2], TURNS[3]]}, {"two_turns": 1}),
    "A opens twice": ({"conversation": [TURNS[0], *TURNS]}, {"opening": 1, "two_turns": 1}),
    "a photo in an utterance": ({"conversation": ["A: '찍었어.' (사진 1: 책상)", *TURNS[1:]]}, {"photo_in_utterance": 1}),
    "the eleventh photo": ({"conversation": [*TURNS[:3], "B: '저거' (사진 11: 책상)"]}, {"photo_in_utterance": 1}),
    "a photo in full width": ({"conversation": ["A: '찍었어.' （사진　１： 책상）", *TURNS[1:]]}, {"photo_in_utterance": 1}),
    "a photo without a number": ({"conversation": ["A: '찍었어.' (사진: 책상)", *TURNS[1:]]}, {}),
    "a photo without a description": ({"conversation": ["A: '사진 1: 책상 (사진 2)'", *TURNS[1:]]}, {}),
    "decomposed options": (
        {"choices": [nfd(text) for text in OWNERS["AABB"]], "solution": nfd(OWNERS["AABB"][0])},
        {"decomposed": 1},
    ),
    "a decomposed question": ({"problem": nfd(plain(0).problem)}, {"decomposed": 1}),
    "a decomposed dialogue": ({"conversation": [nfd(text) for text in plain(2).conversation]}, {"decomposed": 1}),
    "decomposed, and the first speaker": (
        {"problem": nfd("마지막 A의 발화에서 '저거'는 무엇인가?")},
        {"decomposed": 1, "speaker_not_last": 1},
    ),
    "a decomposed photo in an utterance": (
        {"conversation": [nfd("A: '찍었어.' (사진 1: 책상)"), *TURNS[1:]]},
        {"decomposed": 1, "photo_in_utterance": 1},
    ),
    "two options alike but for their encoding": (
        {"choices": [*BOTH_CUPS[:3], nfd(BOTH_CUPS[3])], "solution": BOTH_CUPS[0]},
        {"decomposed": 1, "same_options": 1},
    ),
    "full width is composed": ({"conversation": ["Ａ： '찍었어.'", *plain(2).conversation[1:]]}, {}),
    "a Windows line break": ({"conversation": [*plain(2).conversation[:3], "B: '저거\r\n좋다.'"]}, {"line_break": 1}),
    "a line break of a word processor": ({"problem": plain(0).problem + "\u2028"}, {"line_break": 1}),
    "a line break in an option": (
        {"choices": ["A) A가 올린 사진 속\r컵", *OWNERS["AABB"][1:]], "solution": OWNERS["AABB"][3]},
        {"line_break": 1},
    ),
    "a lost character": ({"conversation": [*plain(2).conversation[:3], "B: '저거 \ufffd좋다.'"]}, {"lost_character": 1}),
    "an escape": ({"image_descriptions": ["A의 사진: \x1b[2J", plain(2).image_descriptions[1]]}, {"control_character": 1}),
    "a control character of eight bits": ({"problem": plain(0).problem + "\x9b"}, {"control_character": 1}),
    "a tab": ({"problem": plain(0).problem + "\t"}, {}),
    "a caption of nothing": ({"image_descriptions": ["A의 사진: ", plain(2).image_descriptions[1]]}, {"blank_caption": 1}),
    "options with a period": (
        {
            "choices": [f"{text}{stop}" for text, stop in zip(OWNERS["AABB"], (".", "。", "．", "!"), strict=True)],
            "solution": OWNERS["AABB"][0] + ".",
        },
        {"option_with_period": 3},
    ),
}


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("name", ODD)
def test_each_check_finds_what_it_is_for_and_nothing_else(name: str, part: str) -> None:
    changes, expected = ODD[name]
    split = {"train": Split((0, 2), (), (1,)), "val": Split((0,), (2,), (1,)), "test": Split((0,), (), (1, 2))}[part]
    found = findings([plain(0), plain(1), plain(2, **changes)], split)
    assert {finding: result.total for finding, result in found.items()} == expected
    for finding, hits in expected.items():
        assert found[finding].counts == {"train": 0, "val": 0, "test": 0} | {part: hits}
        assert found[finding].records == (2,)
        per_record = 4 if finding in ("option_without_owner", "option_with_period") else 1
        assert found[finding].of == {other: per_record * len(indices) for other, indices in split._asdict().items()}


def test_messages() -> None:
    odd = {"choices": OWNERS["A--B"], "solution": OWNERS["A--B"][0]}
    found = findings([plain(0), plain(1, **odd), plain(2), plain(3)], Split((0, 1), (), (2, 3)))
    assert found["owner_order"].message == "1 of 4 records: the options' owners are not ordered A, A, B, B."
    assert found["option_without_owner"].message == "2 of 16 options in 1 record: the text names no owner, which counts as the wrong photo."
    silent = {finding.name: finding for finding in audit([plain(0), plain(1)], Split((0,), (), (1,))).findings}
    assert silent["captions_across"].message == "0 of 2 held-out captions: an earlier part of the split has the same."
    assert all(re.fullmatch(r"0 of \d+ [a-z -]+: [^.]+\.", finding.message) for finding in silent.values())


# Repeats.


def test_repeats_inside_a_part() -> None:
    twin = plain(0)
    records = [
        twin,
        plain(1),
        twin.model_copy(update={"id": 7}),  # an id makes no other record
        twin,
        plain(2, conversation=twin.conversation),  # the same dialogue with other options
        plain(3),
        plain(3),
        plain(4, problem=plain(4).problem + " "),
        plain(4),
    ]
    found = findings(records, Split((0, 1, 2, 3, 4), (), (5, 6, 7, 8)))
    assert found.keys() == {"repeated_record", "repeated_dialogue"}
    assert found["repeated_record"].counts == {"train": 2, "val": 0, "test": 1}
    assert found["repeated_record"].records == (2, 3, 6)
    assert found["repeated_dialogue"].counts == {"train": 3, "val": 0, "test": 2}
    assert found["repeated_dialogue"].records == (2, 3, 4, 6, 8)


@pytest.mark.parametrize("field", ["image_descriptions", "conversation", "problem", "choices", "solution"])
def test_a_record_repeats_another_only_in_every_field(field: str) -> None:
    other = plain(0).model_dump() | {"problem": plain(0).problem + " "}
    if field == "solution":
        other |= {"problem": plain(0).problem, "solution": plain(0).choices[1]}
    elif field == "choices":
        other |= {"problem": plain(0).problem, "choices": [*plain(0).choices[:3], "D) B의 책"]}
    elif field != "problem":
        other |= {"problem": plain(0).problem, field: plain(1).model_dump()[field]}
    found = findings([plain(0), Record.model_validate(other), plain(2)], Split((0, 1), (), (2,)))
    assert "repeated_record" not in found
    assert ("repeated_dialogue" in found) == (field != "conversation")


def test_what_is_shared_across_the_split() -> None:
    one, two, three = plain(1), plain(2), plain(3)
    records = [
        plain(0),
        one,
        two,  # held out for validation
        plain(4, conversation=one.conversation),  # a test dialogue of the train part
        plain(5, image_descriptions=one.image_descriptions),
        plain(6, image_descriptions=[two.image_descriptions[0], "B의 사진: 다른 곳"]),  # seen in validation
        plain(7, choices=one.choices, solution=one.choices[3]),
        three,
        three,  # inside the test part
        plain(8, choices=[one.choices[0], one.choices[1], one.choices[2], "D) B의 책"], solution=one.choices[0]),
    ]
    found = findings(records, Split((0, 1), (2,), (3, 4, 5, 6, 7, 8, 9)))
    assert {name: (dict(finding.counts), finding.records) for name, finding in found.items()} == {
        "repeated_record": ({"train": 0, "val": 0, "test": 1}, (8,)),
        "repeated_dialogue": ({"train": 0, "val": 0, "test": 1}, (8,)),
        "dialogue_across": ({"val": 0, "test": 1}, (3,)),
        "captions_across": ({"val": 0, "test": 3}, (4, 5)),
        "options_across": ({"val": 0, "test": 1}, (6,)),
    }
    assert found["captions_across"].of == {"val": 2, "test": 14}
    assert found["dialogue_across"].of == found["options_across"].of == {"val": 1, "test": 7}
    assert found["captions_across"].message.startswith("3 of 16 held-out captions in 2 records: ")


def test_texts_that_differ_in_their_encoding_only_are_repeats() -> None:
    one = plain(1)
    encoded = {name: [nfd(text) for text in getattr(one, name)] for name in ("conversation", "image_descriptions", "choices")}
    again = Record.model_validate(encoded | {"problem": nfd(one.problem), "solution": one.solution})
    assert again.solution == again.choices[0] == nfd(one.choices[0])
    across = findings([plain(0), one, again], Split((0, 1), (), (2,)))
    assert across.keys() == {"decomposed", "dialogue_across", "captions_across", "options_across"}
    inside = findings([one, again, plain(0)], Split((0, 1), (), (2,)))
    assert inside.keys() == {"decomposed", "repeated_record", "repeated_dialogue"}


def test_validation_is_held_against_the_train_part_only() -> None:
    records = [plain(0), plain(0), plain(1), plain(2)]
    found = findings(records, Split((0,), (1,), (2, 3)))
    assert {name: finding.records for name, finding in found.items()} == {
        "dialogue_across": (1,),
        "captions_across": (1,),
        "options_across": (1,),
    }
    assert found["captions_across"].counts == {"val": 2, "test": 0}


# Numbers.


def test_parts(dialogues: tuple[Record, ...]) -> None:
    train, val, test = audit(dialogues, Split(tuple(range(1, 9)), (0,), (9, 10, 11))).parts
    assert (train.records, train.gold, train.owner_orders) == (8, {"A": 2, "B": 2, "C": 2, "D": 2}, {"AABB": 7, "BAAB": 1})
    assert list(train.owner_orders) == ["AABB", "BAAB"]
    assert (val.records, val.gold, val.owner_orders) == (1, {"A": 1, "B": 0, "C": 0, "D": 0}, {"AABB": 1})
    assert (test.records, test.gold, test.owner_orders) == (3, {"A": 0, "B": 1, "C": 1, "D": 1}, {"BAAB": 3})
    assert (train.demonstrative_last, train.demonstrative_somewhere) == (8, 8)
    quoting = [plain(0, problem=f"마지막 B의 발화에서 '{words}'는?") for words in ("저거", "나도", "산")]
    (part, _, _) = audit([*quoting, plain(4)], Split((0, 1, 2), (), (3,))).parts
    assert (part.demonstrative_last, part.demonstrative_somewhere) == (1, 2)


def test_orders_of_owners_are_sorted_by_frequency(dialogues: tuple[Record, ...]) -> None:
    nobody = plain(0, choices=OWNERS["A--B"], solution=OWNERS["A--B"][0])
    (train, _, _) = audit([nobody, *dialogues], Split(tuple(range(12)), (), (12,))).parts
    assert list(train.owner_orders.items()) == [("AABB", 8), ("BAAB", 3), ("A--B", 1)]


def test_utterances_and_characters() -> None:
    one = plain(0, conversation=["A: '찍었어.'", 'B: "나도."', "A: “응.”", "B: 저거 ‘좋다’."])
    two = plain(1, conversation=["A: ‘가.’", "B: '저거'"])
    found = audit([one, two], Split((0,), (), (1,)))
    assert found.utterances == Utterances(total=6, least=2, most=4, quoted=5)
    texts = [[*record.conversation, *record.image_descriptions, record.problem, *record.choices] for record in (one, two)]
    long, short = (len("".join(text)) for text in texts)
    assert found.characters == Lengths(min=short, mean=(long + short) / 2, p50=short, p95=long, p99=long, max=long)


def test_ranks() -> None:
    assert lengths(range(100, 0, -1)) == Lengths(min=1, mean=50.5, p50=50, p95=95, p99=99, max=100)
    assert lengths(range(20)) == Lengths(min=0, mean=9.5, p50=9, p95=18, p99=19, max=19)
    assert lengths([1, 2, 9]) == Lengths(min=1, mean=4, p50=2, p95=9, p99=9, max=9)
    assert lengths([5]) == Lengths(5, 5, 5, 5, 5, 5)


def test_floors_are_those_of_a_test_run_and_one_more(dialogues: tuple[Record, ...]) -> None:
    """B is the train part's majority, A that of train and validation. Test: last speakers B, A, B; gold owners A, A, B."""
    found = audit(dialogues, Split((0, 1, 5), (4, 8), (9, 10, 11))).floors
    assert found[0].name == "always B"
    assert found[:-1] == tuple(floors([dialogues[i] for i in (0, 1, 5)], dialogues[9:]))
    assert found[-1] == Floor("photo of the speaker not last to speak", None, 1, 3)
    nobody = plain(0, choices=OWNERS["A--B"], solution=OWNERS["A--B"][1])
    assert audit([plain(1), nobody], Split((0,), (), (1,))).floors[-1].photo == 0  # nobody's photo is never right


def test_a_part_without_records_has_no_floors(dialogues: tuple[Record, ...]) -> None:
    with pytest.raises(ValueError, match="got 12 and 0"):
        audit(dialogues, Split(tuple(range(12)), (), ()))


# Tokens: what training would make of them.


@pytest.fixture(scope="module")
def uneven(dialogues: tuple[Record, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve, each longer than the one before."""
    longer = [
        record.model_copy(update={"conversation": (*record.conversation[:2], f"A: '{'그래 ' * number}'", *record.conversation[2:])})
        for number, record in enumerate(dialogues)
    ]
    return Path(write(tmp_path_factory.mktemp("uneven"), longer))


def module(path: Path, **settings: Any) -> MMCorefDataModule:
    data = MMCorefDataModule(str(path), **settings)
    data.setup("fit")
    return data


@pytest.mark.parametrize("val_size", [0, 3])
def test_tokens_are_those_of_training(uneven: Path, monkeypatch: pytest.MonkeyPatch, val_size: int) -> None:
    data = module(uneven, val_size=val_size)
    counted = {example.index: example.tokens for example in (*data.train, *data.val, *data.test)}
    found = audit_file(str(uneven), tokenizer="tiny", val_size=val_size).audit
    assert found is not None
    assert found.tokens is not None
    assert found.tokens.lengths == lengths(list(counted.values()))
    assert len(set(counted.values())) > 6
    assert (found.tokens.tokenizer, found.tokens.prompt, found.tokens.too_long) == ("tiny", "base", ())
    monkeypatch.setattr(encode_module, "_CHUNK", 5)
    cut = sorted(counted.values())[4]
    shorter = audit_file(str(uneven), tokenizer="tiny", val_size=val_size, max_tokens=cut).audit
    assert shorter is not None
    assert shorter.tokens is not None
    assert shorter.tokens.lengths == found.tokens.lengths
    assert shorter.tokens.too_long == tuple(sorted(index for index, tokens in counted.items() if tokens > cut))


def test_tiny_learns_its_tokens_from_the_train_part(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    load = tokenizer_module.load_tokenizer

    def recording(name: str, train_texts: Iterable[str]) -> PreTrainedTokenizerBase:
        read.append(list(train_texts))
        return load(name, read[-1])

    monkeypatch.setattr(tokenizer_module, "load_tokenizer", recording)
    monkeypatch.setattr(data_module, "load_tokenizer", recording)
    module(uneven, val_size=3)
    audit_file(str(uneven), tokenizer="tiny", val_size=3)
    assert len(read[0]) == 6
    assert read[1] == read[0]


def test_defaults_are_those_of_training(uneven: Path) -> None:
    found = audit_file(str(uneven), tokenizer="tiny").audit
    assert found is not None
    assert found.tokens is not None
    defaults = inspect.signature(MMCorefDataModule).parameters
    assert (found.tokens.max_tokens, found.tokens.prompt) == (defaults["max_tokens"].default, defaults["prompt"].default) == (512, "base")
    assert inspect.signature(Encoder).parameters["max_tokens"].default == 512


def test_a_record_longer_than_the_default_is_measured_and_refused(tmp_path: Path) -> None:
    long = plain(1, conversation=[*plain(1).conversation[:2], f"A: '{'그래 ' * 600}'", "B: '저거 좋다.'"])
    report = audit_file(write(tmp_path, [plain(0), long, *map(plain, range(2, 120))]), tokenizer="tiny")
    assert report.audit is not None
    assert report.audit.tokens is not None
    assert report.audit.tokens.too_long == (1,)
    longest = report.audit.tokens.lengths.max
    assert longest > 600 > report.audit.tokens.lengths.p99
    assert report.refusals == (
        f"1 of 120 records have more than 512 tokens (the longest {longest}): "
        f"raise --data.max_tokens to {longest}, or choose --data.overlength drop or trim.",
    )


def test_a_record_too_long_is_refused_as_training_refuses_it(uneven: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = audit_file(str(uneven), tokenizer="tiny").audit
    assert found is not None
    assert found.tokens is not None
    longest = found.tokens.lengths.max
    module(uneven, max_tokens=longest)
    assert main([str(uneven), "--tokenizer", "tiny", "--max_tokens", str(longest)]) == 0
    assert "refuses" not in capsys.readouterr().out
    with pytest.raises(UserError, match=f"data.max_tokens = {longest - 1} tokens"):
        module(uneven, max_tokens=longest - 1)
    assert main([str(uneven), "--tokenizer", "tiny", "--max_tokens", str(longest - 1)]) == 1
    too_long = audit_file(str(uneven), tokenizer="tiny", max_tokens=longest - 1).audit.tokens.too_long  # type: ignore[union-attr]
    assert 0 < len(too_long) < 12
    sentence = (
        f"{len(too_long)} of 12 records have more than {longest - 1} tokens (the longest {longest}): "
        f"raise --data.max_tokens to {longest}, or choose --data.overlength drop or trim."
    )
    out = capsys.readouterr().out
    assert f"Training refuses this file: {sentence}" in out
    assert f"{len(too_long)} records exceed {longest - 1}: {too_long[0]}" in out
    assert main([str(uneven), "--tokenizer", "tiny", "--max_tokens", str(longest - 1), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["refusals"] == [sentence]
    assert said["audit"]["tokens"]["too_long"] == list(too_long)


@pytest.fixture
def chat_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    tokenizer.save_pretrained(tmp_path / "chat")
    chat = PreTrainedTokenizerFast.from_pretrained(tmp_path / "chat")
    chat.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    chat.chat_template = CHAT_TEMPLATE
    chat.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


def test_the_chat_prompt_of_a_folder(uneven: Path, chat_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = module(uneven, tokenizer=chat_folder, prompt="chat")
    longest = max(example.tokens for example in (*data.train, *data.test))
    assert main([str(uneven), "--tokenizer", chat_folder, "--prompt", "chat", "--json"]) == 0
    chat = json.loads(capsys.readouterr().out)["audit"]["tokens"]
    assert (chat["tokenizer"], chat["prompt"], chat["lengths"]["max"]) == (chat_folder, "chat", longest)
    assert main([str(uneven), "--tokenizer", chat_folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"]["tokens"]["lengths"]["max"] < longest


# Files.


def test_forms(dialogues: tuple[Record, ...], tmp_path: Path) -> None:
    objects = [record.model_dump(mode="json", exclude_none=True) for record in dialogues]
    strings = [json.dumps(item) for item in objects]
    texts = {
        "JSON list of strings": json.dumps(strings, indent=1),
        "JSON list of objects": "\ufeff \n" + json.dumps(objects),
        "JSON list of strings and objects": json.dumps([*objects[:6], *strings[6:]]),
        "JSON Lines": "\n".join(strings) + "\n\n",
    }
    file = tmp_path / "data"
    audits = set()
    for form, text in texts.items():
        file.write_text(text, "utf-8")
        report = audit_file(str(file))
        assert report.form == form
        assert report.sha256 == read_records(str(file)).sha256
        audits.add(repr(report.audit))
    assert len(audits) == 1


@pytest.mark.parametrize("tokenizer", [None, "tiny"])
def test_a_pipe_is_read_once(tokenizer: str | None, data_file: Path) -> None:
    out, into = os.pipe()
    os.write(into, data_file.read_bytes())
    os.close(into)
    report = audit_file(f"/dev/fd/{out}", tokenizer=tokenizer)
    os.close(out)
    expected = audit_file(str(data_file), tokenizer=tokenizer)
    assert (report.form, report.sha256, report.audit) == (expected.form, expected.sha256, expected.audit)


@pytest.mark.parametrize("n_test", [346, 40])
def test_sample_is_what_a_fit_generates(n_test: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its train part is as long as a fit's, not four fifths of the whole."""
    if n_test != 346:
        monkeypatch.setattr(data_module, "SAMPLE_TEST", n_test)
    records = (*sample_records(1380), *sample_records(n_test, part="test"))
    split = Split(tuple(range(1380)), (), tuple(range(1380, 1380 + n_test)))
    assert audit_file("sample") == Report("sample", "generated", None, (), audit(records, split))


UNSOLVED = plain(1).model_copy(update={"solution": None})
REFUSED = {
    "a record without a solution": dump_records([plain(0), UNSOLVED, plain(2)]),
    "a broken list": "[1,",
    "a list of nothing": "[]",
    "an empty file": "",
    "numbers": "[1, 2]",
    "no text": b"\xff\xfe\x00",
    "markup": '["[bold]", "\\ud800"]',
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_training_refuses(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = REFUSED[name]
    file = tmp_path / "data.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_records(str(file))
    message = str(caught.value)
    assert main([str(file)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{file}: refused"
    assert f"Training refuses this file: {message}".replace("\ud800", "\\ud800") in out
    assert main([str(file), "--json"]) == 1
    refused = {"path": str(file), "form": None, "sha256": None, "refusals": [message], "audit": None}
    assert json.loads(capsys.readouterr().out) == refused


def test_one_record_cannot_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(tmp_path, [plain(0)]), "--val_size", "3"]) == 1
    assert "refuses this file: expected at least 2 records to split into train and test, got 1." in capsys.readouterr().out
    assert main([write(tmp_path, [plain(0), plain(1)])]) == 0


def test_a_file_that_cannot_be_read_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data file"):
        main([str(tmp_path / "missing.json")])
    with pytest.raises(UserError, match="got a folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="cannot be read"):
        main(["a\0b", "--json"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(data_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(data_file.read_bytes())
    file.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        main([str(file)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_tokens", "9"], "--prompt and --max_tokens are about tokens: name the tokenizer that counts them with --tokenizer."),
        (["--prompt", "base"], "--prompt and --max_tokens are about tokens: name the tokenizer that counts them with --tokenizer."),
        (["--tokenizer", "tiny", "--max_tokens", "0"], "max_tokens: expected 1 or more, got 0."),
        (["--val_size", "9"], "data.val_size: expected 0 to 8 of the 9 train records, got 9."),
        (["--val_size", "-1"], "data.val_size: expected 0 to 8 of the 9 train records, got -1."),
        (["--val_size", "x"], "audit: argument --val_size: invalid int value: 'x'; see mmcoref audit --help."),
        (["--token", "tiny"], "audit: unrecognized arguments: --token tiny; see mmcoref audit --help."),
        (["--tokenizer", "tiny", "--prompt", "chats"], None),
        (
            ["--tokenizer", "tiny", "--prompt", "chat"],
            "data.prompt: chat needs a tokenizer with a chat template, and this one has none; use data.prompt: base.",
        ),
    ],
)
def test_wrong_options(options: list[str], message: str | None, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        main([str(data_file), *options])
    assert "\n" not in str(caught.value)
    assert message is None or str(caught.value) == message
    assert capsys.readouterr() == ("", "")


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^audit: the following arguments are required: FILE; see mmcoref audit --help.$"):
        main([])
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "usage: mmcoref audit" in capsys.readouterr().out


# Outputs.


def test_json_is_the_report(data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(data_file), "--json", "--tokenizer", "tiny", "--val_size", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = audit_file(str(data_file), tokenizer="tiny", val_size=2)
    assert json.loads(out) == json.loads(json.dumps(asdict(report)))
    assert out.isascii()
    said = json.loads(out)
    assert said.keys() == {"path", "form", "sha256", "refusals", "audit"}
    assert {finding["name"]: finding["records"] for finding in said["audit"]["findings"]}["two_turns"] == [0, 2, 4, 6, 8, 10]


def shown(report: Report, width: int) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=width))
    return out.getvalue()


def test_the_table_has_the_published_figures(published_report: Report) -> None:
    for width in (70, 80, 200):
        text = re.sub(r"[│┃ ]+", " ", shown(published_report, width))
        for row in (
            "1,380 346 1,726",
            "gold A 407 (0.295) 91 (0.263) 498 (0.289)",
            "gold D 570 (0.413) 196 (0.566) 766 (0.444)",
            "owners AABB 1,099 (0.796) 320 (0.925) 1,419 (0.822)",
            "owners AB-- 4 (0.003) 0 (0.000) 4 (0.002)",
            "1,123 (0.814) 301 (0.870) 1,424 (0.825)",
            "1,310 (0.949) 338 (0.977) 1,648 (0.955)",
            "characters 301 426 423 508 573 621",
            "utterances 4 7.0 11",
            "9,050 of 12,123 utterances (0.747) open with a quotation mark.",
            "Tokens: no tokenizer given (--tokenizer).",
            "mentioned last, last word 232 (0.671) 281 (0.812)",
            "photo of the speaker not named 255 (0.737)",
            "photo of the speaker not last to speak 229 (0.662)",
            "13 warnings (!) of 24 checks. --json lists every record.",
        ):
            assert row in text, (row, width)
        assert text.index("owners ABBA ") < text.index("owners AAAB ")  # by frequency
        assert re.search(r"! 237 of 1,726 records:.*? 185 52 3, 7, 10, … ", text)
        assert "Training refuses" not in text
    assert "\n 0 of 346 held-out dialogues: an earlier part of the split has the same. 0 \n" in text
    assert "! 39 of 346 held-out option lists: an earlier part of the split has the same. 39 " in text
    assert "! 138 of 692 held-out captions in 111 records: an earlier part of the split has the same. 138 " in text


@pytest.mark.parametrize("width", [1, 12, 30, 40, 50, 60])
def test_any_terminal(width: int, data_file: Path) -> None:
    """Nothing crashes, and a narrow terminal has every name and every number, whole."""
    report = audit_file(str(data_file), tokenizer="tiny", val_size=2)
    narrow, wide = (shown(report, columns) for columns in (width, 400))
    for text in (narrow, wide):
        assert "Tokens: prompt (base) and longest answer, by tiny; 0 records exceed 512." in text
    if width >= 30:
        numbers = Counter(re.findall(r"[\d.,]*\d", wide))
        assert not numbers - Counter(re.findall(r"[\d.,]*\d", narrow))
        for name in ("demonstrative in some turn", "characters", "mentioned last, whole noun", "photo of the speaker not last to speak"):
            assert all(word in narrow for word in name.split()), name


def test_a_validation_part_has_its_column(data_file: Path) -> None:
    with_val, without = (shown(audit_file(str(data_file), val_size=size), 120) for size in (2, 0))
    assert [text.count(" val ") for text in (with_val, without)] == [2, 0]
    assert re.search(r"│ gold A +│( +\d \(\d\.\d{3}\) │){4}", with_val)


def test_what_a_name_says_is_not_markup(data_file: Path, tmp_path: Path) -> None:
    report = audit_file(str(data_file))
    named = Report("[red]a[/red].json", report.form, report.sha256, ("[b]x",), report.audit)
    text = shown(named, 80)
    assert text.startswith("[red]a[/red].json: JSON list of strings, sha256 ")
    assert text.endswith("Training refuses this file: [b]x\n")


def test_torch_waits(data_file: Path) -> None:
    code = (
        "import sys; from mmcoref.tools.audit import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(data_file)], check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)


def test_split_is_that_of_training(dialogues: tuple[Record, ...], data_file: Path) -> None:
    split = split_records(dialogues, val_size=3)
    assert audit_file(str(data_file), val_size=3).audit == audit(dialogues, split)
    assert split.val
