"""Folded answer text -> tokens: the letters and options of one record, and the words of `words`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import LETTERS, Option
from mmcoref.data.unicode import canonical, fold
from mmcoref.evaluation.parsing.words import AFTER, KIND_OF_GROUP, LETTER, TOKEN, Kind

Mask = int  # a set of options: bit i is the option at place i


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: what it is.
        start: where it begins in the text.
        end: where it ends.
        mask: the options that a letter or an option's text can mean.
        close: the closing bracket, period or colon of a letter; empty for a bare letter.
        whole: whether an option's whole text is written, and not its noun alone.
    """

    kind: Kind
    start: int
    end: int
    mask: Mask = 0
    close: str = ""
    whole: bool = False


# Quotes, Markdown, bullets and heading marks: `**D**)`, `'D'입니다`, `- D)`, `사진 속 "커피잔"`.
_DECORATION = re.compile(r"[*_\"']+|^[^\S\n]*(?:[-•>]|#+) +", re.MULTILINE)
_SPACES = re.compile(r"[^\S\n]+")
_HIDDEN = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]", re.IGNORECASE)
# A model that never learnt to stop goes on with the next training text; what it says there answers nothing.
_RUN_ON = re.compile(r"^[^\S\n]*## (?:Conversation|Problem|Choices)\b", re.MULTILINE)

_OWNER = re.compile(r"([AB])(?:가|의) ?(?:올린 )?")
_PHOTO = "사진 속"
# Before an option's noun: `A가 올린 사진 속 `, `A의 `, `A가 찍은 `, `A 사진의 `, `사진 속 `.
_BEFORE_NOUN = re.compile(
    r"(?<![A-Za-z0-9_])(?:([AB])(?:님)?(?:(?:가|이|의) ?(?:올린|보낸|찍은|공유한|게시한|보여 ?준)? ?(?:사진)?| 사진))? ?"
    r"(?:(?:에|의)? ?(?:속|안|에 있는|에 나온|에|의)(?:에 있는|에|의)?)? ?$"
)
_BEFORE = 24  # characters


def answer_part(output: str) -> str:
    """Return what an output says of its own record after any thought, folded, on trimmed lines and without decoration."""
    text = fold(output)
    if "<" in text or "[" in text:
        text = _without_thoughts(text)
    return _plain(_RUN_ON.split("\n".join(text.splitlines()), maxsplit=1)[0])


def _plain(text: str) -> str:
    return _SPACES.sub(" ", _DECORATION.sub("", text)).strip()


def _loose(text: str) -> str:
    """Return what is left of an answer without spaces, decoration and the period."""
    return "".join(_plain(fold(text)).split()).rstrip(".")


def _without_thoughts(text: str) -> str:
    """Remove `<think>…</think>`: also if a template opened it in the prompt, and if it was never closed."""
    kept: list[str] = []
    start, inside = 0, False
    for tag in _HIDDEN.finditer(text):
        closes = bool(tag[1] or tag[2])
        if not closes and not inside:
            kept.append(text[start : tag.start()])
        elif closes and not inside:
            kept = []
        start, inside = tag.end(), not closes
    if not inside:
        kept.append(text[start:])
    return "\n".join(kept)


class Names:
    """The ways in which the options of one record are named.

    Args:
        options: of the record, in any order.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self.options = tuple(options)
        self.of_letter: dict[str, Mask] = {
            letter: sum(1 << i for i, option in enumerate(options) if option.letter == letter) for letter in LETTERS
        }
        self._written = {canonical(answer_text(option).strip()): option for option in reversed(self.options)}
        self._loosely: dict[str, Option] | None = None
        self._owned = {owner: sum(1 << i for i, option in enumerate(options) if option.owner == owner) for owner in "AB"}
        self._needles: list[tuple[str, Mask, bool]] | None = None

    def written(self, output: str) -> Option | None:
        """Return the option whose answer an output is, whatever its spaces, decoration and encoding, or opens with.

        Most outputs are of this kind, and no more of them is read.
        """
        text = canonical(output.strip())
        option = self._written.get(text) or self._begun(text)
        if option:
            return option
        if self._loosely is None:
            self._loosely = {_loose(text): option for text, option in self._written.items()}
        return self._loosely.get(_loose(output))

    def _begun(self, text: str) -> Option | None:
        """Return the option whose answer, with its period, is the first sentence, unless all options may be recited."""
        for answer, option in self._written.items():
            if text.startswith(answer) and text[len(answer)].isspace() and (option.letter != "A" or "C" not in text[len(answer) :]):
                return option
        return None

    def one(self, mask: Mask) -> Option | None:
        """Return the only option of a set; None if it has none, or several."""
        return self.options[mask.bit_length() - 1] if mask.bit_count() == 1 else None

    def mentions(self, text: str) -> list[Token]:
        """Find the options' texts and nouns, whatever their spaces (`커피잔`, `커피 잔`): leftmost, then longest."""
        places = [place for place, character in enumerate(text) if character not in " \n"]
        compact = text if len(places) == len(text) else "".join([text[place] for place in places])
        found: list[Token] = []
        for needle, mask, whole in self._sought():
            at = compact.find(needle)
            while at >= 0:
                start, end = places[at], places[at + len(needle) - 1] + 1
                at = compact.find(needle, at + 1)
                token = self._mention(text, start, end, mask, whole)
                if token:
                    found.append(token)
        return _apart(sorted(found, key=lambda token: (token.start, -token.end, not token.whole)))

    def _mention(self, text: str, start: int, end: int, mask: Mask, whole: bool) -> Token | None:
        """Check that an option's name is not part of a longer word, and read the owner before a noun."""
        if text[start - 1 : start].isalnum():
            return None
        following = text[end : end + 1]
        if (following.isalnum() or following == "_") and not AFTER.match(text, end):
            return None
        if not whole:
            found = _BEFORE_NOUN.search(text[max(0, start - _BEFORE) : start])
            if found and found[1]:
                mask &= self._owned[found[1]]
            if not mask:
                return None
            start -= len(found[0]) if found else 0
        return Token(Kind.OPTION, start, end, mask, whole=whole)

    def _sought(self) -> list[tuple[str, Mask, bool]]:
        """Return the options' texts and nouns without spaces, the set of options that each can mean, and whether it is a text."""
        if self._needles is None:
            texts: dict[tuple[str, bool], Mask] = {}
            for i, option in enumerate(self.options):
                body = _plain(fold(option.body)).rstrip(" .")
                for name, whole in ((body, True), (_noun(body), False)):
                    key = re.sub(r"\s", "", name), whole
                    texts[key] = texts.get(key, 0) | 1 << i
            self._needles = [(text, mask, whole) for (text, whole), mask in texts.items() if len(text) > text.isascii()]
        return self._needles


