"""Records -> what they hold: numbers, lengths, floors, and what is odd about them. `audit` is a pure function and knows no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmcoref.data.record import LETTERS, Record, speaker_of
from mmcoref.data.split import Split
from mmcoref.data.unicode import canonical, fold, normalise
from mmcoref.evaluation.floors import Floor, floors
from mmcoref.tools.audit_oddities import CHECKS, owners, quotes, texts


@dataclass(frozen=True)
class Part:
    """One part of the split.

    Attributes:
        name: `train`, `val` or `test`.
        records: how many.
        gold: letter -> records whose answer it is.
        owner_orders: the four options' owners, e.g. `AABB`, with `-` where none is named -> records; the most frequent first.
        demonstrative_last: records whose question quotes words of the last utterance.
        demonstrative_somewhere: records whose question quotes words of any utterance.
    """

    name: str
    records: int
    gold: Mapping[str, int]
    owner_orders: Mapping[str, int]
    demonstrative_last: int
    demonstrative_somewhere: int


@dataclass(frozen=True)
class Utterances:
    """How many there are: in all, in the shortest and the longest dialogue, and of them those that open with a quotation mark."""

    total: int
    least: int
    most: int
    quoted: int


@dataclass(frozen=True)
class Lengths:
    """Of all records; p50, p95 and p99 are nearest ranks, the least length that so many percent of the records do not exceed."""

    min: int
    mean: float
    p50: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class Tokens:
    """What `max_tokens` is compared with: the prompt and the longest answer, stop token included.

    Attributes:
        tokenizer: as the user named it.
        prompt: `base` or `chat`.
        max_tokens: the most that training takes.
        lengths: in tokens.
        too_long: indices of the records that exceed `max_tokens`, in file order.
    """

    tokenizer: str
    prompt: str
    max_tokens: int
    lengths: Lengths
    too_long: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One check's result; a warning where `total` is not 0.

    Attributes:
        name: of the check.
        message: the result as one sentence.
        total: how many of what was looked at are odd.
        counts: part -> the same in that part; parts that the check does not look at are missing.
        of: part -> how many were looked at.
        records: indices of the records concerned, in file order.
    """

    name: str
    message: str
    total: int
    counts: Mapping[str, int]
    of: Mapping[str, int]
    records: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """What valid records hold.

    Attributes:
        records: how many.
        parts: train, val and test.
        utterances: their number and form.
        characters: lengths of dialogue, captions, question and options, without headings and line breaks.
        tokens: None where no tokenizer was given.
        findings: every check's result, also those that found nothing.
        floors: what no model scores on the test part; the last rule is the audit's own.
    """

    records: int
    parts: tuple[Part, ...]
    utterances: Utterances
    characters: Lengths
    tokens: Tokens | None
    findings: tuple[Finding, ...]
    floors: tuple[Floor, ...]


def audit(records: Sequence[Record], split: Split, tokens: Tokens | None = None) -> Audit:
    """What records hold and what is odd about them, in time linear in their number.

    Args:
        records: with solutions, in file order.
        split: of all of them.
        tokens: their token lengths, where they were counted.

    Raises:
        ValueError: the train or the test part is empty, or a record has no solution.
    """
    per_dialogue = [len(record.conversation) for record in records]
    said = (utterance for record in records for utterance in record.conversation)
    test = [records[i] for i in split.test]
    return Audit(
        records=len(records),
        parts=tuple(_part(name, [records[i] for i in indices]) for name, indices in split._asdict().items()),
        utterances=Utterances(sum(per_dialogue), min(per_dialogue), max(per_dialogue), sum(fold(text[3]) in ("'", '"') for text in said)),
        characters=lengths([sum(map(len, texts(record))) for record in records]),
        tokens=tokens,
        findings=(*_odd_records(records, split), *_repeats(records, split)),
        floors=(*floors([records[i] for i in split.train], test), _other_than_last_speaker(test)),
    )


