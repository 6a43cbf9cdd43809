"""Record -> ids of the prompt and of each option: the encoder of one tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from mmcoref.data.example import Example
from mmcoref.data.examples import Examples
from mmcoref.data.order import FILE_ORDER, Order, ShuffledOptions, reorder
from mmcoref.data.prompt import PUBLISHED_HEADER, SOLUTION_HEADER, answer_text, question_text
from mmcoref.data.record import LETTERS, Record
from mmcoref.data.template import ChatTemplate
from mmcoref.data.tokenizer import pad_token_id
from mmcoref.errors import UserError
from mmcoref.text import plain_console

log = logging.getLogger(__name__)

PromptStyle = Literal["base", "chat"]
Overlength = Literal["raise", "drop", "trim"]
Recipe = Literal["mmcoref", "published"]
_CHUNK = 1000  # records tokenized at once
_MERGES = "this tokenizer merges tokens across the end of the prompt"
_SHOWN = 20  # indices in a message


class Encoded(NamedTuple):
    """The examples of one part, and the file indices of the records that were too long."""

    examples: list[Example]
    dropped: list[int]
    trimmed: list[int]


@dataclass
class Fates:
    """What became of records that were too long, by their file indices.

    Attributes:
        dropped: left out.
        trimmed: shortened; as published, cut when they are collated.
        shortened: those of them whose record is another one now.
    """

    dropped: list[int] = field(default_factory=list)
    trimmed: list[int] = field(default_factory=list)
    shortened: set[int] = field(default_factory=set)


class Encoder:
    """Turns records into ids for one tokenizer, prompt style and length.

    Args:
        tokenizer: the model's.
        style: `base` for the published prompt, `chat` for the tokenizer's chat template around it.
        max_tokens: the most tokens that prompt and longest answer may have together.
        overlength: what becomes of a longer record: `raise` an error, `drop` it, or `trim` its middle utterances.
        recipe: `mmcoref`, or `published`: the newline behind "## Solution" is the answer's first token, base models are given
            no stop token, and training rows are cut and padded to `max_tokens`, whatever `overlength` says.

    Raises:
        UserError: `chat` with a tokenizer that has no chat template, or one that cannot end in our answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: PromptStyle = "base",
        max_tokens: int = 512,
        overlength: Overlength = "raise",
        recipe: Recipe = "mmcoref",
    ) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self.max_tokens = max_tokens
        self.overlength = overlength
        self.recipe = recipe
        self.pad_id = pad_token_id(tokenizer)
        self._header = SOLUTION_HEADER if recipe == "mmcoref" else PUBLISHED_HEADER
        self._answer_prefix = SOLUTION_HEADER.removeprefix(self._header)
        self.merges = False  # whether a record was met in which the tokenizer merges across the end of the prompt
        if style == "chat" and not tokenizer.chat_template:
            raise UserError("data.prompt: chat needs a tokenizer with a chat template, and this one has none; use data.prompt: base.")
        self._template = ChatTemplate(tokenizer) if style == "chat" else None
        self.stop_id = self._chat_stop_id(self._template) if self._template else _token_id(tokenizer.eos_token_id)
        self._trained_stop = (self.stop_id,) if style == "chat" or recipe == "mmcoref" else ()

    @property
    def newline_in_prompt(self) -> bool:
        """Whether the prompt ends in the newline behind "## Solution"."""
        return not self._answer_prefix

    def encode(self, records: Sequence[tuple[int, Record]]) -> Encoded:
        """Encodes (index in the file, record) pairs.

        Raises:
            UserError: see `stream`.
        """
        fates = Fates()
        examples = list(self.stream(records, len(records), fates))
        return Encoded(examples, fates.dropped, fates.trimmed)

    def stream(self, records: Iterable[tuple[int, Record]], total: int, fates: Fates) -> Iterator[Example]:
        """Encode records one after another.

        Args:
            records: (index in the file, record) pairs.
            total: how many they are.
            fates: is told what becomes of those that are too long.

        Raises:
            UserError: at the end, records too long under `raise`, or too long even when trimmed; a tokenizer that merges
                tokens across the end of the prompt.
        """
        too_long = longest = 0
        first: list[int] = []
        for example in self._with_progress(records, total):
            if example.tokens <= self.max_tokens:
                yield example
            elif self.recipe == "published":
                fates.trimmed.append(example.index)
                yield example  # cut when it is collated
            elif self.overlength == "drop":
                fates.dropped.append(example.index)
            elif self.overlength == "trim" and (trimmed := self._trim(example)) is not None:
                fates.trimmed.append(example.index)
                fates.shortened.add(example.index)
                yield trimmed
            else:
                too_long += 1
                longest = max(longest, example.tokens)
                first += [example.index] if too_long <= _SHOWN else []
        if too_long:
            indices = ", ".join(map(str, first)) + (", …" if too_long > _SHOWN else "")
            raise UserError(
                f"{too_long} records have more than data.max_tokens = {self.max_tokens} tokens (the longest {longest}; "
                f"records {indices}): raise --data.max_tokens to {longest}, or choose --data.overlength drop or trim."
            )

    def _with_progress(self, records: Iterable[tuple[int, Record]], total: int) -> Iterator[Example]:
        """`_examples` of all records, with a bar where that takes seconds, on the first process."""
        chunks = range(0, total, _CHUNK)
        quiet = len(chunks) < 8 or os.environ.get("LOCAL_RANK", "0") != "0"
        rest = iter(records)
        for _ in track(chunks, description="tokens", disable=quiet, transient=True, console=plain_console(stderr=True)):
            yield from self._examples(list(islice(rest, _CHUNK)))

    def reordered(self, example: Example, order: Order) -> Example:
        """The example, whose options stand in the file's order, with its options in `order`."""
        if order == FILE_ORDER:
            return example
        (encoded,) = self._examples([(example.index, reorder(example.record, order))])
        return replace(encoded, order=order)

    def in_orders(self, examples: Sequence[Example], orders: Sequence[Order]) -> Iterator[Example]:
        """Yield each of the examples, whose options stand in the file's order, in each of the orders."""
        asked = ((example.index, reorder(example.record, order)) for example in examples for order in orders)
        encoded = self._with_progress(asked, len(examples) * len(orders))
        for example, order in zip(encoded, cycle(orders), strict=False):
            yield replace(example, order=order)

    def answer_lengths(self, examples: Sequence[Example]) -> NDArray[np.int32]:
        """Return (N, 4), for each example the tokens of its gold answer, stop token included, under the letters A to D."""
        lengths = np.empty((len(examples), len(LETTERS)), np.int32)
        for start in range(0, len(examples), _CHUNK):
            gold = [example.record.gold for example in examples[start : start + _CHUNK]]
            texts = [self._answer_prefix + answer_text(option, letter) for option in gold for letter in LETTERS]
            counted = [len(ids) + len(self._trained_stop) for ids in self._ids(texts, bos=False)]
            lengths[start : start + _CHUNK] = np.reshape(counted, (-1, len(LETTERS)))
        return lengths

    def shuffled(self, examples: Examples, seed: int) -> ShuffledOptions:
        """Return the orders in which the examples' options are shown, epoch by epoch."""
        return ShuffledOptions(seed, examples.indices, examples.gold, self.answer_lengths(examples))

    def _examples(self, records: Sequence[tuple[int, Record]]) -> list[Example]:
        if not records:
            return []
        prompts = [self.render(record) for _, record in records]
        answers = [self._answer_prefix + answer_text(option) for _, record in records for option in record.options]
        prompt_ids = self._ids(prompts, bos=True)
        answer_ids = self._ids(answers, bos=False)
        # What is trained must begin with what is prompted: checked on the first option, whose text is like the others'.
        joined = self._ids([prompt + answer for prompt, answer in zip(prompts, answers[::4], strict=True)], bos=True)
        examples = []
        for i, (index, record) in enumerate(records):
            options = tuple((*ids, *self._trained_stop) for ids in answer_ids[4 * i : 4 * i + 4])
            if joined[i] != prompt_ids[i] + answer_ids[4 * i]:
                self._refuse_merges(index)
            examples.append(Example(index, record, tuple(prompt_ids[i]), options))
        return examples

    def render(self, record: Record) -> str:
        """The prompt's text, as the tokenizer gets it; a base prompt's BOS is added by the tokenizer."""
        return self._opened(record) + self._header

    def published_prompt_ids(self, record: Record) -> list[int]:
        """The prompt of published decoding, which ends in "## Solution" without the newline."""
        (ids,) = self._ids([self._opened(record) + PUBLISHED_HEADER], bos=True)
        return ids

    def _refuse_merges(self, index: int) -> None:
        """Decide about a tokenizer for which prompt and answer are not the beginning and the end of the whole."""
        if self.recipe == "mmcoref":
            raise UserError(
                f"{_MERGES}, so that a trained answer could not be generated (record {index}); "
                "choose a model whose tokenizer keeps a line break apart from the text after it."
            )
        self.say_merges()

    def say_merges(self) -> None:
        """Warn, once, that the published trainer would have tokenized otherwise."""
        if not self.merges:  # as with `tiny`, for which "## Solution" and its line break are one token
            log.warning("%s: prompt and answer are tokenized apart, as the published trainer did not", _MERGES)
            self.merges = True

    def _opened(self, record: Record) -> str:
        """What stands before the header of the answer."""
        question = question_text(record)
        if self._template is None:
            return question
        return self._template.render([{"role": "user", "content": question}], opened=True)

    def _chat_stop_id(self, template: ChatTemplate) -> int:
        """The token that the template puts behind an assistant's answer: `<|eot_id|>` for Llama Instruct."""
        user = {"role": "user", "content": "Q"}
        opened = template.render([user], opened=True) + SOLUTION_HEADER + "A"
        closed = template.render([user, {"role": "assistant", "content": SOLUTION_HEADER + "A"}])
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
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=bos and not rendered,
            split_special_tokens=not rendered,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
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
