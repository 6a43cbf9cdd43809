"""Ids, label masks and padding against ids written out by hand; stop tokens; chat templates; what becomes of a long record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities import move_data_to_device
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from mmcoref.data.batch import IGNORED, eval_batch, train_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.example import Example, longest_answer
from mmcoref.data.prompt import answer_text, prompt_text, question_text
from mmcoref.data.record import Record
from mmcoref.errors import UserError

X = IGNORED

# A toy whose tokens are words with the space behind them, and whole headers; a text with another word raises.
# fmt: off
VOCABULARY = {word: index for index, word in enumerate((
    "<pad>", "<s>", "</s>",  # 0
    "## Conversation\n", "## Problem\n", "## Choices\n", "## Solution\n", "\n",  # 3
    "A: ", "B: ", "A의 ", "B의 ", "사진: ", "말", "말 ", "저거?",  # 8
    "A) ", "B) ", "C) ", "D) ", "A가 ", "B가 ", "컵.", "새 ", "큰 ", "흰 ",  # 16
))}
# fmt: on


def toy(*, closes: bool = False, words: str = r"## [^\n]*\n|[^ \n]+ ?|\n", extra: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = VOCABULARY | ({extra: len(VOCABULARY)} if extra else {})
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(words), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def spoken(*words: int, gold: int = 0) -> Record:
    """Between the first two utterances and the last one, an utterance of n words for each n in `words`."""
    choices = ("A) A가 컵", "B) A가 새 컵", "C) B가 새 큰 컵", "D) B가 새 큰 흰 컵")
    return Record(
        image_descriptions=("A의 사진: 말", "B의 사진: 말"),
        conversation=("A: 말", "B: 말 말", *(f"A: {' '.join(['말'] * n)}" for n in words), "B: 말"),
        problem="저거?",
        choices=choices,
        solution=choices[gold],
    )


# fmt: off
PROMPT = (
    1,  # BOS, once
    3, 8, 13, 7, 10, 12, 13, 7, 9, 14, 13, 7, 11, 12, 13, 7, 9, 13, 7,  # conversation and captions
    4, 15, 7,  # problem
    5, 16, 20, 22, 7, 17, 20, 23, 22, 7, 18, 21, 23, 24, 22, 7, 19, 21, 23, 24, 25, 22, 7,  # choices
    6,  # "## Solution\n"
)
# fmt: on
OPTIONS = ((16, 20, 22, 2), (17, 20, 23, 22, 2), (18, 21, 23, 24, 22, 2), (19, 21, 23, 24, 25, 22, 2))


def encode(encoder: Encoder, *records: Record) -> list[Example]:
    return encoder.encode(list(enumerate(records))).examples


def example(prompt: tuple[int, ...], *options: tuple[int, ...], gold: int = 0) -> Example:
    return Example(0, spoken(gold=gold), prompt, options)


def test_a_record_is_encoded_as_written_by_hand() -> None:
    (encoded,) = encode(Encoder(toy()), spoken())
    assert encoded == Example(0, spoken(), PROMPT, OPTIONS)
    assert encoded.tokens == len(PROMPT) + 7
    assert longest_answer([encoded]) == 7
    assert longest_answer([]) == 0


@pytest.mark.parametrize("gold", range(4))
def test_the_targets_are_the_gold_answer_and_the_stop_token(gold: int) -> None:
    (encoded,) = encode(Encoder(toy()), spoken(gold=gold))
    assert encoded.answer_ids == OPTIONS[gold]
    assert encoded.prompt_ids == PROMPT


def test_a_record_without_solution_is_encoded_and_has_no_targets() -> None:
    (encoded,) = encode(Encoder(toy()), spoken().model_copy(update={"solution": None}))
    assert (encoded.prompt_ids, encoded.option_ids) == (PROMPT, OPTIONS)
    with pytest.raises(ValueError, match="no solution"):
        _ = encoded.answer_ids


def test_a_tokenizer_that_closes_every_text_leaves_the_prompt_open() -> None:
    assert toy(closes=True)("말")["input_ids"] == [1, 13, 2]
    (encoded,) = encode(Encoder(toy(closes=True)), spoken())
    assert (encoded.prompt_ids, encoded.option_ids) == (PROMPT, OPTIONS)


def test_file_indices_are_kept() -> None:
    encoded = Encoder(toy()).encode([(7, spoken()), (3, spoken(2))])
    assert [one.index for one in encoded.examples] == [7, 3]
    assert (encoded.dropped, encoded.trimmed) == ([], [])
    assert Encoder(toy()).encode([]) == ([], [], [])


def test_a_prompt_is_what_training_begins_with(tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]) -> None:
    for encoded, record in zip(encode(Encoder(tokenizer), *dialogues), dialogues, strict=True):
        whole = tokenizer(prompt_text(record) + answer_text(record.gold))["input_ids"]
        assert [*encoded.prompt_ids, *encoded.answer_ids] == [*whole, tokenizer.eos_token_id]
        assert encoded.prompt_ids.count(1) == 1
        assert encoded.prompt_ids[0] == 1
        assert all(ids.count(2) == 1 and ids[-1] == 2 for ids in encoded.option_ids)
        texts = [tokenizer.decode(ids[:-1]) for ids in encoded.option_ids]
        assert texts == [answer_text(option) for option in record.options]


def test_decoding_ends_at_the_stop_token(tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]) -> None:
    encoder = Encoder(tokenizer)
    (encoded,) = encode(encoder, dialogues[3])
    assert encoder.decode(encoded.answer_ids) == answer_text(dialogues[3].gold)
    assert encoder.decode([*encoded.answer_ids, *encoded.prompt_ids]) == answer_text(dialogues[3].gold)
    assert encoder.decode(encoded.answer_ids[:-1]) == answer_text(dialogues[3].gold)
    assert encoder.decode([*encoded.answer_ids[:-1], 0, 0]) == answer_text(dialogues[3].gold)
    assert encoder.decode(tokenizer(" , '저거' .", add_special_tokens=False)["input_ids"]) == " , '저거' ."
    assert encoder.decode([2]) == encoder.decode([]) == ""


@pytest.mark.parametrize("special", ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"])
def test_a_record_that_spells_a_special_token_brings_none_in(
    special: str, tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    # DEFECT: the tokenizer is called without split_special_tokens=True, so that a dialogue or an option can hold a
    # second BOS or a stop token, and what is decoded lacks it.
    spelling = dialogues[0].model_copy(update={"conversation": (*dialogues[0].conversation[:-1], f"A: 저거 {special}")})
    (encoded,) = encode(Encoder(tokenizer), spelling)
    assert [i for i in encoded.prompt_ids if i < 3] == [1]


def test_a_tokenizer_that_merges_across_the_end_of_the_prompt_is_refused() -> None:
    merging = toy(words=r"## Solution\nA\) |## [^\n]*\n|[^ \n]+ ?|\n", extra="## Solution\nA) ")
    with pytest.raises(UserError) as caught:
        Encoder(merging).encode([(5, spoken())])
    assert str(caught.value) == (
        "this tokenizer merges tokens across the end of the prompt, so that a trained answer could not be generated "
        "(record 5); choose a model whose tokenizer keeps a line break apart from the text after it."
    )


# Batches.

SHORT = example((1, 30), (40, 2), (41, 2), (42, 2), (43, 2), gold=1)
LONG = example((1, 31, 32, 33), (50, 2), (51, 52, 2), (53, 2), (54, 55, 56, 2), gold=3)
MIDDLE = example((1, 34, 35), (60, 61, 62, 63, 64, 2), (65, 2), (66, 2), (67, 2), gold=2)


@pytest.mark.parametrize(
    ("rows", "ids", "tokens", "labels"),
    [
        ([(SHORT, True)], [[1, 30, 41, 2]], 4, [[X, X, 41, 2]]),
        ([(LONG, True)], [[1, 31, 32, 33, 54, 55, 56, 2]], 8, [[X, X, X, X, 54, 55, 56, 2]]),
        ([(SHORT, False)], [[1, 30, 41, 2]], 4, [[X, X, X, X]]),
        (
            [(SHORT, True), (LONG, True)],
            [[1, 30, 41, 2, 9, 9, 9, 9], [1, 31, 32, 33, 54, 55, 56, 2]],
            12,
            [[X, X, 41, 2, X, X, X, X], [X, X, X, X, 54, 55, 56, 2]],
        ),
        (
            # The width is the gold answers': MIDDLE's first option is longer, and is not trained.
            [(MIDDLE, True), (SHORT, False), (SHORT, True)],
            [[1, 34, 35, 66, 2], [1, 30, 41, 2, 9], [1, 30, 41, 2, 9]],
            13,
            [[X, X, X, 66, 2], [X] * 5, [X, X, 41, 2, X]],
        ),
    ],
    ids=["one row", "one long row", "one row that does not count", "rows of unequal length", "a row that does not count among others"],
)
def test_training_rows_are_padded_on_the_right_and_only_answers_are_labelled(
    rows: list[tuple[Example, bool]], ids: list[list[int]], tokens: int, labels: list[list[int]]
) -> None:
    batch = train_batch(rows, 17, pad_id=9)
    assert (batch.input_ids.tolist(), batch.tokens, batch.labels.tolist()) == (ids, tokens, labels)
    assert batch.window_targets == 17
    assert {tensor.dtype for tensor in batch[:2]} == {torch.int64}


@pytest.mark.parametrize("gold", range(4))
def test_a_records_labels_are_written_by_hand(gold: int) -> None:
    encoder = Encoder(toy())
    batch = train_batch([(one, True) for one in encode(encoder, spoken(gold=gold), spoken(gold=3))], 1, encoder.pad_id)
    fill = 3 - gold
    assert batch.input_ids.tolist() == [[*PROMPT, *OPTIONS[gold], *[0] * fill], [*PROMPT, *OPTIONS[3]]]
    assert batch.labels.tolist() == [[*[X] * 47, *OPTIONS[gold], *[X] * fill], [*[X] * 47, *OPTIONS[3]]]
    assert batch.tokens == 47 + 4 + gold + 54


def test_padding_with_the_stop_token_hides_no_stop_token_from_the_labels() -> None:
    batch = train_batch([(SHORT, True), (LONG, True)], 1, pad_id=2)
    assert batch.labels[0].tolist() == [X, X, 41, 2, X, X, X, X]
    assert batch.tokens == 12


def test_evaluation_prompts_are_padded_on_the_left_and_options_on_the_right() -> None:
    batch = eval_batch([(SHORT, True), (LONG, False)], pad_id=9)
    assert batch.prompt_ids.tolist() == [[1, 30, 9, 9], [1, 31, 32, 33]]
    assert batch.prompt_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.option_ids.tolist() == [
        [[40, 2, 9, 9], [41, 2, 9, 9], [42, 2, 9, 9], [43, 2, 9, 9]],
        [[50, 2, 9, 9], [51, 52, 2, 9], [53, 2, 9, 9], [54, 55, 56, 2]],
    ]
    assert batch.option_mask.tolist() == [
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
    ]
    assert list(batch.rows) == [(SHORT, True), (LONG, False)]
    assert len(batch.rows) == 2
    assert {tensor.dtype for tensor in batch[:4]} == {torch.int64}


def test_lightning_moves_an_evaluation_batch_and_leaves_its_examples_alone() -> None:
    batch = eval_batch([(SHORT, True), (LONG, False)], pad_id=9)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert [tensor.device.type for tensor in moved[:4]] == ["meta"] * 4
    assert [tensor.shape for tensor in moved[:4]] == [tensor.shape for tensor in batch[:4]]
    assert moved.rows is batch.rows


IDS = st.lists(st.integers(10, 99), min_size=1, max_size=7).map(tuple)
EXAMPLE = st.builds(lambda prompt, four, gold: example(prompt, *four, gold=gold), IDS, st.tuples(IDS, IDS, IDS, IDS), st.integers(0, 3))
ROWS = st.lists(st.tuples(EXAMPLE, st.booleans()), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, pad_id=st.integers(0, 99))
def test_what_a_row_holds_does_not_depend_on_the_rows_beside_it(rows: list[tuple[Example, bool]], pad_id: int) -> None:
    together = train_batch(rows, 1, pad_id)
    for place, row in enumerate(rows):
        alone = train_batch([row], 1, 0)
        for mine, theirs in zip(alone[:2], together[:2], strict=True):
            assert theirs[place][: alone.tokens].tolist() == mine[0].tolist()
        assert set(together.labels[place][alone.tokens :].tolist()) <= {IGNORED}
        assert set(together.input_ids[place][alone.tokens :].tolist()) <= {pad_id}
    batch = eval_batch(rows, pad_id)
    assert list(batch.rows) == rows
    for place, (one, _) in enumerate(rows):
        assert batch.prompt_ids[place][batch.prompt_mask[place].bool()].tolist() == list(one.prompt_ids)
        assert batch.prompt_mask[place].tolist() == sorted(batch.prompt_mask[place].tolist(), reverse=True)  # padding comes last
        for option in range(4):
            kept = batch.option_mask[place, option].bool()
            assert batch.option_ids[place, option][kept].tolist() == list(one.option_ids[option])
            assert batch.option_mask[place, option, 0] == 1


# Chat.

LLAMA_3 = """\
{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\n\n" + message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{%- endif %}"""


def instruct(tokenizer: PreTrainedTokenizerFast, template: str = LLAMA_3, *, marked: bool = True) -> PreTrainedTokenizerFast:
    """The toy of the other tests with Llama 3's header tokens and a template of its kind."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    copy.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=marked)
    copy.chat_template = template
    return copy


def test_a_chat_prompt_is_the_template_around_the_question(tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]) -> None:
    chat = instruct(tokenizer)
    encoder = Encoder(chat, style="chat", max_tokens=2000)
    text = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{question_text(dialogues[0])[:-1]}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n## Solution\n"
    )
    assert encoder.render(dialogues[0]) == text
    (encoded,) = encode(encoder, dialogues[0])
    assert chat.decode(encoded.prompt_ids, skip_special_tokens=False) == text
    assert encoded.prompt_ids[0] == 1
    assert encoded.prompt_ids.count(1) == 1
    assert {ids[-1] for ids in encoded.option_ids} == {encoder.stop_id} == {chat.convert_tokens_to_ids("<|eot_id|>")}
    assert encoded.answer_ids[-1] != chat.eos_token_id
    assert all(not {1, 2} & set(ids) for ids in encoded.option_ids)
    assert encoder.decode(encoded.answer_ids) == answer_text(dialogues[0].gold)


def test_a_chat_prompt_and_its_answer_are_the_templates_own_conversation(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    chat = instruct(tokenizer)
    (encoded,) = encode(Encoder(chat, style="chat", max_tokens=2000), dialogues[5])
    answer = "## Solution\n" + answer_text(dialogues[5].gold)
    turns = [{"role": "user", "content": question_text(dialogues[5])}, {"role": "assistant", "content": answer}]
    whole = chat.apply_chat_template(turns, date_string="26 Jul 2024", return_dict=False)
    assert [*encoded.prompt_ids, *encoded.answer_ids] == whole


def test_a_stop_token_that_is_not_marked_as_special_is_still_left_out(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    encoder = Encoder(instruct(tokenizer, marked=False), style="chat")
    (encoded,) = encode(encoder, dialogues[0])
    assert encoder.decode(encoded.answer_ids) == answer_text(dialogues[0].gold)


def test_a_base_prompt_of_an_instruct_model_stops_at_the_end_of_text(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    assert Encoder(instruct(tokenizer)).stop_id == 2
    assert encode(Encoder(instruct(tokenizer)), dialogues[0]) == encode(Encoder(tokenizer), dialogues[0])


def test_a_chat_prompt_is_the_same_on_every_day(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2031, 5, 17)

    chat = instruct(tokenizer)
    today = Encoder(chat, style="chat").render(dialogues[0])
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    chat_template_utils._compile_jinja_template.cache_clear()
    messages = [{"role": "user", "content": "Q"}]
    assert "17 May 2031" in chat.apply_chat_template(messages, tokenize=False)  # the template does read the clock
    assert Encoder(chat, style="chat").render(dialogues[0]) == today


def test_chat_without_a_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError) as caught:
        Encoder(tokenizer, style="chat")
    assert str(caught.value) == "data.prompt: chat needs a tokenizer with a chat template, and this one has none; use data.prompt: base."


@pytest.mark.parametrize(
    "template",
    [
        LLAMA_3.replace(' + "<|eot_id|>" }}\n{%- endfor', ' + "\n" }}\n{%- endfor'),  # no special token behind an answer
        LLAMA_3.replace(' + "<|eot_id|>" }}\n{%- endfor', " }}\n{%- endfor"),  # nothing at all behind an answer
        LLAMA_3.replace('message["content"] | trim', 'message["content"] | replace("A", "a")'),  # not our answer
        LLAMA_3.replace("assistant<|end_header_id|>\n\n", "assistant<|end_header_id|>\n"),  # not where the answer begins
    ],
    ids=["line break", "nothing", "another answer", "another place"],
)
def test_a_template_that_cannot_end_in_our_answer_is_refused(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert template != LLAMA_3
    with pytest.raises(UserError) as caught:
        Encoder(instruct(tokenizer, template), style="chat")
    assert str(caught.value) == (
        "data.prompt: chat expects a chat template that ends an answer with a special token right behind it; use data.prompt: base."
    )


# Long records. The toy has one token a word: `spoken()` has 47 + 7, each middle utterance 2 + its words.

FULL = 54


def test_a_record_of_exactly_the_limit_is_left_alone() -> None:
    for overlength in ("raise", "drop", "trim"):
        encoded = Encoder(toy(), max_tokens=FULL, overlength=overlength).encode([(0, spoken())])  # type: ignore[arg-type]
        assert (encoded.examples[0].record, encoded.dropped, encoded.trimmed) == (spoken(), [], [])


def test_the_longest_answer_counts_even_where_it_is_not_the_gold_one() -> None:
    assert Encoder(toy(), max_tokens=FULL - 1, overlength="drop").encode([(0, spoken(gold=0))]).dropped == [0]


def test_long_records_are_dropped_and_reported_by_their_file_index() -> None:
    encoded = Encoder(toy(), max_tokens=FULL, overlength="drop").encode([(4, spoken(1)), (9, spoken()), (2, spoken(3)), (11, spoken())])
    assert [one.index for one in encoded.examples] == [9, 11]
    assert (encoded.dropped, encoded.trimmed) == ([4, 2], [])


def test_long_records_raise_with_their_number_and_indices() -> None:
    with pytest.raises(UserError) as caught:
        Encoder(toy(), max_tokens=FULL).encode([(4, spoken(1)), (9, spoken()), (2, spoken(6, 1))])
    assert str(caught.value) == (
        "2 records have more than data.max_tokens = 54 tokens (the longest 65; records 4, 2): "
        "raise --data.max_tokens to 65, or choose --data.overlength drop or trim."
    )


@pytest.mark.parametrize(("n", "tail"), [(20, "19"), (21, "19, …")])
def test_of_many_long_records_twenty_are_named(n: int, tail: str) -> None:
    with pytest.raises(UserError, match=f"^{n} records have more .*records 0, 1, 2, .*, 18, {tail}\\): raise"):
        Encoder(toy(), max_tokens=FULL).encode([(i, spoken(1)) for i in range(n)])


def test_following_the_messages_advice_helps() -> None:
    records = [(0, spoken(1)), (1, spoken(6, 1))]
    assert len(Encoder(toy(), max_tokens=65).encode(records).examples) == 2
    with pytest.raises(UserError):
        Encoder(toy(), max_tokens=64).encode(records)


def test_trimming_shortens_the_longest_middle_utterance_first() -> None:
    long = spoken(3, 9)  # 5 + 11 tokens more
    encoded = Encoder(toy(), max_tokens=FULL + 12, overlength="trim").encode([(3, long)])
    assert (encoded.dropped, encoded.trimmed) == ([], [3])
    (trimmed,) = encoded.examples
    assert trimmed.record == long.model_copy(update={"conversation": spoken(3, 5).conversation})
    assert trimmed.tokens == FULL + 12


@settings(deadline=None, max_examples=80)
@given(words=st.lists(st.integers(1, 12), max_size=4), gold=st.integers(0, 3), data=st.data())
def test_trimming_spares_all_but_the_middle_utterances(words: list[int], gold: int, data: st.DataObject) -> None:
    record = spoken(*words, gold=gold)
    full, least = FULL + sum(words) + 2 * len(words), FULL + 3 * len(words)
    limit = data.draw(st.integers(least - 3, full + 2), "max_tokens")
    encoder = Encoder(toy(), max_tokens=limit, overlength="trim")
    if limit < least:
        with pytest.raises(
            UserError, match=rf"^1 records have more than data\.max_tokens = {limit} tokens \(the longest {full}; records 8\)"
        ):
            encoder.encode([(8, record)])
        return
    encoded = encoder.encode([(8, record)])
    (one,) = encoded.examples
    assert (encoded.dropped, encoded.trimmed) == ([], [8] if limit < full else [])
    assert one.tokens == min(limit, full)  # at a token a word, not one word more than needed is lost
    assert one.record == record.model_copy(update={"conversation": one.record.conversation})
    assert one.record.conversation[:2] == record.conversation[:2]
    assert one.record.conversation[-1] == record.conversation[-1]
    for before, after in zip(record.conversation[2:-1], one.record.conversation[2:-1], strict=True):
        assert before.split(" ")[: len(after.split(" "))] == after.split(" ")
        assert len(after.split(" ")) >= 2
    assert one.option_ids == OPTIONS
    assert Record.model_validate(one.record.model_dump()) == one.record
    assert encode(Encoder(toy(), max_tokens=limit), one.record)[0].prompt_ids == one.prompt_ids


@settings(deadline=None, max_examples=25)
@given(number=st.integers(0, 11), data=st.data())
def test_a_trimmed_dialogue_fits_and_keeps_what_decides_it(
    number: int, data: st.DataObject, tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...]
) -> None:
    def with_middle(*middle: str) -> Record:
        ends = dialogues[number].conversation
        return dialogues[number].model_copy(update={"conversation": (*ends[:2], *middle, ends[-1])})

    record = with_middle(*(f"{speaker}: '{' '.join(['어제 거기서 찍은 거야,'] * 6)}'" for speaker in "BAB"))
    longest, shortest = encode(Encoder(tokenizer, max_tokens=10_000), record, with_middle("B: '어제", "A: '어제", "B: '어제"))
    limit = data.draw(st.integers(shortest.tokens - 9, longest.tokens + 9), "max_tokens")
    encoder = Encoder(tokenizer, max_tokens=limit, overlength="trim")
    if limit < shortest.tokens:
        with pytest.raises(UserError, match=r"^1 records have more than data\.max_tokens"):
            encode(encoder, record)
        return
    (one,) = encode(encoder, record)
    assert one.tokens <= limit
    text = tokenizer.decode(one.prompt_ids, skip_special_tokens=True)
    assert text == prompt_text(one.record)
    first, caption_a, second, caption_b = text.split("\n")[1:5]
    assert (first, second) == record.conversation[:2]
    assert (caption_a, caption_b) == record.image_descriptions
    for before, after in zip(record.conversation, one.record.conversation, strict=True):
        assert before.startswith(after)  # words are lost from the end
    assert text.split("\n")[-10:] == [record.conversation[-1], *prompt_text(record).split("\n")[-9:]]
    assert one.record.gold == record.gold
    assert one.option_ids == shortest.option_ids


def test_a_dialogue_of_two_utterances_has_nothing_to_trim() -> None:
    two = spoken().model_copy(update={"conversation": ("A: " + "말 " * 9 + "말", "B: 말")})
    with pytest.raises(UserError):
        Encoder(toy(), max_tokens=FULL, overlength="trim").encode([(0, two)])


def test_options_with_periods_of_their_own_are_encoded_and_measured_as_those_without() -> None:
    plain = spoken(1, gold=2)
    choices = tuple(f"{choice}." for choice in plain.choices)
    closed = Record.model_validate(plain.model_dump() | {"choices": choices, "solution": choices[2]})
    encoder = Encoder(toy())
    [one], [other] = (encoder.encode([(0, record)]).examples for record in (plain, closed))
    assert (other.prompt_ids, other.option_ids) == (one.prompt_ids, one.option_ids)
    assert encoder.answer_lengths([other]).tolist() == encoder.answer_lengths([one]).tolist() == [[len(one.answer_ids)] * 4]
