"""Batches of encoded records.

Legend of shapes: B dialogues, O = 4 options, T tokens (the longest of the batch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmcoref.data.encode import Encoder
from mmcoref.data.example import Example
from mmcoref.data.sampler import Slot

IGNORED = -100  # the label that torch's cross-entropy leaves out


class TrainBatch(NamedTuple):
    """Training records: one a row and right-padded, or all behind one another in a single row, where nothing is padded.

    What follows from the labels is worked out here, on the CPU, as asking a GPU for it would wait for all that it still has to do.

    Attributes:
        input_ids: (B, T) int64; (1, T) if packed.
        labels: (B, T) int64; the answer's tokens (letter to stop token) at their own positions, else `IGNORED`.
        predicting: (N,) int64, the positions whose next token has a label, counted over the B rows laid end to end.
        targets: (N,) int64, those labels.
        position_ids: (1, T) int64 of a packed row, in which every record counts from 0; None where a row is a record.
        lengths: tokens of each record of a packed row; None where a row is a record, and needs no mask, as its padding comes last.
        tokens: of these records, without padding.
        window_targets: answer tokens of the whole optimizer step, over all its micro-batches and processes.
    """

    input_ids: Tensor
    labels: Tensor
    predicting: Tensor
    targets: Tensor
    position_ids: Tensor | None
    lengths: tuple[int, ...] | None
    tokens: int
    window_targets: int


class Rows:
    """The examples of a batch and which of them count: (example, counts) pairs.

    A class of its own, as Lightning walks through lists, tuples and dataclasses to move or convert what is in them.
    """

    def __init__(self, rows: Sequence[tuple[Example, bool]]) -> None:
        self._rows = list(rows)

    def __iter__(self) -> Iterator[tuple[Example, bool]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class EvalBatch(NamedTuple):
    """Prompts and options, both right-padded: a causal model then needs no mask for its pass over the prompts.

    Attributes:
        prompt_ids: (B, T) int64.
        prompt_mask: (B, T) int64.
        option_ids: (B, O, T) int64.
        option_mask: (B, O, T) int64.
        rows: the B examples; one that does not count only fills a process's last batches.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    option_ids: Tensor
    option_mask: Tensor
    rows: Rows


def train_batch(rows: Sequence[tuple[Example, bool]], window_targets: int, pad_id: int, width: int | None = None) -> TrainBatch:
    """Collates (example, whether it counts) pairs, one a row; a row that does not count has no labels.

    Args:
        rows: B of them.
        window_targets: answer tokens of the whole optimizer step.
        pad_id: fills up.
        width: what rows are padded and cut to, as published, cutting into the answer if need be; by default the longest's.
    """
    if width is not None:
        rows = [(_cut(example, width), counts) for example, counts in rows]
    width = width or max(example.trained_tokens for example, _ in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (example, counts) in enumerate(rows):
        input_ids[row, : example.trained_tokens] = torch.tensor(example.prompt_ids + example.answer_ids)
        if counts:
            labels[row, len(example.prompt_ids) : example.trained_tokens] = torch.tensor(example.answer_ids)
    tokens = sum(example.trained_tokens for example, _ in rows)
    return TrainBatch(input_ids, labels, *_predictions(labels), None, None, tokens, window_targets)


def packed_batch(rows: Sequence[tuple[Example, bool]], window_targets: int) -> TrainBatch:
    """Collates (example, whether it counts) pairs behind one another; a filler is left out wherever a record counts."""
    kept = [example for example, counts in rows if counts]
    examples = kept or [rows[0][0]]
    input_ids = [token for example in examples for token in example.prompt_ids + example.answer_ids]
    blank = [[IGNORED] * len(example.prompt_ids) for example in examples]
    answers = [example.answer_ids if kept else [IGNORED] * len(example.answer_ids) for example in examples]
    labels = torch.tensor([[label for prompt, answer in zip(blank, answers, strict=True) for label in (*prompt, *answer)]])
    lengths = tuple(example.trained_tokens for example in examples)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return TrainBatch(torch.tensor([input_ids]), labels, *_predictions(labels), positions, lengths, len(input_ids), window_targets)


def _predictions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`predicting` and `targets` of labels (B, T). Records begin with their prompts, so that no token is predicted from another record."""
    at = (labels.flatten() != IGNORED).nonzero()[:, 0]
    return at - 1, labels.flatten()[at]


def _cut(example: Example, width: int) -> Example:
    options = tuple(ids[: max(0, width - len(example.prompt_ids))] for ids in example.option_ids)
    return replace(example, prompt_ids=example.prompt_ids[:width], option_ids=options)


def eval_batch(rows: Sequence[tuple[Example, bool]], pad_id: int) -> EvalBatch:
    """Collates (example, whether it counts) rows."""
    examples = [example for example, _ in rows]
    prompts = [example.prompt_ids for example in examples]
    width = max(map(len, prompts))
    tail_width = max(len(ids) for example in examples for ids in example.option_ids)
    prompt_ids = torch.tensor([list(ids) + [pad_id] * (width - len(ids)) for ids in prompts])
    prompt_mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in prompts])
    options = [example.option_ids for example in examples]
    option_ids = torch.tensor([[list(ids) + [pad_id] * (tail_width - len(ids)) for ids in four] for four in options])
    option_mask = torch.tensor([[[1] * len(ids) + [0] * (tail_width - len(ids)) for ids in four] for four in options])
    return EvalBatch(prompt_ids, prompt_mask, option_ids, option_mask, Rows(rows))


class ExampleDataset(Dataset[tuple[Example, Slot]]):
    """Examples, indexed by slots."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, slot: Slot) -> tuple[Example, Slot]:
        return self.examples[slot.example], slot


@dataclass(frozen=True)
class TrainCollator:
    """Collates training rows.

    A small object of its own, as worker processes that are spawned get it pickled: a datamodule would bring its trainer along.

    Attributes:
        pad_id: fills up.
        packed: whether records stand behind one another in one row.
        width: what rows are padded and cut to, as published; None if they are as long as the longest.
        replicas: processes that see different data; used as published only.
        encoder: encodes records whose options are in another order than the file's; None if none are.
    """

    pad_id: int
    packed: bool
    width: int | None
    replicas: int
    encoder: Encoder | None

    def __call__(self, rows: Sequence[tuple[Example, Slot]]) -> TrainBatch:
        """Collate (example, slot) pairs of one optimizer step."""
        examples = [(self._reordered(example, slot), slot.valid) for example, slot in rows]
        slot = rows[0][1]
        if self.packed:
            return packed_batch(examples, slot.window_targets)
        if self.width is None:
            return train_batch(examples, slot.window_targets, self.pad_id)
        batch = train_batch(examples, 0, self.pad_id, width=self.width)
        # The mean of the step's mean losses, as if every micro-batch had as many answer tokens as this one; a row's cut may leave none.
        return batch._replace(window_targets=max(1, len(batch.targets)) * slot.window_batches * self.replicas)

    def _reordered(self, example: Example, slot: Slot) -> Example:
        return example if self.encoder is None else self.encoder.reordered(example, slot.order)


@dataclass(frozen=True)
class EvalCollator:
    """Collates evaluation rows; a small object for the reason of `TrainCollator`.

    Attributes:
        pad_id: fills up.
    """

    pad_id: int

    def __call__(self, rows: Sequence[tuple[Example, Slot]]) -> EvalBatch:
        """Collate (example, slot) pairs."""
        return eval_batch([(example, slot.valid) for example, slot in rows], self.pad_id)
