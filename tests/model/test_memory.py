"""The arithmetic of memory beside the real model's, run on fake tensors, which have sizes and no values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from mmcoref.data.batch import EvalBatch, Rows, TrainBatch, packed_batch
from mmcoref.data.example import Example
from mmcoref.data.record import Record
from mmcoref.model.adapters import Adapters, add_adapters, freeze
from mmcoref.model.loading import lay_out
from mmcoref.model.memory import (
    FULL,
    PUBLISHED_SHAPES,
    Shape,
    Step,
    choose_step,
    inference_memory,
    shape_of,
    training_flops,
    training_memory,
)
from mmcoref.model.optim import parameter_groups
from mmcoref.model.packing import allow_packing
from mmcoref.model.scoring import answer, target_loss_sum
from mmcoref.model.sharding import shard
from tests.conftest import llama

SMALL, MIDDLE, LARGE, INSTRUCT = PUBLISHED_SHAPES
ANSWER = 13  # tokens, as of most published records
HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def config(name: str, layers: int | None = None, **changes: Any) -> LlamaConfig:
    return LlamaConfig(**PUBLISHED_SHAPES[name] | ({} if layers is None else {"num_hidden_layers": layers}) | changes)


def lengths(records: int) -> list[int]:
    """Tokens of records like the published ones, a little apart."""
    return [290 + 5 * number for number in range(records)]


def step(records: int, precision: str = "16-mixed", *, checkpointing: bool = False, micro_batches: int = 2, processes: int = 1) -> Step:
    return Step(
        records, sum(lengths(records)), ANSWER * records, checkpointing, precision, processes, processes > 1, micro_batches
    )  # fmt: skip


def batch(record: Record, records: int) -> TrainBatch:
    examples = [Example(0, record, (1,) * (length - ANSWER), ((1,) * ANSWER,) * 4) for length in lengths(records)]
    return packed_batch([(example, True) for example in examples], records * ANSWER)


class Peak(MemTracker):
    """Bytes at the peak, without a snapshot at each module's door, which would take minutes.

    Args:
        embedding: shape of the embedding, to whose gradient autograd adds a tied head's in place, but not where tensors are fake.
    """

    def __init__(self, embedding: torch.Size) -> None:
        super().__init__()
        self.embedding = embedding

    def _pre_fw_hook(self, *_: Any) -> None:
        pass

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and self._mod_tracker.is_bw and args[0].shape == self.embedding:
            func = torch.ops.aten.add_.Tensor
        return super().__torch_dispatch__(func, types, args, kwargs)

    def bytes(self, kind: str) -> int:
        return sum(device["Total"] for device in self.get_tracker_snapshot(kind).values())


def on_fakes(lm: nn.Module) -> None:
    """Gives a model of the meta device fake tensors of the CPU; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in lm.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), fake)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def autocast(precision: str) -> Iterator[None]:
    """As Lightning's mixed precision: it remembers no cast."""
    with torch.autocast("cpu", HALF[precision], cache_enabled=False) if precision in HALF else nullcontext():
        yield


