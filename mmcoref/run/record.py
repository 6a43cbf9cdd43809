"""record.json, predictions.jsonl and eval_test.txt: what a run that answers says of itself."""

from __future__ import annotations

import logging
import platform
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed

import mmcoref
from mmcoref.atomic import write_text
from mmcoref.data.examples import Examples
from mmcoref.data.module import MMCorefDataModule
from mmcoref.data.order import FILE_ORDER
from mmcoref.data.record import LETTERS
from mmcoref.data.split import cluster_ids
from mmcoref.evaluation.permutations import by_text
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.report import HONEST, METRICS, PUBLISHED_RULES, report
from mmcoref.model.module import MMCorefModule
from mmcoref.run.checkpoint import Stored, over_processes
from mmcoref.run.folder import run_folder
from mmcoref.run.rescue import keep
from mmcoref.run.table import print_scores, readable
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
        self._mine: list[Prediction] = []
        self._start = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock.

        Raises:
            UserError: another checkpoint has taken the place of the one whose settings were read.
        """
        if self.stored is not None and trainer.state.fn != "fit":
            self.stored.check_unchanged()
        self._mine, self._start = [], time.perf_counter()

    on_predict_start = on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the batch's predictions."""
        self._mine += outputs

    on_predict_batch_end = on_test_batch_end

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The same for `mmcoref validate`; a fit keeps its curves only."""
        if trainer.state.fn == "validate":
            self._mine += outputs

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
        predictions = _gather(trainer, self._mine)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _assert_each_once(predictions, len(_data(trainer).unlabelled), whole=not _limited(trainer))
        lines = _json_lines(_line(prediction) for prediction in predictions)
        keep(folder, {"predictions.jsonl": lambda file: write_text(file, lines)})
        log.info("%d predictions written to %s", len(predictions), folder / "predictions.jsonl")

    def _write_record(self, trainer: pl.Trainer, stage: str, examples: Examples) -> None:
        """Gathers every process's predictions; the first process writes."""
        seconds = time.perf_counter() - self._start
        memory = over_processes(trainer, _peak_memory_gib())
        folder = run_folder(trainer)  # on every process: it is broadcast
        predictions = _gather(trainer, self._mine)
        if predictions is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = _data(trainer)
        asked = len(examples) * (len(data.orders) if stage == "test" else 1)
        predictions, whole = _all_orders(predictions), len(predictions) == asked
        _assert_each_once(predictions, asked, whole=whole or not _limited(trainer))
        answers = [prediction for prediction in predictions if prediction.order == FILE_ORDER]
        records = data.file.records  # type: ignore[union-attr]
        cluster_of = cluster_ids(records)
        clusters = [cluster_of[prediction.index] for prediction in answers]
        as_published = data.as_published or self.config["model"]["decoding"] == "published"
        record = {
            "config": self.config,
            "training": None if self.stored is None else self.stored.config,
            "training_data": None if self.stored is None or self.stored.data is None else self.stored.data._asdict(),
            "checkpoint": None if self.stored is None else self.stored.named(),
            "versions": _versions(),
            "git": _git(),
            "data": {"path": data.hparams["path"], "sha256": data.file.sha256, "records": len(records)},  # type: ignore[union-attr]
            "split": {"train": len(data.split.train), "val": len(data.split.val), "test": len(data.split.test)},
            "dropped": data.dropped,
            "trimmed": data.trimmed,
            "seed": self.config.get("seed_everything"),
            "stage": stage,
            "partial": data.partial or not whole,
            "decoding": self.config["model"]["decoding"],
            "headline": [*PUBLISHED_RULES, "exact_match"] if as_published else list(HONEST),
            **report(predictions, train=[records[i] for i in data.whole_train], clusters=clusters),
            "max_new_tokens": _module(trainer).max_new_tokens,
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(memory, 3),
        }
        others: dict[int, list[Prediction]] = {}
        for prediction in predictions:
            others.setdefault(prediction.index, []).append(prediction)
        lines = [
            _line(prediction) | _judged(prediction, cluster, others[prediction.index])
            for prediction, cluster in zip(answers, clusters, strict=True)
        ]
        try:
            print_scores(record, folder)  # whatever the disk says, the scores are known
        finally:
            texts = {
                "predictions.jsonl": _json_lines(lines),
                "eval_test.txt": readable(answers, record),
                "record.json": to_json(record, indent=2, allow_nan=False) + "\n",
            }
            keep(folder, {name: partial(write_text, text=text) for name, text in texts.items()})


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


def _json_lines(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(to_json(line, allow_nan=False) + "\n" for line in lines)


def _all_orders(predictions: list[Prediction]) -> list[Prediction]:
    """Without records that limited batches left in some orders only, which can be compared to none."""
    counts = Counter(prediction.index for prediction in predictions)
    asked = max(counts.values(), default=0)
    return [prediction for prediction in predictions if counts[prediction.index] == asked]


def _assert_each_once(predictions: Sequence[Prediction], expected: int, *, whole: bool) -> None:
    asked = [(prediction.index, prediction.order) for prediction in predictions]
    if len(set(asked)) != len(asked) or (whole and len(asked) != expected):
        raise RuntimeError(f"expected {expected} predictions, one of each, got {len(asked)}, of which {len(set(asked))} differ")


def _gather(trainer: pl.Trainer, mine: list[Prediction]) -> list[Prediction] | None:
    """All processes' predictions in file order on the first process; None on the others."""
    everyone: list[list[Prediction]] | None = [mine]
    if trainer.world_size > 1:
        everyone = [[] for _ in range(trainer.world_size)] if trainer.is_global_zero else None
        distributed.gather_object(mine, everyone)
    if everyone is None:
        return None
    return sorted((prediction for part in everyone for prediction in part), key=lambda prediction: (prediction.index, prediction.order))


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
