"""A data file's bytes -> its items, one after another: no more of the file than a piece is in memory at a time."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from mmcoref.data.decode import DECODER, decode, describe, shown
from mmcoref.errors import UserError

_PIECE = 2**20  # bytes read at a time
_HEAD = 2**21  # characters of the first line in which a list is looked for
_LONGEST_ITEM = 2**28  # characters; a longer item is a string that nobody has closed
# An error so close to the end of what has been read may be due to the cut: `\ud83d\ude00` has 12 characters.
_CUT = 16
_BLANK = re.compile(r"[ \t\n\r]*")
FIELDS = frozenset(("image_descriptions", "conversation", "problem", "choices", "solution"))  # a record's own
_FORMS = {str: "strings", dict: "objects"}


class Items:
    """The items of a data file: a JSON list of strings or of objects, or JSON Lines.

    Iterating gives each item decoded; an item that is no JSON comes as the `ValueError` that says so. It can be done once.

    Args:
        path: for messages.
        file: opened for reading bytes.

    Raises:
        UserError: while it is iterated: the file is no UTF-8, or neither a JSON list nor JSON Lines.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._text = _Text(path, file)
        self._kinds: set[type] = set()
        self._lines = False

    def __iter__(self) -> Iterator[Any]:
        text = self._text
        while text.more() and not text.buffer.strip():
            pass
        start = text.buffer.lstrip()[:1]
        if start == "[":
            yield from self._list()
        else:
            if start == "{":
                self._refuse_wrapped()
            self._lines = True
            while (line := text.line()) is not None:
                if line.strip():
                    yield _decoded(line, twice=True)

    @property
    def sha256(self) -> str:
        """Hex digest of the file's bytes, once all items have been read."""
        return self._text.digest.hexdigest()

    @property
    def form(self) -> str:
        """The form of the file's top level, once all items have been read, such as `JSON list of strings`."""
        if self._lines:
            return "JSON Lines"
        return "JSON list of " + " and ".join(name for kind, name in _FORMS.items() if kind in self._kinds)

    def _list(self) -> Iterator[Any]:
        text = self._text
        try:
            text.expect("[")
            ended = text.peek() == "]"
            while not ended:
                item = text.value()
                self._kinds.add(type(item))
                yield _decoded(item) if isinstance(item, str) else item
                ended = text.peek() == "]"
                if not ended:
                    text.expect(",")
            text.expect("]")
            if text.peek():
                raise text.broken("Extra data")
        except (ValueError, RecursionError) as error:
            where = str(error) if isinstance(error, _BrokenError) else describe(error)
            raise UserError(f"{self._path}: expected a JSON list or JSON Lines, got broken JSON: {where}.") from None

    def _refuse_wrapped(self) -> None:
        """Refuse a file that is one JSON object, and say where in it the list is; JSON Lines begin with an object, too."""
        while "\n" not in self._text.buffer and len(self._text.buffer) < _HEAD and self._text.more():
            pass
        self._text.more()  # only an empty read tells that the file has ended
        head = self._text.buffer.lstrip()
        first, broken, rest = head.partition("\n")
        try:
            item = decode(first)
            single = self._text.ended and not rest.strip() and not (isinstance(item, dict) and item.keys() & FIELDS)
            several_lines = False
        except RecursionError:
            return
        except ValueError as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else 0
            single = several_lines = not broken or at >= len(first.rstrip())  # the object goes on
        if not single:
            return
        path = _path_of_list(head)
        if path and path[-1] not in FIELDS:
            keys = ".".join(map(shown, path))
            raise UserError(
                f"{self._path}: expected a JSON list or JSON Lines, got one JSON object, in which the list is under {keys}: "
                "save that list as a file of its own."
            )
        if several_lines and broken:
            raise UserError(
                f"{self._path}: expected a JSON list or JSON Lines, got a JSON object of several lines: put each record on a line of its "
                "own, or all of them into one list, [ … ]."
            )


class _BrokenError(ValueError):
    """Broken JSON, with its place in the file."""


