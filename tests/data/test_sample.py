"""The embedded data: reproducible, valid, unseen in the test part, decided by the cue and by nothing cheaper."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.data.file import dump_records, read_records
from mmcoref.data.record import LETTERS, Record
from mmcoref.data.sample import Noun, part_of, particle, sample_records
from mmcoref.data.sample_words import DEMONSTRATIVES, KINDS, SCENES

PAIRS = ("은/는", "이/가", "을/를", "과/와")
KIND_OF = {noun: key for key, kind in KINDS.items() for noun in kind.nouns}
PREDICATES = {text: key for key, kind in KINDS.items() for texts in kind.says.values() for text in texts}


@pytest.fixture(scope="module")
def train() -> tuple[Record, ...]:
    return sample_records(4000)


@pytest.fixture(scope="module")
def test() -> tuple[Record, ...]:
    return sample_records(346, part="test")


def nouns_of(record: Record) -> list[str]:
    return [option.body.split("사진 속 ")[1] for option in record.options]


def right_particle(word: str, pair: str) -> str:
    """By Unicode's own decomposition of a syllable, not by arithmetic."""
    consonant, vowel = pair.split("/")
    return vowel if len(unicodedata.normalize("NFD", word[-1])) == 2 else consonant


def test_the_records_are_pinned() -> None:
    digest = hashlib.sha256(dump_records(sample_records(50)).encode()).hexdigest()
    assert digest == "bddb1c6ef4e4480cecf69a5b69c40e708baddaf181433ade2ab4e8a837c9681c"


def test_a_longer_sequence_begins_with_the_shorter_one() -> None:
    assert sample_records(9)[:6] == sample_records(6)
    assert len(sample_records(7)) == 7
    assert sample_records(0) == ()


def test_another_seed_or_part_gives_other_records() -> None:
    drawn = [sample_records(8), sample_records(8, seed=1), sample_records(8, part="test")]
    assert all(not set(a) & set(b) for a, b in combinations(drawn, 2))


def test_the_records_are_read_back_as_a_published_file_is(tmp_path: Path, test: tuple[Record, ...]) -> None:
    file = tmp_path / "sample.json"
    file.write_text(dump_records(test), encoding="utf-8")
    assert read_records(str(file)).records == test


def test_no_dialogue_is_in_both_parts_whatever_the_seeds(train: tuple[Record, ...], test: tuple[Record, ...]) -> None:
    trained = {*train, *sample_records(400, seed=7)}
    tested = {*test, *sample_records(400, seed=3, part="test")}
    assert {part_of(record) for record in trained} == {"train"}
    assert {part_of(record) for record in tested} == {"test"}
    assert not {record.conversation for record in trained} & {record.conversation for record in tested}


def test_dialogues_hardly_ever_repeat(train: tuple[Record, ...]) -> None:
    assert len({record.conversation for record in train}) > 0.999 * len(train)


def test_the_records_have_the_published_shape(train: tuple[Record, ...]) -> None:
    question = re.compile(r"마지막 ([AB])의 발화에서 '(저[^']*)'[은는] A와 B 중 어느 사진에 포함된 어느 물건인가\?")
    for record in train:
        assert 4 <= len(record.conversation) <= 9
        assert [utterance[0] for utterance in record.conversation] == list("ABABABABA"[: len(record.conversation)])
        assert all(re.fullmatch(r"[AB]: '[^'{}]+'", utterance) for utterance in record.conversation)
        found = question.fullmatch(record.problem)
        assert found is not None
        speaker, that = found.groups()
        last = record.conversation[-1]
        assert last.startswith(speaker)
        assert that in last or (that, last[0]) == ("저것", "저걸")
        assert Counter(option.owner for option in record.options) == {"A": 2, "B": 2}
        for option, noun in zip(record.options, nouns_of(record), strict=True):
            assert noun in record.image_descriptions["AB".index(option.owner or "")]


