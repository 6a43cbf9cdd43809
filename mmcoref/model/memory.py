"""Bytes on one device at the peak of a step, and floating-point operations, by arithmetic: nothing is allocated.

What autograd keeps was read off `torch.autograd.graph.saved_tensors_hooks`, and the totals are tested against the real model's, run
on fake tensors. Attention is modelled as a fused kernel, as it is on a GPU in half precision (flash attention) and on the CPU: it
keeps queries, keys, values, its output and one number a head, never a matrix of T x T.

Not modelled, and what `FULL` leaves room for: the CUDA context and the kernels' workspaces (about 1 GB together), buffers of the
collectives, fragmentation. Nor 32-true on a GPU with fewer key heads than query heads, for which PyTorch has no fused kernel: it
keeps heads x T x T numbers a record.

Legend: T tokens of a forward pass, N answer tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmcoref.model.shape import PUBLISHED_SHAPES, Shape, Widths, block_kept, norm_kept, shape_of, training_flops, widths

__all__ = [
    "PUBLISHED_SHAPES",
    "Memory",
    "Shape",
    "Step",
    "choose_step",
    "inference_memory",
    "shape_of",
    "training_flops",
    "training_memory",
]

FULL = 0.85  # of a device's memory: the most that a step may take by this arithmetic


@dataclass(frozen=True)
class Step:
    """One forward and backward pass, and the optimizer step that it is part of.

    Attributes:
        records: of the pass.
        tokens: T of the pass: of all its records where they share a row, else rows times the longest.
        targets: N of the pass: the only positions that have logits, and that the last block's MLP is computed for.
        checkpointing: whether blocks keep their input only and are computed again in the backward pass; the last one never does.
        precision: as Lightning spells it.
        processes: of the run.
        sharded: whether weights, gradients and moments are cut over the processes; if not, DDP has them whole on each.
        micro_batches: passes of an optimizer step on one process.
    """

    records: int
    tokens: int
    targets: int
    checkpointing: bool
    precision: str
    processes: int = 1
    sharded: bool = False
    micro_batches: int = 1


class Memory(NamedTuple):
    """Bytes on one device at the moment when their sum is largest.

    Attributes:
        weights: as they are stored.
        gradients: of the trained ones.
        buckets: of DDP, beside the gradients: none, as `MMCorefModule.optimizer_zero_grad` lets these lie in them.
        optimizer: AdamW's two moments. Fused, it has no temporaries; `foreach` would add a copy of one moment while it steps.
        casts: weights of linear layers in half precision, which autograd keeps until their backward pass.
        gathered: whole weights that are computed with, or next, where they are sharded.
        activations: what blocks and the last norm keep for the backward pass; in evaluation keys, values and one block.
        logits: at answer positions, with their softmax and gradients.
        temporaries: what lives shorter, such as the gradient of a matrix before it is added to those of other micro-batches.
    """

    weights: int = 0
    gradients: int = 0
    buckets: int = 0
    optimizer: int = 0
    casts: int = 0
    gathered: int = 0
    activations: int = 0
    logits: int = 0
    temporaries: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self)


def training_memory(shape: Shape, step: Step) -> Memory:
    """The peak of a training step, which is in one of its phases: at the loss, the head, a block or the embedding."""
    return max(_sharded(shape, step) if step.sharded else _whole(shape, step), key=lambda memory: memory.total)


# ---------------------------------------------------------------------- the phases of a step


def _kept(shape: Shape, step: Step, width: Widths) -> tuple[int, int]:
    """Of all blocks but the last, and of what comes then: the last block, the last norm and the head's input."""
    T, N = step.tokens, step.targets
    each = width.stored * shape.hidden * T if step.checkpointing else block_kept(shape, width, T, T)
    angles = 2 * width.stored * shape.head_width * T  # of the rotary embedding, the same for all blocks
    last = block_kept(shape, width, T, N if shape.mlp else T)
    return (shape.layers - 1) * each + angles, last + norm_kept(shape, width) * T + width.computed * shape.hidden * N


