"""The shipped backbone, laid into a model whose tokenizer the data decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mmcoref.data.prompt import prompt_text
from mmcoref.data.record import Record
from mmcoref.data.tokenizer import train_tokenizer
from mmcoref.errors import UserError
from mmcoref.model.backbone import _WORD, TINY_WEIGHTS, load_backbone, save_backbone, tiny_config, transplant


def test_rows_follow_their_tokens_and_unknown_tokens_keep_their_own(
    tokenizer: PreTrainedTokenizerFast, dialogues: tuple[Record, ...], tmp_path: Path
) -> None:
    other = train_tokenizer([prompt_text(record) for record in dialogues[:2]], 330)  # other tokens under other ids
    giver, taker = (AutoModelForCausalLM.from_config(tiny_config(one)) for one in (tokenizer, other))
    before = {name: weights.clone() for name, weights in taker.state_dict().items()}
    save_backbone(giver.state_dict(), tokenizer, tmp_path / "backbone.safetensors")
    transplant(taker, other, tmp_path / "backbone.safetensors")
    theirs, ids = tokenizer.get_vocab(), other.get_vocab()
    words = [token for token in theirs if "컵" in (text := tokenizer.decode([theirs[token]])) or "카페" in text]
    assert words
    theirs = {token: number for token, number in theirs.items() if not _WORD.search(tokenizer.decode([number]))}
    assert not theirs.keys() & set(words)
    shared, unknown = ids.keys() & theirs.keys(), ids.keys() - theirs.keys()
    assert shared
    assert unknown
    assert any(ids[token] != theirs[token] for token in shared)
    for name, weights in taker.state_dict().items():
        given = giver.state_dict()[name].to(torch.float16).float()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert all(torch.equal(weights[ids[token]], given[theirs[token]]) for token in shared)
            assert all(torch.equal(weights[ids[token]], before[name][ids[token]]) for token in unknown)
        else:
            assert torch.equal(weights, given)


def test_tiny_has_the_shipped_weights_and_tiny_random_has_not(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    first = load_backbone("tiny", tokenizer).state_dict()
    torch.manual_seed(1)
    second, random = load_backbone("tiny", tokenizer).state_dict(), load_backbone("tiny-random", tokenizer).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], random[name])
    assert {weights.dtype for weights in first.values()} == {torch.float32}
    assert TINY_WEIGHTS.stat().st_size < 8_000_000


def test_a_folder_without_weights_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tiny_config(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_backbone(str(tmp_path), tokenizer)
