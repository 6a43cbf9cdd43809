"""Text -> ids, labels, option tails; and batches of them.

Legend of shapes: B dialogues, O = 4 options, T tokens (the longest of the batch).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmcoref.data.prompt import SOLUTION_HEADER, answer_text, prompt_text, question_text
from mmcoref.data.record import Record
from mmcoref.data.tokenizer import pad_token_id
from mmcoref.errors import UserError

PromptStyle = Literal["base", "chat"]
Overlength = Literal["raise", "drop", "trim"]
_CHUNK = 1000  # records tokenized at once
IGNORED = -100  # the label that torch's cross-entropy leaves out

# Llama 3.2's chat template writes today's date into the prompt unless it is given one: a model would be tested on
# another prompt than it was trained on. This is the date that Llama 3.1's template falls back to.
_TEMPLATE_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Example:
    """One encoded record.

    Attributes:
        index: the record's place in its file, counting from 0.
        record: what was encoded (trimmed, where it was too long and `trim` is set).
        prompt_ids: BOS and the prompt; the next token is the answer's letter.
        option_ids: for each option, the answer that names it and the stop token.
    """

    index: int
    record: Record
    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The gold answer and the stop token: the targets of training."""
        return self.option_ids[self.record.choices.index(self.record.gold.text)]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(map(len, self.option_ids))


class Encoded(NamedTuple):
    """The examples of one part, and the file indices of the records that were too long."""

    examples: list[Example]
    dropped: list[int]
    trimmed: list[int]