def _whole(shape: Shape, step: Step) -> Iterator[Memory]:
    """Where each process has the whole model."""
    width, T, N = widths(step.precision), step.tokens, step.targets
    gradients, ddp, several = width.stored * shape.trainable, step.processes > 1, step.micro_batches > 1
    resting = Memory(_stored(shape, width), gradients, optimizer=2 * gradients)
    before, last = _kept(shape, step, width)
    block, head = _casts(shape, width)
    blocks = block * (1 if step.checkpointing else shape.layers)
    forward = resting._replace(activations=before + last, casts=blocks + head)
    yield forward._replace(logits=N * shape.vocabulary * (2 * width.softmax + (width.computed if width.computed < 4 else 0)))

    # Lightning lets the previous step's gradients go behind the forward pass. They are there in the backward pass all the same
    # where DDP keeps their place, and behind the first of several micro-batches.
    kept = ddp or several
    loss = forward if kept else forward._replace(gradients=0)
    yield loss._replace(logits=3 * width.softmax * N * shape.vocabulary)  # the softmax, its gradient, and the logits'

    # The gradient of the head's matrix comes in the dtype computed with, and is then cast to the stored one.
    trained = 0 if shape.frozen else shape.head
    product = trained * (width.computed + (width.stored if width.autocast else 0))
    yield loss._replace(casts=blocks, logits=0 if width.autocast else width.computed * N * shape.vocabulary, temporaries=product)

    # Where embedding and head are one matrix, the head's share of its gradient waits for the embedding's.
    waiting = width.stored * trained if shape.tied else 0
    norm = loss._replace(casts=blocks, gradients=gradients if kept else width.stored * trained)
    yield norm._replace(temporaries=waiting + 4 * 4 * shape.hidden * T)  # four fp32 tensors of the last norm's backward pass

    # The last block that has kept its MLP for all tokens, or was computed again.
    whole, working = block_kept(shape, width, T, T), waiting + _down_backward(shape, width, T)
    of_it, its_casts = (before + whole, block) if step.checkpointing else (before, blocks - block)
    yield norm._replace(activations=of_it, casts=its_casts, temporaries=working)
    yield resting._replace(activations=whole, casts=block, temporaries=working)
    added = trained if kept else 0  # a gradient that meets no other becomes the parameter's at once
    yield resting._replace(temporaries=waiting + width.stored * (added + shape.hidden * T))


def _stored(shape: Shape, width: Widths) -> int:
    """Weights. Frozen linear layers are kept in the dtype computed with, but not a head that is the embedding (see `adapters.freeze`)."""
    halved = shape.linear - (shape.head if shape.tied else 0) if shape.frozen and width.autocast else 0
    return width.computed * halved + width.stored * (shape.parameters - halved)


def _casts(shape: Shape, width: Widths) -> tuple[int, int]:
    """What autograd keeps of the weights that autocast casts: of a block, and of the head.

    For each use of them, as Lightning has autocast remember nothing.
    """
    if not width.autocast:
        return 0, 0
    if shape.frozen:
        return width.computed * shape.trainable // shape.layers, width.computed * shape.head if shape.tied else 0
    return width.computed * (shape.linear - shape.head) // shape.layers, width.computed * shape.head


def _down_backward(shape: Shape, width: Widths, tokens: int) -> int:
    """While the MLP's last layer is gone through: gradients of its output, its input and its weight, or the cast of that last one alone.

    (The residual stream's is made up for by the block's input, which the callers count twice.)
    """
    at_work = tokens * width.computed * (shape.hidden + shape.intermediate)
    if not shape.frozen:
        return max(at_work + width.computed * shape.widest, width.stored * shape.widest if width.autocast else 0)
    # peft gives adapters their input in fp32, in the second forward pass too, beside three more tensors of the residual stream.
    return at_work + (4 * tokens * (shape.intermediate + 3 * shape.hidden) if width.autocast else 0)


