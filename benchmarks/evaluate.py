"""Records a second of four ways to ask one model the same questions, side by side in one run, and whether their scores agree.

    python -m benchmarks.evaluate [--path ai_responses.json]

- published decoding: one record at a time, 3 sampled beams, repetition penalty 1.5, up to 1,024 tokens. The published base models
  were not trained to stop and ran that far; a second row lets this model stop, which is kinder than what was published.
- lm-evaluation-harness: its multiple-choice task over the same prompts and options, a full pass for each option, at the batch size
  that is fastest in a trial before; its set-up is not timed. It gives scores and no text.
- greedy generate: transformers' own, over left-padded batches. It gives text and no scores.
- mmcoref: one pass over the prompts and one over the options' tails, from which a text that is an option can be read off; other
  texts are generated. Once as `mmcoref test` runs it, and once for the scores that the harness gives and no more.

Every row starts from records, tokenizing included, on the same model, round by round; a figure is the median of its rounds. Only
ratios mean anything, and only for this shape: the harness runs the LM head at every position, and the head has 42 % of the weights
here but 21 % in Llama 3.2 1B, a share that `--vocabulary 12000` gives.

The model is random but for a few steps on one sentence. Then it answers as a trained one does, with an option, a period and the
stop token, as that sentence is option D of every record here; `--fit_steps 0` leaves it random, and all text is generated. It has
learnt nothing else: how many answers are right is no result, but that both count the same.

The harness moves the newline that ends a prompt over to the options and adds no stop token. That is the published form of prompt
and answer, so its scores are compared with ours under `recipe="published"`. It also cuts a text into prompt and option by counting
the prompt's tokens, which is right only where no token reaches across that newline. The tokenizer here, which splits as Llama 3's
does, has none; that of `tiny` has one, "## Solution" and the newline.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich import box
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.harness import Harness, load
from benchmarks.program import told
from benchmarks.subject import build_model, build_tokenizer, fit, read_subject
from mmcoref import __version__
from mmcoref.data.batch import EvalBatch, eval_batch
from mmcoref.data.encode import Encoder
from mmcoref.data.example import longest_answer
from mmcoref.data.prompt import answer_text
from mmcoref.data.record import LETTERS, Record
from mmcoref.errors import UserError, at_least
from mmcoref.model.answering import predict
from mmcoref.model.module import ROOM_AFTER_ANSWER
from mmcoref.model.scoring import answer, answer_as_published
from mmcoref.text import plain_console

TOLERANCE = 1e-3  # nats; both are sums of a dozen fp32 logarithms, from batches of different shapes
_MAX_TOKENS = 1024
_TRIAL_RECORDS = 16
_PUBLISHED, _HARNESS, _GENERATE = "published decoding", "lm-evaluation-harness", "greedy generate"
_STOPPING, _OUR_SCORES, _OURS = "published, stopping", "mmcoref, scores", "mmcoref, with text"

Ask = Callable[[Sequence[Record]], list[Any]]  # what is said of each record: four scores in nats, a text, or both


class Asker:
    """The ways that need no harness, around one model.

    Args:
        lm: in eval mode.
        tokenizer: its own.
        batch_size: records of a batch.
    """

    def __init__(self, lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.lm: Any = lm
        self.batch_size = batch_size
        self.encoder = Encoder(tokenizer, max_tokens=_MAX_TOKENS)
        self.published_encoder = Encoder(tokenizer, max_tokens=_MAX_TOKENS, recipe="published")

    def ours(self, records: Sequence[Record]) -> list[tuple[tuple[float, ...], str]]:
        """Scores with the stop token, and greedy text."""
        said: dict[int, tuple[tuple[float, ...], str]] = {}
        for batch, room in self._batches(self.encoder, records):
            found = predict(self.lm, self.encoder, batch, decoding="greedy", max_new_tokens=room, seed=0)
            said |= {prediction.index: (prediction.option_logprobs, prediction.text) for prediction in found}
        return [said[index] for index in range(len(records))]

    def our_scores(self, records: Sequence[Record]) -> list[list[float]]:
        """Scores of the harness's prompts and options."""
        said: dict[int, list[float]] = {}
        for batch, _ in self._batches(self.published_encoder, records):
            scores = answer(self.lm, batch, stop_id=self.encoder.stop_id).option_logprobs.tolist()
            said |= {example.index: row for (example, _), row in zip(batch.rows, scores, strict=True)}
        return [said[index] for index in range(len(records))]

    def generate(self, records: Sequence[Record]) -> list[str]:
        """Greedy text by transformers."""
        said: dict[int, str] = {}
        for batch, room in self._batches(self.encoder, records):
            settings = {"eos_token_id": self.encoder.stop_id, "pad_token_id": self.encoder.pad_id, "max_new_tokens": room}
            prompts = [{"input_ids": list(example.prompt_ids)} for example, _ in batch.rows]
            padded = self.encoder.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
            out = self.lm.generate(**padded, do_sample=False, **settings)
            rows = out[:, padded["input_ids"].shape[1] :].tolist()
            said |= {example.index: self.encoder.decode(row) for (example, _), row in zip(batch.rows, rows, strict=True)}
        return [said[index] for index in range(len(records))]

    def published(self, records: Sequence[Record]) -> list[str]:
        """Published decoding of a model that never stops: its stop token is one that it never saw."""
        return self._published(records, self.lm.config.vocab_size - 1)

    def published_with_stop(self, records: Sequence[Record]) -> list[str]:
        """Published decoding of a model that stops."""
        return self._published(records, self.encoder.stop_id)

    def _published(self, records: Sequence[Record], stop_id: int) -> list[str]:
        prompts = [self.encoder.published_prompt_ids(record) for record in records]
        pad_id = self.encoder.pad_id
        return [
            self.encoder.decode(answer_as_published(self.lm, ids, stop_id=stop_id, pad_id=pad_id, seed=seed))
            for seed, ids in enumerate(prompts)
        ]

    def _batches(self, encoder: Encoder, records: Sequence[Record]) -> Iterator[tuple[EvalBatch, int]]:
        """(batch, the most new tokens), the longest first, as the program's sampler deals them."""
        examples = sorted(encoder.encode(list(enumerate(records))).examples, key=lambda example: -example.tokens)
        room = longest_answer(examples) + ROOM_AFTER_ANSWER
        for start in range(0, len(examples), self.batch_size):
            yield eval_batch([(example, True) for example in examples[start : start + self.batch_size]], encoder.pad_id), room


