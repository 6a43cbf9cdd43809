"""MMCorefModule: a causal language model that is trained to answer, and asked."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig, PreTrainedModel

from mmcoref.data.batch import EvalBatch, TrainBatch
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.order import FILE_ORDER, Permutations
from mmcoref.data.pretrained import restored_config
from mmcoref.data.sampler import global_seed
from mmcoref.data.tokenizer import TINY, TINY_NAMES, pack_tokenizer
from mmcoref.errors import UserError
from mmcoref.evaluation.metrics import LikelihoodAccuracy, answer_metrics
from mmcoref.evaluation.prediction import Prediction
from mmcoref.model.adapters import Adapters
from mmcoref.model.answering import Decoding, predict
from mmcoref.model.backbone import Place, backbone_config, build_backbone, load_backbone
from mmcoref.model.base import compared_fingerprint
from mmcoref.model.loading import checkpoint_blocks
from mmcoref.model.optim import Schedule, clip_gradients, parameter_groups
from mmcoref.model.packing import allow_packing
from mmcoref.model.scoring import Agree, alone, answer, target_loss_sum
from mmcoref.model.windows import cut_windows
from mmcoref.ranges import in_ranges
from mmcoref.together import once_per_machine

SKIPPED_STEPS = 20  # in a row: loss scaling starts at 2^16 and halves with each
ROOM_AFTER_ANSWER = 8  # tokens beyond the longest answer, so that an answer with something behind it shows itself


class MMCorefModule(pl.LightningModule):
    """A causal language model with the answer's loss, the three accuracies and AdamW.

    Args:
        name: a hub name, a local folder, `tiny`, a small Llama that was pre-trained on generated dialogues, or
            `tiny-random`, the same from random weights.
        lr: peak learning rate.
        weight_decay: AdamW's, on matrices only.
        warmup_steps: optimizer steps of linear warm-up; then the rate falls linearly to 0.
        max_new_tokens: tokens that may be generated; by default the longest answer in the data and 8 more.
        decoding: how the answer is written: `greedy` and freely; `constrained` to the four options; or `published`, by sampling 3 beams.
        val_generate: whether validation generates. If not it only scores the options, which is cheaper, and logs
            `likelihood_accuracy`, never an exact match.
        permutations: in which orders of its options each test record is asked: `none` but the file's, the 4 `cyclic` ones, or `all` 24.
        lora_rank: trains adapters of this rank beside frozen weights (LoRA), instead of all weights; 0 trains all.
        lora_alpha: adapters are scaled by alpha / rank.
        lora_dropout: of what goes into the adapters.
        lora_targets: names of the linear layers that get one, such as `[q_proj, v_proj]`; by default all but the LM head.
        gradient_checkpointing: whether blocks are computed a second time in the backward pass instead of kept; by default only
            where the memory does not do without.
        check_memory: whether a fit that would need more memory than a device has is refused before anything is loaded.
    """

    def __init__(
        self,
        name: str = TINY,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        max_new_tokens: int | None = None,
        decoding: Decoding = "greedy",
        val_generate: bool = True,
        permutations: Permutations = "none",
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.0,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool | None = None,
        check_memory: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        in_ranges(self.hparams, "model")
        Adapters.check(lora_rank, lora_alpha, lora_dropout, lora_targets)
        self.lm: PreTrainedModel | None = None
        self.curve_metrics = answer_metrics()
        self.curve_likelihood = LikelihoodAccuracy()
        self.test_metrics = answer_metrics()
        self.max_new_tokens = 0
        self.strict_loading = not self.base_apart  # a checkpoint of adapters holds nothing else: `on_load_checkpoint` looks at them
        self._backbone_config: dict[str, Any] | None = None
        self._base: str | None = None
        self._window = _Window(0.0)
        self._schedule: Schedule | None = None
        self._resumed_at = 0
        self._hyperparameters: list[dict[str, Any]] = []  # of the optimizer's groups, by the settings
        self._not_finite = 0  # losses, one after another

    # ------------------------------------------------------------------ set-up

    def restore_backbone(self, config: dict[str, Any], base: str | None = None) -> None:
        """Builds the model from a checkpoint's config; the checkpoint's weights are loaded over it.

        Args:
            config: of the model.
            base: fingerprint of the weights that the checkpoint's adapters stand beside, and that it does not hold.
        """
        self._backbone_config, self._base = config, base

    def restore_schedule(self, schedule: dict[str, Any] | None, step: int) -> None:
        """Continue a checkpoint's learning-rate schedule; the settings may give it another length.

        Args:
            schedule: of the run that wrote the checkpoint; None where the file does not say.
            step: at which this run continues.
        """
        self._schedule, self._resumed_at = None if schedule is None else Schedule(**schedule), step

    @property
    def data(self) -> MMCorefDataModule:
        """The datamodule of the running trainer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MMCorefDataModule):
            raise TypeError(f"expected an MMCorefDataModule beside MMCorefModule, got {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Reads from the data how long an answer can be, and decides how a fit cuts its windows into micro-batches."""
        self.max_new_tokens = self.most_new_tokens(self.data)
        if stage == "fit" and self.lm is None:
            checkpointing = cut_windows(self.shape_config(self.data), self.hparams, self.data, self.trainer)
            self.hparams["gradient_checkpointing"] = checkpointing  # and so into the checkpoint

    def most_new_tokens(self, data: MMCorefDataModule) -> int:
        """Return how many tokens may be generated after a prompt of these data."""
        return int(self.hparams["max_new_tokens"] or data.longest_answer + ROOM_AFTER_ANSWER)

    def shape_config(self, data: MMCorefDataModule) -> PretrainedConfig:
        """The model's shape, known as soon as the data are read, before any weights are loaded."""
        if self._backbone_config is not None:
            return restored_config(self._backbone_config)
        return backbone_config(self.hparams["name"], data.tokenizer)

    def configure_model(self) -> None:
        """Loads the weights; not in `__init__`, so that a module of any size can be made without them.

        Raises:
            UserError: a checkpoint's adapters, and not the weights that they were trained beside.
        """
        if self.lm is not None:
            return
        place, adapters = Place.of(self._trainer), Adapters.of(self.hparams)
        if self._backbone_config is not None and not self.base_apart:
            self.lm = build_backbone(self._backbone_config, place, adapters)
        else:
            if self.base_apart:
                compared = partial(compared_fingerprint, self.hparams["name"], self._base, self._backbone_config)
                self._base = compared() if self._trainer is None else once_per_machine(compared)
            tokenizer = None if self._trainer is None else self.data.tokenizer
            self.lm = load_backbone(self.hparams["name"], tokenizer, place, adapters)
        if self._trainer is not None and self.data.packed:
            allow_packing(self.lm)
        if self.hparams["gradient_checkpointing"]:
            checkpoint_blocks(self.lm)

    @property
    def base_apart(self) -> bool:
        """Whether checkpoints hold adapters only, beside weights that stay where they are. `tiny` is nowhere but in memory."""
        return self.hparams["lora_rank"] > 0 and self.hparams["name"] not in TINY_NAMES

    @property
    def backbone(self) -> PreTrainedModel:
        """The causal language model; there after `configure_model`."""
        if self.lm is None:
            raise RuntimeError("the weights are loaded in configure_model()")
        return self.lm

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Start the clock, and have the optimizer follow the settings where a checkpoint has restored its own."""
        self._window = _Window(time.perf_counter())
        [optimizer], [schedule] = self.trainer.optimizers, [one.scheduler for one in self.trainer.lr_scheduler_configs]
        for group, settings in zip(optimizer.param_groups, self._hyperparameters, strict=True):
            group.update(settings)
            assert self._schedule is not None
            group["lr"] = settings["initial_lr"] * self._schedule.factor(self.trainer.global_step)
        schedule.base_lrs = [settings["initial_lr"] for settings in self._hyperparameters]

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the mean loss over all answer tokens of its optimizer step.

        Lightning divides by the accumulated micro-batches and data parallelism by the processes; both are multiplied
        back, so that what remains is the sum over the step's answer tokens divided by their number, however they are
        split, and also in the last window of an epoch, which has fewer micro-batches.
        """
        # Dropout is seeded by place, not one stream over the run: no checkpoint holds such a stream for all processes.
        torch.manual_seed(hash((global_seed(), self.current_epoch, batch_idx, self.global_rank)) & 0x7FFFFFFFFFFFFFFF)
        loss_sum = target_loss_sum(self.backbone, batch)
        loss = loss_sum / batch.window_targets
        self._window.add(loss.detach(), batch.tokens)
        return loss * (self.trainer.accumulate_grad_batches * self.data.replicas(self.trainer)["num_replicas"])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Under data parallelism gradients lie in the buckets that are sent, and are zeroed there.

        Set to None, as Lightning does, they would be given memory of their own beside the buckets in all passes that are not
        sent: four bytes a parameter more.
        """
        optimizer.zero_grad(set_to_none=not isinstance(self.trainer.strategy, DDPStrategy))

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients, and logs their norm before and what the step has seen; after loss scaling is undone."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        norm = clip_gradients(optimizer, gradient_clip_val or math.inf, by_value=gradient_clip_algorithm == "value", scaler=scaler)
        sums = torch.tensor([float(self._window.loss), self._window.tokens], device=self.device)
        loss, tokens = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self._look_at(float(loss), skips=scaler is not None)
        now = time.perf_counter()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        self.log("train/grad_norm", norm)
        self.log("train/tokens_per_second", tokens / (now - self._window.start))
        self._window = _Window(now)

    def _look_at(self, loss: float, *, skips: bool) -> None:
        """Ends a fit whose loss is no number any more; where loss scaling skips such steps, not before it has skipped many.

        The loss is that of all processes, so that all end alike.
        """
        self._not_finite = 0 if math.isfinite(loss) else self._not_finite + 1
        if self._not_finite > (SKIPPED_STEPS if skips else 0):
            raise UserError(
                f"train/loss is {loss} at optimizer step {self.trainer.global_step + 1}, and no checkpoint was written since: lower "
                f"--model.lr{self._more_exactly()}."
            )

    def _more_exactly(self) -> str:
        """Suggest a precision in which the loss may be a number, if there is one."""
        exact = {"32-true": "64-true", "64-true": ""}.get(str(self.trainer.precision), "32-true")
        return f", or compute more exactly than in {self.trainer.precision}, with --trainer.precision {exact}" if exact else ""

    def configure_optimizers(self) -> Any:
        """AdamW, warm-up over `warmup_steps` optimizer steps, then linear decay to 0 at the run's last step."""
        settings = self.hparams
        length = {"warmup_steps": settings["warmup_steps"], "total_steps": self.data.total_steps(self.trainer)}
        plan = Schedule(**length) if self._schedule is None else self._schedule.resumed(self._resumed_at, **length)
        # Fused: one pass over the weights, and no temporaries of the size of a moment.
        groups = parameter_groups(self.backbone.parameters(), settings["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=settings["lr"], fused=True)
        # A function, of which a checkpoint restores nothing: the schedule is the settings'.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.factor(step))
        self._schedule = plan
        self._hyperparameters = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------ answering

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Predictions of the batch's valid rows, counted for the curves; none where only the options are scored."""
        if self.hparams["val_generate"]:
            predictions = self._predict(batch)
            _count(self.curve_metrics, predictions)
            scored = [(prediction.option_logprobs, prediction.record) for prediction in predictions]
        else:
            predictions = []
            logprobs = answer(self.backbone, batch, stop_id=self.data.encoder.stop_id).option_logprobs.tolist()
            scored = [(row, example.record) for row, (example, counts) in zip(logprobs, batch.rows, strict=True) if counts]
        if scored:
            self.curve_likelihood.update(*zip(*scored, strict=True))
        return predictions

    def test_step(self, batch: EvalBatch, batch_idx: int) -> Any:
        """Predictions of the batch's valid rows; those in the file's order of options are counted."""
        predictions = self._predict(batch)
        _count(self.test_metrics, [prediction for prediction in predictions if prediction.order == FILE_ORDER])
        return predictions

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> list[Prediction]:
        """Predictions of the batch's valid rows, with or without a solution."""
        return self._predict(batch)

    def _predict(self, batch: EvalBatch) -> list[Prediction]:
        return predict(
            self.backbone,
            self.data.encoder,
            batch,
            decoding=self.hparams["decoding"],
            max_new_tokens=self.max_new_tokens,
            seed=global_seed(),
            agree=self._agree,
        )

    @property
    def _agree(self) -> Agree:
        """What processes that share a model ask each other, so that all take the same forward passes."""
        strategy = self.trainer.strategy
        return strategy.reduce_boolean_decision if isinstance(strategy, ModelParallelStrategy) else alone

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracies of this epoch, under a name that says which records they were measured on."""
        name = "val" if self.data.val else "test_curve"
        seen = sum(self.trainer.num_val_batches) * self.data.rows_at_once(self.trainer)
        if self.hparams["val_generate"]:
            self._log_metrics(self.curve_metrics, name, seen, len(self.data.curve))
        self._log_metrics(MetricCollection({"likelihood_accuracy": self.curve_likelihood}), name, seen, len(self.data.curve))

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies on the test records."""
        seen = sum(self.trainer.num_test_batches) * self.data.rows_at_once(self.trainer)
        self._log_metrics(self.test_metrics, "test", seen // len(self.data.orders), len(self.data.test))

    def _log_metrics(self, metrics: MetricCollection, prefix: str, seen: float, expected: int) -> None:
        """Logs and resets; asserts that every record was counted once where the batches had room for all (`seen`).

        On every process, as computing sums their counts.
        """
        values = metrics.compute()
        local = torch.tensor(int(next(iter(metrics.values())).n), device=self.device)  # type: ignore[arg-type]
        counted = int(self.trainer.strategy.reduce(local, reduce_op="sum"))
        metrics.reset()
        if seen >= expected and counted != expected:
            raise RuntimeError(f"{prefix}: expected each of {expected} records to be counted once, counted {counted}")
        self.log_dict({f"{prefix}/{name}": value.float() for name, value in values.items()})

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `restore_backbone` and `MMCorefDataModule.restore_tokenizer` need, so that the file stands alone.

        With adapters it stands beside the frozen weights, which it names by their fingerprint.
        """
        checkpoint["mmcoref_backbone"] = json.loads(self.backbone.config.to_json_string(use_diff=False))
        checkpoint["mmcoref_tokenizer"] = pack_tokenizer(self.data.tokenizer)
        checkpoint["mmcoref_schedule"] = None if self._schedule is None else asdict(self._schedule)
        if self.base_apart:
            checkpoint["mmcoref_base"] = self._base
            checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._trained()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sees that a checkpoint of adapters holds all of them.

        Raises:
            UserError: it holds others.
        """
        if self.base_apart and "state_dict" in checkpoint and checkpoint["state_dict"].keys() != self._trained():
            raise UserError("model.lora_targets: the checkpoint's adapters stand beside other layers; leave --model.lora_… out.")

    def _trained(self) -> set[str]:
        """Names of the weights that are trained."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def _count(metrics: MetricCollection, predictions: list[Prediction]) -> None:
    if predictions:
        texts, records = [one.text for one in predictions], [one.record for one in predictions]
        metrics.update(texts, records, newline_in_prompt=predictions[0].newline_in_prompt)


@dataclass
class _Window:
    """What one optimizer step has seen so far on this process."""

    start: float
    loss: Tensor | float = 0.0
    tokens: int = 0

    def add(self, loss: Tensor, tokens: int) -> None:
        self.loss = self.loss + loss
        self.tokens += tokens
