"""Records -> what they hold: numbers, lengths, floors, and what is odd about them. `audit` is a pure function and knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmcoref.data.record import LETTERS, Record
from mmcoref.data.split import Split
from mmcoref.evaluation.floors import Floor
from mmcoref.tools.audit_oddities import CHECKS
from mmcoref.tools.audit_survey import Survey

Indices = NDArray[np.int64]  # of a part's records, in file order
Parts = Mapping[str, Indices]


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


def audit(records: Iterable[Record], split: Split, tokens: Tokens | None = None) -> Audit:
    """What records hold and what is odd about them, in time linear in their number.

    Args:
        records: with solutions, in file order.
        split: of all of them.
        tokens: their token lengths, where they were counted.

    Raises:
        ValueError: the train or the test part is empty, or a record has no solution.
    """
    survey = Survey()
    for record in records:
        survey.add(record)
    return audit_of(survey, split, tokens)


def audit_of(survey: Survey, split: Split, tokens: Tokens | None = None) -> Audit:
    """Make the audit of records that were surveyed; see `audit`."""
    parts = {name: np.asarray(indices, np.int64) for name, indices in split._asdict().items()}
    return Audit(
        records=len(survey),
        parts=tuple(_part(name, survey, indices) for name, indices in parts.items()),
        utterances=Utterances(survey.utterances, survey.shortest, survey.longest, survey.quoted_utterances),
        characters=lengths(survey.characters),
        tokens=tokens,
        findings=(*_odd_records(survey, parts), *_repeats(survey, parts), *_across(survey, parts)),
        floors=tuple(survey.floors(parts["train"], parts["test"])),
    )


def lengths(values: ArrayLike) -> Lengths:
    """Of one record or more."""
    ranked = np.sort(values)
    p50, p95, p99 = (int(ranked[-(-len(ranked) * percent // 100) - 1]) for percent in (50, 95, 99))
    return Lengths(int(ranked[0]), int(ranked.sum(dtype=np.int64)) / len(ranked), p50, p95, p99, int(ranked[-1]))


def _part(name: str, survey: Survey, indices: Indices) -> Part:
    gold = np.bincount(survey.gold[indices], minlength=len(LETTERS)).tolist()
    numbers, first, counts = np.unique(survey.owner_numbers[indices], return_index=True, return_counts=True)
    ranked = np.lexsort((first, -counts))  # the most frequent first, of equals the one that came first
    return Part(
        name=name,
        records=len(indices),
        gold=dict(zip(LETTERS, gold, strict=True)),
        owner_orders={survey.owner_orders[numbers[i]]: int(counts[i]) for i in ranked},
        demonstrative_last=int(survey.quoted_last[indices].sum(dtype=np.int64)),
        demonstrative_somewhere=int(survey.quoted_somewhere[indices].sum(dtype=np.int64)),
    )


_PER_RECORD = {"records": 1, "options": 4, "held-out dialogues": 1, "held-out captions": 2, "held-out option lists": 1}


def _odd_records(survey: Survey, parts: Parts) -> Iterator[Finding]:
    for number, (name, counted, words, _) in enumerate(CHECKS):
        yield _finding(name, counted, words, survey.odd(number), parts)


def _repeats(survey: Survey, parts: Parts) -> Iterator[Finding]:
    """What is there twice inside a part."""
    inside = (
        ("repeated_record", "an earlier record of the same part is exactly the same", survey.contents),
        ("repeated_dialogue", "an earlier record of the same part has the same dialogue", survey.dialogues[:, 0]),
    )
    for name, words, groups in inside:
        again = np.zeros(len(survey), np.int8)
        for indices in parts.values():
            _, first = np.unique(groups[indices], return_index=True)
            again[indices] = 1
            again[indices[first]] = 0
        yield _finding(name, "records", words, again, parts)


def _across(survey: Survey, parts: Parts) -> Iterator[Finding]:
    """What is there in a later part as in an earlier one."""
    held_out = {name: parts[name] for name in ("val", "test")}
    for name, counted, groups in (
        ("dialogue_across", "held-out dialogues", survey.dialogues),
        ("captions_across", "held-out captions", survey.captions),
        ("options_across", "held-out option lists", survey.option_lists),
    ):
        known = np.zeros(int(groups.max(initial=-1)) + 1, np.bool_)
        known[groups[parts["train"]]] = True
        again = np.zeros(len(survey), np.int8)
        for indices in held_out.values():
            again[indices] = known[groups[indices]].sum(1)
            known[groups[indices]] = True
        yield _finding(name, counted, "an earlier part of the split has the same", again, held_out)


def _finding(name: str, counted: str, words: str, hits: NDArray[np.int8], parts: Parts) -> Finding:
    """A finding from (N,), how often each record was hit.

    Args:
        name: of the check.
        counted: what is counted, a key of `_PER_RECORD`.
        words: of the finding.
        hits: of each record.
        parts: those that are looked at.
    """
    counts = {part: int(hits[indices].sum(dtype=np.int64)) for part, indices in parts.items()}
    of = {part: _PER_RECORD[counted] * len(indices) for part, indices in parts.items()}
    total = sum(counts.values())
    concerned = tuple(np.flatnonzero(hits).tolist())
    where = f" in {len(concerned):,} record{'s'[len(concerned) == 1 :]}" if len(concerned) != total else ""
    message = f"{total:,} of {sum(of.values()):,} {counted}{where}: {words}."
    return Finding(name, message, total, counts, of, concerned)
