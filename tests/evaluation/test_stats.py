import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.evaluation.stats import (
    Recall,
    brier_scores,
    cluster_bootstrap,
    holm,
    macro_recall,
    mcnemar,
    negative_log_likelihoods,
    option_probabilities,
    paired_difference,
    recall_by_letter,
    recall_spread,
    wilson,
)

Z = {0.95: 1.959963984540054, 0.99: 2.5758293035489004}


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from(list(Z)))
def test_wilson_is_the_score_interval(k_n: tuple[int, int], level: float) -> None:
    """Its ends are the shares p at which k / n lies z standard errors sqrt(p (1 - p) / n) away."""
    k, n = k_n
    low, high = wilson(k, n, level=level)
    assert 0 <= low <= k / n <= high <= 1 + 1e-12
    for end in (low, high):
        assert (k / n - end) ** 2 == pytest.approx(Z[level] ** 2 * end * (1 - end) / n, abs=1e-12)


def test_wilson_at_the_published_size() -> None:
    assert wilson(277, 346) == pytest.approx((0.755, 0.839), abs=5e-4)  # 0.80 of 346
    with pytest.raises(ValueError, match="k"):
        wilson(3, 2)


def test_cluster_bootstrap_draws_whole_clusters() -> None:
    """Against all 4^4 draws of four clusters, of 1, 2, 3 and 4 records."""
    rng = np.random.default_rng(5)
    clusters = np.repeat([7, 3, 9, 1], [1, 2, 3, 4])
    table = rng.random((10, 2))
    means = []
    for drawn in itertools.product([7, 3, 9, 1], repeat=4):
        rows = np.concatenate([table[clusters == cluster] for cluster in drawn])
        means.append(rows.mean(axis=0))
    expected = np.quantile(means, [0.1, 0.9], axis=0).T
    order = rng.permutation(10)  # the members of a cluster need not be neighbours
    found = cluster_bootstrap(table[order], clusters[order], resamples=20_500, level=0.8)
    assert np.asarray(found) == pytest.approx(expected, abs=0.01)


def test_copies_within_a_cluster_add_no_certainty() -> None:
    hits = np.random.default_rng(0).random((40, 1)) < 0.7
    clusters = np.arange(40)
    [once] = cluster_bootstrap(hits, clusters)
    [copied] = cluster_bootstrap(np.repeat(hits, 5, axis=0), np.repeat(clusters, 5))
    [taken_for_independent] = cluster_bootstrap(np.repeat(hits, 5, axis=0), np.arange(200))
    assert copied == pytest.approx(once)
    assert taken_for_independent.high - taken_for_independent.low < 0.6 * (once.high - once.low)


def test_cluster_bootstrap_is_seeded_and_shares_draws_between_columns() -> None:
    hits = np.random.default_rng(1).random(60) < 0.6
    clusters = np.arange(60) // 2
    a, b = cluster_bootstrap(np.stack([hits, hits], axis=1), clusters, seed=3, resamples=1_500)
    assert a == b == cluster_bootstrap(hits[:, None], clusters, seed=3, resamples=1_500)[0]
    assert [a] != cluster_bootstrap(hits[:, None], clusters, seed=4, resamples=1_500)


def test_cluster_bootstrap_covers_the_truth_where_wilson_does_not() -> None:
    """80 clusters of 1 to 6 records; a cluster's records are right together or wrong together, nine times in ten."""
    rng = np.random.default_rng(11)
    covered = np.zeros(2)
    repeats = 300
    for _ in range(repeats):
        clusters = np.repeat(np.arange(80), rng.integers(1, 7, size=80))
        together = rng.random(80) < 0.6
        hits = np.where(rng.random(len(clusters)) < 0.9, together[clusters], rng.random(len(clusters)) < 0.6)
        [bootstrap] = cluster_bootstrap(hits[:, None], clusters, resamples=400)
        for i, (low, high) in enumerate([bootstrap, wilson(int(hits.sum()), len(hits))]):
            covered[i] += low <= 0.6 <= high
    assert 0.91 <= covered[0] / repeats <= 0.98
    assert covered[1] / repeats < 0.85


def test_paired_difference_is_better_b_minus_a() -> None:
    a = np.tile([1, 0, 1, 0], 50)
    b = np.where(np.arange(200) < 20, 1, a)  # b mends ten of a's errors and breaks nothing
    difference = paired_difference(a, b, np.arange(200))
    assert difference.mean == pytest.approx(0.05)
    assert 0 < difference.interval.low < 0.05 < difference.interval.high < 0.1
    # Differences of hits that agree elsewhere are far more certain than the two accuracies apart.
    [alone] = cluster_bootstrap(a[:, None], np.arange(200))
    assert difference.interval.high - difference.interval.low < 0.6 * (alone.high - alone.low)
    [flipped] = [paired_difference(b, a, np.arange(200)).interval]
    assert flipped == pytest.approx((-difference.interval.high, -difference.interval.low))


