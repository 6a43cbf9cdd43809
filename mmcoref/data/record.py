"""File -> validated records. Every error names the file, the record's index, the field, what was expected and what came."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from mmcoref.errors import UserError

Letter = Literal["A", "B", "C", "D"]
Speaker = Literal["A", "B"]
LETTERS: tuple[Letter, ...] = ("A", "B", "C", "D")

PUBLISHED_SOURCE = "github.com/MMC-K/multimodal_dialogue_coreference_resolution (data/ai_responses.json)"

# "A) B가 올린 사진 속 커피잔": the letter, then the owner, who is marked by a subject or possessive particle.
_OWNER = re.compile(r"^[A-D]\) ([AB])(?:가|의)")
_UTTERANCE = re.compile(r"^[AB]: \S", re.DOTALL)
_SHOWN_RECORDS = 20
_SHOWN_VALUE = 60

Text = Annotated[str, StringConstraints(strict=True, min_length=1)]


@dataclass(frozen=True)
class Option:
    """One of the four answers, e.g. `D) B가 올린 사진 속 커피잔`.

    Attributes:
        letter: the option's letter.
        text: the whole option, letter included: what a model must output (followed by a period).
        owner: whose photo the option names, read from its text; None where it names nobody, which is always
            the wrong photo. Letters are not owners: 307 of the 1,726 published records are not ordered A, A, B, B.
    """

    letter: Letter
    text: str
    owner: Speaker | None

    @property
    def body(self) -> str:
        """The option without its letter: `B가 올린 사진 속 커피잔`."""
        return self.text[3:]


class Record(BaseModel):
    """One dialogue and its question, with the published field names.

    Attributes:
        image_descriptions: the two captions, `A의 사진: …` and `B의 사진: …`, in this order.
        conversation: two utterances or more, each beginning with its speaker, `A: …` or `B: …`.
        problem: the question, which quotes the demonstrative and names a speaker.
        choices: the four options, `A) …` to `D) …`, in this order.
        solution: equal to one of the choices; None only where records are to be answered (`mmcoref predict`).
        id: an identifier of the user's own, carried into the predictions.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_descriptions: tuple[Text, Text]
    conversation: tuple[Text, ...] = Field(min_length=2)
    problem: Text
    choices: tuple[Text, Text, Text, Text]
    solution: Text | None = None
    id: StrictInt | StrictStr | None = None

    @field_validator("image_descriptions")
    @classmethod
    def _captions_in_order(cls, value: tuple[str, str]) -> tuple[str, str]:
        for speaker, caption in zip("AB", value, strict=True):
            if not caption.startswith(f"{speaker}의 사진:"):
                raise ValueError(f"caption {speaker} to start with '{speaker}의 사진:', got {_shown(caption)}")
        return value

    @field_validator("conversation")
    @classmethod
    def _utterances_name_their_speaker(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, utterance in enumerate(value, start=1):
            if not _UTTERANCE.match(utterance):
                raise ValueError(f"utterance {number} to start with 'A: ' or 'B: ', got {_shown(utterance)}")
        return value

    @field_validator("choices")
    @classmethod
    def _choices_are_lettered(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for letter, choice in zip(LETTERS, value, strict=True):
            if not choice.startswith(f"{letter}) ") or not choice[3:].strip():
                raise ValueError(f"option {letter} to start with '{letter}) ' and a text, got {_shown(choice)}")
        return value

    @model_validator(mode="after")
    def _solution_is_a_choice(self) -> Record:
        if self.solution is not None and self.solution not in self.choices:
            raise ValueError(f"solution: expected one of the four choices, got {_shown(self.solution)}")
        return self

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The four options in the order of their letters."""
        return tuple(Option(letter, text, owner_of(text)) for letter, text in zip(LETTERS, self.choices, strict=True))

    @property
    def gold(self) -> Option:
        """The right option.

        Raises:
            ValueError: the record has no solution.
        """
        if self.solution is None:
            raise ValueError("this record has no solution")
        return self.options[self.choices.index(self.solution)]


def owner_of(option: str) -> Speaker | None:
    """Whose photo an option's text names: `A) B가 올린 사진 속 컵` -> `B`; None where it names nobody."""
    found = _OWNER.match(option)
    if found is None:
        return None
    return "A" if found[1] == "A" else "B"


@dataclass(frozen=True)
class DataFile:
    """What a run says about the file it read.

    Attributes:
        path: as the user gave it.
        sha256: hex digest of the file's bytes.
        records: all records of the file, in file order.
    """

    path: str
    sha256: str
    records: tuple[Record, ...]


def read_records(path: str, *, require_solution: bool = True) -> DataFile:
    """Reads and validates a data file: a list of JSON strings (the published form), a list of objects, or JSON Lines.

    Args:
        path: the file.
        require_solution: whether a record without `solution` is an error (False only for `predict`).

    Raises:
        UserError: no such file, not UTF-8, not JSON, no records, or records that do not validate: all of them are
            counted in one message and the first 20 are shown.
    """
    raw = _read_bytes(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte 0x{raw[error.start]:02x} at offset {error.start}; save it as UTF-8."
        ) from None
    records: list[Record] = []
    problems: dict[int, list[str]] = {}
    for index, item in _items(path, text):
        record, found = _validate(item, require_solution=require_solution)
        if record is not None:
            records.append(record)
        else:
            problems[index] = found
    if problems:
        total = len(problems) + len(records)
        message = [f"{path}: {len(problems)} of {total} records are not valid (indices count from 0); mend or remove them:"]
        for index in list(problems)[:_SHOWN_RECORDS]:
            message += [f"  record {index}, {problem}" for problem in problems[index]]
        if len(problems) > _SHOWN_RECORDS:
            message.append(f"  … and {len(problems) - _SHOWN_RECORDS} more records")
        raise UserError("\n".join(message))
    if not records:
        raise UserError(f"{path}: expected at least one record, got none.")
    return DataFile(path=path, sha256=hashlib.sha256(raw).hexdigest(), records=tuple(records))


def dump_records(records: Sequence[Record]) -> str:
    """Records in the published form: a JSON list of strings, each a JSON object; `read_records` reads it back."""
    strings = [json.dumps(record.model_dump(mode="json", exclude_none=True), ensure_ascii=False) for record in records]
    return json.dumps(strings, ensure_ascii=False, indent=0) + "\n"


def _read_bytes(path: str) -> bytes:
    file = Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(_missing(file)) from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a data file, got a folder; name the file inside it.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _missing(file: Path) -> str:
    siblings = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, siblings, n=1, cutoff=0.75)
    hint = f" Did you mean {file.with_name(near[0])}?" if near else ""
    return (
        f"{file}: no such data file.{hint} The published file is at {PUBLISHED_SOURCE}: "
        "download it and give its place with --data.path, or use --data.path sample."
    )


def _items(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """(index, decoded item) pairs; an item that is not JSON comes as the `ValueError` that says so."""
    if text.lstrip()[:1] == "[":
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: expected a JSON list or JSON Lines, got broken JSON: {_where(error)}.") from None
        for index, item in enumerate(items):
            yield index, _decoded(item) if isinstance(item, str) else item
        return
    lines = (line for line in text.split("\n") if line.strip())
    for index, line in enumerate(lines):
        yield index, _decoded(line, twice=True)


def _decoded(text: str, *, twice: bool = False) -> Any:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(f"expected a JSON object, got {_shown(text)} ({_where(error)})")
    return _decoded(item) if twice and isinstance(item, str) else item


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _validate(item: Any, *, require_solution: bool) -> tuple[Record | None, list[str]]:
    """(record, []) or (None, what is wrong with it)."""
    if isinstance(item, ValueError):
        return None, [str(item)]
    if not isinstance(item, dict):
        return None, [f"expected a JSON object, got {_shown(item)}"]
    try:
        record = Record.model_validate(item)
    except ValidationError as error:
        return None, _sentences(error.errors())
    if require_solution and record.solution is None:
        return None, ["solution: expected one of the four choices, got nothing"]
    return record, []


def _sentences(details: Sequence[Any]) -> list[str]:
    """One sentence for each wrong field or element."""
    # pydantic counts valid elements only, and reports each branch of a union: both would say the same thing twice.
    elements = {detail["loc"][0] for detail in details if len(detail["loc"]) > 1}
    said = [_sentence(detail) for detail in details if not (detail["type"] == "too_short" and detail["loc"][0] in elements)]
    return list(dict.fromkeys(said))


def _sentence(detail: Any) -> str:
    """One pydantic error as `field: expected …, got …`."""
    field = "id" if detail["loc"][:1] == ("id",) else ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "value_error":  # raised by the validators above, which say expected and got themselves
        message = str(detail["ctx"]["error"])
        return f"{field}: expected {message}" if field else message
    expected = None if field == "id" else _EXPECTED.get(detail["type"])
    if detail["type"] == "missing":
        field = str(detail["loc"][0])  # a tuple's missing element is named by its place
        got = "a shorter one" if len(detail["loc"]) > 1 else "nothing"
        return f"{field}: expected {_FIELD_FORM[field]}, got {got}"
    return f"{field}: expected {expected or _FIELD_FORM.get(field) or detail['msg']}, got {_shown(detail['input'])}"


_EXPECTED = {"string_type": "a string", "string_too_short": "a string that is not empty"}
_FIELD_FORM = {
    "image_descriptions": "a list of two captions",
    "conversation": "a list of at least two utterances",
    "problem": "a question",
    "choices": "a list of four options",
    "solution": "one of the four choices",
    "id": "an integer or a string",
}


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
