"""What a model said of one record, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmcoref.data.order import FILE_ORDER, Order
from mmcoref.data.record import Option, Record
from mmcoref.evaluation.answer import Failure, failure, parse_answer
from mmcoref.evaluation.metrics import Verdict, judge, likeliest
from mmcoref.evaluation.stats import option_probabilities


@dataclass(frozen=True)
class Prediction:
    """What a model said of one record, asked with its options in one order.

    Attributes:
        index: the record's place in its file, counting from 0.
        record: as it was asked.
        text: what was generated, without the stop token.
        stopped: whether the model stopped by itself.
        option_logprobs: log-likelihood in nats of each option, in the order asked.
        by_letter: the place of the option that the model writes if it may write nothing but options: the letter decides.
        order: of the options, against the file's.
        newline_in_prompt: whether the prompt ended in the newline behind "## Solution".
    """

    index: int
    record: Record
    text: str
    stopped: bool
    option_logprobs: tuple[float, ...]
    by_letter: int
    order: Order = FILE_ORDER
    newline_in_prompt: bool = True

    @property
    def option(self) -> Option | None:
        """The option that the text names."""
        return parse_answer(self.text, self.record.options).option

    @property
    def by_likelihood(self) -> int:
        """The place of the likeliest option."""
        return likeliest(self.option_logprobs)

    @property
    def probabilities(self) -> list[float]:
        """Of the four options, in the order asked; they sum to 1."""
        return [float(p) for p in option_probabilities(self.option_logprobs)]

    @property
    def gold_place(self) -> int:
        """The place of the right option in the order asked."""
        return self.record.choices.index(self.record.gold.text)

    @cached_property
    def verdict(self) -> Verdict:
        """What the text is worth."""
        return judge(self.text, self.record, newline_in_prompt=self.newline_in_prompt)

    @property
    def failure(self) -> Failure | None:
        """Why the text is no exact match."""
        return failure(self.text, self.record, stopped=self.stopped)

    def to(self, *args: Any, **kwargs: Any) -> Prediction:
        """Itself: Lightning moves what `predict_step` returns, and here is nothing to move."""
        return self
