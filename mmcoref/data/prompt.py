"""Record -> prompt and answer text. Pure functions; `tests/data/test_prompt.py` pins each reason given here."""

from __future__ import annotations

from mmcoref.data.record import Letter, Option, Record
from mmcoref.data.unicode import fold, one_line

# The published prompt ends in "## Solution" and leaves the newline to the model, which spends its first token on it.
# Here the newline belongs to the prompt, so that the first token trained and generated is the option's letter.
PUBLISHED_HEADER = "## Solution"
SOLUTION_HEADER = PUBLISHED_HEADER + "\n"


def question_text(record: Record) -> str:
    """Dialogue, captions, question and options, byte for byte as published, down to the last option's newline.

    Each caption stands after the utterance that posts its photo: A's after the first, B's after the second.
    There are no blank lines, and every option ends in one period, its own if it has one.

    The form has one line per text. So a line break inside a text (also U+2028, or a lone carriage return), together
    with the spaces around it, becomes a single space: what an utterance says after it can be mistaken neither for
    another utterance nor for a heading. The published file has no such texts.
    """
    first, second, *rest = record.conversation
    caption_a, caption_b = record.image_descriptions
    lines = ["## Conversation", first, caption_a, second, caption_b, *rest, "## Problem", record.problem, "## Choices"]
    choices = [closed(choice) for choice in record.choices]
    return "\n".join([*map(one_line, lines), *choices]) + "\n"


def prompt_text(record: Record) -> str:
    """The base models' prompt: `question_text` and the header under which the answer is written."""
    return question_text(record) + SOLUTION_HEADER


def answer_text(option: Option, letter: Letter | None = None) -> str:
    """Write the answer that names an option, as the prompt lists it: one line that ends in one period, no stop token.

    Args:
        option: the answer.
        letter: the option's letter in another order of the options; by default its own.
    """
    return closed(f"{letter}) {option.body}" if letter else option.text)


def closed(option: str) -> str:
    """Put an option's text on one line that ends in one period: its own if it has one (`.`, `。`, `．`), else ours."""
    line = one_line(option)
    return line.rstrip() if has_stop(line) else f"{line}."


def has_stop(text: str) -> bool:
    """Check whether a text ends in a period of its own, of any width."""
    return fold(text.rstrip()[-1:]) == "."