def main(args: Sequence[str] | None = None) -> int:
    """Prints the table and returns 0; 1 where the scores do not agree, 2 for a mistake of the user's.

    Args:
        args: the command line; by default the process's own.
    """
    return told("benchmarks.evaluate", lambda: _run(_options(args)))


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--path", help="a data file; by default generated dialogues, which are shorter")
    sizes = ["1", "4", "8", "16", "64"]
    text = "that the harness is tried with; auto ends up at 64 on a CPU, after five passes to find out (default: %(default)s)"
    parser.add_argument("--harness_batch_sizes", nargs="+", default=sizes, metavar="N", help=text)
    for name, default, text in (
        ("records", 32, "asked in each round"),
        ("published_records", 1, "the same for published decoding"),
        ("rounds", 3, "whose median is printed"),
        ("batch_size", 16, "records of a batch of mmcoref, whose own default this is, and of greedy generate"),
        ("fit_steps", 16, "on the one sentence"),
        ("hidden", 384, "width of the model, a multiple of 64"),
        ("layers", 8, "of the model"),
        ("vocabulary", 32000, "rows of its LM head"),
        ("tokens", 1000, "that its tokenizer knows; the median published prompt then has about 260 of them"),
        ("threads", torch.get_num_threads(), "of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: %(default)s)")
    options = parser.parse_args(args)
    numbers = {name: value for name, value in vars(options).items() if isinstance(value, int)}
    at_least(0, fit_steps=numbers.pop("fit_steps"))
    at_least(1, **numbers)
    if wrong := [size for size in options.harness_batch_sizes if size != "auto" and not (size.isdecimal() and int(size))]:
        raise UserError(f"harness_batch_sizes: expected numbers above 0, or auto, got {wrong[0]!r}.")
    if options.hidden % 64:
        raise UserError(f"hidden: expected a multiple of 64, got {options.hidden}.")
    return options


def _run(options: argparse.Namespace) -> int:
    load("lm_eval")
    console = plain_console(soft_wrap=True)
    torch.set_num_threads(options.threads)
    records, texts = read_subject(options.path, options.records)
    tokenizer = build_tokenizer(texts, options.tokens)
    lm = build_model(tokenizer, options.hidden, options.layers, options.vocabulary)
    asker = Asker(lm, tokenizer, options.batch_size)
    fit(lm, asker.published_encoder, records, options.fit_steps)
    console.print(_description(asker, records, options))
    batch_size, trial = _fastest(lm, tokenizer, records[:_TRIAL_RECORDS], options.harness_batch_sizes)
    console.print(f"harness: batches of {batch_size}, the fastest by records/s over {len(records[:_TRIAL_RECORDS])} records: {trial}")
    harness = Harness(lm, tokenizer, records, batch_size)
    few = records[: options.published_records]
    rows: dict[str, tuple[Ask, Sequence[Record]]] = {
        _PUBLISHED: (asker.published, few),
        _STOPPING: (asker.published_with_stop, few),
        _HARNESS: (harness.scores, records),
        _GENERATE: (asker.generate, records),
        _OUR_SCORES: (asker.our_scores, records),
        _OURS: (asker.ours, records),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}  # a record
    said: dict[str, list[Any]] = {}
    for _ in range(options.rounds):
        for name, (ask, asked) in rows.items():
            said[name], taken = _timed(ask, asked)
            seconds[name].append(taken / len(asked))
    console.print(_table(seconds))
    console.print(_texts(records, [text for _, text in said[_OURS]], said[_GENERATE]))
    line, agree = agreement(records, said[_HARNESS], said[_OUR_SCORES])
    console.print(line)
    return 0 if agree else 1


def _table(seconds: dict[str, list[float]]) -> Table:
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    table = Table("", "records/s", "range", "× harness", "× published", box=box.SIMPLE)
    for name, each in seconds.items():
        rates = f"{1 / medians[name]:.3g}", f"{1 / max(each):.3g}–{1 / min(each):.3g}"
        table.add_row(name, *rates, *(f"{medians[base] / medians[name]:.3g}" for base in (_HARNESS, _PUBLISHED)))
    return table


def _description(asker: Asker, records: Sequence[Record], options: argparse.Namespace) -> str:
    lm = asker.lm
    examples = asker.encoder.encode(list(enumerate(records))).examples
    head = lm.get_output_embeddings().weight.numel() / lm.num_parameters()
    versions = ", ".join(f"{name} {version(name)}" for name in ("lm_eval", "transformers", "torch"))
    return (
        f"Llama of {lm.num_parameters() / 1e6:.1f} M weights, {head:.0%} of them in the LM head; {lm.dtype}, "
        f"{lm.config._attn_implementation} attention; {options.fit_steps} steps of fit; CPU, threads: {options.threads}\n"
        f"{len(records)} records of {options.path or 'the generator'}, prompts of "
        f"{statistics.median(len(example.prompt_ids) for example in examples):.0f} tokens, batches of {options.batch_size}\n"
        f"mmcoref {__version__}, {versions}"
    )


def _fastest(
    lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], batch_sizes: Sequence[str]
) -> tuple[str, str]:
    """The harness's fastest batch size, and the records/s of each; the better of two tries, the first of which warms up."""
    harnesses = {size: Harness(lm, tokenizer, records, size) for size in batch_sizes}
    tries = [{size: _timed(harness.scores, records)[1] for size, harness in harnesses.items()} for _ in range(2)]
    rates = {size: len(records) / min(each[size] for each in tries) for size in batch_sizes}
    return max(batch_sizes, key=lambda size: rates[size]), ", ".join(f"{size}: {rate:.3g}" for size, rate in rates.items())


