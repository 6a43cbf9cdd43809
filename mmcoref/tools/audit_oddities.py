"""What can be odd about one record: the checks of `mmcoref audit` that look at records one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from mmcoref.data.decode import has_control_characters, has_lost_characters
from mmcoref.data.prompt import has_stop
from mmcoref.data.record import LETTERS, Record, speaker_of
from mmcoref.data.unicode import canonical, has_line_break, normalise
from mmcoref.evaluation.floors import named_speaker

_QUOTED = re.compile(r"['\"]([^'\"]+)['\"]")  # "'저거'는 A와 B 중 …"
_PHOTO = re.compile(r"\(사진 ?\d+ ?:")  # "A: '…' (사진 1: 탁자 위의 컵)"


def owners(record: Record) -> str:
    """Return the four options' owners in order, e.g. `AABB`, with `-` for an option that names none."""
    return "".join(option.owner or "-" for option in record.options)


def quotes(record: Record, utterances: Sequence[str]) -> bool:
    """Check whether one of the utterances has what the question quotes."""
    quoted = _quoted(record)
    return quoted is not None and any(quoted in normalise(utterance) for utterance in utterances)


def _quoted(record: Record) -> str | None:
    """Return the demonstrative that the question quotes; None if it quotes nothing."""
    found = _QUOTED.search(normalise(record.problem))
    return found[1] if found else None


def _named_is_not_last(record: Record) -> bool:
    return named_speaker(record) not in (None, speaker_of(record.conversation[-1]))


def texts(record: Record) -> tuple[str, ...]:
    """Return all of a record's texts but the solution, which repeats an option."""
    return (*record.conversation, *record.image_descriptions, record.problem, *record.choices)


# Name, what is counted, the finding's words, and how many of them are odd in one record.
CHECKS: tuple[tuple[str, str, str, Callable[[Record], int]], ...] = (
    ("owner_order", "records", "the options' owners are not ordered A, A, B, B", lambda r: owners(r) != "AABB"),
    ("option_without_owner", "options", "the text names no owner, which counts as the wrong photo", lambda r: owners(r).count("-")),
    (
        "gold_without_owner",
        "records",
        "the right option names no owner, so that no answer has the right photo",
        lambda r: r.gold.owner is None,
    ),
    (
        "gold_half",
        "records",
        "the right letter's half (A and B for A's photo, C and D for B's) is not its owner",
        lambda r: r.gold.owner not in (None, "A" if r.gold.letter in "AB" else "B"),
    ),
    (
        "same_options",
        "records",
        "two options have the same text",
        lambda r: len({normalise(option.body) for option in r.options}) < len(LETTERS),
    ),
    ("no_speaker", "records", "the question names no speaker", lambda r: named_speaker(r) is None),
    ("speaker_not_last", "records", "the speaker named in the question is not the last to speak", _named_is_not_last),
    ("no_demonstrative", "records", "the question quotes no demonstrative", lambda r: _quoted(r) is None),
    (
        "demonstrative_not_last",
        "records",
        "the quoted demonstrative is not in the last utterance",
        lambda r: _quoted(r) is not None and not quotes(r, r.conversation[-1:]),
    ),
    (
        "demonstrative_nowhere",
        "records",
        "the quoted demonstrative is in no utterance",
        lambda r: _quoted(r) is not None and not quotes(r, r.conversation),
    ),
    (
        "opening",
        "records",
        "the first two utterances, behind which the prompt sets A's and B's captions, are not A's and B's",
        lambda r: [speaker_of(utterance) for utterance in r.conversation[:2]] != ["A", "B"],
    ),
    (
        "two_turns",
        "records",
        "a speaker has two turns running",
        lambda r: any(speaker_of(one) == speaker_of(following) for one, following in pairwise(r.conversation)),
    ),
    (
        "photo_in_utterance",
        "records",
        'an utterance describes a photo, "(사진 1: …)"',
        lambda r: bool(_PHOTO.search(normalise("\n".join(r.conversation)))),
    ),
    (
        "decomposed",
        "records",
        "a text is not in Unicode's composed form (NFC): it is compared in that form, and prompted as it is",
        lambda r: any(canonical(text) != text for text in texts(r)),
    ),
    (
        "line_break",
        "records",
        "a text has a line break inside, which is a space in the prompt",
        lambda r: any(map(has_line_break, texts(r))),
    ),
    (
        "option_with_period",
        "options",
        "the text already ends in a period, so that prompt and answer add none",
        lambda r: sum(map(has_stop, r.choices)),
    ),
    (
        "lost_character",
        "records",
        "a text has U+FFFD, which stands for a character that was lost when the text was decoded",
        lambda r: any(map(has_lost_characters, texts(r))),
    ),
    (
        "control_character",
        "records",
        "a text has a control character other than tabs and line breaks",
        lambda r: any(map(has_control_characters, texts(r))),
    ),
    ("blank_caption", "records", "a caption says nothing", lambda r: any(not caption[6:].strip() for caption in r.image_descriptions)),
)
