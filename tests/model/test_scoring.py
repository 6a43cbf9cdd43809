"""Scores and text from one prompt pass, against four full passes and transformers' own generate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mmcoref.data.encode import Encoder, Example, eval_batch, train_batch
from mmcoref.data.record import Record
from mmcoref.model.scoring import answer, target_loss_sum
from tests.conftest import llama


@pytest.fixture(scope="module")
def lm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return llama(len(tokenizer)).eval()


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def examples(encoder: Encoder, dialogues: tuple[Record, ...]) -> list[Example]:
    return encoder.encode(list(enumerate(dialogues))).examples


def full_forward_logprob(lm: LlamaForCausalLM, prompt: tuple[int, ...], option: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = lm(torch.tensor([[*prompt, *option]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("batch_size", [1, 7, 12])
def test_option_scores_equal_four_full_passes(lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example], batch_size: int) -> None:
    assert len({len(example.prompt_ids) for example in examples}) > 1  # rows of a batch are padded
    for start in range(0, len(examples), batch_size):
        rows = examples[start : start + batch_size]
        batch = eval_batch([(example, True) for example in rows], encoder.pad_id)
        scores = answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=1).option_logprobs
        for example, ours in zip(rows, scores.tolist(), strict=True):
            theirs = [full_forward_logprob(lm, example.prompt_ids, option) for option in example.option_ids]
            assert ours == pytest.approx(theirs, abs=1e-4)
            assert max(theirs) - min(theirs) > 1  # the four differ, so that a mix-up would show


@given(st.lists(st.integers(0, 11), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_score_does_not_depend_on_the_rows_beside_it_or_their_padding(
    lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example], rows: list[int]
) -> None:
    together = answer(lm, eval_batch([(examples[i], True) for i in rows], encoder.pad_id), stop_id=encoder.stop_id, max_new_tokens=1)
    for i, scores in zip(rows, together.option_logprobs, strict=True):
        alone = answer(lm, eval_batch([(examples[i], True)], encoder.pad_id), stop_id=encoder.stop_id, max_new_tokens=1)
        assert torch.allclose(scores, alone.option_logprobs[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 12])
def test_generated_ids_equal_those_of_transformers_generate(
    lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example], batch_size: int
) -> None:
    theirs = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids])
        out = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=encoder.stop_id)
        theirs.append(out[0, ids.shape[1] :].tolist())
    ours = []
    for start in range(0, len(examples), batch_size):
        batch = eval_batch([(example, True) for example in examples[start : start + batch_size]], encoder.pad_id)
        ours += answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=12).generated
    assert ours == theirs


def test_each_row_stops_at_its_own_stop_token(lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    batch = eval_batch([(example, True) for example in examples], encoder.pad_id)
    free = answer(lm, batch, stop_id=-1, max_new_tokens=6).generated
    stop_id = free[0][2]  # what the first row says third; other rows say it later, earlier or never
    answers = answer(lm, batch, stop_id=stop_id, max_new_tokens=6)
    for ours, row, stopped in zip(answers.generated, free, answers.stopped, strict=True):
        assert stopped == (stop_id in row)
        assert ours == (row[: row.index(stop_id) + 1] if stopped else row)
    assert len(answers.generated[0]) <= 3


def test_scoring_leaves_the_prompt_cache_to_the_generation(lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    batch = eval_batch([(example, True) for example in examples], encoder.pad_id)
    first, second = (answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=8) for _ in range(2))
    assert first.generated == second.generated
    assert torch.equal(first.option_logprobs, second.option_logprobs)


def test_the_loss_is_the_negative_log_likelihood_of_the_gold_option(
    lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]
) -> None:
    loss = target_loss_sum(lm, train_batch([(example, True) for example in examples], 1, encoder.pad_id))
    gold = sum(full_forward_logprob(lm, example.prompt_ids, example.answer_ids) for example in examples)
    assert float(loss.detach()) == pytest.approx(-gold, rel=1e-5)


def test_rows_that_only_fill_a_batch_have_no_loss_and_no_gradient(lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    lm.zero_grad()
    loss = target_loss_sum(lm, train_batch([(examples[0], False), (examples[1], False)], 7, encoder.pad_id))
    loss.backward()
    assert float(loss.detach()) == 0.0
    gradients = [p.grad for p in lm.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)  # there, so that data parallelism does not wait