def _sharded(shape: Shape, step: Step) -> Iterator[Memory]:
    """Where weights, gradients and moments are cut over the processes (see `sharding.shard`).

    A group of weights, such as a block, is gathered into one buffer and copied out of it. While a block is gone through the next
    one is gathered. Its gradients are summed over the processes from a copy, which lives until the next block's turn.
    """
    width, T, N = widths(step.precision), step.tokens, step.targets
    part = -(-width.stored * shape.parameters // step.processes)
    resting = Memory(weights=part, gradients=part, optimizer=2 * part)
    before, last = _kept(shape, step, width)
    forward = resting._replace(activations=before + last)
    summed = 4 if width.autocast else width.stored
    block, head, stored_head = width.computed * shape.block, width.computed * shape.head, width.stored * shape.head
    # Tied, the head is the embedding, gathered in fp32 for the whole of both passes, and cast.
    kept, cast, waiting = (stored_head, head if width.autocast else 0, stored_head) if shape.tied else (0, 0, 0)
    if not shape.tied:
        yield forward._replace(gathered=2 * head + block)
    loss = forward._replace(gradients=part if step.micro_batches > 1 else 0, gathered=kept or head, casts=cast)
    yield loss._replace(logits=3 * width.softmax * N * shape.vocabulary)
    gradient = head + (stored_head if shape.tied else _reduced(shape.head, summed, step))
    yield loss._replace(gathered=kept + block, casts=0, temporaries=gradient)

    whole = block_kept(shape, width, T, T)
    working = waiting + width.computed * T * (shape.hidden + shape.intermediate)
    running = resting._replace(activations=before + (whole if step.checkpointing else 0), gathered=kept + 2 * block)
    for previous in (shape.block, 0 if shape.tied else shape.head):
        yield running._replace(temporaries=working + block + summed * previous)
    yield running._replace(gathered=kept + block, temporaries=waiting + block + _reduced(shape.block, summed, step))
    if shape.tied:
        yield resting._replace(gathered=kept, temporaries=2 * stored_head + summed * shape.block)
    else:
        yield resting._replace(gathered=2 * stored_head, temporaries=summed * shape.block)
    yield resting._replace(temporaries=stored_head + _reduced(shape.head, summed, step))


def _reduced(parameters: int, width: int, step: Step) -> int:
    """Gradients on their way to the processes: a copy of the whole, and this process's part of the sum."""
    return width * parameters + -(-width * parameters // step.processes)


# ---------------------------------------------------------------------- evaluation, and the choice of a step


def inference_memory(
    shape: Shape, *, rows: int, prompt: int, answer: int, precision: str, processes: int = 1, sharded: bool = False
) -> Memory:
    """An estimate of an evaluation batch's peak: at the logits of the options' tails, or in a block over the prompts.

    Args:
        shape: of the model.
        rows: records of the batch.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest option, of which each record has four.
        precision: as Lightning spells it.
        processes: of the run.
        sharded: whether weights are cut over them.
    """
    width, prompts, tails = widths(precision), rows * prompt, rows * 4 * max(0, answer - 1)
    block, head = width.computed * shape.block, (width.stored if shape.tied else width.computed) * shape.head
    weights = _stored(shape, width)
    resting = Memory(-(-weights // processes), gathered=head + 2 * block) if sharded else Memory(weights)
    # Keys and values alike in the dtype of the residual stream; one layer's twice, as the cache grows by copying.
    resting = resting._replace(activations=(shape.layers + 1) * 2 * shape.kv_heads * shape.head_width * width.stored * (prompts + tails))
    in_block = prompts * (3 * width.computed * shape.intermediate + 2 * (width.stored + width.computed) * shape.hidden)
    casts = width.computed if width.autocast and not shape.frozen else 0  # of one matrix at a time
    phases = (
        resting._replace(activations=resting.activations + in_block, casts=0 if sharded else casts * shape.widest),
        resting._replace(casts=casts * shape.head, logits=width.computed * tails * shape.vocabulary),
        resting._replace(logits=2 * width.softmax * tails * shape.vocabulary),
    )
    return max(phases, key=lambda memory: memory.total)


def choose_step(
    shape: Shape,
    lengths: Sequence[int],
    targets: Sequence[int],
    *,
    window: int,
    given: int | None,
    packed: bool,
    precision: str,
    processes: int,
    sharded: bool,
    checkpointing: bool | None,
    capacity: int | None,
    most: int | None = None,
) -> Step:
    """How a process takes its share of an optimizer step: in the largest forward passes that fit, the fewest of them.

    Without gradient checkpointing if any number of records fits so, else with it; where none fits, one record with it.

    Args:
        shape: of the model.
        lengths: tokens of each train record.
        targets: answer tokens of each.
        window: records of an optimizer step on one process.
        given: records of a pass, if they are not to be chosen.
        packed: whether the records of a pass share a row; if not they are padded to the longest.
        precision: as Lightning spells it.
        processes: of the run.
        sharded: whether the model is cut over them.
        checkpointing: if it is not to be chosen.
        capacity: bytes of a device, `FULL` of which may be taken; None where memory decides nothing.
        most: records of a pass, at most.
    """
    longest, answers = sorted(lengths, reverse=True), sorted(targets, reverse=True)

    def step(records: int, again: bool) -> Step:
        tokens = sum(longest[:records]) if packed else records * max(longest, default=0)
        passes = max(1, window // records)
        return Step(records, tokens, sum(answers[:records]), again, precision, processes, sharded, passes)

    divisors = (records for records in range(window, 0, -1) if window % records == 0)
    sizes = [given] if given else [records for records in divisors if records <= max(1, most or window)]
    for again in (False, True) if checkpointing is None else (checkpointing,):
        for records in sizes:
            chosen = step(records, again)
            if capacity is None or training_memory(shape, chosen).total <= FULL * capacity:
                return chosen
    return step(given or 1, checkpointing is not False)
