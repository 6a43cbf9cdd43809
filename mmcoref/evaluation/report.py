"""Predictions -> every figure of a test run, each with its doubt: the part of `record.json` that is about answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.record import LETTERS
from mmcoref.evaluation.floors import best_object, best_photo
from mmcoref.evaluation.permutations import permutation_report
from mmcoref.evaluation.stats import (
    brier_scores,
    cluster_bootstrap,
    macro_recall,
    negative_log_likelihoods,
    paired_difference,
    recall_by_letter,
    recall_spread,
    wilson,
)
from mmcoref.evaluation.tally import VERDICTS, Tally

HONEST = ("object_accuracy", "photo_accuracy", "exact_match")
PUBLISHED_RULES = ("object_published_rule", "photo_published_rule")
METRICS = VERDICTS
# Object accuracy without generated text: the letter that the model would write, and the likeliest option.
BY_SCORE = ("letter_accuracy", "likelihood_accuracy")


def report(counted: Tally, clusters: Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Everything that is said of a run's answers; plain values, for JSON.

    Args:
        counted: N records, in the file's order of options and possibly in others.
        clusters: (N,) cluster numbers, by ascending place in the file.

    Raises:
        ValueError: no prediction, or a record has other orders than the first one.
    """
    n, gold = len(counted), counted.gold
    hits = {name: counted.hits(name) for name in METRICS}
    hits["letter_accuracy"] = counted.by_letter == gold
    hits["likelihood_accuracy"] = counted.by_likelihood == gold
    found = {name: int(right.sum()) for name, right in hits.items()}
    brier, nll = brier_scores(counted.logprobs, gold), negative_log_likelihoods(counted.logprobs, gold)
    table = np.column_stack([*hits.values(), brier, nll])
    bootstrap = dict(zip([*hits, "brier_score", "negative_log_likelihood"], cluster_bootstrap(table, clusters), strict=True))
    recalls = recall_by_letter(hits["object_accuracy"].tolist(), [LETTERS[place] for place in gold.tolist()])
    return {
        "n": n,
        "metrics": {name: {"value": k / n, "k": k, "n": n} for name, k in found.items()},
        "intervals": {name: list(wilson(k, n)) for name, k in found.items()},
        "bootstrap": {name: list(interval) for name, interval in bootstrap.items()},
        "clusters": len(np.unique(clusters)),
        "brier_score": float(brier.mean()),
        "negative_log_likelihood": float(nll.mean()),
        "recall": {
            **{recall.letter: {"k": recall.k, "n": recall.n} for recall in recalls},
            "macro": macro_recall(recalls),
            "spread": recall_spread(recalls),
        },
        **_against_floors(counted, hits, clusters),
        "failures": counted.failures,
        "agreement": _agreement(counted),
        "unparsable": counted.unparsable,
        "cut": counted.cut,
        "permutations": _permutations(counted, clusters),
    }


def _permutations(counted: Tally, clusters: Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, Any] | None:
    """Return the figures of several orders; None if there is one only."""
    orders = counted.orders()
    if orders == 1:
        return None
    found = {choice: permutation_report(counted.chosen(choice), counted.asked_gold, clusters) for choice in ("by_text", "by_likelihood")}
    return {"orders": orders, **found}


def _against_floors(
    counted: Tally, hits: dict[str, NDArray[np.bool_]], clusters: Sequence[int] | NDArray[np.integer[Any]]
) -> dict[str, Any]:
    """`floors`, and how far the run is above the best of them, record by record."""
    counts = counted.floors
    above = {}
    for level, best in (("object", best_object(counts)), ("photo", best_photo(counts))):
        difference = paired_difference(counted.floor_hits(best.name, level), hits[f"{level}_accuracy"], clusters)
        above[level] = {"floor": best.name, "value": difference.mean, "interval": list(difference.interval)}
    return {"floors": [asdict(floor) for floor in counts], "above_best_floor": above}


def _agreement(counted: Tally) -> dict[str, dict[str, int]]:
    """How often two ways of reading a model's choice, or all three, name the same option; an unparsable text agrees with none."""
    letter, likelihood, text = counted.by_letter, counted.by_likelihood, counted.by_text
    same = {
        "letter_and_likelihood": letter == likelihood,
        "letter_and_text": letter == text,
        "likelihood_and_text": likelihood == text,
        "all_three": (letter == likelihood) & (likelihood == text),
    }
    return {name: {"k": int(equal.sum()), "n": len(counted)} for name, equal in same.items()}
