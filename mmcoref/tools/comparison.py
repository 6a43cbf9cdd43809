"""Runs side by side, and whether the data can tell them apart.

McNemar's test takes records for independent. Records of one cluster (the same dialogue, the same options) are not, so its p is
slightly too small where there are clusters; the interval of the difference draws whole clusters. Both speak of the records
only: another seed is another run.

Legend of shapes: N records, R runs, P pairs, M metrics.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcoref.data.record import LETTERS, Letter
from mmcoref.errors import UserError
from mmcoref.evaluation.floors import best_object, best_photo
from mmcoref.evaluation.stats import Interval, cluster_bootstrap, holm, mcnemar, wilson
from mmcoref.tools.runs import METRICS, Above, Metric, Run, check_comparable

ALPHA = 0.05
BY_PUBLISHED_RULES: tuple[Metric, ...] = ("object_published_rule", "photo_published_rule", "exact_match")
HONEST = METRICS[:3]
_PUBLISHED_N, _PUBLISHED_RECORDS = 346, 1726
# Gold letters of the published test part: they tell it from that of 1,726 generated dialogues.
_PUBLISHED_GOLD: Counter[Letter] = Counter({"A": 91, "B": 19, "C": 40, "D": 196})
# Model; object, photo by the faulty rule, exact. The README and the report differ in one number.
_PUBLISHED = {
    "Llama-3.2-1B": (0.80, 0.93, 0.70),
    "Llama-3.2-3B": (0.84, 0.97, 0.65),
    "Llama-3.1-8B": (0.81, 0.95, 0.68),
    "Llama-3.1-8B-Instruct (README)": (0.74, 0.93, 0.74),
    "Llama-3.1-8B-Instruct (report)": (0.78, 0.93, 0.74),
}


@dataclass(frozen=True)
class Score:
    """A run's `k` hits of `n` records; `interval` is Wilson's, `bootstrap` draws clusters, both 95 % as the run wrote them."""

    k: int
    n: int
    interval: Interval
    bootstrap: Interval


@dataclass(frozen=True)
class AboveFloor:
    """By how much a run is above the best rule without a model, record by record; `above` where the whole interval is."""

    floor: str
    difference: float
    interval: Interval
    above: bool


@dataclass(frozen=True)
class Row:
    """One run; `name` stands for it in the tables."""

    name: str
    folder: str
    model: str
    decoding: str
    step: int
    seed: int | None
    test_seed: int | None
    scores: dict[Metric, Score]
    above_floor: dict[Metric, AboveFloor]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; `interval` is of the mean, over records (95 %, clusters drawn)."""

    mean: float
    sd: float
    interval: Interval


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only, one of each seed."""

    runs: tuple[str, ...]
    scores: dict[Metric, Spread]


@dataclass(frozen=True)
class Pair:
    """Two runs, record by record: how many only one of them answers right, and the share b - a (95 %, clusters drawn)."""

    a: str
    b: str
    only_a: int
    only_b: int
    difference: float
    interval: Interval
    p: float
    p_holm: float
    told_apart: bool


@dataclass(frozen=True)
class BestFloor:
    """The rule without a model that a metric is read against."""

    name: str
    k: int
    n: int


@dataclass(frozen=True)
class Published:
    """A published row: each metric's share, by its published rule, and the Wilson interval at 346 records."""

    model: str
    scores: dict[Metric, tuple[float, Interval]]


@dataclass(frozen=True)
class Comparison:
    """All that is printed.

    Attributes:
        data: the data file, as the first run names it.
        n: records.
        metric: of the pairs.
        runs: in the order given.
        groups: of two seeds or more.
        repeats: sets of runs with the same settings and seed.
        floors: the best one, by metric.
        pairs: by rising p.
        alike: the largest sets of runs of which the data tell no two apart.
        published: rows of the published table, where they were asked for.
    """

    data: str
    n: int
    metric: Metric
    runs: tuple[Row, ...]
    groups: tuple[Group, ...]
    repeats: tuple[tuple[str, ...], ...]
    floors: dict[Metric, BestFloor]
    pairs: tuple[Pair, ...]
    alike: tuple[tuple[str, ...], ...]
    published: tuple[Published, ...]


