"""Normalise texts for comparison, and put them on one line for the prompt.

The same Korean word has several encodings: composed (NFC) or decomposed (NFD, as macOS writes file names), half or full
width, with straight or curly quotation marks. Whatever compares or matches texts of a record, or of a model's output,
does so on `fold` or `normalise` of both sides. Prompts and predictions keep every text as it was given.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_APOSTROPHES = "‘’‚‛`´′‹›「」｢｣｀"
_QUOTES = "“”„‟″«»『』〝〞"
_DASHES = "‐‑‒–—―−"
_STOPS = "。｡"
# Soft hyphen, joiners, directional marks, byte order mark, variation selectors, Hangul fillers: they show nothing.
_INVISIBLE = "\u00ad\u034f\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\u3164\ufe00-\ufe0f\ufeff\uffa0"

_SIGN = re.compile(f"[{_INVISIBLE}{_APOSTROPHES}{_QUOTES}{_DASHES}{_STOPS}]")
_PLAIN_SIGN = {sign: plain for signs, plain in ((_APOSTROPHES, "'"), (_QUOTES, '"'), (_DASHES, "-"), (_STOPS, ".")) for sign in signs}

# Sorting the combining marks of one character takes time quadratic in their number. Unicode's stream-safe format
# (UAX #15) has at most 30; runs that may be longer are outside ASCII, Latin, Hangul, kana and CJK.
_MAX_MARKS = 30
_LONG_RUN = re.compile(rf"[^\x00-\u02ff\u1100-\u11ff\u3000-\u3029\u3030-\u3098\u309b-\u9fff\uac00-\ud7a3]{{{_MAX_MARKS + 1},}}")

_REMEMBERED = 128  # texts: what looks at a record asks for each of its dozen texts several times

_LINE_BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def fold(text: str) -> str:
    """Fold the ways in which one character is encoded into one; spaces and line breaks stay.

    NFKC (composed Hangul, half-width letters and brackets), straight quotation marks, one hyphen, one full stop, and no
    invisible characters. `fold(fold(text)) == fold(text)`.

    Example:
        >>> fold("Ａ） ‘컵’")
        "A) '컵'"
    """
    if text.isascii() and "`" not in text:
        return text
    text = unicodedata.normalize("NFKC", _SIGN.sub(_plain_sign, _LONG_RUN.sub(_stream_safe, text)))
    # A few signs come out of NFKC only, such as the grave accent of Greek.
    return unicodedata.normalize("NFKC", _SIGN.sub(_plain_sign, text)) if _SIGN.search(text) else text


@lru_cache(maxsize=_REMEMBERED)
def normalise(text: str) -> str:
    """Return the form in which two texts are compared: `fold`, each run of whitespace one space, none at the ends.

    Example:
        >>> normalise(" 캠핑\\n의자 ")
        '캠핑 의자'
    """
    return " ".join(fold(text).split())


@lru_cache(maxsize=_REMEMBERED)
def canonical(text: str) -> str:
    """Return the composed form (NFC): equal exactly for texts that are the same characters, however encoded."""
    return unicodedata.normalize("NFC", _LONG_RUN.sub(_stream_safe, text))


def has_line_break(text: str) -> bool:
    """Check for any character at which a text would go on in a new line, U+2028 and a lone carriage return included."""
    return _LINE_BREAK.search(text) is not None


def one_line(text: str) -> str:
    """Return a text on one line: each line break, with the spaces around it, becomes a single space.

    A text without line breaks is returned as it is.
    """
    if not has_line_break(text):
        return text
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)


def _plain_sign(found: re.Match[str]) -> str:
    return _PLAIN_SIGN.get(found[0], "")


def _stream_safe(run: re.Match[str]) -> str:
    """Drop the combining marks of a character after its 30th."""
    kept: list[str] = []
    marks = 0
    for character in run[0]:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)
