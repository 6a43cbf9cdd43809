"""Run folders are made by hand, in the form that `mmcoref test` writes; numbers are checked against scipy and by counting."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from mmcoref.errors import UserError
from mmcoref.evaluation.stats import cluster_bootstrap, paired_difference, wilson
from mmcoref.tools.compare import main, show
from mmcoref.tools.comparison import Comparison, compare
from mmcoref.tools.runs import METRICS, Run, read_run

Answers = Sequence[int] | Sequence[bool]
N = 40
CLUSTERS = [i // 2 for i in range(N)]
FLOORS = [
    {"name": "always D", "object": 8, "photo": 20, "n": N},
    {"name": "mentioned last, last word", "object": 20, "photo": 22, "n": N},
    {"name": "photo of the speaker not named", "object": None, "photo": 30, "n": N},
]


def settings(**changes: Any) -> dict[str, Any]:
    """A fit's settings; `changes` are dotted, with two underscores for the dot."""
    form: dict[str, Any] = {
        "seed_everything": 42,
        "model": {"name": "org/small", "lr": 2e-5, "weight_decay": 0.01, "warmup_steps": 100, "max_new_tokens": None, "decoding": "greedy"},
        "data": {"path": "a.json", "prompt": "base", "max_tokens": 512, "batch_size": 2, "eval_batch_size": 16, "num_workers": 0},
        "trainer": {"devices": 8, "num_nodes": 1, "accumulate_grad_batches": 4, "max_epochs": 30, "precision": "16-mixed", "logger": None},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            form[section][name] = value
        else:
            form[section] = value
    return form


def write(
    folder: str,
    right: Answers,
    *,
    seed: int | None = 42,
    config: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    untrained: bool = False,
    step: int = 660,
    start: int = 100,
    clusters: Sequence[int] | None = None,
    gold: Sequence[str] | None = None,
    other: dict[str, Answers] | None = None,
    **changes: Any,
) -> str:
    """A run folder: object answers `right`, of the other metrics those of `other`, by default the same."""
    n = len(right)
    clusters = [i // 2 for i in range(n)] if clusters is None else clusters
    gold = ["ABCD"[i % 4] for i in range(n)] if gold is None else gold
    hits = {name: [bool(hit) for hit in (other or {}).get(name, right)] for name in METRICS}
    config = settings() if config is None else config
    training = settings(**{**config, "seed_everything": seed}) if training is None else training
    bootstrap = cluster_bootstrap(np.array([hits[name] for name in METRICS]).T, clusters, resamples=50)
    record = {
        "stage": "test",
        "partial": False,
        "n": n,
        "decoding": "greedy",
        "seed": seed,
        "config": {**config, "seed_everything": seed, "ckpt_path": f"{folder}.ckpt", "verbose": False},
        "training": None if untrained else training,
        "checkpoint": None if untrained else {"path": f"{folder}.ckpt", "step": step},
        "data": {"path": "a.json", "sha256": "0123456789abcdef" * 4, "records": start + n},
        "split": {"train": start, "val": 0, "test": n},
        "metrics": {name: {"value": sum(found) / n, "k": sum(found), "n": n} for name, found in hits.items()},
        "intervals": {name: list(wilson(sum(found), n)) for name, found in hits.items()},
        "bootstrap": dict(zip(METRICS, map(list, bootstrap), strict=True)),
        "floors": [floor | {"n": n} for floor in FLOORS],
        "above_best_floor": {
            "object": {"floor": FLOORS[1]["name"], "value": sum(right) / n - 0.5, "interval": [sum(right) / n - 0.6, sum(right) / n - 0.4]},
            "photo": {"floor": FLOORS[2]["name"], "value": 0.05, "interval": [0.0, 0.1]},
        },
        "versions": {"a key": "of no interest"},
        **changes,
    }
    lines = [
        {
            "id": start + i,
            "index": start + i,
            "cluster": int(clusters[i]),
            "gold": gold[i],
            "option": None,
            "text": "D) …\u2028.",
            "stopped": True,
        }
        | {name: hits[name][i] for name in METRICS}
        for i in range(n)
    ]
    Path(folder).mkdir(parents=True)
    Path(folder, "record.json").write_text(json.dumps(record, ensure_ascii=False, indent=2), "utf-8")
    Path(folder, "predictions.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return folder


def edit(folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = Path(folder, "record.json")
    record = json.loads(file.read_text("utf-8"))
    change(record)
    file.write_text(json.dumps(record), "utf-8")


def lines_of(folder: str) -> list[str]:
    return Path(folder, "predictions.jsonl").read_text("utf-8").split("\n")[:-1]


def answers(wrong: Sequence[int], n: int = N) -> list[bool]:
    return [i not in wrong for i in range(n)]


def read(*folders: str) -> list[Run]:
    return [read_run(folder) for folder in folders]


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        main(argv)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def shown(comparison: Comparison, width: int, *, terminal: bool = True) -> str:
    out = StringIO()
    show(comparison, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


@pytest.fixture
def three() -> list[str]:
    """Wrong answers 4, 6 (none of them shared with the first) and 20."""
    return [
        write("logs/version_1", answers(range(4))),
        write("logs/version_2", answers(range(4, 10)), config=settings(model__name="org/large")),
        write("logs/version_3", answers(range(20, 40)), config=settings(model__name="tiny")),
    ]


# ---------------------------------------------------------------------- pairs


def coin(only_a: int, only_b: int) -> float:
    return float(binomtest(only_a, only_a + only_b).pvalue)


def test_pairs_are_counted_record_by_record_and_tested_exactly(three: list[str]) -> None:
    found = compare(read(*three))
    assert found.metric == "object_accuracy"
    assert {(pair.a, pair.b): (pair.only_a, pair.only_b) for pair in found.pairs} == {
        ("version_1", "version_2"): (6, 4),
        ("version_1", "version_3"): (20, 4),
        ("version_2", "version_3"): (20, 6),
    }
    expected = {("version_1", "version_3"): coin(20, 4), ("version_2", "version_3"): coin(20, 6), ("version_1", "version_2"): coin(6, 4)}
    assert [(pair.a, pair.b) for pair in found.pairs] == list(expected)  # by rising p
    assert [pair.p for pair in found.pairs] == pytest.approx(list(expected.values()))
    assert [pair.difference for pair in found.pairs] == pytest.approx([-16 / N, -14 / N, -2 / N])


def test_p_values_are_holm_adjusted_over_all_pairs_and_decide(three: list[str]) -> None:
    """The middle p is below 0.05 / 2, and would not be told apart by Bonferroni's 0.05 / 3."""
    shutil.rmtree(three[1])
    write(three[1], answers(range(21)), config=settings(model__name="org/large"))  # 21 wrong; 17 only here, none only in the first
    shutil.rmtree(three[2])
    write(three[2], answers([0, 1, *range(10, 18)]), config=settings(model__name="tiny"))  # 10 wrong: 2 of the first's, 8 others
    found = compare(read(*three))
    raw = sorted([coin(17, 0), coin(2, 8), coin(0, 11)])
    assert [pair.p for pair in found.pairs] == pytest.approx(raw)
    assert [pair.p_holm for pair in found.pairs] == pytest.approx([3 * raw[0], 2 * raw[1], raw[2]])
    assert [pair.told_apart for pair in found.pairs] == [True, True, False]
    assert raw[2] > 0.05


def test_told_apart_needs_the_adjusted_p_below_005() -> None:
    """p = 0.0313 of one pair tells it apart; of three pairs it does not."""
    a, b, c = (write(f"v{i}", answers(range(wrong))) for i, wrong in enumerate((0, 6, 0)))
    [pair] = compare(read(a, b)).pairs
    assert pair.p == pair.p_holm == pytest.approx(2 / 2**6)
    assert pair.told_apart
    pairs = compare(read(a, b, c)).pairs
    assert [pair.p_holm for pair in pairs] == pytest.approx([6 / 2**6, 6 / 2**6, 1.0])
    assert not any(pair.told_apart for pair in pairs)


def test_differences_have_the_paired_interval_over_clusters(three: list[str]) -> None:
    runs = read(*three)
    by_name = dict(zip(("version_1", "version_2", "version_3"), runs, strict=True))
    for seed in (0, 5):
        for pair in compare(runs, "photo_accuracy", seed=seed).pairs:
            a, b = (by_name[name].hits["photo_accuracy"] for name in (pair.a, pair.b))
            difference, interval = paired_difference(a, b, CLUSTERS, seed=seed)
            assert pair.difference == pytest.approx(difference)
            assert pair.interval == pytest.approx(interval)
    assert len({compare(runs, seed=seed).pairs for seed in range(6)}) > 1


def test_the_interval_is_that_of_all_draws_of_clusters() -> None:
    """Against all 4^4 draws of four clusters, of 1, 2, 3 and 4 records."""
    clusters = np.repeat([7, 3, 9, 1], [1, 2, 3, 4])
    a, b = np.array([1, 1, 0, 0, 1, 0, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 1])
    [pair] = compare(read(*(write(f"v{i}", hits.tolist(), clusters=clusters.tolist()) for i, hits in enumerate((a, b))))).pairs
    draws = itertools.product([7, 3, 9, 1], repeat=4)
    means = [np.concatenate([(b - a)[clusters == cluster] for cluster in drawn]).mean() for drawn in draws]
    assert pair.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize("metric", ["object_accuracy", "photo_accuracy", "exact_match"])
def test_pairs_are_of_the_metric_asked_for(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"object_accuracy": 5, "photo_accuracy": 3, "exact_match": 7}
    write("a", answers([]))
    write("b", answers(range(5)), other={name: answers(range(wrong.get(name, 0))) for name in METRICS})
    main(["a", "--metric", metric, "b", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert [pair["only_a"] for pair in out["pairs"]] == [wrong[metric]]
    assert out["metric"] == metric
    main(["a", "b", "--metric", metric])
    assert f"Pairs by {metric}: " in capsys.readouterr().out


def test_records_are_matched_by_index_not_by_line(three: list[str]) -> None:
    before = compare(read(*three))
    file = Path(three[1], "predictions.jsonl")
    file.write_text("".join(f"{line}\n" for line in reversed(lines_of(three[1]))), "utf-8")
    assert compare(read(*three)) == before


def test_one_run_is_a_table_without_pairs(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(three[:1]) == 0
    out = capsys.readouterr().out
    assert "version_1" in out
    assert "Pairs" not in out
    assert "apart" not in out


# ---------------------------------------------------------------------- what the data cannot tell


def last_words(comparison: Comparison) -> str:
    return shown(comparison, 400)


def test_runs_that_cannot_be_told_apart_are_said_to_be_so(three: list[str]) -> None:
    found = compare(read(*three))
    assert found.alike == (("version_1", "version_2"),)
    text = last_words(found)
    assert "The data cannot tell apart (Holm's p ≥ 0.05): version_1 and version_2." in text
    assert "version_1 and version_2 are told apart only if" not in text
    [line] = [line for line in text.splitlines() if line.startswith("version_1  version_2")]
    assert line.endswith("cannot tell")
    [line] = [line for line in text.splitlines() if line.startswith("version_2  version_3")]
    assert line.endswith("  a")


def test_runs_that_are_told_apart_are_said_to_be_so(three: list[str]) -> None:
    found = compare(read(three[2], three[0]))
    assert found.alike == ()
    text = last_words(found)
    assert "The data tell each two runs apart (Holm's p < 0.05)." in text
    assert "cannot" not in text
    [line] = [line for line in text.splitlines() if line.startswith("version_3  version_1")]
    assert line.rstrip().endswith("  b")


def test_a_difference_that_clusters_do_not_bear_out_is_said() -> None:
    """Ten records of one cluster only: McNemar's test takes them for ten."""
    write("a", answers([]))
    write("b", answers(range(10)))
    one_cluster = [0] * 10 + list(range(1, 31))
    for name, wrong in (("c", 0), ("d", 10)):
        write(name, answers(range(wrong)), clusters=one_cluster)
    note = "told apart only if records of one cluster are taken for independent"
    torn, whole = compare(read("a", "b")), compare(read("c", "d"))
    assert torn.pairs[0].told_apart
    assert whole.pairs[0].told_apart
    assert note not in last_words(torn)
    assert f"\nc and d are {note}: the interval, which draws clusters, holds 0.\n" in last_words(whole)


def test_being_alike_is_not_transitive() -> None:
    """d is like c and c like b, but d is not like b; a is like none."""
    folders = [write(name, answers(range(wrong), 60)) for name, wrong in (("d", 0), ("c", 5), ("b", 9), ("a", 20))]
    found = compare(read(*folders))
    told = {frozenset((pair.a, pair.b)) for pair in found.pairs if pair.told_apart}
    expected = [
        members
        for size in (4, 3, 2)
        for members in itertools.combinations("dcba", size)
        if not any(frozenset(two) in told for two in itertools.combinations(members, 2))
    ]
    largest = [members for members in expected if not any(set(members) < set(others) for others in expected)]
    assert largest == [("d", "c"), ("c", "b")]
    assert list(found.alike) == largest
    assert f"apart (Holm's p ≥ 0.05): {'; '.join(named(members) for members in found.alike)}." in last_words(found)


def named(members: Sequence[str]) -> str:
    return f"{', '.join(members[:-1])} and {members[-1]}"


@pytest.mark.parametrize("seed", range(30))
def test_alike_are_the_largest_sets_whatever_is_told_apart(seed: int) -> None:
    from mmcoref.tools.comparison import _alike

    rng = np.random.default_rng(seed)
    names = list("abcdefg")
    linked = {frozenset(two) for two in itertools.combinations(names, 2) if rng.random() < 0.6}
    sets = [
        set(members)
        for size in range(2, 8)
        for members in itertools.combinations(names, size)
        if all(frozenset(two) in linked for two in itertools.combinations(members, 2))
    ]
    largest = sorted(tuple(sorted(members)) for members in sets if not any(members < others for others in sets))
    assert list(_alike(names, linked)) == largest


# ---------------------------------------------------------------------- seeds


def test_runs_that_differ_in_the_seed_only_are_a_group() -> None:
    right = {1: answers(range(4)), 2: answers(range(10)), 3: answers(range(5, 12))}
    folders = [write(f"v{seed}", hits, seed=seed, other={"exact_match": answers(range(20))}) for seed, hits in right.items()]
    folders.append(write("v4", answers(range(9)), seed=4, config=settings(model__name="other")))
    found = compare(read(*folders))
    [group] = found.groups
    assert group.runs == ("v1", "v2", "v3")
    spread = group.scores["object_accuracy"]
    shares = [36 / N, 30 / N, 33 / N]
    assert spread.mean == pytest.approx(statistics.fmean(shares))
    assert spread.sd == pytest.approx(math.sqrt(sum((share - 33 / N) ** 2 for share in shares) / 2))
    [interval] = cluster_bootstrap(np.mean(list(right.values()), axis=0)[:, None], CLUSTERS)
    assert spread.interval == pytest.approx(interval)
    assert group.scores["exact_match"].sd == 0
    assert f"0.825 ± 0.075 [{interval.low:.3f}–{interval.high:.3f}]" in shown(found, 200)
    [line] = [line for line in shown(found, 200).splitlines() if line.startswith("v1, v2, v3 ")]
    assert line.split()[3:7] == ["small", "greedy", "660", "3"]


def test_a_seed_that_is_there_twice_is_counted_once_and_said() -> None:
    a, b, c = (write(f"v{i}", answers(range(wrong)), seed=seed) for i, (wrong, seed) in enumerate(((2, 1), (8, 2), (12, 1))))
    found = compare(read(a, b, c))
    assert [group.runs for group in found.groups] == [("v0", "v1")]
    assert found.groups[0].scores["object_accuracy"].mean == pytest.approx(35 / N)
    assert found.repeats == (("v0", "v2"),)
    assert "v0 and v2 have the same settings and the same seed; a mean of seeds counts the first of them." in last_words(found)
    twice = compare(read(a, c))
    assert (twice.groups, twice.repeats) == ((), (("v0", "v2"),))
    assert "same seed" not in last_words(compare(read(a, b)))


def group_of_two(second: dict[str, Any], first: dict[str, Any] | None = None) -> bool:
    for name in ("one", "two"):
        shutil.rmtree(name, ignore_errors=True)
    write("one", answers([1]), **({"seed": 1} | (first or {})))
    write("two", answers([2]), **({"seed": 2} | second))
    found = compare(read("one", "two"))
    assert not found.repeats
    return bool(found.groups)


NOISE = {
    "trainer__devices": 4,  # with the batch below it is the same number of records an optimizer step
    "trainer__logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "elsewhere"}},
    "trainer__default_root_dir": "elsewhere",
    "trainer__enable_progress_bar": False,
    "trainer__accelerator": "cpu",
    "trainer__limit_val_batches": 2,
    "data__batch_size": 4,
    "data__eval_batch_size": 64,
    "data__micro_batch_size": 8,
    "model__gradient_checkpointing": True,
    "model__check_memory": False,
    "data__num_workers": 3,
    "model__max_new_tokens": 20,
    "model__decoding": "constrained",
    "model__val_generate": False,
    "model__permutations": "all",
    "checkpoint": {"every_n_steps": 50},
}


def test_what_decides_no_weight_does_not_separate_runs() -> None:
    assert group_of_two({"training": settings(seed_everything=2, **NOISE), "config": settings()})


@pytest.mark.parametrize(
    "change",
    [
        {"model__lr": 1e-4},
        {"model__name": "org/large"},
        {"model__adapter": "lora"},  # a key that today's lists do not know
        {"data__max_tokens": 256},
        {"data__val_size": 138},
        {"data__path": "b.json"},
        {"data__batch_size": 4},
        {"trainer__devices": 4},
        {"trainer__devices": "auto"},
        {"trainer__num_nodes": 2},
        {"trainer__max_epochs": 10},
        {"trainer__precision": "bf16-mixed"},
        {"trainer__gradient_clip_val": 0.5},
    ],
    ids=str,
)
def test_what_decides_the_weights_separates_runs(change: dict[str, Any]) -> None:
    assert not group_of_two({"training": settings(seed_everything=2, **change), "config": settings()})


@pytest.mark.parametrize(("devices", "same"), [([0, 1, 2, 3, 4, 5, 6, 7], True), ([0, 1], False), (-1, False)])
def test_devices_count_by_their_number(devices: Any, same: bool) -> None:
    assert group_of_two({"training": settings(seed_everything=2, trainer__devices=devices), "config": settings()}) is same


@pytest.mark.parametrize("devices", ["auto", -1])
def test_devices_of_unknown_number_share_nothing_with_other_batches(devices: Any) -> None:
    first = settings(trainer__devices=devices)
    other = settings(trainer__devices=devices, data__batch_size=4, trainer__accumulate_grad_batches=2)
    assert group_of_two({"training": first | {"seed_everything": 2}, "config": first}, {"config": first})
    assert not group_of_two({"training": other | {"seed_everything": 2}, "config": first}, {"config": first})


def test_the_published_recipe_depends_on_the_size_of_micro_batches() -> None:
    split = {"data__batch_size": 4, "trainer__accumulate_grad_batches": 2}
    for recipe, same in (("mmcoref", True), ("published", False)):
        first, second = settings(data__recipe=recipe), settings(data__recipe=recipe, **split, seed_everything=2)
        assert group_of_two({"training": second, "config": first}, {"config": first}) is same
        devices = settings(data__recipe=recipe, trainer__devices=4, trainer__accumulate_grad_batches=8, seed_everything=2)
        assert group_of_two({"training": devices, "config": first}, {"config": first})


def test_a_file_that_moved_is_the_same_file() -> None:
    moved = settings(seed_everything=2, data__path="elsewhere/a.json")
    data = {"path": "elsewhere/a.json", "sha256": "0123456789abcdef" * 4, "records": 140}
    assert group_of_two({"training": moved, "config": settings(data__path="elsewhere/a.json"), "data": data})
    assert not group_of_two({"training": moved, "config": settings()})


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"data__eval_batch_size": 3, "trainer__devices": 1, "model__lr": 1.0, "data__batch_size": 9}, True),
        ({"model__permutations": "cyclic"}, True),
        ({"model__max_new_tokens": 5}, False),
        ({"data__prompt": "chat"}, False),
        ({"trainer__precision": "32-true"}, False),
    ],
    ids=str,
)
def test_of_the_test_what_decides_answers_separates_runs(change: dict[str, Any], same: bool) -> None:
    assert group_of_two({"config": settings(**change), "training": settings(seed_everything=2)}) is same


def test_steps_and_decodings_separate_runs() -> None:
    assert not group_of_two({"step": 661})
    assert not group_of_two({"decoding": "constrained"})
    assert not group_of_two({"untrained": True})
    assert group_of_two({"untrained": True}, {"untrained": True})


def test_the_seed_is_the_trainings_and_where_decoding_samples_the_tests_too() -> None:
    trained = {"training": settings(seed_everything=7), "decoding": "published"}
    write("one", answers([1]), seed=1, **trained)
    write("two", answers([2]), seed=2, **trained)
    write("same", answers([2]), seed=7, **trained)
    found = compare(read("one", "two", "same"))
    assert [(row.seed, row.test_seed) for row in found.runs] == [(7, 1), (7, 2), (7, 7)]
    assert [group.runs for group in found.groups] == [("one", "two", "same")]
    assert re.search(r"one +small +published +660 +7, test 1 .*\n", shown(found, 200))
    assert re.search(r"same +small +published +660 +7 .*\n", shown(found, 200))
    greedy = {"training": settings(seed_everything=7)}
    assert compare(read(write("g1", answers([1]), seed=1, **greedy), write("g2", answers([1]), seed=2, **greedy))).repeats


def test_runs_without_a_known_seed_are_no_group_and_no_repeat() -> None:
    unknown = {"seed": None, "training": settings(seed_everything=True)}
    found = compare(read(write("one", answers([1]), **unknown), write("two", answers([2]), **unknown)))
    assert (found.groups, found.repeats, found.runs[0].seed) == ((), (), None)
    assert re.search(r"one +small +greedy +660 +– ", shown(found, 200))


def test_checkpoints_without_their_fits_settings_are_no_group() -> None:
    checkpoint = {"path": "a.ckpt", "step": 5}
    assert not group_of_two(
        {"untrained": True, "checkpoint": checkpoint}, {"untrained": True, "checkpoint": checkpoint | {"path": "b.ckpt"}}
    )
    parts = {key: value for key, value in settings().items() if key in ("model", "data")}  # all that an older checkpoint holds
    assert not group_of_two({"training": parts}, {"training": parts})


# ---------------------------------------------------------------------- rows and floors


def test_a_row_says_model_decoding_step_seed_and_scores_with_intervals() -> None:
    photo, exact = answers(range(2)), answers(range(9))
    write("logs/v9", answers(range(4)), seed=3, step=152, decoding="constrained", other={"photo_accuracy": photo, "exact_match": exact})
    write("logs/v10", answers(range(4)), untrained=True, config=settings(model__name="tiny-random"))
    row, untrained = compare(read("logs/v9", "logs/v10")).runs
    assert (row.name, row.folder, row.model, row.decoding, row.step, row.seed) == ("v9", "logs/v9", "org/small", "constrained", 152, 3)
    assert {name: (score.k, score.n) for name, score in row.scores.items()} == {
        "object_accuracy": (36, 40), "photo_accuracy": (38, 40), "exact_match": (31, 40),
        "object_published_rule": (36, 40), "photo_published_rule": (36, 40),
    }  # fmt: skip
    assert row.scores["photo_accuracy"].interval == wilson(38, 40)
    [bootstrap] = cluster_bootstrap(np.array(photo)[:, None], CLUSTERS, resamples=50)
    assert row.scores["photo_accuracy"].bootstrap == bootstrap
    assert (untrained.step, untrained.model) == (0, "tiny-random")
    [line] = [line for line in shown(compare(read("logs/v9")), 200).splitlines() if line.startswith("v9")]
    cells = [f"{k / N:.3f} [{wilson(k, N).low:.3f}–{wilson(k, N).high:.3f}]" for k in (36, 38, 31)]
    assert re.split(r" {2,}", line.strip()) == ["v9", "small", "constrained", "152", "3", *cells]


def test_runs_are_read_against_the_best_floor() -> None:
    """The intervals of the differences are the runs' own: above 0 from 25 of 40 on, and never by photo."""
    write("above", answers(range(15)))
    write("within", answers(range(17)))
    found = compare(read("above", "within"))
    assert {metric: (floor.name, floor.k) for metric, floor in found.floors.items()} == {
        "object_accuracy": ("mentioned last, last word", 20),
        "photo_accuracy": ("photo of the speaker not named", 30),
    }
    by_object = [row.above_floor["object_accuracy"] for row in found.runs]
    assert [(floor.floor, floor.above) for floor in by_object] == [
        ("mentioned last, last word", True),
        ("mentioned last, last word", False),
    ]
    assert [floor.difference for floor in by_object] == pytest.approx([0.125, 0.075])
    assert by_object[0].interval == pytest.approx((0.025, 0.225))
    assert [row.above_floor["photo_accuracy"].above for row in found.runs] == [False, False]  # an interval that begins at 0
    text = shown(found, 200)
    assert (
        "Best floor, object: 0.500, mentioned last, last word. Above it, with the whole interval of the difference: above; not: within."
        in text
    )
    assert "Best floor, photo: 0.750, photo of the speaker not named. Above it, with" in text
    assert "difference: none; not: above and within.\n" in text
    assert re.search(r"best floor +no model +– +– +– +0\.500 +0\.750 +–\n", text)


def test_runs_of_one_name_are_told_by_their_paths() -> None:
    write("x/version_0", answers([1]), config=settings(model__name="hub/small"))
    write("y/version_0", answers([2]), config=settings(model__name="mine/small"))
    found = compare(read("x/version_0", "y/version_0"))
    assert [row.name for row in found.runs] == ["x/version_0", "y/version_0"]
    assert re.search(r"x/version_0 +hub/small .*\n *y/version_0 +mine/small ", shown(found, 200))
    assert compare(read("x/version_0/")).runs[0].name == "version_0"


# ---------------------------------------------------------------------- published rows


@pytest.fixture
def published_part() -> str:
    gold = [letter for letter, count in {"A": 91, "B": 19, "C": 40, "D": 196}.items() for _ in range(count)]
    rules = {"object_published_rule": answers(range(66), 346), "photo_published_rule": answers(range(6), 346)}
    return write("ours", answers(range(86), 346), start=1380, gold=gold, other=rules)


def test_published_rows_stand_beside_ours_by_the_published_rules(published_part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([published_part, "--published"]) == 0
    honest, _, table = capsys.readouterr().out.partition("By the published rules")
    assert "published" not in honest
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines() if re.match(r"(ours|published) ", line)]

    def cell(share: float, form: str) -> str:
        interval = wilson(round(share * 346), 346)
        return f"{share:{form}} [{interval.low:.3f}–{interval.high:.3f}]"

    assert rows[0] == ["ours", "small", cell(280 / 346, ".3f"), cell(340 / 346, ".3f"), cell(260 / 346, ".3f")]
    assert rows[1:] == [
        ["published", model, *(cell(share, ".2f") for share in shares)]
        for model, shares in {
            "Llama-3.2-1B": (0.80, 0.93, 0.70),
            "Llama-3.2-3B": (0.84, 0.97, 0.65),
            "Llama-3.1-8B": (0.81, 0.95, 0.68),
            "Llama-3.1-8B-Instruct (README)": (0.74, 0.93, 0.74),
            "Llama-3.1-8B-Instruct (report)": (0.78, 0.93, 0.74),
        }.items()
    ]
    assert "0.80 [0.755–0.839]" in table
    assert "No outputs of the published runs are known" in table
    main([published_part])
    assert "published" not in capsys.readouterr().out.lower()


def test_published_rows_are_refused_beside_other_records(three: list[str], published_part: str) -> None:
    message = refused(three[0], "--published")
    assert message.startswith("--published: the published results are of 346 of 1726 records, gold letters A 91, B 19, C 40, D 196, ")
    assert message.endswith("logs/version_1 was tested on 40 of 140 in a.json, gold letters A 10, B 10, C 10, D 10; leave --published out.")
    generated = write("generated", answers([], 346), start=1380)  # as many, but not those
    assert "gold letters A 87, B 87, C 86, D 86; leave" in refused(generated, "--published")
    edit(published_part, lambda record: record["data"].update(records=1727))
    assert "346 of 1727" in refused(published_part, "--published")


# ---------------------------------------------------------------------- output


def test_json_is_the_comparison(published_part: str, capsys: pytest.CaptureFixture[str]) -> None:
    second = shutil.copytree(published_part, "second")
    edit(str(second), lambda record: record["training"].update(seed_everything=1))
    assert main([published_part, "--json", "second", "--published", "--seed", "3", "--metric", "exact_match"]) == 0
    comparison = compare(read(published_part, "second"), "exact_match", seed=3, published=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(asdict(comparison)))
    assert set(found) == {"data", "n", "metric", "runs", "groups", "repeats", "floors", "pairs", "alike", "published"}
    assert [key for key, value in found.items() if not value] == ["repeats"]
    assert found["runs"][0]["scores"]["exact_match"]["interval"] == list(wilson(260, 346))


def numbers_of(comparison: Comparison) -> list[str]:
    """What no table may cut: each value, interval and p as it is printed."""
    texts = []
    for row in comparison.runs:
        for score in list(row.scores.values())[:3]:
            texts += [f"{score.k / score.n:.3f}", f"[{score.interval.low:.3f}–{score.interval.high:.3f}]"]
    for group in comparison.groups:
        for spread in list(group.scores.values())[:3]:
            texts += [f"{spread.mean:.3f} ± {spread.sd:.3f}", f"[{spread.interval.low:.3f}–{spread.interval.high:.3f}]"]
    for pair in comparison.pairs:
        texts += [f"{100 * pair.difference:+.1f}", f"[{100 * pair.interval.low:+.1f}, {100 * pair.interval.high:+.1f}]"]
        texts += [f"{p:.4f}" if p >= 1e-4 else "<0.0001" for p in (pair.p, pair.p_holm)]
    for published in comparison.published:
        for share, interval in published.scores.values():
            texts += [f"{share:.2f}", f"[{interval.low:.3f}–{interval.high:.3f}]"]
    return texts


@pytest.fixture
def many(published_part: str) -> Comparison:
    """Four runs with long names, of which two are a group, with pairs of every kind."""
    gold = [json.loads(line)["gold"] for line in lines_of(published_part)]
    big = settings(model__name="meta-llama/Llama-3.1-8B-Instruct")
    for seed, wrong in ((1, 20), (2, 90), (3, 91)):
        kind = "constrained" if seed < 3 else "published"
        write(f"a-run-with-a-long-name-{seed}", answers(range(wrong), 346), start=1380, gold=gold, seed=seed, config=big, decoding=kind)
    return compare(read(published_part, *(f"a-run-with-a-long-name-{seed}" for seed in (1, 2, 3))), published=True)


def test_numbers_are_never_cut(many: Comparison) -> None:
    assert many.groups
    assert {pair.told_apart for pair in many.pairs} == {True, False}
    for width, terminal in ((80, True), (160, True), (80, False), (60, True), (40, True), (30, True)):
        text = shown(many, width, terminal=terminal)
        assert "…" not in text
        for number in numbers_of(many):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", text), (width, number)
        longest = max(map(len, text.splitlines()))
        assert longest <= width if terminal else longest > width
        if terminal:
            assert all(run.name in "".join(text.split("\n")) for run in many.runs)  # folded at most, as some are longer than a column


def test_wide_tables_have_a_line_a_run_and_narrow_ones_put_intervals_below(many: Comparison) -> None:
    score = many.runs[0].scores["photo_accuracy"]
    value, interval = f"{score.k / score.n:.3f}", f"[{score.interval.low:.3f}–{score.interval.high:.3f}]"
    for text in (shown(many, 200), shown(many, 80, terminal=False)):
        assert f"{value} {interval}" in text
        assert re.search(r"\nours +small +greedy +660 +42 ", text)
        assert re.search(r"\na-run-with-a-long-name-3 +Llama-3.1-8B-Instruct +published +660 +3 ", text)
    assert re.search(r"\nIn brackets: .* between seeds\.\n", shown(many, 80, terminal=False))  # sentences are not folded either
    narrow = shown(many, 80)
    assert f"{value} {interval}" not in narrow
    assert re.search(rf"\nours +greedy +660 +42 .* {value} .*\nsmall .* {re.escape(interval)} ", narrow)


def test_p_below_the_last_digit_is_said_to_be_below() -> None:
    found = compare(read(write("a", answers([])), write("b", answers(range(20)))))
    assert found.pairs[0].p < 1e-4
    assert shown(found, 200).count("<0.0001") == 2
    assert "1.0000" in shown(compare(read("a", write("c", answers([])))), 200)


def test_names_are_printed_as_they_are() -> None:
    write("[red]", answers([1]), config=settings(model__name="[bold]:smile:"))
    shutil.move(write("plain", answers([1])), "\udcff")
    text = shown(compare(read("[red]", "\udcff")), 200)
    assert re.search(r"\n\[red\] +\[bold\]:smile: ", text)
    assert "\\udcff" in text


# ---------------------------------------------------------------------- refusals


def test_no_runs_and_wrong_options_are_refused(three: list[str]) -> None:
    assert refused() == "expected one run folder or more, such as lightning_logs/version_3, got none."
    assert refused("--metric", "f1", *three).startswith("compare: argument --metric: invalid choice: 'f1' (choose from")
    assert refused(three[0], "--limit") == "compare: unrecognized arguments: --limit; see mmcoref compare --help."
    assert (
        refused(three[0], "--publish")
        == "compare: unrecognized arguments: --publish; did you mean --published?; see mmcoref compare --help."
    )
    assert refused(three[0], "--seed", "-1") == "seed: expected 0 or more, got -1."


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: mmcoref compare ")
    assert all(option in out for option in ("RUN", "--metric", "--published", "--seed", "--json"))


def test_a_run_named_twice_is_refused(three: list[str]) -> None:
    Path("link").symlink_to(three[0])
    again = f"{three[1]}/../version_1"
    for second in (three[0], again, "link", Path(three[0]).resolve()):
        assert refused(three[0], str(second)) == f"{three[0]} is named twice; name each run once."


def test_a_partial_run_is_refused_even_alone(three: list[str]) -> None:
    edit(three[1], lambda record: record.update(partial=True))
    expected = f"{three[1]} is partial (--data.limit or limited batches): test it on all its records first."
    assert refused(*three) == refused(three[1]) == expected


def test_other_data_are_refused(three: list[str]) -> None:
    edit(three[2], lambda record: record["data"].update(path="b.json", sha256="f" * 64))
    assert refused(*three) == (
        f"{three[0]} and {three[2]} were not tested on the same records: the data differ, "
        "a.json (sha256 0123456789ab) and b.json (sha256 ffffffffffff); test both on one file."
    )


def test_other_records_of_the_same_data_are_refused(three: list[str]) -> None:
    write("short", answers(range(4), N - 1))
    write("moved", answers(range(4)), start=101)
    start = f"{three[0]} and %s were not tested on the same records: %d are in one of the two only, the first is record %d;"
    assert refused(three[0], "short").startswith(start % ("short", 1, 139))
    assert refused(three[0], "moved") == f"{start % ('moved', 2, 100)} test both with the same --data settings."


@pytest.mark.parametrize("change", [{"gold": ["D"] * N}, {"clusters": [0] * N}])
def test_records_that_changed_between_versions_are_refused(change: dict[str, Any], three: list[str]) -> None:
    write("other", answers([]), **change)
    index = 100 if "gold" in change else 102
    assert f"same records: record {index} has another gold letter or cluster in each; run the tests again" in refused(three[0], "other")


def test_a_folder_that_is_no_test_run_is_refused_with_the_way_out(three: list[str]) -> None:
    assert refused("nowhere").startswith("nowhere: no such run folder; name one that `mmcoref test` wrote")
    assert refused("logs") == "logs: expected a run folder, got a folder of 3 runs; name those to compare, such as logs/version_1."
    assert refused(f"{three[0]}/record.json").endswith(f"expected a run folder, got a file; name the folder that it lies in, {three[0]}.")
    Path("fit/checkpoints").mkdir(parents=True)
    assert refused("fit") == (
        "fit: a fit, which has no record.json; run mmcoref test --ckpt_path fit/checkpoints/last.ckpt "
        "and compare the folder that it writes."
    )
    edit(three[1], lambda record: record.update(stage="validate"))
    assert refused(three[1]) == f"{three[1]}: expected a test run, got one of `mmcoref validate`; test its model with mmcoref test first."
    Path("predicted").mkdir()
    Path("predicted/predictions.jsonl").write_text("")
    assert refused("predicted").startswith("predicted: no record.json in it; name a folder that `mmcoref test` wrote")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda record: record.pop("training"), "no training"),
        (lambda record: record["metrics"].pop("exact_match"), "no metrics.exact_match"),
        (lambda record: record["bootstrap"].pop("photo_accuracy"), "no bootstrap.photo_accuracy"),
        (lambda record: record.pop("stage"), "no stage"),
        (lambda record: record["above_best_floor"].pop("photo"), "no above_best_floor.photo"),
        (lambda record: record.update(decoding="sampled"), "decoding: input should be 'greedy', 'constrained' or 'published'"),
        (lambda record: record.update(n="many"), "n: input should be a valid integer"),
        (lambda record: record.update(floors=[FLOORS[2]]), "floors: value error, no floor names objects"),
    ],
)
def test_a_record_of_another_form_is_refused(change: Callable[[dict[str, Any]], None], got: str, three: list[str]) -> None:
    edit(three[0], change)
    message = refused(three[0])
    assert message.startswith(f"{three[0]}/record.json: expected what `mmcoref test` writes, got {got}")
    assert message.endswith("; run the test again with this version.")


def test_broken_files_are_refused(three: list[str]) -> None:
    for text in ("", '{"stage": "te', "[" * 100_000):
        Path(three[0], "record.json").write_text(text)
        assert refused(three[0]).startswith(f"{three[0]}/record.json: expected what `mmcoref test` writes, got broken JSON;")
    Path(three[1], "predictions.jsonl").write_bytes(b"\xff\n")
    assert refused(three[1]) == f"{three[1]}/predictions.jsonl: expected UTF-8 text, got byte 0xff; run the test again."
    Path(three[2], "predictions.jsonl").unlink()
    assert refused(three[2]) == f"{three[2]}/predictions.jsonl: cannot be read (No such file or directory); run the test again."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], " does not match its record.json: 39 predictions, where it counts 40;"),
        (lambda lines: [*lines, lines[0]], " does not match its record.json: 41 predictions, where it counts 40;"),
        (lambda lines: [*lines[:-1], lines[0]], " does not match its record.json: record 100 is answered 2 times;"),
        (lambda lines: [], " does not match its record.json: 0 predictions, where it counts 40;"),
        (lambda lines: [*lines[:7], lines[7][:-9], *lines[8:]], ", line 8: expected what `mmcoref test` writes, got broken JSON;"),
        (
            lambda lines: [lines[0].replace('"cluster"', '"c"'), *lines[1:]],
            ", line 1: expected what `mmcoref test` writes, got no cluster;",
        ),
        (
            lambda lines: [lines[0].replace('"gold": "A"', '"gold": "E"'), *lines[1:]],
            ", line 1: expected what `mmcoref test` writes, got gold: input should be 'A', 'B', 'C' or 'D';",
        ),
    ],
)
def test_predictions_that_do_not_match_their_record_are_refused(
    change: Callable[[list[str]], list[str]], message: str, three: list[str]
) -> None:
    file = Path(three[0], "predictions.jsonl")
    file.write_text("".join(f"{line}\n" for line in change(lines_of(three[0]))), "utf-8")
    assert refused(three[0]).startswith(f"{file}{message} run the test again")