def test_the_cue_fits_one_option_alone_and_that_is_the_answer(train: tuple[Record, ...], test: tuple[Record, ...]) -> None:
    for record in (*train, *test):
        said = record.conversation[-1]
        meant = {kind for text, kind in PREDICATES.items() if re.search(rf" {text}[.!?…]'$", said)}
        assert len(meant) == 1
        assert [KIND_OF[noun] in meant for noun in nouns_of(record)] == [option == record.gold for option in record.options]


def test_only_the_last_utterance_tells(train: tuple[Record, ...]) -> None:
    for record in train:
        assert not [text for text in PREDICATES if text in "\n".join(record.conversation[:-1])]


def test_no_cheap_rule_answers_the_test_part() -> None:
    for seed in range(4):
        records = sample_records(346, seed=seed, part="test")
        assert max(Counter(record.gold.letter for record in records).values()) <= 0.30 * len(records)
        assert 0.20 <= sum(last_mentioned(record) == record.gold.letter for record in records) / len(records) <= 0.50


def last_mentioned(record: Record) -> str:
    """The published data's strongest kind of floor, computed without `mmcoref.evaluation`."""
    places = ["\n".join(record.conversation).rfind(noun) for noun in nouns_of(record)]
    latest = max(places)
    return "A" if latest < 0 or places.count(latest) > 1 else LETTERS[places.index(latest)]


def test_letters_are_no_owners(train: tuple[Record, ...]) -> None:
    orders = Counter("".join(option.owner or "" for option in record.options) for record in train)
    assert 0.78 <= orders["AABB"] / len(train) <= 0.88
    assert len(orders) == 6


def test_speakers_and_demonstratives_vary(train: tuple[Record, ...]) -> None:
    asked = Counter(record.problem.split("'")[1] for record in train)
    assert {quoted for forms in DEMONSTRATIVES.values() for _, quoted in forms} == set(asked)
    assert min(Counter(record.conversation[-1][0] for record in train).values()) >= 0.3 * len(train)


@given(st.text(st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣")), min_size=1), st.sampled_from(PAIRS))
def test_particles_follow_the_final_consonant(word: str, pair: str) -> None:
    assert particle(word, pair) == right_particle(word, pair)
    assert f"{Noun(word):{pair}}" == word + right_particle(word, pair)
    assert f"{Noun(word)}" == word


def test_particles_in_the_records_are_right(train: tuple[Record, ...]) -> None:
    """Wherever a noun or a quoted demonstrative is followed by one form of a particle, it is the right one."""
    forms = {form: pair for pair in PAIRS for form in pair.split("/")}
    seen: Counter[str] = Counter()
    for record in train:
        text = "\n".join([*record.image_descriptions, *record.conversation])
        found = re.findall(rf"(?<![가-힣])({'|'.join(nouns_of(record))})({'|'.join(forms)})(?![가-힣])", text)
        found += re.findall(r"'(저[^']*)'([은는])", record.problem)
        for word, form in found:
            assert form == right_particle(word, forms[form]), (word, form)
            seen[form] += 1
    assert set(seen) == set(forms)


def test_the_word_lists_are_large_and_keep_apart() -> None:
    assert len(KINDS) >= 12
    assert all(len(kind.nouns) >= 10 and sum(map(len, kind.says.values())) >= 4 for kind in KINDS.values())
    assert len(KIND_OF) == sum(len(kind.nouns) for kind in KINDS.values())
    assert len(PREDICATES) == sum(len(texts) for kind in KINDS.values() for texts in kind.says.values())
    for kind in KINDS.values():
        assert all("가" <= word[-1] <= "힣" for word in kind.nouns)
        assert set(kind.says) <= set(DEMONSTRATIVES)


def test_any_two_scenes_can_be_put_together() -> None:
    """Two kinds must be left for the second photo when the first has taken two."""
    assert all(len(set(scene.kinds)) == len(scene.kinds) >= 4 for scene in SCENES)
    assert {kind for scene in SCENES for kind in scene.kinds} == set(KINDS)