def measured(config: LlamaConfig, step: Step, record: Record, lora: Adapters | None = None) -> tuple[int, int]:
    """(peak, what rests between steps) of an optimizer step that is not the first, so that gradients and moments exist, in bytes."""
    lm = lay_out(config)
    allow_packing(lm)
    if step.checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.base_model.layers[-1].gradient_checkpointing = False
    if lora is not None:
        freeze(lm, HALF[step.precision])
        add_adapters(lm, lora)
    lm.to({"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(step.precision))
    rows = batch(record, step.records)
    mesh = fake_mesh(step.processes) if step.sharded else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fakes(lm)
        if mesh is not None:
            shard(lm, mesh, HALF.get(step.precision))
        optimizer = torch.optim.AdamW(parameter_groups(lm.parameters(), 0.01), fused=True)
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        finish(lm, optimizer)
        tracker = Peak(lm.get_input_embeddings().weight.shape)
        tracker.track_external(lm, optimizer)
        with tracker:
            for number in range(step.micro_batches):
                with autocast(step.precision):
                    loss = target_loss_sum(lm, rows)
                if number == 0:
                    optimizer.zero_grad()  # Lightning's order: the last step's gradients outlive the forward pass
                loss.backward()
                del loss
            finish(lm, optimizer)
        return tracker.bytes("peak"), tracker.bytes("current")


def finish(lm: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The end of an optimizer step."""
    nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    optimizer.step()


def fake_mesh(processes: int) -> DeviceMesh:
    """Of processes that are not there, and that nothing is sent to."""
    distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    return init_device_mesh("cpu", (processes,))


def check(config: LlamaConfig, step: Step, record: Record, *, within: float, lora: Adapters | None = None) -> None:
    """Compares what a step adds to what rests between steps, which is 16 bytes a parameter and easily right."""
    peak, resting = measured(config, step, record, lora)
    by_arithmetic = training_memory(shape_of(config, lora.rank if lora else 0), step)
    print((by_arithmetic.total - resting) / (peak - resting) - 1, by_arithmetic.total / peak - 1)
    assert by_arithmetic.total - resting == pytest.approx(peak - resting, rel=within)
    assert by_arithmetic.total == pytest.approx(peak, rel=0.1)


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [(SMALL, 1_235_814_400, True), (MIDDLE, 3_212_749_824, True), (LARGE, 8_030_261_248, False), (INSTRUCT, 8_030_261_248, False)],
)
def test_published_shapes_have_the_published_parameters(name: str, parameters: int, tied: bool) -> None:
    shape = shape_of(config(name))
    assert (shape.parameters, shape.trainable, shape.tied, shape.frozen) == (parameters, parameters, tied, False)
    assert shape.head == shape.vocabulary * shape.hidden


def test_a_shape_is_counted_by_hand() -> None:
    shape = shape_of(llama(50).config)  # 2 blocks of 32 channels, 4 heads of 8, 2 of them for keys, an MLP of 64, untied
    attention, mlp, norms = 32 * 32 + 2 * 32 * 16 + 32 * 32, 3 * 32 * 64, 2 * 32
    assert shape.block == attention + mlp + norms
    assert shape.parameters == 2 * shape.block + 2 * 50 * 32 + 32
    assert shape.linear == 2 * (attention + mlp) + 50 * 32
    assert (shape.mlp, shape.widest, shape.layers, shape.heads, shape.kv_heads, shape.head_width) == (mlp, 32 * 64, 2, 4, 2, 8)


@pytest.mark.parametrize(
    ("targets", "adapters"),
    [
        (None, 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64) + (64 + 32))),
        (("q_proj", "down_proj"), 2 * 8 * ((32 + 32) + (64 + 32))),
    ],
)
def test_adapters_are_counted_as_peft_makes_them(targets: tuple[str, ...] | None, adapters: int) -> None:
    lm = llama(50)
    whole = sum(weight.numel() for weight in lm.parameters())
    freeze(lm, None)
    add_adapters(lm, Adapters(8, 16, 0, targets))
    shape = shape_of(llama(50).config, 8, targets)
    assert shape.trainable == sum(weight.numel() for weight in lm.parameters() if weight.requires_grad) == adapters
    assert shape.parameters == sum(weight.numel() for weight in lm.parameters()) == whole + adapters


# ---------------------------------------------------------------------- training, measured


@pytest.mark.parametrize(
    ("config", "step"),
    [
        pytest.param(config(SMALL, 3), step(8), id="1B"),
        pytest.param(config(MIDDLE, 3), step(4), id="3B"),
        pytest.param(config(LARGE, 2), step(2), id="8B"),
        pytest.param(config(SMALL, 2), step(8, "32-true"), id="32-true"),
        pytest.param(config(LARGE, 3), step(4, checkpointing=True), id="checkpointing"),
        pytest.param(config(SMALL, 3, vocab_size=1000), step(4, checkpointing=True), id="checkpointing, a block decides"),
        pytest.param(config(SMALL, 3, vocab_size=1000), step(8), id="the last norm decides"),
        pytest.param(config(LARGE, 2), step(4, micro_batches=1), id="one pass a step"),
        pytest.param(config(LARGE, 4, hidden_size=1024), step(1, checkpointing=True, micro_batches=1), id="the embedding decides"),
        pytest.param(config(SMALL, 2, tie_word_embeddings=False), step(2, "bf16-true"), id="bf16-true"),
        pytest.param(config(SMALL, 2, tie_word_embeddings=False), step(2, "64-true"), id="64-true"),
    ],
)
def test_a_step_takes_what_arithmetic_says(config: LlamaConfig, step: Step, dialogues: tuple[Record, ...]) -> None:
    check(config, step, dialogues[0], within=0.01)


@pytest.mark.parametrize(
    ("config", "step", "within"),
    [
        # PyTorch may or may not have started to gather the next block at the peak: it is counted.
        pytest.param(config(LARGE, 3), step(8, processes=8), 0.1, id="8B"),
        pytest.param(config(LARGE, 3), step(2, processes=8, checkpointing=True), 0.02, id="checkpointing"),
        pytest.param(config(LARGE, 3, vocab_size=1000), step(4, processes=8, checkpointing=True), 0.1, id="a block decides"),
        pytest.param(config(LARGE, 3), step(4, "32-true", processes=8), 0.05, id="32-true"),
        pytest.param(config(LARGE, 2), step(1, processes=2, checkpointing=True), 0.02, id="two processes, the embedding decides"),
        pytest.param(config(SMALL, 2), step(4, processes=8), 0.02, id="tied"),
        pytest.param(config(SMALL, 3, intermediate_size=2048), step(1, processes=8, checkpointing=True), 0.02, id="tied, checkpointing"),
    ],
)
def test_a_sharded_step_takes_what_arithmetic_says(config: LlamaConfig, step: Step, within: float, dialogues: tuple[Record, ...]) -> None:
    check(config, step, dialogues[0], within=within)


@pytest.mark.parametrize(("name", "checkpointing"), [(SMALL, False), (LARGE, False), (LARGE, True)])
def test_adapters_take_what_arithmetic_says(name: str, checkpointing: bool, dialogues: tuple[Record, ...]) -> None:
    check(config(name, 3), step(4, checkpointing=checkpointing), dialogues[0], within=0.1, lora=Adapters(16, 32, 0, None))


def test_gradients_set_to_none_leave_the_buckets_of_ddp_and_zeroed_ones_stay() -> None:
    """And come back into them at the first pass that synchronises: until then DDP keeps both."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    layer = nn.Linear(8, 8, bias=False)
    model = DistributedDataParallel(layer, gradient_as_bucket_view=True)

    def place(*, synchronised: bool) -> int:
        with nullcontext() if synchronised else model.no_sync():
            model(torch.ones(1, 8)).sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.data_ptr()

    for _ in range(2):  # DDP arranges its buckets anew after the first synchronised pass
        bucket = place(synchronised=True)
    layer.zero_grad()
    assert place(synchronised=False) != bucket
    assert place(synchronised=True) == bucket
    layer.zero_grad(set_to_none=False)
    assert place(synchronised=False) == bucket


def test_buckets_outlive_gradients_that_are_set_to_none() -> None:
    shape = shape_of(config(SMALL))
    for passes in (1, 4):
        whole = training_memory(shape, replace(step(2), processes=8, micro_batches=passes))
        assert (whole.buckets, whole.gradients) == (0, 4 * shape.parameters)


def test_what_rests_is_cut_over_the_processes() -> None:
    shape = shape_of(config(LARGE))
    whole = training_memory(shape, replace(step(2), processes=8))
    assert (whole.weights, whole.gradients, whole.optimizer) == (32_121_044_992, 32_121_044_992, 64_242_089_984)
    cut = training_memory(shape, step(2, processes=8))
    assert (cut.weights, cut.gradients, cut.optimizer) == (4_015_130_624, 4_015_130_624, 8_030_261_248)
    lora = training_memory(shape_of(config(LARGE), 16), step(2))
    # 41.9 M adapters and 0.53 B of embedding and norms in fp32; 7.5 B of linear layers in half precision.
    assert lora.weights == 4 * 41_943_040 + 4 * (8_030_261_248 - 7_504_658_432) + 2 * 7_504_658_432
    assert (lora.gradients, lora.optimizer) == (4 * 41_943_040, 8 * 41_943_040)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step"),
    [
        (SMALL, step(8)),
        (MIDDLE, step(8)),
        (LARGE, step(8)),
        (LARGE, step(2)),
        (SMALL, step(8, "32-true")),
        (LARGE, step(8, checkpointing=True)),
        (LARGE, step(8, processes=8)),
        (LARGE, step(8, processes=8, checkpointing=True)),
    ],
)
def test_the_published_models_take_what_arithmetic_says(name: str, step: Step, dialogues: tuple[Record, ...]) -> None:
    check(config(name), step, dialogues[0], within=0.1 if step.sharded else 0.03)


# ---------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    ("precision", "rows", "prompt", "vocabulary"), [("16-mixed", 8, 200, 16000), ("32-true", 8, 200, 1000), ("32-true", 2, 50, 16000)]
)
def test_evaluation_takes_about_what_arithmetic_says(precision: str, rows: int, prompt: int, vocabulary: int) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    lm = llama(vocabulary, **sizes, max_position_embeddings=1024).eval()
    options = torch.ones(rows, 4, ANSWER, dtype=torch.int64)
    asked = EvalBatch(torch.ones(rows, prompt, dtype=torch.int64), torch.ones(rows, prompt, dtype=torch.int64), options, options, Rows([]))
    tracker = Peak(lm.get_input_embeddings().weight.shape)
    tracker.track_external(lm)
    with tracker, autocast(precision):
        answer(lm, asked, stop_id=2)
    estimate = inference_memory(shape_of(lm.config), rows=rows, prompt=prompt, answer=ANSWER, precision=precision)
    assert estimate.total == pytest.approx(tracker.bytes("peak"), rel=0.1)


# ---------------------------------------------------------------------- operations


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(checkpointing: bool, dialogues: tuple[Record, ...]) -> None:
    lm = lay_out(config(SMALL, 3))
    allow_packing(lm)
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.base_model.layers[-1].gradient_checkpointing = False
    rows, shape = batch(dialogues[0], 3), shape_of(config(SMALL, 3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fakes(lm)
        with FlopCounterMode(display=False) as counter:
            target_loss_sum(lm, rows).backward()
    squares = sum(length * length for length in lengths(3))
    passes = 3 * 3 + (2 if checkpointing else 0)  # of a block: forwards, and backwards twice as much
    attention = 4 * 32 * 64 * squares * passes  # 32 heads of 64; torch does not count the CPU's kernel
    counted = training_flops(shape, lengths(3), 3 * ANSWER, checkpointing=checkpointing) - attention
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_operations_are_six_a_weight_and_token() -> None:
    shape = replace(shape_of(config(LARGE)), mlp=0)
    tokens = 300
    attention = 12 * 32 * 32 * 128 * tokens * tokens
    assert training_flops(shape, [tokens], tokens) == 6 * 7_504_658_432 * tokens + attention
    frozen = replace(shape, parameters=shape.parameters + 10, trainable=10)
    assert training_flops(frozen, [tokens], tokens) == 4 * 7_504_658_432 * tokens + 6 * 10 * tokens + attention * 2 // 3 + attention // 3


# ---------------------------------------------------------------------- the choice of a step

RECORDS = [300] * 50 + [400] * 3
ANSWERS = [12] * 50 + [15] * 3
GB = 10**9


def chosen(name: str = SMALL, **changes: Any) -> Step:
    settings: dict[str, Any] = {
        "window": 8,
        "given": None,
        "packed": True,
        "precision": "16-mixed",
        "processes": 8,
        "sharded": False,
        "checkpointing": None,
        "capacity": None,
    }
    return choose_step(shape_of(config(name)), RECORDS, ANSWERS, **settings | changes)


def test_a_pass_has_its_longest_records() -> None:
    assert chosen() == Step(8, 3 * 400 + 5 * 300, 3 * 15 + 5 * 12, False, "16-mixed", 8, False, 1)
    assert chosen(packed=False).tokens == 8 * 400
    assert chosen(given=2, sharded=True) == Step(2, 800, 30, False, "16-mixed", 8, True, 4)
    assert choose_step(
        shape_of(config(SMALL)), [], [], window=3, given=None, packed=False, precision="32-true",
        processes=1, sharded=False, checkpointing=None, capacity=1,
    ) == Step(1, 0, 0, True, "32-true", 1, False, 3)  # fmt: skip


def test_the_largest_divisor_that_fits_is_taken() -> None:
    shape, alone = shape_of(config(SMALL)), {"processes": 1}
    for capacity, records in ((33, 8), (32, 4), (30, 2)):
        step = chosen(capacity=capacity * GB, **alone)
        assert (step.records, step.checkpointing) == (records, False)
        assert training_memory(shape, step).total <= FULL * capacity * GB
        if records < 8:
            assert training_memory(shape, chosen(given=2 * records, **alone)).total > FULL * capacity * GB
    assert chosen(window=12, capacity=80 * GB, most=5).records == 4
    assert chosen(window=7, most=5).records == 1


def test_checkpointing_is_the_last_resort() -> None:
    shape, room = shape_of(config(SMALL)), {"processes": 1, "window": 64}
    bare = training_memory(shape, chosen(given=1, checkpointing=False, **room)).total
    again = training_memory(shape, chosen(given=1, checkpointing=True, **room)).total
    between = int((bare + again) / 2 / FULL)
    tight = chosen(capacity=between, **room)
    assert tight.checkpointing
    assert training_memory(shape, tight).total <= FULL * between
    assert not chosen(capacity=int(bare / FULL) + 1, **room).checkpointing
    assert chosen(capacity=GB, **room) == chosen(given=1, checkpointing=True, **room)  # nothing fits
    assert chosen(capacity=GB, checkpointing=False, **room) == chosen(given=1, checkpointing=False, **room)
    assert chosen(given=4, capacity=GB, **room).records == 4


def test_precisions_without_a_name_of_their_own_are_fp32() -> None:
    shape: Shape = shape_of(config(SMALL, 1))
    assert training_memory(shape, step(1, "32")) == training_memory(shape, step(1, "32-true"))
    assert training_memory(shape, step(1, "bf16")) == training_memory(shape, step(1, "16-mixed"))