@pytest.mark.parametrize("metric", METRICS)
def test_hits_that_do_not_match_their_record_are_refused(metric: str, three: list[str]) -> None:
    file = Path(three[0], "predictions.jsonl")
    first, *rest = lines_of(three[0])
    file.write_text("\n".join([first.replace(f'"{metric}": false', f'"{metric}": true'), *rest]) + "\n", "utf-8")
    assert refused(three[0]) == (
        f"{file} does not match its record.json: {metric} is 37 of 40, where it counts 36 of 40; run the test again."
    )


def test_a_metric_of_another_n_is_refused(three: list[str]) -> None:
    edit(three[0], lambda record: record["metrics"]["exact_match"].update(n=346))
    assert "exact_match is 36 of 40, where it counts 36 of 346;" in refused(three[0])


def test_comparing_loads_no_torch(three: list[str]) -> None:
    program = f"import sys; from mmcoref.tools.compare import main; main({three}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")


def test_checkpoints_are_told_apart_by_their_digest_where_settings_do_not_say_it() -> None:
    bare = {"model": {}, "data": {}}  # without a trainer's settings nothing shows that two fits were alike
    digests = {"a": "1" * 64, "moved": "1" * 64, "other": "2" * 64}
    for folder, digest in digests.items():
        write(folder, answers([0]), training=bare, checkpoint={"path": "same.ckpt", "step": 660, "digest": digest})
    write("old", answers([0]), training=bare, checkpoint={"path": "same.ckpt", "step": 660})
    edit("moved", lambda record: record["checkpoint"].update(path="elsewhere.ckpt"))
    a, moved, other, old = (run.settings for run in read("a", "moved", "other", "old"))
    assert a == moved
    assert len({a, other, old}) == 3


def test_what_a_fit_read_is_known_by_its_digest_wherever_it_lay() -> None:
    here, there, other = settings(data__path="a.json"), settings(data__path="/data/a.json"), settings(data__path="a.json")
    read_by = {"a": (here, "1" * 64), "b": (there, "1" * 64), "c": (other, "2" * 64)}
    for folder, (training, digest) in read_by.items():
        write(folder, answers([0]), training=training, training_data={"path": "x.json", "sha256": digest, "records": 40})
    a, b, c = (run.settings for run in read("a", "b", "c"))
    assert a == b
    assert a != c
