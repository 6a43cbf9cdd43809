"""JSON -> plain values, and which texts no record may hold. Strict where the standard library is silent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_SHOWN_VALUE = 60

_LINE_BREAKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_HEADING = re.compile(rf"(?:^|[{_LINE_BREAKS}])\s*##\s*(?:Conversation|Problem|Choices|Solution)\b")
_FFFD = re.compile("\ufffd")
# Control characters but tab and line breaks, which the prompt turns into spaces, and NUL, which is refused.
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")


class Contradiction(dict[str, Any]):
    """A JSON object that has a key several times, with different values.

    Attributes:
        keys_twice: which.
    """

    keys_twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; a key that comes twice with the same value says nothing wrong."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    found = Contradiction(fields)
    found.keys_twice = tuple(dict.fromkeys(key for key, value in pairs if value != fields[key]))
    return found if found.keys_twice else fields


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def decode(text: str) -> Any:
    """Decode JSON; an object with a key of two values is a `Contradiction`.

    Raises:
        ValueError: it is no JSON, or has a number of too many digits.
        RecursionError: it is nested too deeply.
    """
    return DECODER.decode(text)


def describe(error: Exception) -> str:
    """Say what `decode` stumbled over, and where."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def refused_texts(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Find what no text of a record may hold.

    A NUL ends a text for many programs. A line that begins with one of the prompt's headings could pass for the prompt's
    own, answer included.

    Args:
        texts: (field, text) pairs.

    Yields:
        What is wrong with a field, one message each.
    """
    for field, text in texts:
        if "\0" in text:
            yield f"{field}: expected a text without NUL characters, got {shown(text)}"
        if _HEADING.search(text):
            yield f"{field}: expected a text without a line that begins with a heading of the prompt, got {shown(text)}"


def has_lost_characters(text: str) -> bool:
    """Check for U+FFFD, which stands for what a decoder could not read."""
    return _FFFD.search(text) is not None


def has_control_characters(text: str) -> bool:
    """Check for control characters other than tabs and line breaks."""
    return _CONTROL.search(text) is not None


def shown(value: object) -> str:
    """Write a value as JSON, shortened, for a message."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
