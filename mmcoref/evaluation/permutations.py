"""Does an answer follow the option, or its letter? The same records, asked with their options in several orders.

Legend of shapes: N records, K orders of each, O = 4 options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcoref.data.record import LETTERS
from mmcoref.evaluation.prediction import Prediction
from mmcoref.evaluation.stats import cluster_bootstrap, recall_by_letter, recall_spread


def by_text(prediction: Prediction) -> int | None:
    """The option that the generated text names."""
    option = prediction.option
    return None if option is None else LETTERS.index(option.letter)


def by_likelihood(prediction: Prediction) -> int | None:
    """The likeliest option."""
    return prediction.by_likelihood


def in_file(prediction: Prediction, place: int | None) -> int | None:
    """Return the place in the file of the option that has a place in the order asked."""
    return None if place is None else prediction.order[place]


def permutation_report(
    chosen: NDArray[np.integer[Any]], asked_gold: NDArray[np.integer[Any]], clusters: Sequence[int] | NDArray[np.integer[Any]]
) -> dict[str, Any]:
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
        chosen: (N, K) the place in the file of the option that was chosen, in the file's order and in others; -1 for none.
        asked_gold: (N, K) the place of the right option in the order asked; the file's order is the first.
        clusters: (N,) cluster numbers.
    """
    K = chosen.shape[1]
    right = chosen == asked_gold[:, :1]
    flips = (chosen != chosen[:, :1]).sum(1)
    table = np.column_stack([right.sum(1) / K, right.all(1), _majority(chosen) == asked_gold[:, 0], flips / max(1, K - 1)])
    names = ("mean_accuracy", "all_right", "majority_vote", "flip_rate")
    intervals = cluster_bootstrap(table, clusters)
    letters = [LETTERS[place] for place in asked_gold.ravel().tolist()]
    recalls = recall_by_letter(right.ravel().tolist(), letters)
    return {
        **{
            name: {"value": sum(column) / len(table), "interval": list(interval)}
            for name, column, interval in zip(names, table.T.tolist(), intervals, strict=True)
        },
        "unparsable": {"k": int((chosen < 0).sum()), "n": chosen.size},
        "recall": {recall.letter: {"k": recall.k, "n": recall.n} for recall in recalls},
        "recall_spread": recall_spread(recalls),
    }


def _majority(chosen: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(N,) the option named most often; -1 where two are, or none is."""
    votes = np.stack([(chosen == place).sum(1) for place in range(len(LETTERS))], axis=1)
    most = votes.max(1)
    alone = (votes == most[:, None]).sum(1) == 1
    return np.where((most > 0) & alone, votes.argmax(1), -1)
