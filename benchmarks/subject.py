"""What is measured: records, and a random Llama with a tokenizer like Llama 3's, which is taught one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mmcoref.data.batch import train_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.file import read_records
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import Record
from mmcoref.data.sample import sample_records
from mmcoref.data.tokenizer import train_tokenizer
from mmcoref.model.scoring import target_loss_sum

ANSWER = "D) B가 올린 사진 속 커피잔"
# Where Llama 3's tokenizer splits.
_LLAMA_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def read_subject(path: str | None, n: int) -> tuple[list[Record], list[str]]:
    """The last n records of a file, or n generated ones, with `ANSWER` for an option D; and what a tokenizer can be trained on."""
    known = read_records(path).records if path else sample_records(1726)
    asked = []
    for record in known[-n:] if path else sample_records(n, part="test"):
        change = {"choices": (*record.choices[:3], ANSWER), "solution": ANSWER if record.gold.letter == "D" else record.solution}
        asked.append(Record.model_validate(record.model_dump() | change))
    return asked, [prompt_text(record) + answer_text(record.gold) for record in known]


def build_tokenizer(texts: Sequence[str], tokens: int) -> PreTrainedTokenizerBase:
    """A tokenizer of so many tokens that splits texts where Llama 3's does."""
    blank: Any = train_tokenizer([""])
    split = pre_tokenizers.Split(Regex(_LLAMA_PIECES), behavior="isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    blank.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    tokenizer: PreTrainedTokenizerBase = blank.train_new_from_iterator(texts, tokens, show_progress=False)
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """A random Llama in the proportions of Llama 3.2; its vocabulary may be larger than the tokenizer's."""
    torch.manual_seed(0)
    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer) + 1),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2 if heads % 2 == 0 else 1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    lm = LlamaForCausalLM(config)
    lm.eval()  # type: ignore[no-untyped-call]
    return lm


def fit(lm: LlamaForCausalLM, encoder: Encoder, records: Sequence[Record], steps: int, batch_size: int = 4) -> None:
    """Teaches the model to say `ANSWER` behind each prompt, and to stop."""
    examples = encoder.encode(list(enumerate(record.model_copy(update={"solution": ANSWER}) for record in records))).examples
    answers = [replace(e, option_ids=tuple((*ids, encoder.stop_id) for ids in e.option_ids)) for e in examples]
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(steps):
        rows = [(answers[(step * batch_size + row) % len(answers)], True) for row in range(batch_size)]
        loss = target_loss_sum(lm, train_batch(rows, 1, encoder.pad_id)) / sum(len(e.answer_ids) for e, _ in rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
