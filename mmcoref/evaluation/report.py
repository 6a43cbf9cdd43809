"""Predictions -> every figure of a test run, each with its doubt: the part of `record.json` that is about answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from mmcoref.data.order import FILE_ORDER
from mmcoref.data.record import Record
from mmcoref.evaluation.answer import Failure
from mmcoref.evaluation.floors import best_object, best_photo, floor_hits
from mmcoref.evaluation.permutations import by_likelihood, by_text, permutation_report
from mmcoref.evaluation.prediction import Prediction
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

HONEST = ("object_accuracy", "photo_accuracy", "exact_match")
PUBLISHED_RULES = ("object_published_rule", "photo_published_rule")
METRICS = (*HONEST, *PUBLISHED_RULES)
# Object accuracy without generated text: the letter that the model would write, and the likeliest option.
BY_SCORE = ("letter_accuracy", "likelihood_accuracy")


def report(predictions: Sequence[Prediction], *, train: Sequence[Record], clusters: Sequence[int]) -> dict[str, Any]:
    """Everything that is said of a run's answers; plain values, for JSON.

    Args:
        predictions: of N records, in the file's order of options and possibly in others.
        train: the records whose majority letter is a floor.
        clusters: N cluster numbers, by ascending place in the file.

    Raises:
        ValueError: no prediction, no train record, or a record without a solution.
    """
    answers = sorted((one for one in predictions if one.order == FILE_ORDER), key=lambda one: one.index)
    records = [one.record for one in answers]
    places = [one.gold_place for one in answers]
    hits: dict[str, list[bool]] = {name: [bool(getattr(one.verdict, name)) for one in answers] for name in METRICS}
    hits["letter_accuracy"] = [one.by_letter == place for one, place in zip(answers, places, strict=True)]
    hits["likelihood_accuracy"] = [one.by_likelihood == place for one, place in zip(answers, places, strict=True)]
    logprobs = [one.option_logprobs for one in answers]
    brier, nll = brier_scores(logprobs, places), negative_log_likelihoods(logprobs, places)
    table = np.column_stack([*hits.values(), brier, nll])
    bootstrap = dict(zip([*hits, "brier_score", "negative_log_likelihood"], cluster_bootstrap(table, clusters), strict=True))
    recalls = recall_by_letter(hits["object_accuracy"], [record.gold.letter for record in records])
    n, asked = len(answers), len({one.order for one in predictions})
    return {
        "n": n,
        "metrics": {name: {"value": sum(found) / n, "k": sum(found), "n": n} for name, found in hits.items()},
        "intervals": {name: list(wilson(sum(found), n)) for name, found in hits.items()},
        "bootstrap": {name: list(interval) for name, interval in bootstrap.items()},
        "clusters": len(set(clusters)),
        "brier_score": float(brier.mean()),
        "negative_log_likelihood": float(nll.mean()),
        "recall": {
            **{recall.letter: {"k": recall.k, "n": recall.n} for recall in recalls},
            "macro": macro_recall(recalls),
            "spread": recall_spread(recalls),
        },
        **_against_floors(train, records, hits, clusters),
        "failures": _failures(answers),
        "agreement": _agreement(answers),
        "unparsable": sum(one.verdict.unparsable for one in answers),
        "cut": sum(not one.stopped for one in answers),
        "permutations": None
        if asked == 1
        else {
            "orders": asked,
            "by_text": permutation_report(predictions, clusters, by_text),
            "by_likelihood": permutation_report(predictions, clusters, by_likelihood),
        },
    }


def _against_floors(
    train: Sequence[Record], records: Sequence[Record], hits: dict[str, list[bool]], clusters: Sequence[int]
) -> dict[str, Any]:
    """`floors`, and how far the run is above the best of them, record by record."""
    rules = {rule.name: rule for rule in floor_hits(train, records)}
    counts = [rule.counted for rule in rules.values()]
    above = {}
    for level, best in (("object", best_object(counts)), ("photo", best_photo(counts))):
        difference = paired_difference(getattr(rules[best.name], level), hits[f"{level}_accuracy"], clusters)
        above[level] = {"floor": best.name, "value": difference.mean, "interval": list(difference.interval)}
    return {"floors": [asdict(floor) for floor in counts], "above_best_floor": above}


def _failures(answers: Sequence[Prediction]) -> dict[str, int]:
    """How many answers are no exact match, by the reason; together with the exact matches all of them."""
    counts = Counter(one.failure for one in answers)
    return {reason: counts[reason] for reason in get_args(Failure)}


def _agreement(answers: Sequence[Prediction]) -> dict[str, dict[str, int]]:
    """How often two ways of reading a model's choice, or all three, name the same option; an unparsable text agrees with none."""
    chosen = [(one.by_letter, one.by_likelihood, by_text(one)) for one in answers]
    same = {
        "letter_and_likelihood": sum(letter == likelihood for letter, likelihood, _ in chosen),
        "letter_and_text": sum(letter == text for letter, _, text in chosen),
        "likelihood_and_text": sum(likelihood == text for _, likelihood, text in chosen),
        "all_three": sum(letter == likelihood == text for letter, likelihood, text in chosen),
    }
    return {name: {"k": k, "n": len(answers)} for name, k in same.items()}