class _Text:
    """A file's text: `buffer` holds a piece of it, from `position` on still to be read.

    Attributes:
        buffer: characters read from the file and not dropped yet.
        ended: whether the file has no more.
        digest: of the bytes read.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.buffer = ""
        self.ended = False
        self.digest = hashlib.sha256()
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._position = 0
        self._bytes = 0  # read so far
        self._line, self._column = 1, 1  # of the buffer's first character

    def more(self) -> bool:
        """Read a piece more and drop what is done; whether there was one.

        Raises:
            UserError: it is no UTF-8.
        """
        if self.ended:
            return False
        # As much again as is there, so that an item of many pieces is not scanned once for each of them.
        try:
            raw = self._file.read(max(_PIECE, len(self.buffer) - self._position))
        except OSError as error:
            raise unreadable(self._path, error) from None
        self.ended = not raw
        self.digest.update(raw)
        self._bytes += len(raw)
        try:
            text = self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            offset = self._bytes - len(error.object) + error.start
            byte = error.object[error.start]
            raise UserError(f"{self._path}: expected UTF-8 text, got byte 0x{byte:02x} at offset {offset}; save it as UTF-8.") from None
        self._line, self._column = self._place(self._position)
        self.buffer = self.buffer[self._position :] + text
        self._position = 0
        return not self.ended

    def peek(self) -> str:
        """Return the next character that is not blank, or nothing at the end."""
        while True:
            match = _BLANK.match(self.buffer, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self.buffer):
                return self.buffer[self._position]
            if not self.more():
                return ""

    def expect(self, character: str) -> None:
        """Step over a character.

        Raises:
            ValueError: another one comes.
        """
        if self.peek() != character:
            raise self.broken("Expecting value" if character == "[" else "Expecting ',' delimiter")
        self._position += 1

    def value(self) -> Any:
        """Decode the next JSON value.

        Raises:
            ValueError: it is broken.
            RecursionError: it is nested too deeply.
        """
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self._position)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error):
                    raise self.broken(error.msg, error.pos) from None
            else:
                if end + _CUT < len(self.buffer) or self.ended:  # a number could go on
                    self._position = end
                    return value
            self.more()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        if self.ended or len(self.buffer) - self._position > _LONGEST_ITEM:
            return False
        return error.msg.startswith("Unterminated string") or error.pos + _CUT >= len(self.buffer)

    def line(self) -> str | None:
        """Return the next line, without its end; None after the last."""
        searched = self._position
        while (end := self.buffer.find("\n", searched)) < 0:
            left = len(self.buffer) - self._position
            if not self.more():
                rest, self._position = self.buffer[self._position :], len(self.buffer)
                return rest or None
            searched = left
        line, self._position = self.buffer[self._position : end], end + 1
        return line

    def broken(self, message: str, at: int | None = None) -> ValueError:
        """Make the error of what is wrong at a place in the buffer, by default at the next character."""
        line, column = self._place(self._position if at is None else at)
        return _BrokenError(f"{message}, line {line}, column {column}")

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column in the file of a place in the buffer."""
        lines = self.buffer.count("\n", 0, at)
        if not lines:
            return self._line, self._column + at
        return self._line + lines, at - self.buffer.rfind("\n", 0, at)


def unreadable(path: str, error: Exception) -> UserError:
    """Make the message for a file that the operating system does not give."""
    return UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.")


def _decoded(text: str, *, twice: bool = False) -> Any:
    try:
        item = decode(text)
    except (ValueError, RecursionError) as error:
        return ValueError(f"expected a JSON object, got {shown(text)} ({describe(error)})")
    return _decoded(item) if twice and isinstance(item, str) else item


def _path_of_list(text: str, start: int = 0) -> list[str]:
    """Find the keys that lead to the first list in a JSON object, of which the text may be only the beginning; [] if none is there."""
    position = start + 1  # behind "{"
    try:
        while True:
            key, position = DECODER.raw_decode(text, _after_blank(text, position))
            if not isinstance(key, str):
                return []
            position = _after_blank(text, _after_blank(text, position) + 1)  # the colon
            if text[position] == "[":
                return [key]
            if text[position] == "{" and (inside := _path_of_list(text, position)):
                return [key, *inside]
            _, position = DECODER.raw_decode(text, position)
            position = _after_blank(text, position)
            if text[position] != ",":
                return []
            position += 1
    except (ValueError, IndexError, RecursionError):
        return []


def _after_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()
