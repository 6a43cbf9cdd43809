"""The published recipe, token for token against what its trainer fed the model: one text per record, tokenized as a whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmcoref.data.batch import IGNORED, TrainBatch
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import Record
from mmcoref.data.tokenizer import pad_token_id
from mmcoref.errors import UserError
from tests.conftest import CHAT_TEMPLATE, dialogue

RESPONSE = "## Solution"


# How Llama 3 cuts text before it merges: a line break goes with the signs before it, and never with the letters after it.
LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts as Llama 3's does, trained on the twelve, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([published_text(dialogue(number)) for number in range(12)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    fast.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def published_text(record: Record) -> str:
    """The training text of a base model, written out line by line."""
    u, c = record.conversation, record.image_descriptions
    text = f"## Conversation\n{u[0]}\n{c[0]}\n{u[1]}\n{c[1]}\n"
    for utterance in u[2:]:
        text += f"{utterance}\n"
    a, b, c_, d = record.choices
    return text + f"## Problem\n{record.problem}\n## Choices\n{a}.\n{b}.\n{c_}.\n{d}.\n## Solution\n{record.solution}."


def published_row(tokenizer: PreTrainedTokenizerBase, text: str, width: int, *, special: bool) -> tuple[list[int], list[int], list[int]]:
    """(ids, attention mask, labels): right padding to `width`, truncation at `width`, a loss on what follows the response header."""
    ids = tokenizer(text, add_special_tokens=special, truncation=True, max_length=width)["input_ids"]
    head = len(tokenizer(text[: text.rindex(RESPONSE) + len(RESPONSE)], add_special_tokens=special)["input_ids"])
    padding = width - len(ids)
    labels = [IGNORED] * min(head, len(ids)) + ids[head:]
    return ids + [-1] * padding, [1] * len(ids) + [0] * padding, labels + [IGNORED] * padding


def batches(folder: Path, data_file: Path, **settings: object) -> tuple[MMCorefDataModule, list[TrainBatch]]:
    data = MMCorefDataModule(path=str(data_file), tokenizer=str(folder), recipe="published", batch_size=4, **settings)  # type: ignore[arg-type]
    data.setup("fit")
    return data, list(data.train_dataloader())


@pytest.mark.parametrize("width", [512, 100, 70])
def test_rows_labels_and_mask_of_a_base_model(folder: Path, data_file: Path, width: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _, found = batches(folder, data_file, max_tokens=width)
    assert len(found) == 2  # 9 train records, the last of which fills no batch
    expected = [published_row(tokenizer, published_text(dialogue(number)), width, special=True) for number in range(9)]
    lengths = [sum(mask) for _, mask, _ in expected]
    assert max(lengths) == width or width == 512
    seen = []
    for batch in found:
        assert batch.input_ids.shape == batch.labels.shape == (4, width)
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            [(number, (_, mask, their_labels))] = [
                (number, row) for number, row in enumerate(expected) if row[0][: sum(row[1])] == ids[: sum(row[1])]
            ]  # the row's tokens are one record's, all of them
            assert labels == their_labels
            assert set(ids[sum(mask) :]) <= {pad_token_id(tokenizer)}
            assert tokenizer.eos_token_id not in ids
            seen.append(number)
    assert len(set(seen)) == 8


def test_the_assistant_turn_of_an_instruct_model_ends_in_its_stop_token(folder: Path, data_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data, found = batches(folder, data_file, prompt="chat")
    expected = []
    for number in range(9):
        question, answer = published_text(dialogue(number)).split(RESPONSE)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": RESPONSE + answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, date_string="26 Jul 2024")
        expected.append(published_row(tokenizer, text[: text.rindex("<|eot_id|>") + len("<|eot_id|>")], 512, special=False))
    rows = [(ids[: sum(mask)], labels) for ids, mask, labels in expected]
    for batch in found:
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            [(theirs, their_labels)] = [row for row in rows if row[0] == ids[: len(row[0])]]
            assert labels == their_labels
            assert theirs[-1] == data.encoder.stop_id


def test_prompts_at_test_time_end_in_the_header_without_its_newline(folder: Path, data_file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data, _ = batches(folder, data_file)
    data.setup("test")
    for example in data.test:
        text = published_text(dialogue(example.index))
        prompt = tokenizer(text[: text.index(RESPONSE) + len(RESPONSE)])["input_ids"]
        assert list(example.prompt_ids) == prompt == data.encoder.published_prompt_ids(example.record)
        assert [*example.prompt_ids, *example.answer_ids] == tokenizer(text)["input_ids"]
    assert not data.encoder.newline_in_prompt


def test_each_micro_batch_counts_as_the_mean_over_its_own_answer_tokens(folder: Path, data_file: Path) -> None:
    _, found = batches(folder, data_file)
    for batch in found:
        assert batch.window_targets == int((batch.labels != IGNORED).sum())  # one process, one micro-batch a step
    _, cut = batches(folder, data_file, max_tokens=40)
    assert [batch.window_targets for batch in cut] == [1, 1]  # no answer token is left: the loss is 0, not nan
    assert all(torch.equal(batch.labels, torch.full_like(batch.labels, IGNORED)) for batch in cut)


def trainer(**settings: object) -> Any:
    """As much of a trainer as decides how many steps there are: 8 processes, 4 micro-batches a step."""
    usual = {"accumulate_grad_batches": 4, "limit_train_batches": 1.0, "max_steps": -1, "max_epochs": 30}
    return SimpleNamespace(**(usual | settings), distributed_sampler_kwargs={"num_replicas": 8, "rank": 0})


@pytest.mark.parametrize(("recipe", "steps"), [("published", 630), ("mmcoref", 660)])
def test_thirty_epochs_of_1380_records_are_630_steps_as_published(recipe: Any, steps: int) -> None:
    data = MMCorefDataModule(recipe=recipe, batch_size=2)
    data.train = [cast(Any, None)] * 1380
    assert data.total_steps(trainer()) == steps


def test_too_few_records_for_one_step_are_refused_as_published() -> None:
    data = MMCorefDataModule(recipe="published", batch_size=2)
    data.train = [cast(Any, None)] * 63
    with pytest.raises(UserError, match=r"63 train records fill none of 64: lower --data\.batch_size"):
        data.total_steps(trainer())


def test_a_tokenizer_that_merges_the_header_with_its_newline_is_said_once(
    llama_folder: Path, data_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, _ = batches(llama_folder, data_file)  # as for `tiny`, "## Solution" and its newline are one token
    data.setup("test")
    assert [record.message for record in caplog.records] == [
        "this tokenizer merges tokens across the end of the prompt: prompt and answer are tokenized apart, as the published trainer did not"
    ]