class Encoder:
    """Turns records into ids for one tokenizer, prompt style and length.

    Args:
        tokenizer: the model's.
        style: `base` for the published prompt, `chat` for the tokenizer's chat template around it.
        max_tokens: the most tokens that prompt and longest answer may have together.
        overlength: what becomes of a longer record: `raise` an error, `drop` it, or `trim` its middle utterances.

    Raises:
        UserError: `chat` with a tokenizer that has no chat template, or one that cannot end in our answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, style: PromptStyle = "base", max_tokens: int = 512, overlength: Overlength = "raise"
    ) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.max_tokens = max_tokens
        self.overlength = overlength
        self.pad_id = pad_token_id(tokenizer)
        if style == "chat" and not tokenizer.chat_template:
            raise UserError("data.prompt: chat needs a tokenizer with a chat template, and this one has none; use data.prompt: base.")
        self.stop_id = self._chat_stop_id() if style == "chat" else _token_id(tokenizer.eos_token_id)

    def encode(self, records: Sequence[tuple[int, Record]]) -> Encoded:
        """Encodes (index in the file, record) pairs.

        Raises:
            UserError: records too long under `raise`, or too long even when trimmed; a tokenizer that merges
                tokens across the end of the prompt.
        """
        out = Encoded([], [], [])
        too_long: list[Example] = []
        for example in self._with_progress(records):
            if example.tokens <= self.max_tokens:
                out.examples.append(example)
            elif self.overlength == "drop":
                out.dropped.append(example.index)
            elif self.overlength == "trim" and (trimmed := self._trim(example)) is not None:
                out.examples.append(trimmed)
                out.trimmed.append(example.index)
            else:
                too_long.append(example)
        if too_long:
            longest = max(example.tokens for example in too_long)
            indices = ", ".join(str(example.index) for example in too_long[:20]) + (", …" if len(too_long) > 20 else "")
            raise UserError(
                f"{len(too_long)} records have more than data.max_tokens = {self.max_tokens} tokens (the longest {longest}; "
                f"records {indices}): raise --data.max_tokens to {longest}, or choose --data.overlength drop or trim."
            )
        return out

    def _with_progress(self, records: Sequence[tuple[int, Record]]) -> Iterator[Example]:
        """`_examples` of all records, with a bar where that takes seconds, on the first process."""
        chunks = range(0, len(records), _CHUNK)
        quiet = len(chunks) < 8 or os.environ.get("LOCAL_RANK", "0") != "0"
        for start in track(chunks, description="tokens", disable=quiet, transient=True, console=Console(stderr=True)):
            yield from self._examples(records[start : start + _CHUNK])

    def _examples(self, records: Sequence[tuple[int, Record]]) -> list[Example]:
        if not records:
            return []
        prompts = [self.render(record) for _, record in records]
        answers = [answer_text(option) for _, record in records for option in record.options]
        prompt_ids = self._ids(prompts, bos=True)
        answer_ids = self._ids(answers, bos=False)
        # What is trained must begin with what is prompted: checked on the first option, whose text is like the others'.
        joined = self._ids([prompt + answer for prompt, answer in zip(prompts, answers[::4], strict=True)], bos=True)
        examples = []
        for i, (index, record) in enumerate(records):
            options = tuple((*ids, self.stop_id) for ids in answer_ids[4 * i : 4 * i + 4])
            if joined[i] != [*prompt_ids[i], *options[0][:-1]]:
                raise UserError(
                    "this tokenizer merges tokens across the end of the prompt, so that a trained answer could not be generated "
                    f"(record {index}); choose a model whose tokenizer keeps a line break apart from the text after it."
                )
            examples.append(Example(index, record, tuple(prompt_ids[i]), options))
        return examples

    def render(self, record: Record) -> str:
        """The prompt's text, as the tokenizer gets it; a base prompt's BOS is added by the tokenizer."""
        if self.style == "base":
            return prompt_text(record)
        return self._chat([{"role": "user", "content": question_text(record)}], add_generation_prompt=True) + SOLUTION_HEADER

    def _chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=_TEMPLATE_DATE
            )
        )

    def _chat_stop_id(self) -> int:
        """The token that the template puts behind an assistant's answer: `<|eot_id|>` for Llama Instruct."""
        user = {"role": "user", "content": "Q"}
        opened = self._chat([user], add_generation_prompt=True) + SOLUTION_HEADER + "A"
        closed = self._chat([user, {"role": "assistant", "content": SOLUTION_HEADER + "A"}])
        tail = self.tokenizer(closed.removeprefix(opened), add_special_tokens=False)["input_ids"]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        if not closed.startswith(opened) or not tail or tail[0] not in special:
            raise UserError(
                "data.prompt: chat expects a chat template that ends an answer with a special token right behind it; use data.prompt: base."
            )
        return _token_id(tail[0])

    def _ids(self, texts: list[str], *, bos: bool) -> list[list[int]]:
        # A chat template writes the BOS itself; a base prompt gets the tokenizer's. A dialogue that spells "<|eot_id|>" says
        # so in letters; only a rendered chat must be read with its control tokens, those of its user's text included.
        rendered = bos and self.style == "chat"
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=bos and not rendered, split_special_tokens=not rendered)[
            "input_ids"
        ]
        if bos and ids and self.tokenizer.eos_token_id == ids[0][-1]:
            ids = [row[:-1] for row in ids]  # some tokenizers close every text; a prompt stays open
        return ids

    def _trim(self, example: Example) -> Example | None:
        """Shortens the middle utterances, the longest first, some words at a time; None where that is not enough.

        The first two utterances post the photos and the last one asks: they, the captions, the question and the
        options stay whole.
        """
        record, excess = example.record, example.tokens - self.max_tokens
        utterances = [utterance.split(" ") for utterance in record.conversation]
        while excess > 0:
            middle = [words for words in utterances[2:-1] if len(words) > 2]
            if not middle:
                return None
            longest = max(middle, key=len)
            removed = max(1, min(len(longest) - 2, excess // 4))  # a word has at most a few tokens: converge, never overshoot far
            del longest[-removed:]
            shorter = record.model_copy(update={"conversation": tuple(" ".join(words) for words in utterances)})
            (trimmed,) = self._examples([(example.index, shorter)])
            excess = trimmed.tokens - self.max_tokens
        return trimmed

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids, up to the stop token, as text."""
        kept = list(ids[: ids.index(self.stop_id)]) if self.stop_id in ids else list(ids)
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _token_id(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a token id, got {value!r}")
    return value


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
    """Left-padded prompts and right-padded options.

    Attributes:
        prompt_ids: (B, T) int64, left-padded, so that every row's next token is the answer's first.
        prompt_mask: (B, T) int64.
        option_ids: (B, O, T) int64, right-padded.
        option_mask: (B, O, T) int64.
        rows: the B examples; one that does not count only fills a process's last batches.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    option_ids: Tensor
    option_mask: Tensor
    rows: Rows


def train_batch(rows: Sequence[tuple[Example, bool]], window_targets: int, pad_id: int) -> TrainBatch:
    """Collates (example, whether it counts) rows; a row that does not count has no labels."""
    width = max(len(example.prompt_ids) + len(example.answer_ids) for example, _ in rows)
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


def eval_batch(rows: Sequence[tuple[Example, bool]], pad_id: int) -> EvalBatch:
    """Collates (example, whether it counts) rows."""
    examples = [example for example, _ in rows]
    prompts = [example.prompt_ids for example in examples]
    width = max(map(len, prompts))
    tail_width = max(len(ids) for example in examples for ids in example.option_ids)
    prompt_ids = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in prompts])
    prompt_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    options = [example.option_ids for example in examples]
    option_ids = torch.tensor([[list(ids) + [pad_id] * (tail_width - len(ids)) for ids in four] for four in options])
    option_mask = torch.tensor([[[1] * len(ids) + [0] * (tail_width - len(ids)) for ids in four] for four in options])
    return EvalBatch(prompt_ids, prompt_mask, option_ids, option_mask, Rows(rows))


def longest_answer(examples: Sequence[Example]) -> int:
    """Tokens of the longest option of any example, stop token included."""
    return max((len(ids) for example in examples for ids in example.option_ids), default=0)
