"""Records a second of ways to train one model on the same records, side by side in one run, and whether their losses agree.

    python -m benchmarks.train [--path ai_responses.json]

- published: the published recipe as a plain loop: rows of 512 tokens whatever their length, logits at every position, micro-batches
  of 2 whose means are averaged, AdamW as torch gives it. The published study trained no stop token; here it trains the ids of all.
- trl: TRL's SFTTrainer at its best (see `benchmarks/sft.py`), records of a forward pass found by a trial before, for each of its rows.
- trl-answers: the same, with `compute_loss` overridden so that the LM head runs at answer positions only. TRL does so by itself on
  GPUs, and on a CPU at every position: this row, not the one above, says what to expect of TRL where Triton runs.
- mmcoref: `Trainer.fit` with `MMCorefModule` and `MMCorefDataModule`.

Each way runs in a process of its own and starts from the same weights: a random Llama of Llama 3.2 1B's proportions, whose tied LM
head has 21 % of them. They take turns of an optimizer step, or a few, of 8 records, so that exactly one works at a time. A turn begins and
ends at a step's end; imports, set-up and the first turn are not timed. Figures are medians over rounds.

- tokens/s are the records' own, without padding; records/s are tokens/s divided by the mean record's tokens, as every way draws
  other records. TRL's grouping by length would begin with the longest ones; its windows come in random order here.
- MFU: the FLOPs that the task needs, over those of a large matrix product, measured in the same run. A record of T tokens, A of them
  answer, needs 6 N T + 6 V H A + 6 L D T (T + 1): forward and backward, N weights besides embedding and head, V x H of the head, L
  layers with attention of width D, where a token attends to half of the tokens on average. It is what is needed, not what is done:
  padding, and a head at every position, lower it. Behind the last attention, too, only answer positions are needed; they are counted
  for all tokens nevertheless, as is usual, so that a way that leaves them out stands an eighth too high here.
- memory: the process's peak above what it held before the model was built, in two parts: 16 bytes a weight (weights, gradients and
  two moments in fp32), and the rest. A CPU's is sampled every 5 ms, in anonymous memory.

The first turn's losses are compared with those of a reference loop, one record at a time, which is fed the same records in the same
order; on a CPU only. `--device cuda` is written with care and has never been run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.program import told
from benchmarks.sft import check_setting, load, train_with_trl, train_with_trl_at_answers, try_settings
from benchmarks.subject import build_model, build_tokenizer
from benchmarks.turns import MAX_TOKENS, WINDOW, Job, Train, Turn, Way, length, without_bars
from benchmarks.ways import matrix_products, reference_losses, train_as_published, train_ours, training_flops
from mmcoref import __version__
from mmcoref.data.example import Example
from mmcoref.data.file import dump_records, read_records
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.sample import sample_records
from mmcoref.data.split import TRAIN_SHARE
from mmcoref.errors import UserError, at_least
from mmcoref.text import plain_console

TOLERANCE = 1e-4  # nats; losses of a few nats, in fp32, behind updates in batches of different shapes
CHECKED = 3  # steps of the first turn
_BYTES = 16  # a weight
_PUBLISHED, _TRL, _TRL_ANSWERS, _OURS = "published", "trl", "trl-answers", "mmcoref"
_WAYS: dict[str, Train] = {
    _PUBLISHED: train_as_published,
    _TRL: train_with_trl,
    _TRL_ANSWERS: train_with_trl_at_answers,
    _OURS: train_ours,
}


class Subject:
    """The model, the records, and what both need.

    Args:
        options: of the command line.
        folder: where the model, its tokenizer and the data file are written.
    """

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        known = read_records(options.path).records if options.path else sample_records(1726)
        trained = known[: min(options.records, int(TRAIN_SHARE * len(known)))]
        if len(trained) < WINDOW:
            raise UserError(f"path: expected {WINDOW} or more records in the train part, got {len(trained)}.")
        rest = [*known[len(trained) :], *known]
        total = next(n for n in range(len(trained), 2 * len(trained) + 2) if int(TRAIN_SHARE * n) == len(trained))
        path = Path(folder, "records.json")
        path.write_text(dump_records([*trained, *rest[: total - len(trained)]]), "utf-8")
        tokenizer = build_tokenizer([prompt_text(record) + answer_text(record.gold) for record in known], options.tokens)
        self.lm: Any = build_model(tokenizer, options.hidden, options.layers, options.vocabulary)
        with without_bars():
            self.lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps = CHECKED + options.rounds * options.steps
        self.job = Job(folder, str(path), steps, CHECKED, options.device, options.precision, options.threads)
        try:
            examples = self.job.data().train
        except UserError as error:
            raise UserError(f"tokens: {options.tokens} leave records that do not fit into {MAX_TOKENS} tokens ({error})") from None
        self.examples: dict[int, Example] = {example.index: example for example in examples}

    @property
    def weights(self) -> int:
        """Of the model."""
        return int(self.lm.num_parameters())

    @property
    def head(self) -> int:
        """Weights of the LM head, which is the embedding, too."""
        return int(self.lm.get_output_embeddings().weight.numel())

    @property
    def mean_tokens(self) -> float:
        """Of a record."""
        return statistics.mean(length(example) for example in self.examples.values())

    def windows(self, turn: Turn) -> list[list[Example]]:
        """The examples of each of a turn's steps."""
        return [[self.examples[index] for index in window] for window in turn.windows]

    def tokens(self, turn: Turn) -> int:
        """Trained in a turn, without padding."""
        return sum(length(example) for window in self.windows(turn) for example in window)

    def flops(self, turn: Turn) -> int:
        """That a turn's records need."""
        config = self.lm.config
        shape = {"body": self.weights - self.head, "head": self.head, "layers": config.num_hidden_layers, "width": config.hidden_size}
        trained = [example for window in self.windows(turn) for example in window]
        return sum(training_flops(length(example), len(example.answer_ids), **shape) for example in trained)


