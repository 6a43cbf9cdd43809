"""Ids without a row, tokens without a position and parts without a record are found before anything is trained or asked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmcoref.cli import main
from mmcoref.data.encode import Encoder
from mmcoref.data.examples import NO_EXAMPLES, Examples, collect
from mmcoref.data.file import dump_records
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import Record
from mmcoref.data.split import split_records
from mmcoref.errors import UserError
from mmcoref.model import limits
from mmcoref.model.module import MMCorefModule
from mmcoref.resolver import Resolver
from mmcoref.run import holding

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
VOCABULARY = 480


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def examples(encoder: Encoder, dialogues: tuple[Record, ...]) -> Examples:
    return collect(encoder.encode(list(enumerate(dialogues))).examples)


def config(**shape: Any) -> LlamaConfig:
    return LlamaConfig(**({"vocab_size": VOCABULARY, "max_position_embeddings": 2048} | shape))


def test_ids_up_to_the_last_row_are_taken(encoder: Encoder, examples: Examples) -> None:
    assert len(encoder.tokenizer) == VOCABULARY
    limits.check_ids(config(), encoder, [examples, NO_EXAMPLES], "x")
    largest = max(max(example.prompt_ids) for example in examples)
    limits.check_ids(config(vocab_size=largest + 1), encoder, [examples], "x")
    with pytest.raises(UserError, match=f"has the id {largest}, and the model's embedding has {largest} rows"):
        limits.check_ids(config(vocab_size=largest), encoder, [NO_EXAMPLES, examples], "x")


@pytest.mark.parametrize("place", range(4))
def test_an_option_may_hold_the_largest_id(place: int, encoder: Encoder, examples: Examples) -> None:
    four = list(examples[0].option_ids)
    four[place] = (*four[place], VOCABULARY + 3)
    with pytest.raises(UserError, match=rf"the tokenizer's token None has the id {VOCABULARY + 3}, .*resize_token_embeddings\(484\)"):
        limits.check_ids(config(), encoder, [collect([replace(examples[0], option_ids=tuple(four))])], "x")


def test_a_pad_token_without_a_row_is_named_with_both_fixes(tokenizer: PreTrainedTokenizerFast, examples: Examples) -> None:
    padded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token, eos_token="<|end_of_text|>"
    )
    padded.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(UserError) as caught:
        limits.check_ids(config(), Encoder(padded), [examples], "somewhere")
    assert str(caught.value) == (
        "model.name somewhere: the tokenizer's pad token '[PAD]' has the id 480, and the model's embedding has 480 rows, 0 to 479: "
        "set pad_token in its tokenizer_config.json to a token that has one, or save the model after model.resize_token_embeddings(481)."
    )


def test_a_training_row_may_be_as_long_as_the_positions(examples: Examples) -> None:
    longest = max(example.trained_tokens for example in examples)
    for shape in (config(max_position_embeddings=longest), GPT2Config(n_positions=longest), BloomConfig()):
        limits.check_training_length(shape, examples, "x", width=None)
    with pytest.raises(UserError) as caught:
        limits.check_training_length(GPT2Config(n_positions=longest - 1), examples, "x", width=None)
    assert str(caught.value) == (
        f"the longest train record has {longest} tokens, and model.name x knows {longest - 1} positions (max_position_embeddings in its "
        f"config): choose --data.max_tokens {longest - 1} with --data.overlength trim or drop."
    )


def test_as_published_a_row_is_as_long_as_it_is_padded(examples: Examples) -> None:
    limits.check_training_length(config(max_position_embeddings=64), examples, "x", width=64)
    with pytest.raises(UserError, match=r"pads each record to data.max_tokens = 65 tokens: choose --data.max_tokens 64\."):
        limits.check_training_length(config(max_position_embeddings=64), examples, "x", width=65)


def test_what_is_generated_needs_positions_too(examples: Examples) -> None:
    prompt, tokens = max(len(example.prompt_ids) for example in examples), max(example.tokens for example in examples)

    def check(positions: int, max_new_tokens: int = 0, *, as_published: bool = False) -> None:
        shape = config(max_position_embeddings=positions)
        limits.check_answering_length(shape, examples, "x", max_new_tokens=max_new_tokens, as_published=as_published)

    check(tokens)
    with pytest.raises(UserError, match=f"the longest record has {tokens} tokens"):
        check(tokens - 1)
    check(prompt + 99, 100)
    with pytest.raises(UserError, match=f"lower --model.max_new_tokens to 99, or choose --data.max_tokens {prompt - 1} "):
        check(prompt + 98, 100)
    check(1024, as_published=True)
    with pytest.raises(UserError, match=r"choose --model\.decoding greedy"):
        check(1023, as_published=True)


class _Trainer(SimpleNamespace):
    limit_val_batches: float = 1.0


def _run(examples: Examples, encoder: Encoder, positions: int, **settings: Any) -> Any:
    """Check a run whose train records are short, and whose other records are the examples."""
    module = MMCorefModule(name="somewhere", **settings)
    module.restore_backbone(config(max_position_embeddings=positions).to_dict())
    data = MMCorefDataModule(tokenizer="somewhere")
    data._encoder = encoder
    short = collect([replace(example, prompt_ids=example.prompt_ids[:5]) for example in examples])
    data.train, data.val, data.test, data.unlabelled = short, NO_EXAMPLES, examples, examples
    return lambda stage, **trainer: holding.check_limits(module, data, _Trainer(**trainer), stage)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_each_stage_looks_at_what_it_asks(stage: str, encoder: Encoder, examples: Examples) -> None:
    tokens, prompt = max(example.tokens for example in examples), max(len(example.prompt_ids) for example in examples)
    with pytest.raises(UserError, match="positions"):
        _run(examples, encoder, tokens - 1)(stage)
    with pytest.raises(UserError, match="max_new_tokens"):
        _run(examples, encoder, prompt + 98, max_new_tokens=100)(stage)
    _run(examples, encoder, prompt + 99, max_new_tokens=100)(stage)
    _run(examples, encoder, tokens, max_new_tokens=100, decoding="constrained")(stage)
    with pytest.raises(UserError, match="published writes on"):
        _run(examples, encoder, 1000, decoding="published")(stage)


def test_a_fit_that_does_not_validate_needs_no_room_for_answers(encoder: Encoder, examples: Examples) -> None:
    _run(examples, encoder, 60)("fit", limit_val_batches=0)
    tokens = max(example.tokens for example in examples)
    _run(examples, encoder, tokens, max_new_tokens=100, val_generate=False)("fit")
    with pytest.raises(UserError, match="max_new_tokens"):
        _run(examples, encoder, tokens, max_new_tokens=100, val_generate=False)("test")


def _changed(folder: Path, into: Path, **changes: Any) -> str:
    """A copy of a model's folder with another config."""
    shutil.copytree(folder, into)
    shape = LlamaConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(shape, name, value)
    shape.save_pretrained(into)
    return str(into)


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_a_run_ends_before_it_begins(
    stage: str, llama_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _changed(llama_folder, tmp_path / "short", max_position_embeddings=64)
    assert main([stage, "--model.name", model, "--data.path", str(data_file), *CPU]) == 2
    assert "knows 64 positions" in capsys.readouterr().err
    assert not list(Path().glob("lightning_logs/*/*.ckpt"))


def _long(record: Record) -> Record:
    return record.model_copy(update={"conversation": (*record.conversation[:2], "A: " + "정말 " * 300, *record.conversation[2:])})


@pytest.mark.parametrize(
    ("stage", "part", "said"),
    [
        ("fit", "train", "7 train records"),
        ("fit", "val", "2 val records"),
        ("test", "test", "3 test records"),
        ("predict", "all", "12 records"),
    ],
)
def test_a_part_that_is_dropped_whole_is_refused(
    stage: str, part: str, said: str, tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...], tmp_path: Path
) -> None:
    concerned = getattr(split_records(dialogues, val_size=2), part, range(12))
    file = tmp_path / "data.json"
    file.write_text(dump_records([_long(one) if i in concerned else one for i, one in enumerate(dialogues)]), "utf-8")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = MMCorefDataModule(path=str(file), tokenizer=str(tmp_path / "tokenizer"), overlength="drop", max_tokens=300, val_size=2)
    with pytest.raises(UserError) as caught:
        data.setup(stage)
    assert str(caught.value) == (
        f"data.overlength drop leaves none of the {said}, as each has more than data.max_tokens = 300 tokens: raise --data.max_tokens."
    )


def test_a_loaded_model_refuses_what_it_has_no_positions_for(encoder: Encoder, dialogues: tuple[Record, ...]) -> None:
    resolver = object.__new__(Resolver)
    resolver.encoder, resolver.batch_size = encoder, 4
    module = MMCorefModule(name="somewhere")
    module.lm = LlamaForCausalLM(
        config(max_position_embeddings=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    resolver.module = module
    with pytest.raises(UserError, match="knows 64 positions"):
        resolver(list(dialogues))
