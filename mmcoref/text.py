"""Text that comes from elsewhere (records, file names, libraries) on its way to a terminal, a log or a file for reading.

A terminal obeys control characters, and a reader trusts lines: an escape sequence in a record can wipe a verdict off the
screen, a line break in a file name can add one.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Marks that set the direction of the text after them, and the two separators that some viewers break lines at.
_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SEPARATORS = "\u2028\u2029"
_OBEYED = rf"\x7f-\x9f{_DIRECTION}{_SEPARATORS}\ud800-\udfff"  # DEL, C1, and half surrogate pairs, which no encoding takes
_UNSAFE = re.compile(rf"[\x00-\x1f{_OBEYED}]")
_UNSAFE_IN_LINES = re.compile(rf"[\x00-\x09\x0b-\x1f{_OBEYED}]")
_UNSAFE_IN_JSON = re.compile(rf"[{_OBEYED}]")  # `json.dumps` escapes the others itself


def printable(text: object, *, lines: bool = False) -> str:
    r"""Escape what a terminal or a reader could be misled by.

    Args:
        text: anything; an object is converted with `str`.
        lines: whether line breaks are the caller's own, and stay.

    Returns:
        The text with control characters, marks of direction, line separators and half surrogate pairs written as Python
        writes them, such as `\x1b`; everything else is unchanged.

    >>> printable("\x1b[2J verdict: right\n\u202e")
    '\\x1b[2J verdict: right\\n\\u202e'
    """
    return (_UNSAFE_IN_LINES if lines else _UNSAFE).sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def to_json(value: object, **options: Any) -> str:
    r"""Write JSON that is readable in any script and safe to print.

    Args:
        value: plain values.
        options: of `json.dumps`.

    Returns:
        JSON in which what `printable` escapes is written as `\u…`: a program reads back the same text.

    >>> to_json({"text": "컵\x9b"})
    '{"text": "컵\\u009b"}'
    """
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, **options))


class PrintableFormatter(logging.Formatter):
    """Formats a log message as one line, whatever its arguments hold; a traceback below it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """Format the line."""
        return printable(super().formatMessage(record))


def plain_console(**options: Any) -> Console:
    """Make a rich console that prints text as it is: `[bold]` in a file name is a file name.

    Args:
        options: of `rich.console.Console`.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:  # it would end the process with exit code 1
            raise  # the error that is being handled

    return PlainConsole(markup=False, emoji=False, highlight=False, **options)
