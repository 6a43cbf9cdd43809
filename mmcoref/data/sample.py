"""The embedded default data: dialogues of the published form, made up from word lists without end.

The answer is what the last utterance says of it: the predicate fits the kind of exactly one of the four things
("저거 한 모금 마셔 보고 싶어": the drink). Everything else in a dialogue is drawn without regard to the answer, so that
neither a letter nor what was mentioned last gives it away. All draws come from `random.Random(str).random()`, the one
generator and method whose sequence Python promises to keep.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Literal, TypeVar

from mmcoref.data.record import LETTERS, Letter, Record, Speaker
from mmcoref.data.sample_words import (
    CAPTIONS,
    DEMONSTRATIVES,
    ENDINGS,
    KINDS,
    OPENINGS,
    POSTS,
    REMARKS,
    REPLIES,
    SCENES,
    SMALL_TALK,
    Role,
    Scene,
)

Part = Literal["train", "test"]
T = TypeVar("T")

_TEST_SHARE = 8  # one dialogue in eight belongs to the test part, decided by its text
_OUT_OF_ORDER = 1 / 6  # options whose owners are not A, A, B, B; 307 of 1,726 in the published data
_SMALL_TALK = 1 / 4
_LENGTHS = (4, 4, 4, 5, 5, 5, 5, 6, 6, 7)  # utterances; shorter than the published ones, which saves training time
_OWNER_ORDERS = ("ABAB", "ABBA", "BAAB", "BABA", "BBAA")


class Noun(str):
    """A word to which a format specification attaches a particle: `format(Noun("컵"), "이/가")` is `컵이`."""

    __slots__ = ()

    def __format__(self, particles: str) -> str:
        return self + particle(self, particles) if particles else str(self)


def particle(word: str, pair: str) -> str:
    """The one of two particles, the first after a consonant and the second after a vowel, that fits a Hangul word.

    Args:
        word: ends in a Hangul syllable.
        pair: `은/는`, `이/가`, `을/를` or `과/와`.
    """
    final = (ord(word[-1]) - ord("가")) % 28  # syllables are laid out by first sound, vowel and 28 final sounds, 0 being none
    after_consonant, after_vowel = pair.split("/")
    return after_consonant if final else after_vowel


@dataclass(frozen=True)
class Thing:
    """Something in a photo.

    Attributes:
        owner: whose photo it is in.
        kind: a key of `KINDS`.
        noun: what it is called.
    """

    owner: Speaker
    kind: str
    noun: Noun


def sample_records(n: int, *, seed: int = 0, part: Part = "train") -> tuple[Record, ...]:
    """The first `n` records of an endless sequence; the same arguments give the same records everywhere.

    Every letter is the answer once in each four records. A dialogue's text decides the part it belongs to, so that no
    dialogue of one part is ever in the other, whatever the seeds.

    Args:
        n: how many.
        seed: other seeds give other records.
        part: the sequence for training or the one for testing.
    """
    records: list[Record] = []
    for block in range(0, n, len(LETTERS)):
        letters = _shuffled(Random(f"{seed}/{part}/letters/{block}"), LETTERS)
        records += (_record(Random(f"{seed}/{part}/{block + i}"), letter, part) for i, letter in enumerate(letters))
    return tuple(records[:n])


def part_of(record: Record) -> Part:
    """The part to which a sample record belongs, by its dialogue's text."""
    return "train" if zlib.crc32("\n".join(record.conversation).encode()) % _TEST_SHARE else "test"


def _record(rng: Random, letter: Letter, part: Part) -> Record:
    """The first record of `part` that comes up."""
    return next(record for _ in count() if part_of(record := _any_record(rng, letter)) == part)


def _any_record(rng: Random, letter: Letter) -> Record:
    scenes, things = _photos(rng)
    answer = things[LETTERS.index(letter)]
    settings = tuple(_pick(rng, scene.settings) for scene in scenes)
    ending, that = _pointing(rng, answer)
    remarks = [_remark(rng, things, "AB"[turn % 2]) for turn in range(2, _pick(rng, _LENGTHS) - 1)]
    said = [
        _pick(rng, POSTS).format(setting=settings[0]),
        _pick(rng, REPLIES).format(setting=settings[1]),
        *remarks,
        ending,
    ]
    last = "AB"[(len(said) - 1) % 2]
    choices = [f"{mark}) {thing.owner}가 올린 사진 속 {thing.noun}" for mark, thing in zip(LETTERS, things, strict=True)]
    return Record(
        image_descriptions=(_caption(rng, "A", settings[0], things), _caption(rng, "B", settings[1], things)),
        conversation=tuple(f"{'AB'[turn % 2]}: '{text}'" for turn, text in enumerate(said)),
        problem=f"마지막 {last}의 발화에서 '{that}'{particle(that, '은/는')} A와 B 중 어느 사진에 포함된 어느 물건인가?",
        choices=(choices[0], choices[1], choices[2], choices[3]),
        solution=choices[LETTERS.index(letter)],
    )


def _photos(rng: Random) -> tuple[tuple[Scene, Scene], tuple[Thing, ...]]:
    """Two scenes and four things of four kinds, two in each, in the order of the options."""
    scene_a, scene_b = _pick(rng, SCENES), _pick(rng, SCENES)
    kinds_a = _shuffled(rng, scene_a.kinds)[:2]
    kinds_b = [kind for kind in _shuffled(rng, scene_b.kinds) if kind not in kinds_a][:2]
    owners = _pick(rng, _OWNER_ORDERS) if rng.random() < _OUT_OF_ORDER else "AABB"
    left = {"A": iter(kinds_a), "B": iter(kinds_b)}
    things: list[Thing] = []
    for owner in owners:
        kind = next(left[owner])
        things.append(Thing("A" if owner == "A" else "B", kind, Noun(_pick(rng, KINDS[kind].nouns))))
    return (scene_a, scene_b), tuple(things)


def _caption(rng: Random, owner: Speaker, setting: str, things: Sequence[Thing]) -> str:
    first, second = _shuffled(rng, [thing.noun for thing in things if thing.owner == owner])
    return f"{owner}의 사진: {_pick(rng, CAPTIONS).format(setting=setting, first=first, second=second)}"


def _remark(rng: Random, things: Sequence[Thing], speaker: str) -> str:
    if rng.random() < _SMALL_TALK:
        return _pick(rng, SMALL_TALK)
    thing = _pick(rng, things)
    return _pick(rng, REMARKS).format(thing=thing.noun, whose="내" if thing.owner == speaker else "네")


def _pointing(rng: Random, thing: Thing) -> tuple[str, str]:
    """The last utterance, which says what fits only this kind, and its demonstrative as the question quotes it."""
    kind = KINDS[thing.kind]
    says: list[tuple[Role, str]] = [(role, text) for role, texts in kind.says.items() for text in texts]
    role, predicate = _pick(rng, says)
    spoken, quoted = _pick(rng, DEMONSTRATIVES[role])
    end = "?" if predicate.endswith("까") else _pick(rng, ENDINGS)
    return f"{_pick(rng, OPENINGS[role])}{spoken} {predicate}{end}", quoted


def _pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    return sorted(items, key=lambda _: rng.random())