def _timed(ask: Ask, records: Sequence[Record]) -> tuple[list[Any], float]:
    start = time.perf_counter()
    said = ask(records)
    return said, time.perf_counter() - start


def _texts(records: Sequence[Record], ours: Sequence[str], theirs: Sequence[str]) -> str:
    same = sum(mine == their for mine, their in zip(ours, theirs, strict=True))
    options = sum(text in [answer_text(option) for option in record.options] for record, text in zip(records, ours, strict=True))
    return f"texts: {same} of {len(ours)} equal those of greedy generate; {options} are an option and a period, then stop"


def agreement(records: Sequence[Record], theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> tuple[str, bool]:
    """A sentence on whether the harness's scores are ours, and whether they are."""
    expected, found = torch.tensor(theirs, dtype=torch.float64), torch.tensor(ours, dtype=torch.float64)  # (B, O)
    gold = torch.tensor([LETTERS.index(record.gold.letter) for record in records])
    difference = float((expected - found).abs().max())
    right = [int((scores.argmax(-1) == gold).sum()) for scores in (expected, found)]
    agree = difference <= TOLERANCE and right[0] == right[1]
    verdict = "agree" if agree else "DO NOT AGREE"
    counts = f"largest difference {difference:.1e} nats; right: harness {right[0]}, mmcoref {right[1]} of {len(records)}"
    return f"scores: {expected.numel()} options of harness and mmcoref {verdict}: {counts}", agree


if __name__ == "__main__":
    sys.exit(main())
