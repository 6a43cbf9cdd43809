"""MMCorefModule: a causal language model that is trained to answer, and asked."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from mmcoref.data.encode import EvalBatch, Example, TrainBatch
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.sampler import global_seed
from mmcoref.data.tokenizer import TINY, pack_tokenizer
from mmcoref.errors import at_least
from mmcoref.evaluation.metrics import answer_metrics
from mmcoref.model.backbone import build_backbone, load_backbone
from mmcoref.model.optim import linear_warmup_decay, parameter_groups
from mmcoref.model.scoring import answer, target_loss_sum

_ROOM_AFTER_ANSWER = 8  # tokens beyond the longest answer, so that an answer with something behind it shows itself


@dataclass(frozen=True)
class Prediction:
    """What the model said of one record.

    Attributes:
        example: the record and its place in the file.
        text: what was generated, without the stop token.
        stopped: whether the model stopped by itself within `max_new_tokens`.
        option_logprobs: log-likelihood of each option, in nats.
    """

    example: Example
    text: str
    stopped: bool
    option_logprobs: tuple[float, ...]

    def to(self, device: torch.device) -> Prediction:
        """Itself: Lightning moves what `predict_step` returns, and here is nothing to move."""
        return self


class MMCorefModule(pl.LightningModule):
    """A causal language model with the answer's loss, the three accuracies and AdamW.

    Args:
        name: a hub name, a local folder, `tiny`, a small Llama that was pre-trained on generated dialogues, or
            `tiny-random`, the same from random weights.
        lr: peak learning rate.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: optimizer steps of linear warm-up; then the rate falls linearly to 0.
        max_new_tokens: tokens that may be generated; by default the longest answer in the data and 8 more.
    """

    def __init__(
        self,
        name: str = TINY,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        max_new_tokens: int | None = None,
    ) -> None:
        super().__init__()
        at_least(0, model__lr=lr, model__weight_decay=weight_decay, model__warmup_steps=warmup_steps)
        at_least(1, model__max_new_tokens=max_new_tokens)
        self.save_hyperparameters()
        self.lm: PreTrainedModel | None = None
        self.curve_metrics = answer_metrics()
        self.test_metrics = answer_metrics()
        self.max_new_tokens = 0
        self._backbone_config: dict[str, Any] | None = None
        self._window = _Window(0.0)

    # ------------------------------------------------------------------ set-up

    def restore_backbone(self, config: dict[str, Any]) -> None:
        """Builds the model from a checkpoint's config, with no pretrained weights: the checkpoint's are loaded over it."""
        self._backbone_config = config

    @property
    def data(self) -> MMCorefDataModule:
        """The datamodule of the running trainer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MMCorefDataModule):
            raise TypeError(f"expected an MMCorefDataModule beside MMCorefModule, got {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Reads from the data how long an answer can be."""
        self.max_new_tokens = self.hparams["max_new_tokens"] or self.data.longest_answer + _ROOM_AFTER_ANSWER

    def configure_model(self) -> None:
        """Loads the weights; not in `__init__`, so that a module of any size can be made without them."""
        if self.lm is not None:
            return
        if self._backbone_config is not None:
            self.lm = build_backbone(self._backbone_config)
        else:
            self.lm = load_backbone(self.hparams["name"], self.data.tokenizer)

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model; there after `configure_model`."""
        if self.lm is None:
            raise RuntimeError("the weights are loaded in configure_model()")
        return self.lm

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Starts the clock of the first optimizer step."""
        self._window = _Window(time.perf_counter())

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the mean loss over all answer tokens of its optimizer step.

        Lightning divides by the accumulated micro-batches and data parallelism by the processes; both are multiplied
        back, so that what remains is the sum over the step's answer tokens divided by their number, however they are
        split, and also in the last window of an epoch, which has fewer micro-batches.
        """
        # Dropout is seeded by place, not one stream over the run: no checkpoint holds such a stream for all processes.
        torch.manual_seed(hash((global_seed(), self.current_epoch, batch_idx, self.global_rank)) & 0x7FFFFFFFFFFFFFFF)
        loss_sum = target_loss_sum(self.backbone, batch)
        self._window.add(loss_sum.detach(), batch.tokens, batch.window_targets)
        processes = self.data.replicas(self.trainer)["num_replicas"]
        return loss_sum * (self.trainer.accumulate_grad_batches * processes / batch.window_targets)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients, and logs their norm before and what the step has seen; after loss scaling is undone."""
        if gradient_clip_algorithm == "value":
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.backbone.parameters() if p.grad is not None])
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), gradient_clip_val or math.inf)
        sums = torch.tensor([float(self._window.loss_sum), self._window.tokens], device=self.device)
        loss_sum, tokens = self.trainer.strategy.reduce(sums, reduce_op="sum")
        now = time.perf_counter()
        self.log("train/loss", loss_sum / self._window.targets, prog_bar=True)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        self.log("train/grad_norm", norm)
        self.log("train/tokens_per_second", tokens / (now - self._window.start))
        self._window = _Window(now)

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up over `warmup_steps` optimizer steps, then linear decay to 0 at the run's last step."""
        settings = self.hparams
        total = self.data.total_steps(self.trainer)
        optimizer = torch.optim.AdamW(parameter_groups(self.backbone.parameters(), settings["weight_decay"]), lr=settings["lr"])
        factor = partial(linear_warmup_decay, warmup_steps=settings["warmup_steps"], total_steps=total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ answering

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """The curves of each epoch."""
        self._answer(batch, self.curve_metrics)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Predictions of the batch's valid rows, counted."""
        return self._answer(batch, self.test_metrics)

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> list[Prediction]:
        """Predictions of the batch's valid rows, with or without a solution."""
        return self._answer(batch, None)

    def _answer(self, batch: EvalBatch, metrics: MetricCollection | None) -> list[Prediction]:
        encoder = self.data.encoder
        answers = answer(self.backbone, batch, stop_id=encoder.stop_id, max_new_tokens=self.max_new_tokens)
        logprobs = answers.option_logprobs.tolist()
        predictions = [
            Prediction(example, encoder.decode(ids), stopped, tuple(row))
            for (example, counts), ids, stopped, row in zip(batch.rows, answers.generated, answers.stopped, logprobs, strict=True)
            if counts
        ]
        if metrics is not None and predictions:
            metrics.update([prediction.text for prediction in predictions], [prediction.example.record for prediction in predictions])
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracies of this epoch, under a name that says which records they were measured on."""
        name = "val" if self.data.val else "test_curve"
        self._log_metrics(self.curve_metrics, name, self.trainer.num_val_batches, len(self.data.curve))

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies on the test records."""
        self._log_metrics(self.test_metrics, "test", self.trainer.num_test_batches, len(self.data.test))

    def _log_metrics(self, metrics: MetricCollection, prefix: str, batches: list[int | float], expected: int) -> None:
        """Computes on every process, as that sums their counts; asserts that every record was counted once."""
        values = metrics.compute()
        local = torch.tensor(int(metrics["object_accuracy"].n), device=self.device)  # type: ignore[arg-type]
        counted = int(self.trainer.strategy.reduce(local, reduce_op="sum"))
        metrics.reset()
        processes = self.data.replicas(self.trainer)["num_replicas"]
        whole = sum(batches) * processes * self.data.hparams["eval_batch_size"] >= expected
        if whole and counted != expected:
            raise RuntimeError(f"{prefix}: expected each of {expected} records to be counted once, counted {counted}")
        self.log_dict({f"{prefix}/{name}": value.float() for name, value in values.items()})

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `restore_backbone` and `MMCorefDataModule.restore_tokenizer` need, so that the file stands alone."""
        checkpoint["mmcoref_backbone"] = json.loads(self.backbone.config.to_json_string(use_diff=False))
        checkpoint["mmcoref_tokenizer"] = pack_tokenizer(self.data.tokenizer)


@dataclass
class _Window:
    """What one optimizer step has seen so far on this process."""

    start: float
    loss_sum: Tensor | float = 0.0
    tokens: int = 0
    targets: int = 0

    def add(self, loss_sum: Tensor, tokens: int, targets: int) -> None:
        self.loss_sum = self.loss_sum + loss_sum
        self.tokens += tokens
        self.targets = targets
