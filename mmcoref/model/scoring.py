"""One pass over the prompt -> the four options' log-likelihoods, the letter's choice and the generated text.

Legend of shapes: B dialogues, O = 4 options, T tokens, A answer tokens, V vocabulary, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig

from mmcoref.data.batch import EvalBatch, TrainBatch
from mmcoref.model.packing import packed_inputs


class Answers(NamedTuple):
    """What a model says of B dialogues.

    Attributes:
        option_logprobs: (B, O) float32 or float64, natural logarithm of the likelihood of each option, stop token included.
        by_letter: (B,) the option that the model writes if it may write nothing but options.
        generated: for each dialogue the generated ids, up to and including the stop token where it came; empty if nothing
            was to be generated.
    """

    option_logprobs: Tensor
    by_letter: Tensor
    generated: list[list[int]]


def target_loss_sum(lm: nn.Module, batch: TrainBatch) -> Tensor:
    """Cross-entropy in nats, summed over the answer tokens of a batch; a scalar.

    The LM head sees only the positions before an answer token: with Llama's 128,256 words and 16 answer tokens of
    300, logits of the prompt would be 18 times as many, and larger than the model's own activations.
    """
    # Rows that are records need no mask: padding stands on the right, where causal attention never looks from a real token,
    # and without a mask the attention kernels take their fast path.
    packed = {} if batch.lengths is None else packed_inputs(batch.position_ids, batch.lengths)  # type: ignore[arg-type]
    logits: Tensor = forward_at(lm, batch.predicting, input_ids=batch.input_ids, use_cache=False, **packed).logits
    return F.cross_entropy(_precise(logits), batch.targets, reduction="sum")


def _precise(logits: Tensor) -> Tensor:
    """Softmax over a whole vocabulary needs float32; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()


