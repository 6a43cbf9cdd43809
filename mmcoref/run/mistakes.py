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
    except (RuntimeError, ValueError, TypeError) as error:
        if not _of_a_stock_callback(error):
            raise
        raise UserError(f"trainer.callbacks: {first_line(error)}") from error
    except argparse.ArgumentError as error:
        raise UserError(f"{option_sentence(str(error))} (mmcoref {program} --help lists the options)") from None


def _of_a_stock_callback(error: BaseException) -> bool:
    """Whether one of Lightning's callbacks, which a run has if the user asks for them, raised an error itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.pytorch.callbacks.")


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
    text = re.sub(r"NestedArg\(key='(\w+)', val='([^']*)'\)", r"{\1: \2}", text)
    union = re.search(r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: (.*)Given value: ?(.*)$", text)
    if union is None:
        return re.sub(r"Expected an? (.*)\. Got value: ?(.*)$", lambda found: f"expected {found[1]}, got {_given(found[2])}", text)
    name = text.partition(": ")[0]
    if problem := _class_problem(union[2]):
        return f"{name}: {problem}"
    types = re.sub(r"(?:\w+\.)+(\w+)", r"\1", union[1])
    hint = " (a list is written [a, b])" if "list[" in types and not union[3].startswith("[") else ""
    return f"{name}: expected {_or(types)}, got {_given(union[3])}{hint}"


def class_sentence(message: str) -> str:
    """A sentence from the lines in which jsonargparse says why it could not make an object of a class."""
    text = " ".join(message.split())
    errors, _, given = text.partition("Given value type:")
    if problem := _class_problem(errors.partition(" Errors: ")[2] or errors):
        return problem
    reason = re.search(r"Errors: - (.*?)(?: - (?:Expected|Not a valid|Problem)|$)", errors)
    classes = " or ".join(dict.fromkeys(re.findall(r"class_path='([\w.]+)'", given)))
    return f"{classes or 'a class'} cannot be made: {reason[1].strip() if reason else errors}"


def _class_problem(errors: str) -> str:
    """What is wrong with a class that was named, such as `CSVLogger: Option 'nam' is not accepted`; nothing if nothing is said of one."""
    found = re.search(
        r"Problem with given class_path '(?:\w+\.)*(\w+)': (.*?)(?= - (?:Expected|Problem|Not a valid)| Given value|$)", errors
    )
    return f"{found[1]}: {found[2].strip()}" if found else ""


def _given(value: str) -> str:
    return {"": "an empty text", "None": "null"}.get(value.strip(), value.strip())


def _or(listed: str) -> str:
    return " or ".join(listed.rsplit(", ", 1))