@pytest.mark.parametrize(
    ("table", "clusters", "level", "message"),
    [
        (np.ones(4), np.arange(4), 0.95, r"got \(4,\)"),
        (np.ones((4, 1)), np.arange(3), 0.95, r"\(4, 1\) and \(3,\)"),
        (np.ones((0, 1)), np.arange(0), 0.95, r"\(0, 1\)"),
        (np.ones((4, 1)), np.arange(4), 95, "between 0 and 1"),
    ],
)
def test_cluster_bootstrap_refuses_shapes_that_do_not_fit(table, clusters, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(table, clusters, level=level)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_of_the_discordant_records(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(max(only_a, only_b), n + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_mcnemar_at_the_published_size() -> None:
    """3.8 points net of 346 at 10 % discordant answers are just significant; a little less is not."""
    agree = [True] * 312
    assert mcnemar([*agree, *[True] * 24, *[False] * 10], [*agree, *[False] * 24, *[True] * 10]) < 0.05
    assert mcnemar([*agree, *[True] * 22, *[False] * 12], [*agree, *[False] * 22, *[True] * 12]) > 0.05
    with pytest.raises(ValueError, match="one length"):
        mcnemar([True], [True, False])


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    """Holm's own words: the smallest p against alpha / m, the next against alpha / (m - 1), …, until one fails."""
    rejected = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - step) > alpha:
            break
        rejected[index] = True
    assert [p <= alpha for p in holm(p_values)] == rejected


def test_holm_keeps_the_order_and_stops_at_one() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


LOGITS = st.lists(st.lists(st.floats(-8, 8), min_size=4, max_size=4), min_size=1, max_size=6)


@given(LOGITS, st.data())
def test_brier_and_likelihood_equal_references(logits: list[list[float]], data: st.DataObject) -> None:
    gold = data.draw(st.lists(st.integers(0, 3), min_size=len(logits), max_size=len(logits)))
    scores = torch.tensor(logits, dtype=torch.float64)
    p = scores.softmax(dim=1)
    assert option_probabilities(logits) == pytest.approx(p.numpy())
    squares = [sum((p[i, o].item() - (o == gold[i])) ** 2 for o in range(4)) for i in range(len(gold))]
    assert brier_scores(logits, gold) == pytest.approx(squares)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(gold), reduction="none")
    assert negative_log_likelihoods(logits, gold) == pytest.approx(expected.numpy(), abs=1e-9)


@given(LOGITS, st.floats(-200, 200))
def test_likelihoods_need_not_be_normalised(logits: list[list[float]], shift: float) -> None:
    gold = [0] * len(logits)
    shifted = (np.array(logits) + shift).tolist()
    assert brier_scores(shifted, gold) == pytest.approx(brier_scores(logits, gold))
    assert negative_log_likelihoods(shifted, gold) == pytest.approx(negative_log_likelihoods(logits, gold))


def test_brier_and_likelihood_at_their_ends() -> None:
    sure, guess = [[-2000.0, -2000, 0, -2000]] * 2, np.zeros((2, 4))
    assert brier_scores(sure, [2, 2]).tolist() == [0, 0]
    assert brier_scores(sure, [0, 1]).tolist() == [2, 2]
    assert brier_scores(guess, [0, 3]) == pytest.approx([0.75, 0.75])
    assert negative_log_likelihoods(sure, [2, 1]).tolist() == [0, 2000]  # finite where the probability itself is 0
    assert negative_log_likelihoods(guess, [0, 3]) == pytest.approx([math.log(4)] * 2)


@pytest.mark.parametrize("score", [brier_scores, negative_log_likelihoods])
@pytest.mark.parametrize(
    ("logprobs", "gold", "message"),
    [
        (np.zeros((2, 3)), [0, 1], r"got \(2, 3\)"),
        (np.zeros((2, 4)), [0], r"and \(1,\)"),
        (np.zeros((0, 4)), [], r"got \(0, 4\)"),
        (np.full((1, 4), math.nan), [0], "nan"),
        (np.zeros((1, 4)), [4], "places"),
        (np.zeros((1, 4)), [-1], "places"),
    ],
)
def test_scores_refuse_what_is_no_distribution(score, logprobs, gold, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(logprobs, gold)


def test_the_spread_of_recall_is_the_standard_deviation_over_the_letters_that_occur() -> None:
    recalls = [Recall("A", 1, 2), Recall("B", 0, 0), Recall("C", 3, 3), Recall("D", 0, 5)]
    assert recall_spread(recalls) == pytest.approx((((0.5 - 0.5) ** 2 + 0.5**2 + 0.5**2) / 3) ** 0.5)
    assert recall_spread([Recall("A", 1, 2), Recall("B", 2, 4)]) == 0
    with pytest.raises(ValueError, match="at least one"):
        recall_spread([])


def test_recall_by_letter_shows_a_favourite() -> None:
    letters = ["A", "A", "A", "C", "D", "D"]
    always_d = recall_by_letter([letter == "D" for letter in letters], letters)
    assert always_d == [Recall("A", 0, 3), Recall("B", 0, 0), Recall("C", 0, 1), Recall("D", 2, 2)]
    assert macro_recall(always_d) == pytest.approx(1 / 3)  # of the three letters that occur
    assert macro_recall(recall_by_letter([True, False, False, True, True, True], letters)) == pytest.approx((1 / 3 + 1 + 1) / 3)
    with pytest.raises(ValueError, match="at least one"):
        macro_recall(recall_by_letter([], []))
    with pytest.raises(ValueError, match="shorter"):
        recall_by_letter([True], [])