def forward_at(lm: nn.Module, positions: Tensor, **inputs: Any) -> Any:
    """The model's output with logits (N, V) at N positions only.

    What lies behind the last attention layer is computed for those positions alone: the last block's MLP, and the LM head.
    Hooks narrow what they are given, so that the forward pass is the model's own, whatever wraps it (`logits_to_keep` takes a
    mask only in later versions of transformers, and leaves the block as it is).

    Args:
        lm: the causal language model.
        positions: (N,) int64, counted over the B rows of T tokens laid end to end.
        inputs: of the model.
    """
    hooks = [lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: (_rows(args[0])[positions],))]  # type: ignore[operator]
    if (mlp := last_mlp(lm)) is not None:
        shape: list[torch.Size] = []

        def narrow(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            shape.append(args[0].shape)
            return (_rows(args[0])[positions][None],)

        def widen(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            whole = out.new_zeros(shape[-1][:-1].numel(), out.shape[-1])
            return whole.index_copy(0, positions, out[0]).view(shape[-1])

        hooks += [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]
    try:
        return lm(**inputs)
    finally:
        for hook in hooks:
            hook.remove()


def last_mlp(lm: nn.Module) -> nn.Module | None:
    """The last block's MLP, if it is one that works token by token, as Llama's does; a mixture of experts routes and counts tokens."""
    blocks: Any = getattr(lm.base_model, "layers", None)
    mlp = getattr(blocks[-1], "mlp", None) if blocks else None
    return mlp if isinstance(getattr(mlp, "down_proj", None), nn.Module) and not hasattr(mlp, "experts") else None


def _rows(hidden: Tensor) -> Tensor:
    """(B, T, H) or (N, H) -> tokens laid end to end."""
    return hidden.flatten(0, -2)


Agree = Callable[[bool], bool]


def alone(done: bool) -> bool:
    """The agreement of a process with itself."""
    return done


@torch.no_grad()
def answer(lm: Any, batch: EvalBatch, *, stop_id: int, max_new_tokens: int = 0, agree: Agree = alone) -> Answers:
    """Scores the options and generates greedily, all from one pass over the prompts.

    Args:
        lm: the causal language model.
        batch: B dialogues; prompts may be padded on either side.
        stop_id: ends an answer.
        max_new_tokens: the most that may be generated; 0 generates nothing.
        agree: whether a thing is true on every process that this one has to take each forward pass with, as all must where the
            model is cut over them.
    """
    reached = batch.prompt_mask.cumsum(-1)
    last = (reached == reached[:, -1:]) & batch.prompt_mask.bool()  # of each row its last token
    # Padding on the right needs no mask, as in training: what is cached there is hidden from all that comes behind it.
    padded_left = not bool(batch.prompt_mask[:, 0].all())
    placed = {"attention_mask": batch.prompt_mask, "position_ids": (reached - 1).clamp(min=0)} if padded_left else {}
    prefill = forward_at(lm, last.flatten().nonzero()[:, 0], input_ids=batch.prompt_ids, use_cache=True, **placed)
    next_logits, cache = prefill.logits, prefill.past_key_values  # (B, V), the prompts' keys and values
    scores = _score_options(lm, batch, cache, next_logits)
    logprobs, by_letter = scores.token_logprobs.sum(-1), _walk(scores.token_logprobs, batch)
    B = len(batch.option_ids)
    rows: list[list[int] | None] = []
    if max_new_tokens:
        # A text that is an option, stop token and all, has been read off the options' own scores; the others are generated.
        for (example, _), option in zip(batch.rows, scores.greedy.tolist(), strict=True):
            ids = list(example.option_ids[option]) if option >= 0 else []
            rows.append(ids if ids[-1:] == [stop_id] and len(ids) <= max_new_tokens else None)
        missing = [b for b in range(B) if rows[b] is None]
        if not agree(not missing):
            asked = missing or [0]  # a process that has nothing to generate runs along
            if len(asked) < B:
                cache.batch_select_indices(torch.tensor(asked, device=next_logits.device))
            found = _generate(lm, batch.prompt_mask[asked], cache, next_logits[asked], stop_id, max_new_tokens, agree)
            for b, row in zip(missing, found, strict=False):
                rows[b] = row
    return Answers(logprobs, by_letter, [row for row in rows if row is not None])


class _Scores(NamedTuple):
    """What one pass over the options says.

    Attributes:
        token_logprobs: (B, O, A) of each token of each option, 0 where an option has ended.
        greedy: (B,) the option that greedy decoding writes, to its last token; -1 where it leaves them all.
    """

    token_logprobs: Tensor
    greedy: Tensor


def _score_options(lm: Any, batch: EvalBatch, cache: Any, next_logits: Tensor) -> _Scores:
    """The first tokens from the prompt's logits, the rest from four short tails over the prompt's keys and values.

    The tails of a dialogue stand in one row, side by side, each with the positions behind the prompt and a mask that hides
    the others: the cache is neither copied nor repeated for each option. It is left as it was.
    """
    B, O, A = batch.option_ids.shape  # noqa: E741  # the legend's names
    ids, real = batch.option_ids, batch.option_mask.bool()
    first = _precise(next_logits).log_softmax(-1).gather(-1, ids[:, :, 0])  # (B, O)
    token_logprobs = first.new_zeros(B, O, A)
    token_logprobs[:, :, 0] = first
    follows = torch.ones(B, O, A, dtype=torch.bool, device=ids.device)  # this token is the model's first choice here
    follows[:, :, 0] = ids[:, :, 0] == next_logits.argmax(-1, keepdim=True)
    if A > 1:
        scored = real[:, :, 1:]
        logits = _precise(_tail_logits(lm, batch, cache, scored.flatten(1)))  # (N, V)
        targets = ids[:, :, 1:][scored]
        token_logprobs[:, :, 1:][scored] = -F.cross_entropy(logits, targets, reduction="none")
        follows[:, :, 1:][scored] = logits.argmax(-1) == targets
    whole = follows.all(-1)  # (B, O)
    return _Scores(token_logprobs, torch.where(whole.any(-1), whole.int().argmax(-1), -1))


def _tail_logits(lm: Any, batch: EvalBatch, cache: Any, keep: Tensor) -> Tensor:
    """Logits (N, V) at the N positions of the tails where `keep` (B, O * (A - 1)) is True."""
    B, O, A = batch.option_ids.shape  # noqa: E741
    Q = O * (A - 1)
    place = torch.arange(Q, device=keep.device)
    same_option = place[:, None] // (A - 1) == place // (A - 1)
    own = same_option & (place <= place[:, None])  # (Q, Q)
    allowed = torch.cat([batch.prompt_mask.bool()[:, None].expand(B, Q, -1), own.expand(B, Q, Q)], dim=-1)
    mask = torch.zeros(allowed.shape, dtype=lm.dtype, device=keep.device).masked_fill(~allowed, torch.finfo(lm.dtype).min)
    logits: Tensor = forward_at(
        lm,
        keep.flatten().nonzero()[:, 0],
        input_ids=batch.option_ids[:, :, :-1].flatten(1),
        attention_mask=mask[:, None],
        position_ids=batch.prompt_mask.sum(-1, keepdim=True) + place % (A - 1),
        past_key_values=cache,
        use_cache=True,
    ).logits
    cache.crop(-Q)
    return logits


def _walk(token_logprobs: Tensor, batch: EvalBatch) -> Tensor:
    """(B,): the option that greedy decoding writes over the trie of the four options, where nothing else may be written.

    It needs no pass of its own: at a node of the trie, all options below it have the same prefix, and so the same
    distribution over their next token, which their scores hold already.
    """
    left = torch.ones_like(batch.option_mask[:, :, 0], dtype=torch.bool)  # (B, O): options below the node
    for t in range(batch.option_ids.shape[-1]):
        goes_on = left & batch.option_mask[:, :, t].bool()
        best = token_logprobs[:, :, t].masked_fill(~goes_on, -torch.inf).argmax(-1, keepdim=True)
        taken = goes_on & (batch.option_ids[:, :, t] == batch.option_ids[:, :, t].gather(-1, best))
        left = torch.where(goes_on.any(-1, keepdim=True), taken, left)
    return left.int().argmax(-1)


def _generate(lm: Any, mask: Tensor, cache: Any, next_logits: Tensor, stop_id: int, max_new_tokens: int, agree: Agree) -> list[list[int]]:
    """Greedy decoding of B rows at once; a row that has stopped runs along until all have, and is cut behind its stop token."""
    tokens: list[Tensor] = []
    stopped = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    while len(tokens) < max_new_tokens:
        token = next_logits.argmax(-1)  # (B,)
        tokens.append(token)
        stopped |= token == stop_id
        if len(tokens) == max_new_tokens or agree(bool(stopped.all())):
            break
        mask = F.pad(mask, (0, 1), value=1)
        positions = mask.sum(-1, keepdim=True) - 1
        step = lm(input_ids=token[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        next_logits = step.logits[:, -1]
    rows: list[list[int]] = torch.stack(tokens, dim=-1).tolist()
    return [row[: row.index(stop_id) + 1] if stop_id in row else row for row in rows]


@torch.no_grad()
def answer_as_published(lm: Any, prompt_ids: list[int], *, stop_id: int, pad_id: int, seed: int, together: bool = False) -> list[int]:
    """What the published decoding generates behind one prompt: 3 beams with sampling, at most 1,024 tokens, prompt included.

    Args:
        lm: the causal language model.
        prompt_ids: of a prompt that ends in "## Solution".
        stop_id: ends a beam.
        pad_id: fills beams that have ended.
        seed: of the sampling; the global random stream stays as it is.
        together: whether other processes take each forward pass with this one, so that it runs along until all have ended.
    """
    room = _PUBLISHED_DECODING["max_length"] - len(prompt_ids)
    if room <= 0 and not together:
        return []
    ids = torch.tensor([prompt_ids if room > 0 else prompt_ids[:1]], device=lm.device)
    # All settings are given: `generate` would fill gaps from files that came with the model.
    settings = GenerationConfig(**_PUBLISHED_DECODING, eos_token_id=stop_id, pad_token_id=pad_id)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, synced_gpus=together)
    generated: list[int] = out[0, len(prompt_ids) :].tolist()
    return generated if room > 0 else []


# Temperature, beams, penalty and length are the published call's; top_p and top_k are what it left to Llama's own
# generation settings and to the default of transformers.
PUBLISHED_LENGTH = 1024  # tokens, prompt included
_PUBLISHED_DECODING: dict[str, Any] = {
    "num_beams": 3,
    "do_sample": True,
    "temperature": 0.7,
    "repetition_penalty": 1.5,
    "max_length": PUBLISHED_LENGTH,
    "top_p": 0.9,
    "top_k": 50,
}
