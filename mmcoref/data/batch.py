"""Batches of encoded records.

Legend of shapes: B dialogues, O = 4 options, T tokens (the longest of the batch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmcoref.data.encode import Example

IGNORED = -100  # the label that torch's cross-entropy leaves out


class TrainBatch(NamedTuple):
    """Right-padded training rows; causal attention needs no mask for them, as padding comes last.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64; the answer's tokens (letter to stop token) at their own positions, else `IGNORED`.
        tokens: of these rows, without padding; counted here, as counting on a GPU would wait for it.
        window_targets: answer tokens of the whole optimizer step, over all its micro-batches and processes.
    """

    input_ids: Tensor
    labels: Tensor
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
    """Collates (example, whether it counts) rows; a row that does not count has no labels.

    Args:
        rows: B of them.
        window_targets: answer tokens of the whole optimizer step.
        pad_id: fills up.
        width: what rows are padded and cut to, as published, cutting into the answer if need be; by default the longest's.
    """
    if width is not None:
        rows = [(_cut(example, width), counts) for example, counts in rows]
    width = width or max(len(example.prompt_ids) + len(example.answer_ids) for example, _ in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (example, counts) in enumerate(rows):
        start, answer = len(example.prompt_ids), torch.tensor(example.answer_ids)
        end = start + len(answer)
        input_ids[row, :start] = torch.tensor(example.prompt_ids)
        input_ids[row, start:end] = answer
        if counts:
            labels[row, start:end] = answer
    tokens = sum(len(example.prompt_ids) + len(example.answer_ids) for example, _ in rows)
    return TrainBatch(input_ids, labels, tokens, window_targets)


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