def compare(runs: Sequence[Run], metric: Metric = "object_accuracy", *, seed: int = 0, published: bool = False) -> Comparison:
    """Everything about the runs at once.

    Args:
        runs: one or more, on the same records.
        metric: that the pairs are tested by.
        seed: of the bootstraps' draws.
        published: whether to add the published rows.

    Raises:
        UserError: the runs are not comparable with each other, or with the published ones.
    """
    check_comparable(runs)
    if published:
        _check_published(runs[0])
    names = _names(runs)
    groups, repeats = _groups(runs, names, seed)
    pairs = _pairs(runs, names, metric, seed)
    return Comparison(
        data=runs[0].record.data.path,
        n=runs[0].record.n,
        metric=metric,
        runs=tuple(_row(run, name) for run, name in zip(runs, names, strict=True)),
        groups=groups,
        repeats=repeats,
        floors=_best_floors(runs),
        pairs=pairs,
        alike=_alike(names, {frozenset((pair.a, pair.b)) for pair in pairs if not pair.told_apart}),
        published=tuple(_published_row(*row) for row in _PUBLISHED.items()) if published else (),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' own names; where two are the same, all as the user gave them."""
    short = [Path(run.folder).resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [run.folder for run in runs]


def _best_floors(runs: Sequence[Run]) -> dict[Metric, BestFloor]:
    """Best over all runs: the records are the same, so that one run's floor is every run's."""
    floors = [floor for run in runs for floor in run.record.floors]
    by_object, by_photo = best_object(floors), best_photo(floors)
    return {
        "object_accuracy": BestFloor(by_object.name, by_object.object or 0, by_object.n),
        "photo_accuracy": BestFloor(by_photo.name, by_photo.photo, by_photo.n),
    }


def _row(run: Run, name: str) -> Row:
    record, best = run.record, run.record.above_best_floor
    counts, intervals, bootstraps = record.metrics.by_name(), record.intervals.by_name(), record.bootstrap.by_name()
    scores = {m: Score(counts[m].k, counts[m].n, Interval(*intervals[m]), Interval(*bootstraps[m])) for m in METRICS}
    levels: dict[Metric, Above] = {"object_accuracy": best.object, "photo_accuracy": best.photo}
    above = {m: AboveFloor(level.floor, level.value, Interval(*level.interval), level.interval[0] > 0) for m, level in levels.items()}
    return Row(name, run.folder, run.model, record.decoding, run.step, run.seed, run.test_seed, scores, above)


def _groups(runs: Sequence[Run], names: Sequence[str], seed: int) -> tuple[tuple[Group, ...], tuple[tuple[str, ...], ...]]:
    """Groups, and the sets of runs that repeat a seed, of which a group counts the first; a run without a seed is in neither."""
    same: dict[str, dict[tuple[int | None, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, run in enumerate(runs):
        if run.seed is not None:
            same[run.settings][run.seed, run.test_seed].append(i)
    repeats = tuple(tuple(names[i] for i in members) for seeds in same.values() for members in seeds.values() if len(members) > 1)
    groups = []
    for seeds in same.values():
        members = [repeated[0] for repeated in seeds.values()]
        if len(members) > 1:
            groups.append(Group(tuple(names[i] for i in members), _spreads([runs[i] for i in members], seed)))
    return tuple(groups), repeats


def _spreads(runs: Sequence[Run], seed: int) -> dict[Metric, Spread]:
    hits_NMR = np.stack([np.stack([run.hits[m] for m in METRICS], axis=1) for run in runs], axis=2)
    intervals = cluster_bootstrap(hits_NMR.mean(axis=2), runs[0].cluster, seed=seed)
    shares = [[float(share) for share in shares_R] for shares_R in hits_NMR.mean(axis=0)]
    return {
        m: Spread(statistics.fmean(of_runs), statistics.stdev(of_runs), interval)
        for m, of_runs, interval in zip(METRICS, shares, intervals, strict=True)
    }


def _pairs(runs: Sequence[Run], names: Sequence[str], metric: Metric, seed: int) -> tuple[Pair, ...]:
    ab_P2 = list(itertools.combinations(range(len(runs)), 2))
    if not ab_P2:
        return ()
    hits_RN = np.stack([run.hits[metric] for run in runs]).astype(np.int64)
    difference_NP = np.stack([hits_RN[b] - hits_RN[a] for a, b in ab_P2], axis=1)
    # One bootstrap for all pairs is what `paired_difference` gives for each: the draws depend on seed and clusters alone.
    intervals = cluster_bootstrap(difference_NP, runs[0].cluster, seed=seed)
    p_values = [mcnemar(hits_RN[a], hits_RN[b]) for a, b in ab_P2]
    pairs = [
        Pair(
            a=names[a],
            b=names[b],
            only_a=int((difference_N < 0).sum()),
            only_b=int((difference_N > 0).sum()),
            difference=float(difference_N.mean()),
            interval=interval,
            p=p,
            p_holm=p_holm,
            told_apart=p_holm < ALPHA,
        )
        for (a, b), difference_N, interval, p, p_holm in zip(ab_P2, difference_NP.T, intervals, p_values, holm(p_values), strict=True)
    ]
    return tuple(sorted(pairs, key=lambda pair: pair.p))


def _alike(names: Sequence[str], linked: set[frozenset[str]]) -> tuple[tuple[str, ...], ...]:
    """Largest sets of two or more of which each two are linked (Bron and Kerbosch 1973): being alike is not transitive."""
    near = {a: {b for b in names if frozenset((a, b)) in linked and a != b} for a in names}
    found: list[tuple[str, ...]] = []

    def extend(chosen: set[str], candidates: set[str], done: set[str]) -> None:
        if not candidates and not done and len(chosen) > 1:
            found.append(tuple(name for name in names if name in chosen))
        pivot = max(candidates | done, key=lambda name: len(near[name] & candidates), default=None)
        for name in [name for name in names if name in candidates and (pivot is None or name not in near[pivot])]:
            extend(chosen | {name}, candidates & near[name], done & near[name])
            candidates, done = candidates - {name}, done | {name}

    extend(set(), set(names), set())
    return tuple(sorted(found, key=lambda members: [names.index(name) for name in members]))


def _check_published(run: Run) -> None:
    data, gold = run.record.data, Counter(run.gold)
    if (run.record.n, data.records, gold) != (_PUBLISHED_N, _PUBLISHED_RECORDS, _PUBLISHED_GOLD):
        raise UserError(
            f"--published: the published results are of {_PUBLISHED_N} of {_PUBLISHED_RECORDS} records, gold letters "
            f"{_letters(_PUBLISHED_GOLD)}, and {run.folder} was tested on {run.record.n} of {data.records} in {data.path}, "
            f"gold letters {_letters(gold)}; leave --published out."
        )


def _letters(gold: Mapping[Letter, int]) -> str:
    return ", ".join(f"{letter} {gold.get(letter, 0)}" for letter in LETTERS)


def _published_row(model: str, shares: tuple[float, ...]) -> Published:
    scores = {m: (share, wilson(round(share * _PUBLISHED_N), _PUBLISHED_N)) for m, share in zip(BY_PUBLISHED_RULES, shares, strict=True)}
    return Published(model, scores)
