"""Records that share a row do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, PreTrainedTokenizerFast, Qwen3NextConfig

from mmcoref.data.batch import IGNORED, eval_batch, packed_batch, train_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.example import Example
from mmcoref.data.record import Record
from mmcoref.model.packing import PACKED, allow_packing, can_pack
from mmcoref.model.scoring import answer, target_loss_sum
from tests.conftest import llama


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def examples(encoder: Encoder, dialogues: tuple[Record, ...]) -> list[Example]:
    return encoder.encode(list(enumerate(dialogues))).examples


@pytest.fixture
def lm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    model = llama(len(tokenizer))
    allow_packing(model)
    return model


def counted(examples: Sequence[Example]) -> list[tuple[Example, bool]]:
    return [(example, True) for example in examples]


def gradients(lm: LlamaForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    lm.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


def test_a_packed_row_has_the_loss_and_the_gradient_of_its_records_apart(lm: LlamaForCausalLM, examples: list[Example]) -> None:
    packed = target_loss_sum(lm, packed_batch(counted(examples), 1))
    together = gradients(lm, packed)
    losses = [target_loss_sum(lm, train_batch(counted([example]), 1, 0)) for example in examples]
    apart = gradients(lm, torch.stack(losses).sum())
    assert float(packed) == pytest.approx(sum(map(float, losses)), rel=1e-6)
    assert float((together - apart).norm() / apart.norm()) < 1e-6


def test_a_record_does_not_see_the_one_before_it(lm: LlamaForCausalLM, examples: list[Example]) -> None:
    first, second, third = examples[:3]
    other = replace(first, prompt_ids=tuple(reversed(first.prompt_ids)))
    losses = [target_loss_sum(lm, packed_batch([(one, False), (second, True), (third, True)], 1)) for one in (first, other)]
    assert float(losses[0]) == float(losses[1])
    # Fillers are left out, so let the first count as well, and take its own loss off.
    rest = [
        target_loss_sum(lm, packed_batch(counted([one, second, third]), 1)) - target_loss_sum(lm, packed_batch(counted([one]), 1))
        for one in (first, other)
    ]
    assert float(rest[0]) == pytest.approx(float(rest[1]), rel=1e-5)


def test_ids_labels_and_places_of_a_packed_row(examples: list[Example]) -> None:
    first, second = (replace(example, prompt_ids=example.prompt_ids[:3], option_ids=((7, 8),) * 4) for example in examples[:2])
    batch = packed_batch(counted([first, second]), 17)
    assert batch.input_ids.tolist() == [[*first.prompt_ids, 7, 8, *second.prompt_ids, 7, 8]]
    assert batch.labels.tolist() == [[IGNORED] * 3 + [7, 8] + [IGNORED] * 3 + [7, 8]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    assert (batch.lengths, batch.tokens, batch.window_targets) == ((5, 5), 10, 17)
    assert batch.predicting.tolist() == [2, 3, 7, 8]
    assert batch.targets.tolist() == [7, 8, 7, 8]


def test_a_row_that_only_fills_up_has_no_targets_and_a_loss_of_0(lm: LlamaForCausalLM, examples: list[Example]) -> None:
    batch = packed_batch([(examples[0], False), (examples[1], False)], 5)
    assert batch.lengths == (examples[0].trained_tokens,)
    assert not len(batch.targets)
    assert set(batch.labels.flatten().tolist()) == {IGNORED}
    assert not gradients(lm, target_loss_sum(lm, batch)).any()


def test_a_model_that_takes_packed_rows_answers_ordinary_batches_as_before(
    lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example], encoder: Encoder
) -> None:
    assert lm.config._attn_implementation == PACKED
    batch = eval_batch(counted(examples), encoder.pad_id)
    ours = answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=9)
    plain = answer(llama(len(tokenizer)), batch, stop_id=encoder.stop_id, max_new_tokens=9)
    assert torch.equal(ours.option_logprobs, plain.option_logprobs)
    assert ours.generated == plain.generated


def test_attention_of_a_packed_row_takes_no_mask_of_its_square(
    lm: LlamaForCausalLM, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: Any, attn_mask: Any = None, is_causal: bool = False, **settings: Any) -> torch.Tensor:
        assert attn_mask is None
        calls.append((query.shape[2], is_causal))
        return plain(query, *args, attn_mask=attn_mask, is_causal=is_causal, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    target_loss_sum(lm, packed_batch(counted(examples[:3]), 1))
    assert calls == [(example.trained_tokens, True) for example in examples[:3]] * 2  # two layers


@pytest.mark.parametrize(
    ("config", "packs"),
    [
        (LlamaConfig(), True),
        (MistralConfig(sliding_window=300), True),
        (MistralConfig(sliding_window=299), False),  # records of 300 tokens are cut off from their beginning
        (Qwen3NextConfig(), False),  # linear attention carries a state on
    ],
    ids=["llama", "wide window", "narrow window", "linear attention"],
)
def test_which_models_take_packed_rows(config: Any, packs: bool) -> None:
    assert can_pack(config, 300) is packs
