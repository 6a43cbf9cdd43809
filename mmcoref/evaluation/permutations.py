"""Does an answer follow the option, or its letter? The same records, asked with their options in several orders.

Legend of shapes: N records, K orders of each, O = 4 options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from mmcoref.data.order import FILE_ORDER
from mmcoref.data.record import LETTERS
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.stats import cluster_bootstrap, recall_by_letter, recall_spread

Choice = Callable[[Prediction], int | None]  # the place, in the order asked, of the option that was chosen


def by_text(prediction: Prediction) -> int | None:
    """The option that the generated text names."""
    option = prediction.option
    return None if option is None else LETTERS.index(option.letter)


def by_likelihood(prediction: Prediction) -> int | None:
    """The likeliest option."""
    return prediction.by_likelihood


def permutation_report(predictions: Sequence[Prediction], clusters: Sequence[int], choice: Choice) -> dict[str, Any]:
    """How a model's choices stand up to other orders of the options.

    - `mean_accuracy`: over all N x K askings.
    - `all_right`: share of records that are right in every order.
    - `majority_vote`: share of records whose most frequent option is the right one; a tie is wrong, and an output that
      names no option has no vote.
    - `flip_rate`: share of the N x (K - 1) other askings that choose another option than the file's order does; two outputs
      that name no option are the same choice.
    - `unparsable`: how many of the N x K outputs name no option.
    - `recall`, `recall_spread`: per letter under which the right option stood, and their standard deviation.

    The first four have a 95 % interval by resampling records, in clusters, and never orders: the K answers to one record
    are one record's evidence.

    Args:
        predictions: K of each record, all records in the same K orders, the file's among them.
        clusters: N cluster numbers, by ascending place in the file.
        choice: what counts as the model's choice.

    Raises:
        ValueError: a record has other orders than the first one, or the file's order is missing.
    """
    ranked = sorted(predictions, key=lambda prediction: (prediction.index, prediction.order))
    by_record = [list(asked) for _, asked in groupby(ranked, key=lambda prediction: prediction.index)]
    orders = [prediction.order for prediction in by_record[0]]
    if any([prediction.order for prediction in asked] != orders for asked in by_record) or orders[0] != FILE_ORDER:
        raise ValueError("expected every record in the same orders, the file's among them")
    table = []
    for asked in by_record:
        chosen = [_in_file(prediction, choice(prediction)) for prediction in asked]
        gold = asked[0].gold_place  # in the file's order, which comes first
        right = [option == gold for option in chosen]
        flips = sum(option != chosen[0] for option in chosen)
        table.append([sum(right) / len(right), all(right), _majority(chosen) == gold, flips / max(1, len(chosen) - 1)])
    names = ("mean_accuracy", "all_right", "majority_vote", "flip_rate")
    intervals = cluster_bootstrap(table, clusters)
    recalls = recall_by_letter(
        [choice(prediction) == prediction.gold_place for prediction in ranked], [LETTERS[prediction.gold_place] for prediction in ranked]
    )
    return {
        **{
            name: {"value": sum(float(row[i]) for row in table) / len(table), "interval": list(intervals[i])}
            for i, name in enumerate(names)
        },
        "unparsable": {"k": sum(choice(prediction) is None for prediction in ranked), "n": len(ranked)},
        "recall": {recall.letter: {"k": recall.k, "n": recall.n} for recall in recalls},
        "recall_spread": recall_spread(recalls),
    }


def _in_file(prediction: Prediction, place: int | None) -> int | None:
    return None if place is None else prediction.order[place]


def _majority(chosen: Sequence[int | None]) -> int | None:
    """The option named most often; None where two are, or none is."""
    votes = Counter(option for option in chosen if option is not None).most_common(2)
    return votes[0][0] if votes and (len(votes) == 1 or votes[0][1] > votes[1][1]) else None
