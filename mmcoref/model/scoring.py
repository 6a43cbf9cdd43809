"""One pass over the prompt -> the four options' log-likelihoods and the generated text.

Legend of shapes: B dialogues, O = 4 options, T tokens, A answer tokens, V vocabulary, H hidden width.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcoref.data.encode import IGNORED, EvalBatch, TrainBatch


class Answers(NamedTuple):
    """What a model says of B dialogues.

    Attributes:
        option_logprobs: (B, O) float32, natural logarithm of the likelihood of each option and the stop token.
        generated: for each dialogue the generated ids, up to and including the stop token where it came.
        stopped: whether it came within `max_new_tokens`.
    """

    option_logprobs: Tensor
    generated: list[list[int]]
    stopped: list[bool]


def target_loss_sum(lm: nn.Module, batch: TrainBatch) -> Tensor:
    """Cross-entropy in nats, summed over the answer tokens of a batch; a scalar.

    The LM head sees only the positions before an answer token: with Llama's 128,256 words and 16 answer tokens of
    300, logits of the prompt would be 18 times as many, and larger than the model's own activations.
    """
    predicts = batch.labels[:, 1:] != IGNORED  # (B, T-1): a position predicts the next token
    targets = batch.labels[:, 1:][predicts]  # (N,)
    # No attention mask: padding stands on the right, where causal attention never looks from a real token, and without
    # a mask the attention kernels take their fast path.
    logits = logits_at(lm, F.pad(predicts, (0, 1)), input_ids=batch.input_ids)
    return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, targets, reduction="sum")


def logits_at(lm: nn.Module, keep: Tensor, **inputs: Tensor) -> Tensor:
    """Logits (N, V) at the N positions where `keep` (B, T) is True; those of other positions never exist.

    A hook narrows the head's input, so that the forward pass is the model's own, whatever wraps it
    (`logits_to_keep` takes a mask only in later versions of transformers).
    """
    head: nn.Module = lm.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][keep],))
    try:
        logits: Tensor = lm(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits


@torch.no_grad()
def answer(lm: Any, batch: EvalBatch, *, stop_id: int, max_new_tokens: int) -> Answers:
    """Scores the options and generates greedily, both from one pass over the prompts."""
    positions = (batch.prompt_mask.cumsum(-1) - 1).clamp(min=0)
    prefill = lm(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    next_logits = prefill.logits[:, -1]  # (B, V)
    logprobs = _score_options(lm, batch, prefill.past_key_values, next_logits)
    generated, stopped = _generate(lm, batch.prompt_mask, prefill.past_key_values, next_logits, stop_id, max_new_tokens)
    return Answers(logprobs, generated, stopped)


def _score_options(lm: Any, batch: EvalBatch, cache: Any, next_logits: Tensor) -> Tensor:
    """(B, O): the first tokens' likelihood from the prompt's logits, the rest from four short tails over the cache."""
    B, O, A = batch.option_ids.shape  # noqa: E741  # the legend's names
    first = next_logits.float().log_softmax(-1).gather(-1, batch.option_ids[:, :, 0])  # (B, O)
    if A == 1:
        return first
    cache = copy.deepcopy(cache)  # the prompt's cache goes on into the generation
    cache.batch_repeat_interleave(O)
    tails, tail_mask = batch.option_ids.flatten(0, 1), batch.option_mask.flatten(0, 1)  # (B * O, A)
    prompt_mask = batch.prompt_mask.repeat_interleave(O, dim=0)
    start = prompt_mask.sum(-1, keepdim=True)
    logits = lm(
        input_ids=tails[:, :-1],
        attention_mask=torch.cat([prompt_mask, tail_mask[:, :-1]], dim=-1),
        position_ids=start + torch.arange(A - 1, device=tails.device),
        past_key_values=cache,
        use_cache=True,
    ).logits.float()  # (B * O, A - 1, V)
    rest = -F.cross_entropy(logits.transpose(1, 2), tails[:, 1:], reduction="none")  # (B * O, A - 1)
    return first + (rest * tail_mask[:, 1:]).sum(-1).view(B, O)


def _generate(
    lm: Any, mask: Tensor, cache: Any, next_logits: Tensor, stop_id: int, max_new_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Greedy decoding of B rows at once; a row that has stopped runs along until all have, and is cut behind its stop token."""
    tokens: list[Tensor] = []
    stopped = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while len(tokens) < max_new_tokens:
        token = next_logits.argmax(-1)  # (B,)
        tokens.append(token)
        stopped |= token == stop_id
        if len(tokens) == max_new_tokens or bool(stopped.all()):
            break
        mask = F.pad(mask, (0, 1), value=1)
        positions = mask.sum(-1, keepdim=True) - 1
        step = lm(input_ids=token[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        next_logits = step.logits[:, -1]
    rows: list[list[int]] = torch.stack(tokens, dim=-1).tolist()
    return [row[: row.index(stop_id) + 1] if stop_id in row else row for row in rows], stopped.tolist()
