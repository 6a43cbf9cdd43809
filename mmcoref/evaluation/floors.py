"""What no model at all scores: accuracies must be read against these rules, not against 0.25."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmcoref.data.record import LETTERS, Letter, Option, Record, Speaker
from mmcoref.data.unicode import normalise
from mmcoref.evaluation.answer import same_photo

# "마지막 A의 발화에서 '저거'는 A와 B 중 …": the speaker named in the question, who is not always the last to speak.
_NAMED_SPEAKER = re.compile(r"([AB])의 발화")


@dataclass(frozen=True)
class Floor:
    """One rule's right answers.

    Attributes:
        name: the rule.
        object: how many of the `n` records it names the gold option of; None where it names no option.
        photo: how many of the `n` records it names the gold option's owner of.
        n: test records.
    """

    name: str
    object: int | None
    photo: int
    n: int


class Rule(NamedTuple):
    """A rule that answers without a model.

    Attributes:
        name: what it does.
        right: record -> whether it names the gold option (None: it names none), and the gold option's owner.
        names_options: whether it names options at all.
    """

    name: str
    right: Callable[[Record], tuple[bool | None, bool]]
    names_options: bool = True


def rules(majority: Letter) -> tuple[Rule, ...]:
    """Return the four rules: the majority letter of the train part, two readings of "mentioned last", and the other speaker."""
    return (
        _option_rule(f"always {majority}", lambda record: record.options[LETTERS.index(majority)]),
        _option_rule("mentioned last, whole noun", lambda record: _mentioned_last(record, _noun)),
        _option_rule("mentioned last, last word", lambda record: _mentioned_last(record, _last_word)),
        Rule("photo of the speaker not named", lambda record: (None, _other_speaker_is_right(record)), names_options=False),
    )


def majority_letter(golds: Mapping[Letter, int]) -> Letter:
    """Return the letter that is right most often; the earlier one of equals.

    Args:
        golds: letter -> how many records it is right for.

    Raises:
        ValueError: there is no record.
    """
    if not golds:
        raise ValueError("expected train records, got none")
    return min(golds, key=lambda letter: (-golds[letter], letter))


def floors(train: Sequence[Record], test: Sequence[Record]) -> list[Floor]:
    """Count how many records of `test` each of the four rules gets right.

    Args:
        train: records with solutions; only their gold letters are used.
        test: records with solutions.

    Raises:
        ValueError: `train` or `test` is empty, or a record has no solution.
    """
    if not train or not test:
        raise ValueError(f"expected train and test records, got {len(train)} and {len(test)}")
    found = []
    for rule in rules(majority_letter(Counter(record.gold.letter for record in train))):
        right = [rule.right(record) for record in test]
        named = sum(bool(option) for option, _ in right) if rule.names_options else None
        found.append(Floor(rule.name, named, sum(photo for _, photo in right), len(test)))
    return found


def best_object(found: Sequence[Floor]) -> Floor:
    """The floor that an object accuracy is read against; the first of equals.

    Raises:
        ValueError: no floor names objects.
    """
    return max((floor for floor in found if floor.object is not None), key=lambda floor: floor.object or 0)


def best_photo(found: Sequence[Floor]) -> Floor:
    """The floor that a photo accuracy is read against; the first of equals.

    Raises:
        ValueError: no floors.
    """
    return max(found, key=lambda floor: floor.photo)


def _option_rule(name: str, answer: Callable[[Record], Option]) -> Rule:
    def right(record: Record) -> tuple[bool, bool]:
        option = answer(record)
        return option == record.gold, same_photo(option, record.gold)

    return Rule(name, right)


def _mentioned_last(record: Record, word: Callable[[Option], str]) -> Option:
    """The option whose word begins last in the utterances (captions do not count); the first option on a tie."""
    dialogue = "\n".join(map(normalise, record.conversation))
    return max(record.options, key=lambda option: dialogue.rfind(word(option)))


def _noun(option: Option) -> str:
    """What follows "사진 속", without a period; the whole text where nothing does."""
    body = normalise(option.body) or option.body
    noun = body.partition("사진 속")[2].strip() or body
    return noun.rstrip(" .") or noun


def _last_word(option: Option) -> str:
    return _noun(option).split()[-1]


def _other_speaker_is_right(record: Record) -> bool:
    named = named_speaker(record)
    return named is not None and record.gold.owner is not None and record.gold.owner != named


def named_speaker(record: Record) -> Speaker | None:
    """Return the speaker named in the question; None if it names none."""
    found = _NAMED_SPEAKER.search(normalise(record.problem))
    if found is None:
        return None
    return "A" if found[1] == "A" else "B"
