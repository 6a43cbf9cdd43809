"""What two processes with one model between them do, each telling what it saw: run by `test_sharded.py` under torchrun.

Usage: sharded_worker.py MODEL_FOLDER DATA_FILE OUT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import distributed
from torch.distributed.tensor import DTensor

from mmcoref.data.module import MMCorefDataModule
from mmcoref.model import scoring
from mmcoref.model.module import MMCorefModule
from mmcoref.run.ending import leave, part
from mmcoref.run.strategy import ShardedStrategy

torch.set_num_threads(1)


class Watch(pl.Callback):
    """Keeps which records each micro-batch had, the loss, the norm and the weights behind every step."""

    def __init__(self, *, overflow_at: int | None = None, save_as: Path | None = None) -> None:
        self.records: list[list[int]] = []
        self.logged: list[dict[str, float]] = []
        self.scales: list[float] = []
        self.sums: list[float] = []
        self.overflow_at = overflow_at
        self.save_as = save_as  # behind the second step, in the middle of an epoch

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if len(batch.targets):  # else it only fills up
            self.records.append(batch.input_ids.flatten().tolist())

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.overflow_at == trainer.global_step and trainer.global_rank == 1:
            parameter = next(p for p in module.parameters() if p.grad is not None)
            parameter.grad.to_local()[0, 0] = float("inf")  # in this process's shard only

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(0.0 if scaler is None else scaler.get_scale())
        mine = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
        self.sums.append(float(sum(weights.detach().double().abs().sum() for weights in mine)))
        if self.save_as is not None and trainer.global_step == 2 and not self.save_as.exists():
            trainer.save_checkpoint(self.save_as)


def main(folder: str, file: str, out: Path) -> None:
    scoring._PUBLISHED_DECODING["max_length"] = 160  # of the thousand tokens that it takes when nothing stops it
    said: dict[str, Any] = {}

    def run(
        name: str, *, precision: Any = "32-true", watch: Watch, resume: Path | None = None, **settings: Any
    ) -> tuple[MMCorefModule, pl.Trainer]:
        pl.seed_everything(3, verbose=False)
        if precision == "16-mixed":
            plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))  # what this model takes
            settings["plugins"], precision = [plugin], None
        checkpointing = settings.pop("gradient_checkpointing", None)
        module = MMCorefModule(name=folder, lr=1e-3, warmup_steps=2, max_new_tokens=12, gradient_checkpointing=checkpointing)
        data = MMCorefDataModule(path=file, tokenizer=folder, batch_size=1, micro_batch_size=1, eval_batch_size=1)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=ShardedStrategy(),
            precision=precision,
            accumulate_grad_batches=2,
            max_steps=3,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[watch],
            **settings,
        )
        trainer.fit(module, data, ckpt_path=resume)
        said[name] = {"records": watch.records, "logged": watch.logged, "scales": watch.scales, "sums": watch.sums}
        return module, trainer

    module, trainer = run("plain", watch=Watch(save_as=out / "middle.ckpt"))
    said["sizes"] = {name: [list(p.to_local().shape), list(p.shape)] for name, p in module.named_parameters() if isinstance(p, DTensor)}
    said["not sharded"] = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
    trainer.save_checkpoint(out / "plain.ckpt")

    def ask(name: str, decoding: str, stop_id: int | None = None) -> list[Any]:
        module.hparams["decoding"] = decoding
        module.data.setup("predict")
        module.data.encoder.stop_id = module.data.encoder.stop_id if stop_id is None else stop_id
        passes: list[int] = []
        hook = module.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
        found = [one for batch in trainer.predict(module, module.data) or [] for one in batch]
        hook.remove()
        answers = {one.index: [one.text, one.stopped, list(one.option_logprobs)] for one in found}
        said[name] = {"passes": len(passes), "stop_id": module.data.encoder.stop_id, "answers": answers}
        return found

    # Answers end where the stop token comes: let it be one that comes at once in the first process's first answer.
    first = ask("greedy", "greedy")[0].text
    chosen = [module.data.tokenizer(first, add_special_tokens=False)["input_ids"][0]]
    distributed.broadcast_object_list(chosen, src=0)
    for decoding in ("greedy", "constrained", "published"):
        ask(f"{decoding}, ends apart", decoding, chosen[0])
    # The first process's answers are all options, read off their scores: it has nothing to generate, and the other has.
    scores = scoring._score_options

    def all_options(*args: Any) -> Any:
        found = scores(*args)
        return found._replace(greedy=torch.zeros_like(found.greedy)) if distributed.get_rank() == 0 else found

    scoring._score_options = all_options
    stop_id = module.data.encoder.stop_id = int(module.data.tokenizer.eos_token_id)
    ask("greedy, one has nothing", "greedy", stop_id)
    scoring._score_options = scores
    run("checkpointed", watch=Watch(), gradient_checkpointing=True)
    run("resumed", watch=Watch(), resume=out / "middle.ckpt")
    run("half", precision="16-mixed", watch=Watch())
    run("overflow", precision="16-mixed", watch=Watch(overflow_at=1))
    (out / f"rank{distributed.get_rank()}.json").write_text(json.dumps(said), "utf-8")
    distributed.barrier()
    part()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    leave(0)
