"""Record -> prompt and answer text. Pure functions; `tests/data/test_prompt.py` pins each reason given here."""

from __future__ import annotations

from mmcoref.data.record import Option, Record

# The published prompt ends in "## Solution" and leaves the newline to the model, which spends its first token on it.
# Here the newline belongs to the prompt, so that the first token trained and generated is the option's letter.
PUBLISHED_HEADER = "## Solution"
SOLUTION_HEADER = PUBLISHED_HEADER + "\n"


def question_text(record: Record) -> str:
    """Dialogue, captions, question and options, byte for byte as published, down to the last option's newline.

    Each caption stands after the utterance that posts its photo: A's after the first, B's after the second.
    There are no blank lines, and every option ends in a period.
    """
    first, second, *rest = record.conversation
    caption_a, caption_b = record.image_descriptions
    lines = ["## Conversation", first, caption_a, second, caption_b, *rest, "## Problem", record.problem, "## Choices"]
    return "\n".join([*lines, *(f"{choice}." for choice in record.choices)]) + "\n"


def prompt_text(record: Record) -> str:
    """The base models' prompt: `question_text` and the header under which the answer is written."""
    return question_text(record) + SOLUTION_HEADER


def answer_text(option: Option) -> str:
    """What follows the prompt when `option` is the answer, without the stop token: the option and a period."""
    return f"{option.text}."
