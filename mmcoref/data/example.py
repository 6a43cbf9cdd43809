"""One encoded record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmcoref.data.order import FILE_ORDER, Order
from mmcoref.data.record import Record


@dataclass(frozen=True)
class Example:
    """One encoded record.

    Attributes:
        index: the record's place in its file, counting from 0.
        record: what was encoded (trimmed, where it was too long and `trim` is set), its options in `order`.
        prompt_ids: BOS and the prompt; the next token is the answer's first.
        option_ids: for each option, the answer that names it and the stop token.
        order: of the options.
    """

    index: int
    record: Record
    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]
    order: Order = FILE_ORDER

    @property
    def gold_place(self) -> int:
        """The place of the right option in `order`."""
        return self.record.choices.index(self.record.gold.text)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The gold answer and the stop token: the targets of training."""
        return self.option_ids[self.gold_place]

    @property
    def trained_tokens(self) -> int:
        """Tokens of the prompt and the gold answer."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(map(len, self.option_ids))


def longest_answer(examples: Iterable[Example]) -> int:
    """Return the tokens of the longest option of any example, stop token included; 0 if there is none."""
    return max((len(ids) for example in examples for ids in example.option_ids), default=0)
