"""record.json, predictions.jsonl and eval_test.txt: what a run that answers says of itself."""

from __future__ import annotations

import logging
import platform
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

import mmcoref
from mmcoref.atomic import whole_text
from mmcoref.data.examples import Examples
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.record import LETTERS
from mmcoref.data.split import cluster_numbers
from mmcoref.evaluation.floors import majority_letter
from mmcoref.evaluation.permutations import by_text
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.report import HONEST, METRICS, PUBLISHED_RULES, report
from mmcoref.evaluation.tally import Tally
from mmcoref.model.module import MMCorefModule
from mmcoref.run.checkpoint import Stored, over_processes
from mmcoref.run.folder import run_folder
from mmcoref.run.predictions import Predictions
from mmcoref.run.rescue import keep
from mmcoref.run.table import print_scores, readable, readable_totals
from mmcoref.text import to_json

log = logging.getLogger(__name__)

_PACKAGES = ("lightning", "torch", "transformers", "torchmetrics", "tokenizers")


class RunRecord(pl.Callback):
    """Collects what a test, validate or predict run answered, and writes it into the run's folder.

    Args:
        config: the run's settings, of plain values.
        stored: the checkpoint that is tested, if any.
    """

    def __init__(self, config: dict[str, Any], stored: Stored | None) -> None:
        self.config = config
        self.stored = stored
        self._mine = Predictions()
        self._start = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock.

        Raises:
            UserError: another checkpoint has taken the place of the one whose settings were read.
        """
        if self.stored is not None and trainer.state.fn != "fit":
            self.stored.check_unchanged()
        self._mine, self._start = Predictions(), time.perf_counter()

    on_predict_start = on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the batch's predictions."""
        self._mine.add(outputs)

    on_predict_batch_end = on_test_batch_end

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The same for `mmcoref validate`; a fit keeps its curves only."""
        if trainer.state.fn == "validate":
            self._mine.add(outputs)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the record of a test."""
        self._write_record(trainer, "test", _data(trainer).test)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the record of `mmcoref validate`; where nothing was generated there is none, and one line says the score."""
        if trainer.state.fn != "validate":
            return
        data = _data(trainer)
        if self.config["model"]["val_generate"]:
            self._write_record(trainer, "validate", data.curve)
        elif trainer.is_global_zero:
            [score] = [value for name, value in trainer.callback_metrics.items() if name.endswith("/likelihood_accuracy")]
            print(
                f"likelihood_accuracy: {float(score):.4f} of {len(data.curve)} records; no text was generated and no record written "
                "(--model.val_generate true does both)"
            )

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers every process's predictions; the first process writes `predictions.jsonl`."""
        folder = run_folder(trainer)
        predictions = self._mine.gather(trainer)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        asked = _data(trainer).unlabelled
        predictions.check(len(asked), whole=not _limited(trainer))

        def lines() -> Iterator[str]:
            for [prediction] in predictions.by_record(asked):
                yield _json_line(_line(prediction))

        keep(folder, {"predictions.jsonl": lambda file: _write(file, lines())})
        log.info("%d predictions written to %s", len(predictions), folder / "predictions.jsonl")

    def _write_record(self, trainer: pl.Trainer, stage: str, examples: Examples) -> None:
        """Gathers every process's predictions; the first process writes."""
        seconds = time.perf_counter() - self._start
        memory = over_processes(trainer, _peak_memory_gib())
        folder = run_folder(trainer)  # on every process: it is broadcast
        predictions = self._mine.gather(trainer)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = _data(trainer)
        records = data.file.records  # type: ignore[union-attr]
        asked = len(examples) * (len(data.orders) if stage == "test" else 1)
        predictions.check(asked, whole=not _limited(trainer))
        clusters = cluster_numbers(records, len(records))
        counted = Tally(majority_letter(Counter(LETTERS[place] for place in records.gold[data.whole_train].tolist())))
        for orders in predictions.by_record(examples):
            for prediction in orders:
                counted.add(prediction)
        record = {
            **self._about(trainer, stage, partial=data.partial or len(predictions) != asked),
            **report(counted, clusters[counted.indices]),
            "max_new_tokens": _module(trainer).max_new_tokens,
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(memory, 3),
        }

        def lines() -> Iterator[str]:
            for orders in predictions.by_record(examples):
                yield _json_line(_line(orders[0]) | _judged(orders[0], int(clusters[orders[0].index]), orders))

        def blocks() -> Iterator[str]:
            for answer, *_ in predictions.by_record(examples):
                yield readable(answer) + "\n"
            yield readable_totals(record)

        try:
            print_scores(record, folder)  # whatever the disk says, the scores are known
        finally:
            whole = to_json(record, indent=2, allow_nan=False) + "\n"
            writers: dict[str, Callable[[Path], object]] = {
                "predictions.jsonl": lambda file: _write(file, lines()),
                "eval_test.txt": lambda file: _write(file, blocks()),
                "record.json": lambda file: _write(file, [whole]),
            }
            keep(folder, writers)

    def _about(self, trainer: pl.Trainer, stage: str, *, partial: bool) -> dict[str, Any]:
        """What was run, on what, and with what."""
        data, decoding = _data(trainer), self.config["model"]["decoding"]
        as_published = data.as_published or decoding == "published"
        file, split, stored = data.file, data.split, self.stored
        assert file is not None
        return {
            "config": self.config,
            "training": None if stored is None else stored.config,
            "training_data": None if stored is None or stored.data is None else stored.data._asdict(),
            "checkpoint": None if stored is None else stored.named(),
            "versions": _versions(),
            "git": _git(),
            "data": {"path": data.hparams["path"], "sha256": file.sha256, "records": len(file.records)},
            "split": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
            "dropped": data.dropped,
            "trimmed": data.trimmed,
            "seed": self.config.get("seed_everything"),
            "stage": stage,
            "partial": partial,
            "decoding": decoding,
            "headline": [*PUBLISHED_RULES, "exact_match"] if as_published else list(HONEST),
        }


