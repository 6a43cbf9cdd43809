"""record.json, predictions.jsonl and eval_test.txt: what a test or predict run says of itself."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import distributed

import mmcoref
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import LETTERS
from mmcoref.evaluation.answer import parse_answer
from mmcoref.evaluation.floors import floors
from mmcoref.evaluation.metrics import Verdict, judge
from mmcoref.evaluation.stats import wilson
from mmcoref.model.module import MMCorefModule, Prediction
from mmcoref.run.checkpoint import Stored, over_processes, run_folder

log = logging.getLogger(__name__)

_PACKAGES = ("lightning", "torch", "transformers", "torchmetrics", "tokenizers")
METRICS = ("object_accuracy", "photo_accuracy", "exact_match", "object_published_rule", "photo_published_rule")


class RunRecord(pl.Callback):
    """Collects what a test or predict run answered, and writes it into the run's folder.

    Args:
        config: the run's settings, of plain values.
        stored: the checkpoint that is tested, if any.
    """

    def __init__(self, config: dict[str, Any], stored: Stored | None) -> None:
        self.config = config
        self.stored = stored
        self._mine: list[Prediction] = []
        self._start = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._mine, self._start = [], time.perf_counter()

    on_predict_start = on_test_start

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the batch's predictions."""
        self._mine += outputs

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers every process's predictions; the first process writes."""
        seconds = time.perf_counter() - self._start
        memory = over_processes(trainer, _peak_memory_gib())
        folder = run_folder(trainer)  # on every process: it is broadcast
        predictions = _gather(trainer, self._mine)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = _data(trainer)
        whole = len(predictions) == len(data.test)
        _assert_each_once(predictions, len(data.test), whole=whole or not _limited(trainer))
        verdicts = [judge(prediction.text, prediction.example.record) for prediction in predictions]
        scores, unparsable = _scores(verdicts), sum(verdict.unparsable for verdict in verdicts)
        tested = [prediction.example.record for prediction in predictions]
        found = floors([data.file.records[i] for i in data.split.train], tested)  # type: ignore[union-attr]
        record = {
            "config": self.config,
            "checkpoint": None if self.stored is None else {"path": str(self.stored.path), "step": self.stored.step},
            "versions": _versions(),
            "git": _git(),
            "data": {"path": data.hparams["path"], "sha256": data.file.sha256, "records": len(data.file.records)},  # type: ignore[union-attr]
            "split": {"train": len(data.split.train), "val": len(data.split.val), "test": len(data.split.test)},
            "dropped": data.dropped,
            "trimmed": data.trimmed,
            "seed": self.config.get("seed_everything"),
            "stage": "test",
            "partial": data.partial or not whole,
            "n": len(predictions),
            "metrics": scores,
            "intervals": {name: list(wilson(int(score["k"]), int(score["n"]))) for name, score in scores.items()},
            "floors": [asdict(floor) for floor in found],
            "unparsable": unparsable,
            "cut": sum(not prediction.stopped for prediction in predictions),
            "max_new_tokens": _module(trainer).max_new_tokens,
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(memory, 3),
        }
        folder.mkdir(parents=True, exist_ok=True)
        lines = [_line(prediction, verdict) for prediction, verdict in zip(predictions, verdicts, strict=True)]
        _write(folder / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        _write(folder / "eval_test.txt", _readable(predictions, verdicts, record))
        _write(folder / "record.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
        _print_scores(record, folder)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers every process's predictions; the first process writes `predictions.jsonl`."""
        folder = run_folder(trainer)
        predictions = _gather(trainer, self._mine)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = _data(trainer)
        _assert_each_once(predictions, len(data.unlabelled), whole=not _limited(trainer))
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "predictions.jsonl"
        _write(file, "".join(json.dumps(_line(prediction, None), ensure_ascii=False) + "\n" for prediction in predictions))
        log.info("%d predictions written to %s", len(predictions), file)


def option_probabilities(logprobs: Sequence[float]) -> list[float]:
    """The four options' probabilities: their likelihoods, normalised over the four (a softmax of log-likelihoods)."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    return [weight / sum(weights) for weight in weights]


def _line(prediction: Prediction, verdict: Verdict | None) -> dict[str, Any]:
    """One line of predictions.jsonl; with a verdict in a test, without in a prediction."""
    record = prediction.example.record
    option = parse_answer(prediction.text, record.options).option if verdict is None else verdict.option
    line: dict[str, Any] = {
        "id": prediction.example.index if record.id is None else record.id,
        "option": option.letter if option else None,
        "text": prediction.text,
        "probabilities": dict(zip(LETTERS, (round(p, 6) for p in option_probabilities(prediction.option_logprobs)), strict=True)),
        "stopped": prediction.stopped,
    }
    if verdict is not None:
        line |= {"index": prediction.example.index, "gold": record.gold.letter, **{name: getattr(verdict, name) for name in METRICS}}
    return line


def _scores(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float | int]]:
    n = len(verdicts)
    hits = {name: sum(bool(getattr(verdict, name)) for verdict in verdicts) for name in METRICS}
    return {name: {"value": k / n, "k": k, "n": n} for name, k in hits.items()}


def _print_scores(record: dict[str, Any], folder: Path) -> None:
    """The run's result on standard output, beside what no model scores."""
    table = Table(title=f"{folder}, n = {record['n']}{', partial' if record['partial'] else ''}")
    for heading, justify in (("", "left"), ("k", "right"), ("share", "right"), ("95 % interval", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, score in record["metrics"].items():
        low, high = record["intervals"][name]
        table.add_row(name, str(score["k"]), f"{score['value']:.3f}", f"{low:.3f} – {high:.3f}")
    table.add_row("unparsable", str(record["unparsable"]), "", "")
    table.add_row("cut at max_new_tokens", str(record["cut"]), "", "", end_section=True)
    for floor in record["floors"]:
        for level in ("object", "photo"):
            if floor[level] is not None:
                table.add_row(f"{level}, {floor['name']}", str(floor[level]), f"{floor[level] / floor['n']:.3f}", "no model")
    Console().print(table)


def _readable(predictions: Sequence[Prediction], verdicts: Sequence[Verdict], run: dict[str, Any]) -> str:
    """Each dialogue's question, gold, output and verdict, then the totals."""
    blocks = []
    for prediction, verdict in zip(predictions, verdicts, strict=True):
        record = prediction.example.record
        said = {"object": verdict.object_accuracy, "photo": verdict.photo_accuracy, "exact": verdict.exact_match}
        outcome = ", ".join(f"{name} {'right' if right else 'wrong'}" for name, right in said.items())
        parsed = verdict.option.letter if verdict.option else "unparsable"
        blocks.append(
            f"[{prediction.example.index}] {record.problem}\n"
            f"  gold:    {record.gold.text}\n"
            f"  output:  {prediction.text!r}{'' if prediction.stopped else ' (cut: it did not stop)'}\n"
            f"  verdict: {parsed}; {outcome}\n"
        )
    totals = [f"{name}: {score['k']}/{score['n']} = {score['value']:.4f}" for name, score in run["metrics"].items()]
    partial = ["partial: not all test records"] if run["partial"] else []
    return "\n".join([*blocks, *totals, f"unparsable: {run['unparsable']}/{run['n']}", *partial]) + "\n"


def _assert_each_once(predictions: Sequence[Prediction], expected: int, *, whole: bool) -> None:
    indices = [prediction.example.index for prediction in predictions]
    if len(set(indices)) != len(indices) or (whole and len(indices) != expected):
        raise RuntimeError(f"expected each of {expected} records once, got {len(indices)} predictions of {len(set(indices))} records")


def _gather(trainer: pl.Trainer, mine: list[Prediction]) -> list[Prediction] | None:
    """All processes' predictions in file order on the first process; None on the others."""
    everyone: list[list[Prediction]] | None = [mine]
    if trainer.world_size > 1:
        everyone = [[] for _ in range(trainer.world_size)] if trainer.is_global_zero else None
        distributed.gather_object(mine, everyone)
    if everyone is None:
        return None
    return sorted((prediction for part in everyone for prediction in part), key=lambda prediction: prediction.example.index)


def _peak_memory_gib() -> float:
    """Peak memory of this process: of its GPU where it has one, else of the process itself."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if platform.system() == "Darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "mmcoref": mmcoref.__version__, **{name: version(name) for name in _PACKAGES}}


def _git() -> dict[str, Any] | None:
    """Commit of the package's checkout, and whether files differ from it; None where it is no checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "-uno", "."], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "modified": bool(changes.strip())}


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, file)


def _limited(trainer: pl.Trainer) -> bool:
    """Whether some batches were left out on purpose: 1 (int) is one batch, 1.0 all of them."""
    return any(isinstance(limit, int) or limit < 1.0 for limit in (trainer.limit_test_batches, trainer.limit_predict_batches))


def _data(trainer: pl.Trainer) -> MMCorefDataModule:
    return _module(trainer).data


def _module(trainer: pl.Trainer) -> MMCorefModule:
    module = trainer.lightning_module
    assert isinstance(module, MMCorefModule)
    return module
