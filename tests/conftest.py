"""Twelve dialogues, a toy tokenizer, a tiny Llama in several shards, and a guard against the network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmcoref.data.file import dump_records, read_records
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import LETTERS, Record
from mmcoref.data.tokenizer import train_tokenizer

torch.set_num_threads(1)  # several processes at once, and the same sums everywhere

_THINGS = ("컵", "챙 넓은 모자", "기타", "키 큰 화분")  # of unequal lengths
_COLOURS = ("빨간", "파란", "하얀", "까만")  # so that no two dialogues share their options
_TOPICS = ("카페", "공원", "거실")
_PLACES = {"카페": ("탁자", "창가"), "공원": ("벤치", "잔디"), "거실": ("책장", "소파")}


def dialogue(number: int) -> Record:
    """One of the twelve: three topics times four answers; owners are B, A, A, B in the last topic."""
    topic, gold = _TOPICS[number // 4], number % 4
    owners = "BAAB" if topic == "거실" else "AABB"
    here, there = _PLACES[topic]
    things = [f"{_COLOURS[gold]} {thing}" for thing in _THINGS]
    choices = tuple(f"{letter}) {owner}가 올린 사진 속 {thing}" for letter, owner, thing in zip(LETTERS, owners, things, strict=True))
    speaker = "AB"[number % 2]
    return Record(
        image_descriptions=(f"A의 사진: {topic}의 {here} 위", f"B의 사진: {topic}의 {there} 곁"),
        conversation=(
            f"A: '{topic}에서 찍은 사진이야.'",
            "B: '좋다, 나도 하나 올릴게.'",
            f"A: '{things[(gold + 1) % 4]}도 있고 다른 것도 있지.'",
            f"{speaker}: '나는 저거, {things[gold]} 말이야, 마음에 들어.'",
        ),
        problem=f"마지막 {speaker}의 발화에서 '저거'는 A와 B 중 어느 사진에 포함된 어느 물건인가?",
        choices=choices,
        solution=choices[gold],
    )


@pytest.fixture(scope="session")
def dialogues() -> tuple[Record, ...]:
    return tuple(dialogue(number) for number in range(12))


@pytest.fixture(scope="session")
def data_file(dialogues: tuple[Record, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve in the published form."""
    file = tmp_path_factory.mktemp("data") / "twelve.json"
    file.write_text(dump_records(dialogues), "utf-8")
    return file


@pytest.fixture(scope="session")
def tokenizer(dialogues: tuple[Record, ...]) -> PreTrainedTokenizerFast:
    return train_tokenizer([prompt_text(record) + answer_text(option) for record in dialogues for option in record.options], 480)


def llama(vocabulary: int, **shape: Any) -> LlamaForCausalLM:
    """A random Llama small enough for hundreds of steps a second; weights large enough that outputs differ."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | shape)))


@pytest.fixture(scope="session")
def llama_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user brings: a `save_pretrained` folder, in bf16 as Llama is published, in several shards."""
    folder = tmp_path_factory.mktemp("llama")
    llama(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="session")
def published() -> tuple[Record, ...]:
    """The published records; skips where MMCOREF_DATA does not name their file."""
    return read_records(published_path()).records


def published_path() -> str:
    path = os.environ.get("MMCOREF_DATA")
    if not path:
        pytest.skip("MMCOREF_DATA does not name the published file")
    return str(Path(path).resolve())


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing outside this machine is reached; the loopback is free, for processes and local servers."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    return


@contextmanager
def own_environment() -> Iterator[None]:
    """Lightning leaves a rank and a port behind, which a process started later would take for its own."""
    before = dict(os.environ)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Each test has an environment of its own; a fixture that fits for several tests needs `own_environment`, too."""
    with own_environment():
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in a folder of its own, so that lightning_logs/ is its own."""
    monkeypatch.chdir(tmp_path)


# In the manner of Llama 3: headers around each turn, contents stripped, a date unless one is given.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}<|eot_id|>"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