def _line(prediction: Prediction) -> dict[str, Any]:
    """One line of predictions.jsonl, with or without a solution."""
    record, option = prediction.record, prediction.option
    return {
        "id": prediction.index if record.id is None else record.id,
        "option": option.letter if option else None,
        "text": prediction.text,
        "probabilities": dict(zip(LETTERS, (round(p, 6) for p in prediction.probabilities), strict=True)),
        "stopped": prediction.stopped,
    }


def _judged(prediction: Prediction, cluster: int, orders: Sequence[Prediction]) -> dict[str, Any]:
    """What a line says besides where the solution is known; letters are those of the file, in every order."""
    line: dict[str, Any] = {
        "index": prediction.index,
        "cluster": cluster,
        "gold": prediction.record.gold.letter,
        **{name: getattr(prediction.verdict, name) for name in METRICS},
        "by_letter": LETTERS[prediction.by_letter],
        "by_likelihood": LETTERS[prediction.by_likelihood],
        "failure": prediction.failure,
        "option_logprobs": [round(value, 6) for value in prediction.option_logprobs],
    }
    if len(orders) > 1:
        line["orders"] = {
            "".join(LETTERS[place] for place in one.order): None if one.option is None else LETTERS[one.order[by_text(one) or 0]]
            for one in orders
        }
    return line


def _json_line(line: dict[str, Any]) -> str:
    return to_json(line, allow_nan=False) + "\n"


def _write(file: Path, texts: Iterable[str]) -> None:
    """Write a file piece by piece, whole or not at all."""
    with whole_text(file) as written:
        for text in texts:
            written.write(text)


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


def _limited(trainer: pl.Trainer) -> bool:
    """Whether some batches were left out on purpose: 1 (int) is one batch, 1.0 all of them."""
    return any(isinstance(limit, int) or limit < 1.0 for limit in (trainer.limit_test_batches, trainer.limit_predict_batches))


def _data(trainer: pl.Trainer) -> MMCorefDataModule:
    return _module(trainer).data


def _module(trainer: pl.Trainer) -> MMCorefModule:
    module = trainer.lightning_module
    assert isinstance(module, MMCorefModule)
    return module
