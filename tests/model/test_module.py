"""Training: the same update however a window is split, nothing computed that need not be, and a set learnt by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from mmcoref.data.batch import TrainBatch
from mmcoref.data.file import dump_records
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import Record
from mmcoref.errors import UserError
from mmcoref.model.module import MMCorefModule
from mmcoref.run.strategy import strategy_of

MICRO_BATCHES = [1, 2, 4, 8]  # records of a forward pass: windows of 8 of the twelve records, so 8 and 4


_TRAINERS = ("precision", "gradient_clip_val", "limit_train_batches", "strategy", "devices")


class Gradients(pl.Callback):
    """Keeps every optimizer step's gradients."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def fit(
    folder: Path,
    file: Path,
    batch_size: int,
    accumulate: int,
    *,
    micro_batch_size: int | None = None,
    epochs: int = 1,
    callbacks: Any = (),
    **settings: Any,
) -> tuple[MMCorefModule, pl.Trainer]:
    pl.seed_everything(3, verbose=False)
    trainer_settings = {key: settings.pop(key) for key in _TRAINERS if key in settings}
    recipe = settings.pop("recipe", "mmcoref")
    module = MMCorefModule(name=str(folder), **({"lr": 1e-3, "warmup_steps": 2} | settings))
    data = MMCorefDataModule(
        path=str(file), tokenizer=str(folder), batch_size=batch_size, micro_batch_size=micro_batch_size, recipe=recipe, max_tokens=200
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **trainer_settings,
    )
    trainer.fit(module, data)
    return module, trainer


@pytest.fixture
def fifteen(dialogues: tuple[Record, ...], tmp_path: Path) -> Path:
    """Twelve train records and three test records."""
    file = tmp_path / "fifteen.json"
    file.write_text(dump_records([*dialogues, *dialogues[:3]]), "utf-8")
    return file


def reference_gradients(folder: Path, data: MMCorefDataModule, indices: list[int]) -> dict[str, torch.Tensor]:
    """A plain loop: each record alone, full logits, the mean over all answer tokens of the window."""
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = sum(len(data.train[i].answer_ids) for i in indices)
    for i in indices:
        example = data.train[i]
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        logits = lm(ids).logits[0, len(example.prompt_ids) - 1 : -1]
        (F.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="sum") / total).backward()
    return {f"lm.{name}": p.grad for name, p in lm.named_parameters()}


