"""Output text -> option. `tests/evaluation/test_answer.py` is a table of the sentence forms, failures included.

A letter opens the output, or a conclusion names an option, or one option's text stands in a sentence: in this order.
Where letter and text disagree (`A) ` before D's text) the letter is the answer, as in the published scoring.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import Option, Record
from mmcoref.data.unicode import canonical

FoundBy = Literal["letter", "conclusion", "option_text", "unparsable"]
Failure = Literal[
    "unparsable",
    "wrong_letter_for_right_text",
    "wrong_option",
    "repeated_option",
    "no_stop",
    "right_option_with_extra_text",
    "right_option_in_other_form",
]


class Parsed(NamedTuple):
    """What an output was read as: the option (None: no option, always wrong) and the rule that found it."""

    option: Option | None
    found_by: FoundBy


def parse_answer(output: str, options: Sequence[Option]) -> Parsed:
    """The option that an output names; NFD, full width, Markdown and quotes make no difference, nor does a run-on record.

    1. `letter`: the output opens with a letter and `)`, `.`, `:`, a copula (`D입니다`) or the line's end. `A가 올린 …` opens
       with an owner. What follows is not read, since a model that never learnt to stop writes on. A denial
       (`A) …이 아니라`), a hedge (`A) … 또는 D) …`) and the recited choices (`A) … B) … C) …`) are no answers.
    2. `conclusion`: the last `정답은 X`, `답: X` or `X가 정답입니다`, where X is a letter or an option's text.
    3. `option_text`: one option's text stands in the output, with or without its letter, and is not denied.

    Several options without a conclusion, a text that two options share, or none: `unparsable`.

    Args:
        output: what the model wrote after the prompt.
        options: the record's four options, in any order.
    """
    forms = _forms(tuple(options))
    text = _answer_part(output)
    opening = forms.opening.match(text)
    if opening and not _RECITAL.match(text):
        return Parsed(forms.only([opening]), "letter")
    conclusions = [found for pattern in forms.conclusions for found in pattern.finditer(text)]
    for found in sorted(conclusions, key=re.Match.start, reverse=True):
        if option := forms.only([found]):
            return Parsed(option, "conclusion")
    option = forms.only(list(forms.mention.finditer(text)))
    return Parsed(option, "option_text" if option else "unparsable")


def same_photo(option: Option | None, gold: Option) -> bool:
    """Whether both options name the same owner; an option that names nobody is always the wrong photo."""
    return option is not None and option.owner is not None and option.owner == gold.owner


def exactly(output: str, gold: Option) -> bool:
    """Exact match as published: output and gold answer, period included, are equal once both are stripped.

    They are compared in Unicode's composed form: some tokenizers compose what they read, and no reader sees a difference.
    """
    return canonical(output.strip()) == canonical(answer_text(gold).strip())


def failure(output: str, record: Record, *, stopped: bool) -> Failure | None:
    """Why an output is no exact match (None where it is one): the first of these that holds.

    - `unparsable`: no option.
    - Another option than the gold one: `wrong_letter_for_right_text` (that option's letter before the gold text), else
      `wrong_option`.
    - The gold one: `repeated_option` (its text twice or more, and no other's), `no_stop` (the token limit ended it),
      `right_option_with_extra_text` (it contains the exact answer), else `right_option_in_other_form` (only the letter,
      no period, other words).

    Args:
        output: what the model wrote after the prompt.
        record: the dialogue, with its solution.
        stopped: whether the model ended the output itself.
    """
    gold = record.gold
    if exactly(output, gold):
        return None
    option = parse_answer(output, record.options).option
    if option is None:
        return "unparsable"
    mentions = list(_forms(record.options).mention.finditer(_answer_part(output)))
    if option != gold:
        swapped = any(found["letter"] == option.letter and _same_text(found["body"], gold) for found in mentions)
        return "wrong_letter_for_right_text" if swapped else "wrong_option"
    if len(mentions) > 1 and all(_means(found, gold) for found in mentions):
        return "repeated_option"
    if not stopped:
        return "no_stop"
    return "right_option_with_extra_text" if canonical(answer_text(gold)) in canonical(output) else "right_option_in_other_form"


# A model that never learnt to stop goes on with the next training text; what it says there answers nothing.
_RUN_ON = re.compile(r"^\s*## (?:Conversation|Problem|Choices)\b", re.MULTILINE)
# Quotes, Markdown, bullets and heading marks: `**D**)`, `'D'입니다`, `- D)`, `사진 속 "커피잔"`.
_DECORATION = re.compile(r"[*_`\"'“”‘’«»「」『』]+|^[^\S\n]*(?:[-•>]|#+) +", re.MULTILINE)
_SPACES = re.compile(r"[^\S\n]+")

_BRACKET = r"[)\]>.:](?![은는이가을를와과도](?:\s|$))"  # after a letter: `D)`, but not the `D)는` of a sentence about D
# The choices said again, on one line or on several: A, B and C in order, and no sentence ends between them.
_RECITAL = re.compile(r"[^.\n]*(?<!니다)[.,]?\s*".join(rf"[(\[<]*{letter}{_BRACKET}" for letter in "ABC"))
_COPULA = r"(?:입니|이[다에었라며고므네죠야]|예요)"
_LETTER = rf"[(\[<]*(?P<letter>[A-D])(?:{_BRACKET}|(?= ?{_COPULA}|번| *(?:\n|$)))"
# What may follow a noun without being part of it: `컵입니다`, `컵으로는`, but not `컵받침`.
_NOUN_END = rf"(?={_COPULA}|라고|인데|이[기지나]|(?:[인일임이가을를과와의에로]|에서|으로|보다)?[은는도만]?(?!\w))"
_DENIED = r"[이가은는도]? ?아[니닌닐닙]"
_OR = r"[ ,/]*(?:(?:이?나|[와과]|또는|혹은|및|그리고)[ ,]*)?"
_CONCLUDING = r"(?:정답|(?<!\w)답)\s*[은는이]?\s*:?\s*(?:(?:바로|보기|선택지|다음과 같습니다[.:]?)\s*)?"
_CONCLUDED = rf"[이가] ?정?답(?:{_COPULA}|으로|일)"
_BARE_LETTER = rf"(?P<letter>[A-D])(?:[)\]>.:]|(?={_CONCLUDED}))"  # the D of `D가 정답입니다`
_NOT_AFTER_OR = r"(?<!\w)(?<![와과나,] )(?<!또는 )"


def _plain(text: str) -> str:
    """Composed Hangul, half-width signs, no decoration, single spaces; line breaks stay."""
    return _SPACES.sub(" ", _DECORATION.sub("", unicodedata.normalize("NFKC", text))).strip()


def _unspaced(text: str) -> str:
    """`_plain` without spaces: writers of Korean differ in them (`커피잔`, `커피 잔`)."""
    return re.sub(r"\s", "", _plain(text))


def _answer_part(output: str) -> str:
    return _plain(_RUN_ON.split(output, maxsplit=1)[0])


class _Forms:
    """Patterns over `_plain` text for the ways in which one record's options are named, and their reading."""

    def __init__(self, options: tuple[Option, ...]) -> None:
        self._options = options
        # Longest first: `컵받침` is tried before its beginning `컵`. Atomic groups (?>…) keep a text that is denied or
        # hedged from being taken for a shorter one; (?(letter)|(?!)) lets the text be missing only after a letter.
        texts = sorted({_unspaced(option.body) for option in options} - {""}, key=len, reverse=True)
        bodies = "|".join(" ?".join(map(re.escape, text)) for text in texts) or "(?!)"
        another = rf"{_OR}(?:[(\[<]*(?!(?P=letter))[A-D][)\]>.]|(?!(?P=body))(?:{bodies}))"
        self._body = rf"(?>(?P<body>{bodies}){_NOUN_END})"
        self._body_or_letter = rf"(?:{self._body}|(?(letter)|(?!)))"
        self._alone = rf"(?!{_DENIED})(?!{another})"

    # Compiled when first needed: most outputs open with their letter, and compiling is what takes time.
    @cached_property
    def opening(self) -> re.Pattern[str]:
        return re.compile(rf"(?:Solution\s*)?(?>{_LETTER} ?{self._body_or_letter}){self._alone}")

    @cached_property
    def conclusions(self) -> tuple[re.Pattern[str], ...]:
        return (
            re.compile(rf"{_CONCLUDING}(?>(?:{_LETTER} ?)?{self._body_or_letter}){self._alone}"),
            re.compile(rf"{_NOT_AFTER_OR}(?:{_BARE_LETTER} ?)?{self._body_or_letter}{_CONCLUDED}"),
        )

    @cached_property
    def mention(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)(?:(?P<letter>[A-D])[)\]>.:] ?)?{self._body}(?!{_DENIED})")

    def only(self, found: Sequence[re.Match[str]]) -> Option | None:
        """The one option that all these matches can mean."""
        meant = [option for option in self._options if all(_means(match, option) for match in found)]
        return meant[0] if found and len(meant) == 1 else None


def _means(match: re.Match[str], option: Option) -> bool:
    groups = match.groupdict()
    return option.letter == groups["letter"] if groups["letter"] else _same_text(groups["body"], option)


def _same_text(body: str, option: Option) -> bool:
    return _unspaced(body) == _unspaced(option.body)


_forms = lru_cache(maxsize=1024)(_Forms)
