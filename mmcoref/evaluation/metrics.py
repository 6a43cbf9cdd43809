"""One verdict per output, and torchmetrics that sum verdicts: `answer_metrics("test/")` makes the collection of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mmcoref.data.prompt import answer_text
from mmcoref.data.record import Option, Record
from mmcoref.evaluation.answer import FoundBy, exactly, parse_answer, same_photo


@dataclass(frozen=True)
class Verdict:
    """What one output is worth; the metrics count these fields and the predictions file holds them.

    Attributes:
        option: the option the output names; None where it is unparsable.
        found_by: the rule that found it.
        object_accuracy: `option` is the gold option.
        photo_accuracy: `option` and the gold option name the same owner (in their texts, since letters are not owners).
        exact_match: the output is the gold answer, period included, once both are stripped.
        object_published_rule: right by the published object rule.
        photo_published_rule: right by the published, faulty photo rule.
    """

    option: Option | None
    found_by: FoundBy
    object_accuracy: bool
    photo_accuracy: bool
    exact_match: bool
    object_published_rule: bool
    photo_published_rule: bool

    @property
    def unparsable(self) -> bool:
        """The output names no option."""
        return self.option is None


def judge(output: str, record: Record, *, newline_in_prompt: bool = True) -> Verdict:
    """The verdict on what a model wrote after the prompt.

    Args:
        output: what it wrote.
        record: with its solution.
        newline_in_prompt: whether the prompt ended in the newline behind "## Solution"; the published one left it to the model.

    Raises:
        ValueError: the record has no solution.
    """
    gold = record.gold
    option, found_by = parse_answer(output, record.options)
    g, a = _published_letter("\n" + answer_text(gold)), _published_letter("\n" + output if newline_in_prompt else output)
    return Verdict(
        option=option,
        found_by=found_by,
        object_accuracy=option == gold,
        photo_accuracy=same_photo(option, gold),
        exact_match=exactly(output, gold),
        object_published_rule=g == a,
        photo_published_rule=_photo_as_published(g, a),
    )


def _published_letter(after_header: str) -> str:
    """The published rule cuts what follows "## Solution", a newline in a good answer, to two characters and strips them."""
    return after_header[:2].strip()


def _photo_as_published(g: str, a: str) -> bool:
    """The condition behind the published table, with the precedence that Python gives it.

    It was meant as {A, B} against {C, D}. As written, gold A and gold C count whatever the answer is, and the answers
    B and D count whatever the gold letter is.
    """
    return g == "A" or (g == "B" and a == "A") or a == "B" or g == "C" or (g == "D" and a == "C") or a == "D"


class _Count(Metric):
    """How many verdicts are true of `field`: `k` of `n`, summed over batches and processes (int64)."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    field: ClassVar[str]
    k: Tensor
    n: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("k", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Sequence[str], records: Sequence[Record], newline_in_prompt: bool = True) -> None:
        """Counts a batch of B outputs, as `judge` judges them.

        Raises:
            ValueError: there are not as many outputs as records, or a record has no solution.
        """
        if len(outputs) != len(records):
            raise ValueError(f"expected one output per record, got {len(outputs)} outputs and {len(records)} records")
        verdicts = [judge(output, record, newline_in_prompt=newline_in_prompt) for output, record in zip(outputs, records, strict=True)]
        self.k += sum(bool(getattr(verdict, self.field)) for verdict in verdicts)
        self.n += len(outputs)

    def compute(self) -> Tensor:
        """`k`, a scalar (int64)."""
        return self.k


class _Share(_Count):
    """`k / n`, from 0 to 1; nan while nothing was counted."""

    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """`k / n`, a scalar on the CPU (float64, which Apple's GPUs lack)."""
        return self.k.cpu().double() / self.n.cpu()


class ObjectAccuracy(_Share):
    """Share of outputs that name the gold option, in whatever form."""

    field = "object_accuracy"


class PhotoAccuracy(_Share):
    """Share of outputs that name an option in the gold option's photo, by the owners in the options' texts."""

    field = "photo_accuracy"


class ExactMatch(_Share):
    """Share of outputs that are the gold answer and nothing else."""

    field = "exact_match"


class ObjectPublishedRule(_Share):
    """Object accuracy as published: the output's first character is the gold letter."""

    field = "object_published_rule"


class PhotoPublishedRule(_Share):
    """Photo accuracy as published, faulty: for comparison with the published table only."""

    field = "photo_published_rule"


class Unparsable(_Count):
    """Number of outputs that name no option."""

    higher_is_better = False
    field = "unparsable"


class LikelihoodAccuracy(_Share):
    """Share of records whose gold option is the likeliest of the four: no text is generated, so it is no exact match."""

    def update(self, option_logprobs: Sequence[Sequence[float]], records: Sequence[Record]) -> None:  # type: ignore[override]
        """Counts a batch.

        Args:
            option_logprobs: (B, O) log-likelihoods; of equal ones the first counts.
            records: B, with their solutions.
        """
        for logprobs, record in zip(option_logprobs, records, strict=True):
            self.k += record.options[likeliest(logprobs)] == record.gold
        self.n += len(records)


def likeliest(option_logprobs: Sequence[float]) -> int:
    """The place of the option with the greatest log-likelihood; of equal ones the first."""
    return max(range(len(option_logprobs)), key=lambda place: option_logprobs[place])


def answer_metrics(prefix: str = "") -> MetricCollection:
    """The metrics of one split, under these names after `prefix`; `update(outputs, records)` feeds them all."""
    classes = (ObjectAccuracy, PhotoAccuracy, ExactMatch, ObjectPublishedRule, PhotoPublishedRule, Unparsable)
    metrics: dict[str, Metric | MetricCollection] = {metric.field: metric() for metric in classes}
    # Without compute_groups=False torchmetrics makes one metric of those whose states are equal after the first batch.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