def relative_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([grads[name].double().flatten() for name in theirs]) for grads in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("packed", [True, False], ids=["one row", "padded"])
@pytest.mark.parametrize("records", MICRO_BATCHES)
def test_every_split_of_a_window_gives_the_gradient_of_the_mean_over_its_answer_tokens(
    llama_folder: Path, fifteen: Path, records: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcoref.model.need.can_pack", lambda *_: packed)
    seen = Gradients()
    module, trainer = fit(llama_folder, fifteen, 2, 4, micro_batch_size=records, callbacks=[seen], lr=0.0, weight_decay=0.0)
    data = module.data
    assert (data.rows, trainer.accumulate_grad_batches, data.packed) == (records, 8 // records, packed)
    assert len(seen.steps) == trainer.global_step == 2
    sampler = data.train_dataloader().sampler
    slots = [slot for slot in sampler if slot.valid]  # one process: all of them, window by window
    windows = [[slot.example for slot in slots[:8]], [slot.example for slot in slots[8:]]]
    assert len(windows[1]) == 4
    for ours, window in zip(seen.steps, windows, strict=True):
        assert relative_error(ours, reference_gradients(llama_folder, data, window)) < 1e-6


def test_every_split_of_a_window_gives_the_same_weights_in_float64(llama_folder: Path, fifteen: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "precision": "64-true", "gradient_clip_val": 1.0}
    fits = [fit(llama_folder, fifteen, 2, 4, micro_batch_size=records, **settings) for records in MICRO_BATCHES]
    states = [module.backbone.state_dict() for module, _ in fits]
    before = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float64).state_dict()
    for name, weights in states[0].items():
        assert weights.dtype == torch.float64
        assert not torch.equal(weights, before[name])
        for other in states[1:]:
            assert (weights - other[name]).abs().max() < 1e-9


def test_checkpointed_blocks_give_the_same_gradients(llama_folder: Path, fifteen: Path) -> None:
    plain, twice = Gradients(), Gradients()
    fit(llama_folder, fifteen, 2, 4, callbacks=[plain], lr=0.0)
    passes: list[int] = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(0))  # type: ignore[operator,union-attr]
            pl_module.lm.model.layers[-1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))  # type: ignore[operator,union-attr]

    fit(llama_folder, fifteen, 2, 4, callbacks=[twice, Watch()], lr=0.0, gradient_checkpointing=True)
    assert passes.count(0) == 2 * passes.count(1) > 0  # the last block is not computed twice
    for ours, theirs in zip(twice.steps, plain.steps, strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_a_split_that_does_not_divide_the_window_is_refused(llama_folder: Path, fifteen: Path) -> None:
    with pytest.raises(UserError, match="expected a divisor of the 8 records"):
        fit(llama_folder, fifteen, 2, 4, micro_batch_size=3)


def test_the_split_stays_as_given_where_settings_count_micro_batches(llama_folder: Path, fifteen: Path) -> None:
    module, trainer = fit(llama_folder, fifteen, 2, 4, limit_train_batches=4)
    assert (module.data.rows, trainer.accumulate_grad_batches, trainer.global_step) == (2, 4, 1)


def test_no_token_is_computed_that_need_not_be(llama_folder: Path, fifteen: Path) -> None:
    """Blocks see each record's tokens and no padding; behind the last attention, answer positions only."""
    seen: dict[str, int] = {"embedding": 0, "first": 0, "last": 0, "head": 0}

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            lm: Any = pl_module.lm
            parts = {"embedding": lm.model.embed_tokens, "first": lm.model.layers[0].mlp, "last": lm.model.layers[-1].mlp.down_proj}
            for name, part in (parts | {"head": lm.lm_head}).items():

                def count(_: Any, __: Any, out: torch.Tensor, name: str = name) -> None:
                    seen[name] += out[..., 0].numel()

                part.register_forward_hook(count)

    module, _ = fit(llama_folder, fifteen, 4, 2, callbacks=[Watch()])
    train = module.data.train
    assert seen["embedding"] == seen["first"] == sum(example.trained_tokens for example in train)
    assert seen["last"] == seen["head"] == sum(len(example.answer_ids) for example in train)


def test_weights_are_trained_in_float32_and_train_mode(llama_folder: Path, fifteen: Path) -> None:
    modes: set[bool] = set()

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            modes.update(module.training for module in pl_module.lm.modules())  # type: ignore[union-attr]

    module, _ = fit(llama_folder, fifteen, 4, 2, callbacks=[Watch()])
    assert modes == {True}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_norms_and_biases_do_not_decay_and_the_rate_follows_the_schedule(llama_folder: Path, fifteen: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    module, trainer = fit(llama_folder, fifteen, 2, 4, epochs=3, callbacks=[Watch()], lr=1.0, warmup_steps=2, weight_decay=0.25)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    decay = {id(p): group["weight_decay"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.25), name


def test_a_logged_loss_is_the_mean_over_the_window_and_the_norm_is_the_one_before_clipping(llama_folder: Path, fifteen: Path) -> None:
    logged: list[dict[str, float]] = []
    seen = Gradients()

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    module, _ = fit(llama_folder, fifteen, 2, 4, micro_batch_size=2, callbacks=[seen, Watch()], lr=0.0, gradient_clip_val=0.01)
    first = logged[3]
    slots = [slot for slot in module.data.train_dataloader().sampler if slot.valid][:8]
    lm = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    losses = []
    for slot in slots:
        example = module.data.train[slot.example]
        logits = lm(torch.tensor([[*example.prompt_ids, *example.answer_ids]])).logits[0, len(example.prompt_ids) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
    assert first["train/loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in seen.steps[0].values()]).norm()
    assert first["train/grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert first["train/grad_norm"] > 0.01
    assert first["train/tokens_per_second"] > 0


def test_twelve_dialogues_are_learnt_by_heart(llama_folder: Path, fifteen: Path) -> None:
    module, trainer = fit(llama_folder, fifteen, 12, 1, epochs=60, lr=1e-2, warmup_steps=5, gradient_clip_val=1.0)
    (scores,) = trainer.test(module, module.data, verbose=False)
    assert scores["test/object_accuracy"] == scores["test/exact_match"] == 1.0  # the test records are among the twelve
    assert scores["test/unparsable"] == 0


class Batches(pl.Callback):
    """Keeps every micro-batch, and every logged loss."""

    def __init__(self) -> None:
        self.seen: list[TrainBatch] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        self.seen.append(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


def test_as_published_a_step_is_the_mean_of_its_micro_batches_means(llama_folder: Path, fifteen: Path) -> None:
    batches, gradients = Batches(), Gradients()
    fit(llama_folder, fifteen, 2, 2, recipe="published", callbacks=[batches, gradients])
    assert len(gradients.steps) == 3  # 12 records in windows of 4
    assert all(batch.input_ids.shape == (2, 200) for batch in batches.seen)
    lm = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).train()
    micro = [F.cross_entropy(lm(batch.input_ids).logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()) for batch in batches.seen[:2]]
    assert (batches.seen[0].labels >= 0).sum() != (batches.seen[1].labels >= 0).sum()  # so that other means would show
    loss = sum(micro) / 2
    loss.backward()
    assert batches.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in lm.named_parameters():
        assert torch.allclose(gradients.steps[0][f"lm.{name}"], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_under_data_parallelism_gradients_have_no_memory_beside_the_buckets(llama_folder: Path, fifteen: Path) -> None:
    storages: list[int] = []

    class Watch(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            grads = [p.grad for p in pl_module.parameters()]
            assert all(grad is not None for grad in grads)
            storages.append(len({grad.untyped_storage().data_ptr() for grad in grads if grad is not None}))

    module, trainer = fit(
        llama_folder, fifteen, 2, 4, micro_batch_size=2, epochs=2, callbacks=[Watch()], strategy=strategy_of("ddp", 2), devices=1
    )
    assert trainer.global_step == 4
    assert len(storages) == 12
    # In the first step DDP has yet to lay them there; then the passes that are not sent are added there, too.
    assert set(storages[4:]) == {1}  # they fit one bucket
    assert len(list(module.parameters())) > 20