names = lru_cache(maxsize=1024)(Names)  # an output is read several times, and a record is asked in several orders


def _noun(body: str) -> str:
    """Return what an option names without its owner: `B가 올린 사진 속 커피잔` -> `커피잔`."""
    noun = body.partition(_PHOTO)[2].strip()
    if noun:
        return noun
    owner = _OWNER.match(body)
    return body[owner.end() :].strip() if owner else body


def _apart(found: Sequence[Token]) -> list[Token]:
    """Drop what overlaps an earlier one."""
    kept: list[Token] = []
    for token in found:
        if not kept or token.start >= kept[-1].end:
            kept.append(token)
    return kept


def tokenize(text: str, of: Names) -> list[Token]:
    """Read `answer_part` text into tokens; spaces and signs without meaning are left out."""
    return _Reader(text, of).read()


class _Reader:
    """Reads a text from left to right; each method tries one kind of token at the place, and moves past it if it is there."""

    def __init__(self, text: str, of: Names) -> None:
        self._text = text
        self._of = of
        self._mentions = of.mentions(text)[::-1]  # the next one last
        self._tokens: list[Token] = []
        self._place = 0
        self._attached = False  # whether an ending or a particle may follow

    def read(self) -> list[Token]:
        """Read all of the text."""
        while self._place < len(self._text):
            if self._option() or self._ending():
                continue
            character = self._text[self._place]
            if character == " " or not ((character in LETTERS and self._letter()) or self._word()):
                self._place += 1
                self._attached = False
        return self._tokens

    def _add(self, token: Token, *, attached: bool = False) -> bool:
        self._tokens.append(token)
        self._place = token.end
        self._attached = attached
        return True

    def _option(self) -> bool:
        while self._mentions and self._mentions[-1].start < self._place:
            self._mentions.pop()  # an announcement took its beginning
        if not self._mentions or self._mentions[-1].start > self._place:
            return False
        option = self._mentions.pop()
        return self._add(option._replace(end=_after_brackets(self._text, option.end)), attached=True)

    def _ending(self) -> bool:
        found = AFTER.match(self._text, self._place) if self._attached else None
        return found is not None and self._add(Token(Kind[str(found.lastgroup)], self._place, found.end()))

    def _letter(self) -> bool:
        """Read `D)`, `D번` or `D`; `D.` ends a sentence unless it opens one, or the option's text follows."""
        found = LETTER.match(self._text, self._place)
        if found is None:
            return False
        end, close = found.end(), found[3] or found[2] or ""
        letter = Token(Kind.LETTER, self._place, end, self._of.of_letter[found[1]], close)
        if close != "." or self._is_named_next(letter) or (self._opens_sentence() and not self._is_followed_by_letter(end)):
            return self._add(letter, attached=True)
        self._add(letter._replace(end=end - 1))
        return self._add(Token(Kind.STOP, end - 1, end))

    def _opens_sentence(self) -> bool:
        return not self._tokens or self._tokens[-1].kind in (Kind.STOP, Kind.QUESTION, Kind.LINE)

    def _is_named_next(self, letter: Token) -> bool:
        """Check for the option's text right after its letter: `B. 캠핑 의자`."""
        if not self._mentions:
            return False
        option = self._mentions[-1]
        return bool(option.mask & letter.mask) and not self._text[letter.end : option.start].strip(" ([{<")

    def _is_followed_by_letter(self, end: int) -> bool:
        """Check for another letter after one and its period: `D. A는 아닙니다`."""
        return bool(LETTER.match(self._text[end : end + 4].lstrip(" ")))

    def _word(self) -> bool:
        found = TOKEN.match(self._text, self._place)
        if found is None:
            return False
        kind, end = KIND_OF_GROUP[str(found.lastgroup)], found.end()
        if self._mentions and end > self._mentions[-1].start:
            kind, end = Kind.WORD, self._mentions[-1].start
        answer = kind is Kind.RIGHT and self._text[end - 1] in "답변안"
        return self._add(Token(kind, self._place, end), attached=answer)


def _after_brackets(text: str, place: int) -> int:
    """Return the place after closing brackets: `(캠핑 의자)입니다`."""
    while place < len(text) and text[place] in ")]>}】〉":
        place += 1
    return place
