"""Ways to train one model, the loop that their losses are compared with, and what their speed is measured by."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.turns import MAX_TOKENS, ROWS, WEIGHT_DECAY, WINDOW, Job, Turns
from mmcoref.data.batch import IGNORED
from mmcoref.data.example import Example
from mmcoref.model.module import MMCorefModule


def load_model(job: Job) -> PreTrainedModel:
    """The model in fp32 and train mode."""
    lm: Any = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, trust_remote_code=False)
    return lm.to(job.device).train()  # type: ignore[no-any-return]


def train_as_published(job: Job, turns: Turns) -> None:
    """The published recipe as a plain loop: rows of 512 tokens, a mask, logits everywhere, the mean of micro-batches' means."""
    data = job.data()
    turns.building()
    lm: Any = load_model(job)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=job.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, job.rate)
    scaler = torch.amp.GradScaler(job.device, enabled=job.precision == "16-mixed")
    dtype = torch.float16 if job.precision == "16-mixed" else torch.bfloat16
    autocast = partial(torch.autocast, job.device, dtype=dtype, enabled=job.precision != "32-true")
    go_on, windows = turns.begin(), _shuffled(data.train)
    while go_on:
        window, loss = next(windows), torch.zeros((), device=job.device)
        for start in range(0, WINDOW, ROWS):
            batch = {name: rows.to(job.device) for name, rows in _padded(window[start : start + ROWS], data.encoder.pad_id).items()}
            with autocast():
                mean = lm(**batch, use_cache=False).loss / (WINDOW // ROWS)
            scaler.scale(mean).backward()
            loss += mean.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        go_on = turns.step([example.index for example in window], loss)


def _shuffled(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Whole windows without end, in a new order each epoch."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order) - WINDOW + 1, WINDOW):
            yield [examples[i] for i in order[start : start + WINDOW]]


def _padded(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        prompt, answer = list(example.prompt_ids), list(example.answer_ids)
        tokens = len(prompt) + len(answer)
        padding = MAX_TOKENS - tokens
        rows["input_ids"].append(prompt + answer + [pad_id] * padding)
        rows["attention_mask"].append([1] * tokens + [0] * padding)
        rows["labels"].append([IGNORED] * len(prompt) + answer + [IGNORED] * padding)
    return {name: torch.tensor(each) for name, each in rows.items()}


def train_ours(job: Job, turns: Turns) -> None:
    """`Trainer.fit` with the module and the data module, as a user calls it."""
    data = job.data()
    turns.building()
    module = MMCorefModule(name=job.folder, lr=job.lr, weight_decay=WEIGHT_DECAY, warmup_steps=0)
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        precision=job.precision,  # type: ignore[arg-type]  # one of three strings
        max_steps=job.steps,
        max_epochs=-1,
        accumulate_grad_batches=WINDOW // ROWS,
        gradient_clip_val=1.0,
        callbacks=[_LightningTurns(turns)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)


class _LightningTurns(pl.Callback):
    """Holds a trainer up between turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._done = 0
        self._windows: Iterator[list[int]] = iter(())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._turns.note = f"forward passes of {WINDOW // trainer.accumulate_grad_batches} records"
        trainer.should_stop = not self._turns.begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        sampler = data.train_dataloader().sampler
        sampler.set_epoch(trainer.current_epoch)
        order = [data.train[slot.example].index for slot in sampler if slot.valid]
        self._windows = (order[start : start + WINDOW] for start in range(0, len(order), WINDOW))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > self._done:
            self._done = trainer.global_step
            trainer.should_stop = not self._turns.step(next(self._windows), trainer.callback_metrics["train/loss"])


def reference_losses(job: Job, windows: Sequence[Sequence[Example]]) -> list[float]:
    """Losses in nats of a plain loop: one record at a time, logits everywhere, the mean over a step's answer tokens."""
    lm: Any = load_model(job)
    matrices = [weight for weight in lm.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in lm.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}])
    losses = []
    for step, window in enumerate(windows):
        targets = sum(len(example.answer_ids) for example in window)
        total = 0.0
        for example in window:
            answer = torch.tensor(example.answer_ids)
            ids = torch.cat([torch.tensor(example.prompt_ids), answer])
            logits = lm(ids[None]).logits[0, -len(answer) - 1 : -1]
            loss = F.cross_entropy(logits, answer, reduction="sum") / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = job.lr * job.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def training_flops(tokens: int, answer: int, *, body: int, head: int, layers: int, width: int) -> int:
    """FLOPs that training on one record needs, forward and backward.

    Args:
        tokens: of the record.
        answer: those of them that are predicted.
        body: weights besides embedding and LM head.
        head: weights of the LM head.
        layers: of attention.
        width: of attention, all heads together.
    """
    return 6 * body * tokens + 6 * head * answer + 6 * layers * width * tokens * (tokens + 1)


def matrix_products(device: str, precision: str, times: int = 5) -> list[float]:
    """FLOP/s of large matrix products, one after another."""
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision, torch.float32)
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    rates = []
    for _ in range(times):
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return rates[1:]  # the first warms up
