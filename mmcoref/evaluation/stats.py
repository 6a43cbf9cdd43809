"""How far a number on n records can be trusted: intervals, paired tests, calibration, recall per gold letter.

Legend of shapes: N records, M measures, C clusters, O = 4 options.
Records of one cluster (`mmcoref.data.split.cluster_ids`) are not independent, so the bootstrap draws whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from scipy.stats import binomtest

from mmcoref.data.record import LETTERS, Letter

_DRAWN_AT_ONCE = 1_000  # resamples
_WEIGHTS_AT_ONCE = 2**25  # resamples x C clusters that are in memory at once


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(k: int, n: int, *, level: float = 0.95) -> Interval:
    """Score interval of a share k / n (Wilson 1927), for records that are independent.

    Raises:
        ValueError: not 0 <= k <= n with n >= 1, or `level` is not between 0 and 1.
    """
    interval = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def cluster_bootstrap(
    table: ArrayLike, clusters: ArrayLike, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> list[Interval]:
    """Percentile bootstrap intervals of the M column means, with C whole clusters drawn C times with replacement.

    All columns share the draws: column m of one resample belongs to the same records as column m'.
    Source: Field and Welsh, Bootstrapping clustered data (2007), the randomised cluster bootstrap.

    Args:
        table: (N, M), one row per record: hits (0 or 1), differences of hits, scores.
        clusters: (N,) integers, one cluster number per record.
        seed: of the draws.
        resamples: how many draws.
        level: confidence level.

    Raises:
        ValueError: the shapes do not fit, there are no records, or `level` is not between 0 and 1.
    """
    values = np.asarray(table, dtype=np.float64)
    ids = np.asarray(clusters)
    if values.ndim != 2 or not values.size or ids.shape != values.shape[:1]:
        raise ValueError(f"expected a table (N, M) and clusters (N,), got {values.shape} and {ids.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    names, member_of = np.unique(ids, return_inverse=True)
    sums_CM = np.zeros((len(names), values.shape[1]))
    np.add.at(sums_CM, member_of, values)
    sizes_C = np.bincount(member_of)
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    at_once = min(_DRAWN_AT_ONCE, max(1, _WEIGHTS_AT_ONCE // len(names)))  # the draws are the same, whatever this is
    for drawn in range(0, resamples, at_once):
        # How often each cluster is drawn: C draws, each cluster as likely as any other.
        weights_RC = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(at_once, resamples - drawn))
        means.append((weights_RC @ sums_CM) / (weights_RC @ sizes_C)[:, None])
    low_M, high_M = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]


class Difference(NamedTuple):
    """Mean of b - a over the records, with its interval."""

    mean: float
    interval: Interval


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Difference:
    """How much better `b` is than `a` on the same N records, by `cluster_bootstrap` over the records' differences.

    Args:
        a: (N,) hits or scores of one model.
        b: (N,) those of the other, in the same order of records.
        clusters: (N,) integers.
        seed: of the draws.
        resamples: how many draws.
        level: confidence level.

    Raises:
        ValueError: as `cluster_bootstrap`, or `a` and `b` differ in shape.
    """
    a_N, b_N = _paired(a, b)
    differences = b_N - a_N
    [interval] = cluster_bootstrap(differences[:, None], clusters, seed=seed, resamples=resamples, level=level)
    return Difference(float(differences.mean()), interval)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided McNemar test of two (N,) hit vectors on the same records: the p-value; 1 without discordant pairs.

    Only discordant records count: under the null hypothesis each is a fair coin (McNemar 1947, binomial form).

    Raises:
        ValueError: `a` and `b` are not vectors of one length.
    """
    a_N, b_N = _paired(a, b)
    only_a, only_b = int((a_N > b_N).sum()), int((b_N > a_N).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: below alpha, they bound the family-wise error by alpha (Holm 1979)."""
    p_M = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_M)
    steps = np.maximum.accumulate(p_M[order] * np.arange(len(p_M), 0, -1))
    adjusted = np.empty_like(p_M)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(p) for p in adjusted]


def option_probabilities(option_logprobs: ArrayLike) -> NDArray[np.float64]:
    """(N, O): the options' likelihoods, normalised over the four (a softmax of log-likelihoods)."""
    return np.exp(_normalised(option_logprobs))


def brier_scores(option_logprobs: ArrayLike, gold: ArrayLike) -> NDArray[np.float64]:
    """(N,): the squared distance to the one-hot gold option, 0 (sure and right) to 2 (sure and wrong).

    Brier (1950), the form that sums over all classes.

    Args:
        option_logprobs: (N, O) log-likelihoods in nats, which need not be normalised over the options.
        gold: (N,) integers, the gold option's place.

    Raises:
        ValueError: the shapes do not fit, a number is nan, or a place is not 0 to 3.
    """
    logprobs_NO, gold_N = _scored(option_logprobs, gold)
    squares: NDArray[np.float64] = ((np.exp(logprobs_NO) - np.eye(len(LETTERS))[gold_N]) ** 2).sum(axis=1)
    return squares


def negative_log_likelihoods(option_logprobs: ArrayLike, gold: ArrayLike) -> NDArray[np.float64]:
    """(N,): -ln p(gold option) in nats, p normalised over the four options; ln 4 = 1.386 for a guess.

    Args:
        option_logprobs: (N, O) log-likelihoods in nats, which need not be normalised over the options.
        gold: (N,) integers, the gold option's place.

    Raises:
        ValueError: as `brier_scores`.
    """
    logprobs_NO, gold_N = _scored(option_logprobs, gold)
    return -logprobs_NO[np.arange(len(gold_N)), gold_N]


class Recall(NamedTuple):
    """`k` of the `n` records whose gold letter is `letter` were answered right."""

    letter: Letter
    k: int
    n: int


def recall_by_letter(hits: Sequence[bool], letters: Sequence[Letter]) -> list[Recall]:
    """Recall per gold letter, A to D, n = 0 included: shows a model that favours a letter.

    Args:
        hits: (N,) whether each record was answered right.
        letters: (N,) gold letters.

    Raises:
        ValueError: `hits` and `letters` differ in length.
    """
    pairs = list(zip(hits, letters, strict=True))
    by_letter = {letter: [hit for hit, gold in pairs if gold == letter] for letter in LETTERS}
    return [Recall(letter, sum(map(bool, found)), len(found)) for letter, found in by_letter.items()]


def macro_recall(recalls: Sequence[Recall]) -> float:
    """Mean recall of the letters that occur: a model that always says one letter has 1 / (number of letters).

    Raises:
        ValueError: no letter occurs.
    """
    shares = [recall.k / recall.n for recall in recalls if recall.n]
    if not shares:
        raise ValueError("expected at least one record, got none")
    return sum(shares) / len(shares)


def recall_spread(recalls: Sequence[Recall]) -> float:
    """Standard deviation of the recalls of the letters that occur, 0 where every letter is recalled alike (RStd).

    Source: Zheng et al., Large language models are not robust multiple choice selectors (2024); over the population.

    Raises:
        ValueError: no letter occurs.
    """
    shares = [recall.k / recall.n for recall in recalls if recall.n]
    if not shares:
        raise ValueError("expected at least one record, got none")
    return float(np.std(shares))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.ndim != 1 or a_N.shape != b_N.shape:
        raise ValueError(f"expected two vectors of one length, got shapes {a_N.shape} and {b_N.shape}")
    return a_N, b_N


def _normalised(option_logprobs: ArrayLike) -> NDArray[np.float64]:
    normalised: NDArray[np.float64] = log_softmax(np.asarray(option_logprobs, dtype=np.float64), axis=-1)
    return normalised


def _scored(option_logprobs: ArrayLike, gold: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    logprobs_NO, gold_N = np.asarray(option_logprobs, dtype=np.float64), np.asarray(gold, dtype=np.int64)
    if logprobs_NO.shape != (len(gold_N), len(LETTERS)) or not len(gold_N):
        raise ValueError(f"expected log-likelihoods (N, 4) and gold (N,), got {logprobs_NO.shape} and {gold_N.shape}")
    if np.isnan(logprobs_NO).any():
        raise ValueError("log-likelihoods: expected numbers, got nan")
    if not ((gold_N >= 0) & (gold_N < len(LETTERS))).all():
        raise ValueError("gold: expected places from 0 to 3")
    return _normalised(logprobs_NO), gold_N