def main(args: Sequence[str] | None = None) -> int:
    """Prints the table and returns 0; 1 where the losses do not agree, 2 for a mistake of the user's.

    Args:
        args: the command line; by default the process's own.
    """
    return told("benchmarks.train", lambda: _run(_options(args)))


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--path", help="a data file; by default generated dialogues, which are shorter")
    parser.add_argument("--ways", nargs="+", choices=list(_WAYS), default=list(_WAYS), help="to train (default: all)")
    tried = ["1", "2", "4", "8", "2-flat"]
    text = "that TRL is tried with: records of a forward pass, laid end to end if -flat (default: %(default)s)"
    parser.add_argument("--trl_settings", nargs="+", default=tried, metavar="N", help=text)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    text = "the last two on cuda only (default: %(default)s)"
    parser.add_argument("--precision", choices=["32-true", "16-mixed", "bf16-mixed"], default="32-true", help=text)
    for name, default, text in (
        ("records", 1380, "of the train part, at most"),
        ("rounds", 5, "whose median is printed"),
        ("steps", 1, "optimizer steps of a turn"),
        ("hidden", 512, "width of the model, a multiple of 64"),
        ("layers", 8, "of the model"),
        ("vocabulary", 16000, "rows of its LM head"),
        ("tokens", 1000, "that its tokenizer knows; the median published record then has about 270 of them"),
        ("threads", torch.get_num_threads(), "of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)")
    options = parser.parse_args(args)
    at_least(WINDOW, records=options.records)
    at_least(1, **{name: value for name, value in vars(options).items() if isinstance(value, int)})
    for setting in options.trl_settings:
        check_setting(setting)
    if options.hidden % 64:
        raise UserError(f"hidden: expected a multiple of 64, got {options.hidden}.")
    if options.device == "cpu" and options.precision != "32-true":
        raise UserError(f"precision: {options.precision} needs --device cuda.")
    if options.device == "cuda":
        # One GPU: with more of them in sight transformers would spread each batch over all.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if not torch.cuda.is_available():
            raise UserError("device: no GPU that torch can use.")
    elif not Path("/proc/self/statm").exists():
        raise UserError("device: a CPU's peak memory is read from /proc, which only Linux has.")
    return options


def _run(options: argparse.Namespace) -> int:
    with_trl = [name for name in options.ways if name in (_TRL, _TRL_ANSWERS)]
    if with_trl:
        load("trl")
    console = plain_console(soft_wrap=True, width=120)  # the table's, even where nobody knows how wide a line is
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(options, folder)
        console.print(_description(subject, options, with_trl))
        jobs = dict.fromkeys(options.ways, subject.job)
        for name in with_trl:
            rates = try_settings(_WAYS[name], subject.job, options.trl_settings, subject.tokens)
            jobs[name] = replace(subject.job, trl=max(rates, key=lambda setting: rates[setting]))
            tried = ", ".join(f"{setting}: {rate:.0f}" for setting, rate in rates.items())
            console.print(f"{name}: {jobs[name].trl} records in a forward pass, the fastest by tokens/s in a trial: {tried}")
        first, turns, ceiling = _measure(jobs, options)
        for name, turn in first.items():
            if turn.note:
                console.print(f"{name}: {turn.note}")
        console.print(_table(subject, turns, ceiling))
        console.print(f"matrix product: {ceiling / 1e9:.0f} GFLOP/s; mean record: {subject.mean_tokens:.0f} tokens")
        agree = [_same_texts(console, name, first[name], subject.job.steps * WINDOW) for name in with_trl]
        if options.device == "cpu":
            agree += _agreements(console, subject, first)
        else:
            console.print("losses are compared on a CPU only")
    return 0 if all(agree) else 1


def _measure(jobs: dict[str, Job], options: argparse.Namespace) -> tuple[dict[str, Turn], dict[str, list[Turn]], float]:
    """Each way's first turn, its timed ones, and FLOP/s of a matrix product beside them."""
    ways = {name: Way(_WAYS[name], job) for name, job in jobs.items()}
    try:
        for way in ways.values():
            way.ready()
        first = {name: way.turn(CHECKED if name != _PUBLISHED else 1) for name, way in ways.items()}
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        products: list[float] = []
        for _ in range(options.rounds):
            products += matrix_products(options.device, options.precision)
            for name, way in ways.items():
                turns[name].append(way.turn(options.steps))
    finally:
        for way in ways.values():
            way.close()
    return first, turns, statistics.median(products)


def _table(subject: Subject, turns: dict[str, list[Turn]], ceiling: float) -> Table:
    columns = "records/s", "tokens/s", "range", "MFU", "16 B/weight", "above it", "× published", "× trl", "× trl-answers"
    table = Table("", *columns, box=box.SIMPLE)
    rates = {name: [subject.tokens(turn) / turn.seconds for turn in each] for name, each in turns.items()}
    medians = {name: statistics.median(each) for name, each in rates.items()}
    for name, each in turns.items():
        mfu = statistics.median(subject.flops(turn) / turn.seconds for turn in each) / ceiling
        above = each[-1].peak - _BYTES * subject.weights
        times = [f"{medians[name] / medians[base]:.2f}" if base in medians else "" for base in (_PUBLISHED, _TRL, _TRL_ANSWERS)]
        speed = f"{medians[name] / subject.mean_tokens:.3g}", f"{medians[name]:.0f}", f"{min(rates[name]):.0f}–{max(rates[name]):.0f}"
        table.add_row(name, *speed, f"{mfu:.1%}", f"{_BYTES * subject.weights / 1e6:.0f} MB", f"{above / 1e6:.0f} MB", *times)
    return table


def _description(subject: Subject, options: argparse.Namespace, with_trl: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in (*(["trl"] if with_trl else []), "transformers", "lightning", "torch"))
    return (
        f"Llama of {subject.weights / 1e6:.1f} M weights, {subject.head / subject.weights:.0%} of them in the LM head; {options.device}, "
        f"{options.precision}, threads: {options.threads}\n"
        f"{len(subject.examples)} records of {options.path or 'the generator'}, of "
        f"{statistics.median(length(example) for example in subject.examples.values()):.0f} tokens; steps of {WINDOW} records, "
        f"{options.steps} a turn\n"
        f"mmcoref {__version__}, {versions}"
    )


def _same_texts(console: Console, name: str, turn: Turn, records: int) -> bool:
    same = "are ours" if not turn.different else f"DIFFER from ours in {turn.different} of them"
    console.print(f"ids and labels: what TRL's collator makes of the {records} records that {name} has in its run {same}, token for token")
    return not turn.different


def _agreements(console: Console, subject: Subject, first: dict[str, Turn]) -> list[bool]:
    """Whether the losses of each way's first turn are the reference loop's; those as published are means of other means."""
    agree, known = [], {}
    for name, turn in first.items():
        if name == _PUBLISHED:
            continue
        if (trained := repr(turn.windows)) not in known:
            with without_bars():
                known[trained] = reference_losses(subject.job, subject.windows(turn))
        line, same = agreement(name, known[trained], turn.losses)
        console.print(line)
        agree.append(same)
    return agree


def agreement(name: str, expected: Sequence[float], found: Sequence[float]) -> tuple[str, bool]:
    """A sentence on whether a way's losses are the reference loop's, and whether they are."""
    difference = max(abs(theirs - mine) for theirs, mine in zip(expected, found, strict=True))
    agree = difference <= TOLERANCE
    verdict = "agrees" if agree else "DOES NOT AGREE"
    last = f"step {len(found)}: {found[-1]:.6f}, reference {expected[-1]:.6f}"
    return f"loss: {name} {verdict} with the reference loop: {last}; largest difference of {len(found)} {difference:.1e}", agree


if __name__ == "__main__":
    sys.exit(main())
