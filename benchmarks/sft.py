"""TRL's SFTTrainer as a way to train. It is not installed with the package, and is imported where it is used.

What makes it fast on prompt and completion, all of it set here: neither logging nor checkpoints nor progress bars; gradient
checkpointing, which is its default, off; no filter for losses that are not numbers and no averaging over devices, which cost a
pass or a wait each; records of like length in a window; the fused optimizer, its default; its loss, of which it has one.
Records of a forward pass, and whether they are padded or laid end to end, are found by a trial. Packing is out, as a step would not
hold 8 records; so is compiling, which takes minutes for rows of changing length and gains nothing on a CPU.

Its LM head runs at answer positions only where Triton does, on GPUs. On a CPU it runs at every position, and once more in the
backward pass. No setting changes that, but a method does: `head_at_answers` overrides `compute_loss`.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.program import peers_module
from benchmarks.turns import WEIGHT_DECAY, WINDOW, Job, Train, Turn, Turns, Way, length
from mmcoref.data.batch import IGNORED
from mmcoref.data.example import Example
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.errors import UserError

_TRIAL_STEPS = 2
_FLAT = "-flat"

Row = tuple[list[int], list[int]]  # ids and labels of a record


def check_setting(setting: str) -> None:
    """Whether a setting reads as records of a forward pass, `-flat` behind it if they are laid end to end.

    Raises:
        UserError: it does not.
    """
    size = setting.removesuffix(_FLAT)
    if not size.isdecimal() or not int(size) or WINDOW % int(size):
        raise UserError(f"trl_settings: expected a divisor of {WINDOW}, with or without {_FLAT} behind it, got {setting!r}.")


load = partial(peers_module, "TRL")


def windows(examples: Sequence[Example], steps: int) -> list[list[Example]]:
    """Those that TRL's grouping by length makes of all examples, in random order; from the first again where there are too few.

    It begins each of its blocks with the longest, of which alone a run of a few steps would consist.
    """
    lengths = [length(example) for example in examples]
    sampler = LengthGroupedSampler(WINDOW, lengths=lengths, generator=torch.Generator().manual_seed(0))
    order = [examples[i] for i in sampler]
    whole = [order[start : start + WINDOW] for start in range(0, len(order) - WINDOW + 1, WINDOW)]
    random.Random(0).shuffle(whole)
    return [whole[step % len(whole)] for step in range(steps)]


def train_with_trl(job: Job, turns: Turns, *, head_at_answers: bool = False) -> None:
    """`SFTTrainer.train` with the setting `job.trl`, as a user calls it."""
    data = job.data()
    made = windows(data.train, job.steps)
    dataset, trainer = _dataset(made), _trainer(head_at_answers=head_at_answers)
    turns.building()
    sft = trainer(job, data, dataset, _TrlTurns(turns, made, job.checked))
    examples = [example for window in made for example in window]
    rows = zip(_rows(sft.get_train_dataloader()), map(_row, examples), strict=True)
    turns.different = sum(theirs != ours for theirs, ours in rows)
    sft.train()


train_with_trl_at_answers: Train = partial(train_with_trl, head_at_answers=True)


def try_settings(train: Train, job: Job, settings: Sequence[str], tokens: Callable[[Turn], int]) -> dict[str, float]:
    """Tokens/s of a way with each of TRL's settings, on the same records.

    Args:
        train: the way.
        job: that it is given, but for the setting.
        settings: to try.
        tokens: of a turn.
    """
    ways = {setting: Way(train, replace(job, trl=setting)) for setting in settings}
    rates = {}
    try:
        for way in ways.values():
            way.ready()
        for setting, way in ways.items():
            way.turn(1)
            turn = way.turn(_TRIAL_STEPS)
            rates[setting] = tokens(turn) / turn.seconds
            way.close()
    finally:
        for way in ways.values():
            way.close()
    return rates


def _row(example: Example) -> Row:
    prompt, answer = list(example.prompt_ids), list(example.answer_ids)
    return prompt + answer, [IGNORED] * len(prompt) + answer


def _rows(loader: Any) -> Iterator[Row]:
    """The records of TRL's batches, padded or laid end to end."""
    for batch in loader:
        if "attention_mask" in batch:
            kept = batch["attention_mask"].bool()
            parts = [(ids[keep], labels[keep]) for ids, labels, keep in zip(batch["input_ids"], batch["labels"], kept, strict=True)]
        else:
            lengths = batch["cu_seq_lens_q"].diff().tolist()
            parts = list(zip(batch["input_ids"][0].split(lengths), batch["labels"][0].split(lengths), strict=True))
        yield from ((ids.tolist(), labels.tolist()) for ids, labels in parts)


def _dataset(made: Sequence[Sequence[Example]]) -> Any:
    """TRL's prompts and completions, to which it adds the stop token itself."""
    datasets = load("datasets")
    datasets.disable_progress_bars()
    records = [example.record for window in made for example in window]
    return datasets.Dataset.from_list([{"prompt": prompt_text(record), "completion": answer_text(record.gold)} for record in records])


def _settings(job: Job) -> Any:
    """TRL's, all that make it fast among them."""
    size = int(job.trl.removesuffix(_FLAT))
    return load("trl").SFTConfig(
        output_dir=tempfile.mkdtemp(dir=job.folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=WINDOW // size,
        train_sampling_strategy="sequential",  # of windows that were grouped by length
        padding_free=job.trl.endswith(_FLAT),
        max_length=None,
        max_steps=job.steps,
        learning_rate=job.lr,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=job.device == "cpu",
        fp16=job.precision == "16-mixed",
        bf16=job.precision == "bf16-mixed",
        gradient_checkpointing=False,
        dataloader_pin_memory=job.device == "cuda",
        average_tokens_across_devices=False,
        logging_nan_inf_filter=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _trainer(*, head_at_answers: bool = False) -> Callable[..., Any]:
    """What makes a trainer; TRL is imported in full only now."""
    kind = load("trl").SFTTrainer
    if head_at_answers:
        kind = type("HeadAtAnswers", (kind,), {"compute_loss": _loss_at_answers})

    def make(job: Job, data: MMCorefDataModule, dataset: Any, callback: TrainerCallback) -> Any:
        made = kind(model=job.folder, args=_settings(job), train_dataset=dataset, processing_class=data.tokenizer, callbacks=[callback])
        made.remove_callback(PrinterCallback)
        return made

    return make


def _loss_at_answers(_: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
    """`SFTTrainer.compute_loss` as it goes on a GPU, without its other figures."""
    labels = inputs.pop("labels")[:, 1:]
    answers = labels != IGNORED
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][answers]
    return F.cross_entropy(model.lm_head(hidden).float(), labels[answers], reduction="sum") / num_items_in_batch


class _TrlTurns(TrainerCallback):
    """Holds a trainer up between turns. The first steps are logged, as nothing else tells their losses; they are not timed."""

    def __init__(self, turns: Turns, made: Sequence[Sequence[Example]], checked: int) -> None:
        self._turns = turns
        self._windows = iter(made)
        self._checked = checked

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = not self._turns.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step <= self._checked:
            control.should_log = True  # `on_log` follows
        else:
            self._next(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self._next(control, logs["loss"])

    def _next(self, control: Any, loss: float | None = None) -> None:
        window = [example.index for example in next(self._windows)]
        control.should_training_stop = not self._turns.step(window, loss)