def lengths(values: Sequence[int]) -> Lengths:
    """Of one record or more."""
    ranked = sorted(values)
    p50, p95, p99 = (ranked[-(-len(ranked) * percent // 100) - 1] for percent in (50, 95, 99))
    return Lengths(ranked[0], sum(ranked) / len(ranked), p50, p95, p99, ranked[-1])


def _part(name: str, records: Sequence[Record]) -> Part:
    gold = Counter(record.gold.letter for record in records)
    return Part(
        name=name,
        records=len(records),
        gold={letter: gold[letter] for letter in LETTERS},
        owner_orders=dict(Counter(map(owners, records)).most_common()),
        demonstrative_last=sum(quotes(record, record.conversation[-1:]) for record in records),
        demonstrative_somewhere=sum(quotes(record, record.conversation) for record in records),
    )


def _other_than_last_speaker(test: Sequence[Record]) -> Floor:
    """The photo rule of `floors` with the speaker who really is the last."""
    right = sum(record.gold.owner is not None and record.gold.owner != speaker_of(record.conversation[-1]) for record in test)
    return Floor("photo of the speaker not last to speak", None, right, len(test))


_PER_RECORD = {"records": 1, "options": 4, "held-out dialogues": 1, "held-out captions": 2, "held-out option lists": 1}


def _odd_records(records: Sequence[Record], split: Split) -> Iterable[Finding]:
    for name, counted, words, odd in CHECKS:
        hits = {part: [i for i in indices for _ in range(odd(records[i]))] for part, indices in split._asdict().items()}
        yield _finding(name, counted, words, hits, split)


def _repeats(records: Sequence[Record], split: Split) -> Iterable[Finding]:
    """What is there twice: inside a part, and in a later part as in an earlier one."""
    inside: tuple[tuple[str, str, Callable[[Record], Hashable]], ...] = (
        ("repeated_record", "an earlier record of the same part is exactly the same", _content),
        ("repeated_dialogue", "an earlier record of the same part has the same dialogue", lambda r: _compared(r.conversation)),
    )
    for name, words, key in inside:
        hits: dict[str, list[int]] = {}
        for part, indices in split._asdict().items():
            first: dict[Hashable, int] = {}
            hits[part] = [i for i in indices if first.setdefault(key(records[i]), i) != i]
        yield _finding(name, "records", words, hits, split)
    across: tuple[tuple[str, str, Callable[[Record], Sequence[Hashable]]], ...] = (
        ("dialogue_across", "held-out dialogues", lambda r: [_compared(r.conversation)]),
        ("captions_across", "held-out captions", lambda r: _compared(r.image_descriptions)),
        ("options_across", "held-out option lists", lambda r: [_compared(r.choices)]),
    )
    for name, counted, keys in across:
        seen = {key for i in split.train for key in keys(records[i])}
        hits = {"val": [i for i in split.val for key in keys(records[i]) if key in seen]}
        seen.update(key for i in split.val for key in keys(records[i]))
        hits["test"] = [i for i in split.test for key in keys(records[i]) if key in seen]
        yield _finding(name, counted, "an earlier part of the split has the same", hits, split)


def _content(record: Record) -> Hashable:
    """All of a record but its id, which does not make it another one; the texts as characters, however they are encoded."""
    return (*map(canonical, texts(record)), record.gold.letter, len(record.conversation))


def _compared(several: Sequence[str]) -> tuple[str, ...]:
    """Return texts in the form in which they are the same as others: as clusters of the split compare them."""
    return tuple(map(normalise, several))


def _finding(name: str, counted: str, words: str, hits: Mapping[str, Sequence[int]], split: Split) -> Finding:
    """A finding from part -> record index of each hit; a record is there as often as it has hits."""
    counts = {part: len(found) for part, found in hits.items()}
    of = {part: _PER_RECORD[counted] * len(getattr(split, part)) for part in hits}
    total = sum(counts.values())
    concerned = tuple(sorted(set().union(*hits.values())))
    where = f" in {len(concerned):,} record{'s'[len(concerned) == 1 :]}" if len(concerned) != total else ""
    message = f"{total:,} of {sum(of.values()):,} {counted}{where}: {words}."
    return Finding(name, message, total, counts, of, concerned)
