"""lm-evaluation-harness around a model that is in memory. It is not installed with the package, and is imported where it is used."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.program import peers_module
from mmcoref.data.prompt import answer_text, prompt_text
from mmcoref.data.record import LETTERS, Record


class Harness:
    """lm-evaluation-harness over one task: the options of these records.

    Args:
        lm: the model, in memory.
        tokenizer: its own.
        records: what the task asks.
        batch_size: requests of a batch, four to a record, or `auto`.
    """

    def __init__(self, lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], batch_size: str) -> None:
        self._evaluate = load("lm_eval.evaluator").evaluate
        with _quiet():
            hflm = load("lm_eval.models.huggingface").HFLM
            self._lm = hflm(pretrained=lm, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=True)
            self._task = load("lm_eval.tasks").TaskManager(include_defaults=False).load([_task(records)])

    def scores(self, records: Sequence[Record]) -> list[list[float]]:
        """The scores of the task's records, which these must be."""
        with _quiet():
            # What `simple_evaluate` calls when all is set up; itself it goes on to describe the machine, for seconds.
            results = self._evaluate(self._lm, self._task, bootstrap_iters=0)
        (samples,) = results["samples"].values()
        if len(samples) != len(records):
            raise ValueError(f"expected the task's {len(samples)} records, got {len(records)}")
        return [[float(score) for score, _ in sample["filtered_resps"]] for sample in sorted(samples, key=lambda s: s["doc_id"])]


def _task(records: Sequence[Record]) -> dict[str, Any]:
    """The harness's configuration of the task."""
    rows = [
        {"prompt": prompt_text(r), "options": [answer_text(option) for option in r.options], "gold": LETTERS.index(r.gold.letter)}
        for r in records
    ]
    dataset = load("datasets").Dataset.from_list(rows)
    return {
        "task": "mmcoref",
        "custom_dataset": lambda **_: {"test": dataset},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


load = partial(peers_module, "lm-evaluation-harness")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's progress bars and log."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
