"""A user's mistake that a library has found, in one sentence instead of the library's page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from mmcoref.errors import UserError, first_line


@contextmanager
def told_in_one_sentence(program: str) -> Iterator[None]:
    """Has what the command line's parser and Lightning refuse raised as a mistake of the user's.

    Args:
        program: whose options they are.

    Raises:
        UserError: they have refused something.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except argparse.ArgumentError as error:
        raise UserError(f"{option_sentence(str(error))} (mmcoref {program} --help lists the options)") from None


@contextmanager
def of_the_trainer() -> Iterator[None]:
    """Lightning's trainer looks at the types and values of its settings itself.

    Raises:
        UserError: it has refused one.
    """
    try:
        yield
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"trainer: {first_line(error)}") from error


def option_sentence(message: str) -> str:
    """A sentence from the lines in which jsonargparse says what is wrong with an option.

    It names each type of a union, tries the value with each, and gives the types as Python prints them.
    """
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(message.split()))
    text = re.sub(r"^Parser key \"([^\"]+)\": ?", r"\1: ", text).replace("NoneType", "null")
    text = re.sub(r"(?:typing\.)?Literal\[([^]]*)\]", lambda found: _or(found[1]), text)
    union = re.search(r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .*Given value: (.*)$", text)
    if union:
        hint = " (a list is written [a, b])" if "list[" in union[1] and not union[2].startswith("[") else ""
        return f"{text.partition(': ')[0]}: expected {_or(union[1])}, got {union[2]}{hint}"
    return re.sub(r"Expected an? (.*)\. Got value: (.*)$", r"expected \1, got \2", text)


def _or(listed: str) -> str:
    return " or ".join(listed.rsplit(", ", 1))
