"""One dialogue, validated: every error names the field, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mmcoref.data.decode import Contradiction, decode, refused_texts, shown
from mmcoref.data.unicode import fold, normalise
from mmcoref.errors import UserError

Letter = Literal["A", "B", "C", "D"]
Speaker = Literal["A", "B"]
LETTERS: tuple[Letter, ...] = ("A", "B", "C", "D")

# "A) B가 올린 사진 속 커피잔": the letter, then the owner, who is marked by a subject or possessive particle.
_OWNER = re.compile(r"^[A-D]\) ([AB])(?:가|의)")
_UTTERANCE = re.compile(r"^[AB]: \S", re.DOTALL)

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
        solution: equal to one of the choices (if it differs only in the encoding of its characters or in spaces, it
            becomes that choice); None only if records are to be answered (`mmcoref predict`).
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
            if not fold(caption).startswith(f"{speaker}의 사진:"):
                raise ValueError(f"caption {speaker} to start with '{speaker}의 사진:', got {shown(caption)}")
        return value

    @field_validator("conversation")
    @classmethod
    def _utterances_name_their_speaker(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, utterance in enumerate(value, start=1):
            if not _UTTERANCE.match(fold(utterance[:3]) + utterance[3:]):
                raise ValueError(f"utterance {number} to start with 'A: ' or 'B: ', got {shown(utterance)}")
        return value

    @field_validator("choices")
    @classmethod
    def _choices_are_lettered(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for letter, choice in zip(LETTERS, value, strict=True):
            if fold(choice[:3]) != f"{letter}) " or not choice[3:].strip():
                raise ValueError(f"option {letter} to start with '{letter}) ' and a text, got {shown(choice)}")
        # The mark is ours, not the author's text: `Ａ） ` becomes the `A) ` that models are trained to write.
        return tuple(f"{letter}) {choice[3:]}" for letter, choice in zip(LETTERS, value, strict=True))

    @field_validator("solution")
    @classmethod
    def _solution_is_a_choice(cls, value: str | None, info: ValidationInfo) -> str | None:
        choices = info.data.get("choices")  # missing if they are not valid, which is reported by itself
        if value is None or choices is None or value in choices:
            return value
        for choice in choices:
            if normalise(choice) == normalise(value):
                return str(choice)
        raise ValueError(f"one of the four choices, got {shown(value)}")

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
    found = _OWNER.match(normalise(option))
    if found is None:
        return None
    return "A" if found[1] == "A" else "B"


def speaker_of(utterance: str) -> Speaker:
    """Return who says an utterance of a valid record."""
    return "A" if fold(utterance[0]) == "A" else "B"


def parse_record(item: object, index: int = 0) -> Record:
    """One record from its fields or their JSON, with or without a solution.

    Raises:
        UserError: it is not valid.
    """
    try:
        fields = decode(item) if isinstance(item, str) else item
    except (ValueError, RecursionError):
        fields = item
    record, problems = validate_record(fields, require_solution=False)
    if record is None:
        raise UserError(*(f"record {index}, {problem}" for problem in problems))
    return record


def validate_record(item: Any, *, require_solution: bool) -> tuple[Record | None, list[str]]:
    """(record, []) or (None, what is wrong with it); an item that is itself an error is one that could not be decoded."""
    if isinstance(item, ValueError):
        return None, [str(item)]
    if not isinstance(item, dict):
        return None, [f"expected a JSON object, got {shown(item)}"]
    if isinstance(item, Contradiction) and (twice := [key for key in item.keys_twice if key in Record.model_fields]):
        return None, [f"{key}: expected one value, got several that differ" for key in twice]
    try:
        record = Record.model_validate(item)
    except ValidationError as error:
        return None, _sentences(error.errors())
    if require_solution and record.solution is None:
        return None, ["solution: expected one of the four choices, got nothing"]
    refused = list(refused_texts(_texts(record)))
    if not record.problem.strip():
        refused.append(f"problem: expected a question, got {shown(record.problem)}")
    return (None, refused) if refused else (record, [])


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield a record's texts with the names of their fields; the solution is one of the choices."""
    for field in ("image_descriptions", "conversation", "choices"):
        for place, text in enumerate(getattr(record, field)):
            yield f"{field}.{place}", text
    yield "problem", record.problem
    if isinstance(record.id, str):
        yield "id", record.id


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
    return f"{field}: expected {expected or _FIELD_FORM.get(field) or detail['msg']}, got {shown(detail['input'])}"


_EXPECTED = {"string_type": "a string", "string_too_short": "a string that is not empty"}
_FIELD_FORM = {
    "image_descriptions": "a list of two captions",
    "conversation": "a list of at least two utterances",
    "problem": "a question",
    "choices": "a list of four options",
    "solution": "one of the four choices",
    "id": "an integer or a string",
}
