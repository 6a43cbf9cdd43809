"""Scores and text from one prompt pass, against four full passes and transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mmcoref.data.batch import EvalBatch, Rows, eval_batch, train_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.example import Example
from mmcoref.data.record import Record
from mmcoref.model import answering
from mmcoref.model.scoring import _walk, answer, answer_as_published, target_loss_sum
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


@torch.no_grad()
def generated_by_transformers(lm: LlamaForCausalLM, encoder: Encoder, example: Example, **settings: Any) -> list[int]:
    ids = torch.tensor([example.prompt_ids])
    out = lm.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=encoder.stop_id, pad_token_id=encoder.pad_id, **settings
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


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


def padded_left(batch: EvalBatch) -> EvalBatch:
    """The same prompts with their padding on the other side."""
    lengths = batch.prompt_mask.sum(-1).tolist()
    ids = torch.stack([row.roll(len(row) - n) for row, n in zip(batch.prompt_ids, lengths, strict=True)])
    return batch._replace(prompt_ids=ids, prompt_mask=batch.prompt_mask.flip(-1))


@pytest.mark.parametrize("model", ["lm", "taught"])
def test_prompts_padded_on_the_left_give_the_same(
    model: str, request: pytest.FixtureRequest, encoder: Encoder, examples: list[Example]
) -> None:
    lm, right = request.getfixturevalue(model), eval_batch([(example, True) for example in examples], encoder.pad_id)
    left = padded_left(right)
    assert right.prompt_mask[:, 0].all()
    assert not left.prompt_mask[:, 0].all()
    ours, theirs = (answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=24) for batch in (right, left))
    assert torch.allclose(ours.option_logprobs, theirs.option_logprobs, atol=1e-4, rtol=0)
    assert ours.generated == theirs.generated
    assert torch.equal(ours.by_letter, theirs.by_letter)
    for batch in (right, left):
        scores = answer(lm, batch, stop_id=encoder.stop_id).option_logprobs
        for example, row in zip(examples, scores.tolist(), strict=True):
            assert row == pytest.approx([full_forward_logprob(lm, example.prompt_ids, option) for option in example.option_ids], abs=1e-4)


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
    theirs = [generated_by_transformers(lm, encoder, example, max_new_tokens=12) for example in examples]
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
    for ours, row in zip(answers.generated, free, strict=True):
        assert ours == (row[: row.index(stop_id) + 1] if stop_id in row else row)
    assert len(answers.generated[0]) <= 3


def test_scoring_leaves_the_prompt_cache_to_the_generation(lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    batch = eval_batch([(example, True) for example in examples], encoder.pad_id)
    first, second = (answer(lm, batch, stop_id=encoder.stop_id, max_new_tokens=8) for _ in range(2))
    assert first.generated == second.generated
    assert torch.equal(first.option_logprobs, second.option_logprobs)


# ---------------------------------------------------------------------- a model that has learnt to answer


@pytest.fixture(scope="module")
def taught(tokenizer: PreTrainedTokenizerFast, encoder: Encoder, examples: list[Example]) -> LlamaForCausalLM:
    """Has learnt six of the twelve answers by heart, so that some outputs are options and others are not."""
    lm = llama(len(tokenizer))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    batch = train_batch([(example, True) for example in examples[:6]], 1, encoder.pad_id)
    for _ in range(60):
        optimizer.zero_grad()
        (target_loss_sum(lm, batch) / 60).backward()
        optimizer.step()
    return lm.eval()


def forwards(lm: LlamaForCausalLM) -> list[int]:
    """Grows by the width of each forward pass."""
    widths: list[int] = []
    lm.register_forward_pre_hook(lambda _, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True)
    return widths


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_texts_read_off_the_option_scores_are_what_generate_writes(
    taught: LlamaForCausalLM, encoder: Encoder, examples: list[Example], batch_size: int
) -> None:
    theirs = [generated_by_transformers(taught, encoder, example, max_new_tokens=24) for example in examples]
    are_options = [tuple(ids) in example.option_ids for ids, example in zip(theirs, examples, strict=True)]
    assert 6 <= sum(are_options) < 12
    ours = []
    for start in range(0, len(examples), batch_size):
        batch = eval_batch([(example, True) for example in examples[start : start + batch_size]], encoder.pad_id)
        ours += answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=24).generated
    assert ours == theirs


def test_an_option_that_is_written_costs_no_decoding_step(taught: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    widths = forwards(taught)
    answer(taught, eval_batch([(example, True) for example in examples[:6]], encoder.pad_id), stop_id=encoder.stop_id, max_new_tokens=24)
    assert len(widths) == 2  # the prompts and the options
    widths.clear()
    answer(taught, eval_batch([(example, True) for example in examples], encoder.pad_id), stop_id=encoder.stop_id, max_new_tokens=24)
    assert len(widths) > 2
    assert set(widths[2:]) == {1}


def test_an_option_that_would_be_written_but_for_its_first_token_is_not(
    taught: LlamaForCausalLM, encoder: Encoder, examples: list[Example]
) -> None:
    batch = eval_batch([(example, True) for example in examples[:6]], encoder.pad_id)
    said = answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=24).generated
    assert all(tuple(ids) in example.option_ids for ids, example in zip(said, examples, strict=False))
    calls: list[int] = []

    def stops_at_once(module: Any, args: Any, out: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            out.logits[:, encoder.stop_id] += 1e4

    hook = taught.register_forward_hook(stops_at_once)
    assert answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=24).generated == [[encoder.stop_id]] * 6
    hook.remove()


def test_an_option_longer_than_may_be_generated_is_cut(taught: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    batch = eval_batch([(example, True) for example in examples[:6]], encoder.pad_id)
    whole = answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=24).generated
    shortest = min(map(len, whole))
    cut = answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=shortest).generated
    assert cut == [ids[:shortest] for ids in whole]
    assert max(map(len, whole)) > shortest


def test_nothing_is_generated_unless_asked(taught: LlamaForCausalLM, encoder: Encoder, examples: list[Example]) -> None:
    batch = eval_batch([(example, True) for example in examples], encoder.pad_id)
    widths = forwards(taught)
    scored = answer(taught, batch, stop_id=encoder.stop_id)
    assert len(widths) == 2
    assert scored.generated == []
    assert torch.equal(scored.option_logprobs, answer(taught, batch, stop_id=encoder.stop_id, max_new_tokens=9).option_logprobs)


@pytest.mark.parametrize("batch_size", [1, 7, 12])
@pytest.mark.parametrize("model", ["lm", "taught"])
def test_the_constrained_choice_is_that_of_generate_over_a_trie(
    model: str, request: pytest.FixtureRequest, encoder: Encoder, examples: list[Example], batch_size: int
) -> None:
    lm = request.getfixturevalue(model)
    chosen = []
    for start in range(0, len(examples), batch_size):
        batch = eval_batch([(example, True) for example in examples[start : start + batch_size]], encoder.pad_id)
        chosen += answer(lm, batch, stop_id=encoder.stop_id).by_letter.tolist()
    for example, place in zip(examples, chosen, strict=True):
        n = len(example.prompt_ids)

        def allowed(_: int, ids: torch.Tensor, example: Example = example, n: int = n) -> list[int]:
            written = tuple(ids[n:].tolist())
            return [
                option[len(written)] for option in example.option_ids if option[: len(written)] == written and len(option) > len(written)
            ]

        theirs = generated_by_transformers(lm, encoder, example, max_new_tokens=40, prefix_allowed_tokens_fn=allowed)
        assert tuple(theirs) == example.option_ids[place]


def test_the_walk_over_options_that_share_more_than_their_first_token() -> None:
    """Options 5 6 9, 5 7 9, 4 9 9 9 and 5 6 8: the first step takes 5 (0.6), then 7 (0.7), though 4 9 9 9 is the likeliest as a whole."""
    ids = torch.tensor([[[5, 6, 9, 0], [5, 7, 9, 0], [4, 9, 9, 9], [5, 6, 8, 0]]])
    mask = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]])
    p = torch.tensor([[[0.6, 0.3, 0.5, 1], [0.6, 0.7, 0.1, 1], [0.4, 1, 1, 1], [0.6, 0.3, 0.5, 1]]])
    batch = EvalBatch(ids[0, :1], ids[0, :1], ids, mask, Rows([]))
    assert _walk(p.log(), batch).tolist() == [1]
    assert int(p.log().sum(-1).argmax()) == 2
    p[0, :, 1] = torch.tensor([0.7, 0.3, 1, 0.7])
    p[0, 3, 2] = 0.6
    assert _walk(p.log(), batch).tolist() == [3]


def test_published_decoding_is_seeded_leaves_the_random_stream_alone_and_samples(
    lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example]
) -> None:
    prompt = encoder.published_prompt_ids(examples[0].record)
    stream = torch.get_rng_state()
    texts = {seed: tuple(answer_as_published(lm, prompt, stop_id=-1, pad_id=encoder.pad_id, seed=seed)) for seed in (1, 2, 3)}
    assert torch.equal(stream, torch.get_rng_state())
    assert len(set(texts.values())) > 1
    assert tuple(answer_as_published(lm, prompt, stop_id=-1, pad_id=encoder.pad_id, seed=2)) == texts[2]
    assert {len(prompt) + len(ids) for ids in texts.values()} == {1024}
    assert answer_as_published(lm, prompt * 9, stop_id=-1, pad_id=encoder.pad_id, seed=1) == []


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


@pytest.mark.parametrize(("newline", "right"), [("\n", True), ("", False)])
def test_published_decoding_is_judged_from_the_header_on(
    lm: LlamaForCausalLM, encoder: Encoder, examples: list[Example], newline: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says_d(lm: Any, prompt: list[int], **settings: Any) -> list[int]:
        assert prompt == encoder.published_prompt_ids(examples[3].record)
        return [*encoder.tokenizer(newline + "D) x", add_special_tokens=False)["input_ids"], encoder.stop_id]

    monkeypatch.setattr(answering, "answer_as_published", says_d)
    batch = eval_batch([(examples[3], True)], encoder.pad_id)  # D is right
    [prediction] = answering.predict(lm, encoder, batch, decoding="published", max_new_tokens=9, seed=0)
    assert prediction.text == newline + "D) x"
    assert prediction.stopped
    assert prediction.verdict.object_published_rule is right
