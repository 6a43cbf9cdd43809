"""Each example once an epoch whatever the number of processes, the same optimizer steps, and an interrupted epoch taken up again."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, DistributedSampler

from mmcoref.data.sampler import EvalSampler, ResumableLoader, Slot, TrainSampler, batches_per_epoch, global_seed, taken_batches
from mmcoref.errors import UserError

RANKS = st.sampled_from([1, 2, 3, 8])
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=70)  # (tokens, answer tokens)


class Slots(Dataset[Slot]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, slot: Slot) -> Slot:
        return slot


def sampler(
    sizes: list[tuple[int, int]], *, ranks: int = 1, rank: int = 0, batch: int = 2, accumulate: int = 1, seed: int = 0, epoch: int = 0
) -> TrainSampler:
    made = TrainSampler(
        [tokens for tokens, _ in sizes],
        [targets for _, targets in sizes],
        batch_size=batch,
        accumulate=accumulate,
        num_replicas=ranks,
        rank=rank,
        seed=seed,
    )
    made.set_epoch(epoch)
    return made


def steps(sizes: list[tuple[int, int]], *, ranks: int, batch: int, accumulate: int, seed: int, epoch: int) -> list[list[list[list[Slot]]]]:
    """The epoch as [optimizer step][micro-batch][rank] -> rows, cut as a trainer with gradient accumulation cuts it."""
    samplers = [sampler(sizes, ranks=ranks, rank=rank, batch=batch, accumulate=accumulate, seed=seed, epoch=epoch) for rank in range(ranks)]
    rows = [list(one) for one in samplers]
    assert {len(one) for one in rows} == {len(one) for one in samplers} == {len(rows[0])}
    assert len(rows[0]) % batch == 0
    micro = [[one[start : start + batch] for one in rows] for start in range(0, len(rows[0]), batch)]
    return [micro[start : start + accumulate] for start in range(0, len(micro), accumulate)]


def flat(step: list[list[list[Slot]]]) -> list[Slot]:
    return [slot for micro in step for rows in micro for slot in rows]


def members(step: list[list[list[Slot]]]) -> list[int]:
    return sorted(slot.example for slot in flat(step) if slot.valid)


@settings(deadline=None)
@given(
    sizes=SIZES,
    ranks=RANKS,
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 40),
)
def test_every_example_is_seen_once_in_full_windows(
    sizes: list[tuple[int, int]], ranks: int, batch: int, accumulate: int, seed: int, epoch: int
) -> None:
    windows = steps(sizes, ranks=ranks, batch=batch, accumulate=accumulate, seed=seed, epoch=epoch)
    assert sorted(i for window in windows for i in members(window)) == list(range(len(sizes)))
    assert all(len(members(window)) == ranks * batch * accumulate for window in windows[:-1])
    assert len(windows) == -(-len(sizes) // (ranks * batch * accumulate))
    for window in windows:
        assert {slot.window_targets for slot in flat(window)} == {sum(sizes[i][1] for i in members(window))}
        assert {slot.example for slot in flat(window)} == set(members(window))  # rows that do not count come from the window too


@settings(deadline=None)
@given(sizes=SIZES, effective=st.sampled_from([8, 24, 48]), seed=st.integers(0, 9), epoch=st.integers(0, 9), data=st.data())
def test_an_optimizer_step_has_the_same_examples_however_it_is_split(
    sizes: list[tuple[int, int]], effective: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    ranks = data.draw(st.sampled_from([r for r in (1, 2, 3, 8) if effective % r == 0]), "ranks")
    batch = data.draw(st.sampled_from([b for b in range(1, 49) if effective // ranks % b == 0]), "batch")
    whole = steps(sizes, ranks=1, batch=effective, accumulate=1, seed=seed, epoch=epoch)
    split = steps(sizes, ranks=ranks, batch=batch, accumulate=effective // ranks // batch, seed=seed, epoch=epoch)
    assert [members(step) for step in split] == [members(step) for step in whole]
    assert [flat(step)[0].window_targets for step in split] == [flat(step)[0].window_targets for step in whole]


@settings(deadline=None)
@given(sizes=SIZES, ranks=RANKS, batch=st.integers(1, 4), accumulate=st.integers(1, 4))
def test_micro_batches_of_all_ranks_go_from_long_to_short_within_a_window(
    sizes: list[tuple[int, int]], ranks: int, batch: int, accumulate: int
) -> None:
    for window in steps(sizes, ranks=ranks, batch=batch, accumulate=accumulate, seed=3, epoch=1):
        lengths = [[sizes[slot.example][0] for rows in micro for slot in rows if slot.valid] for micro in window]
        assert all(min(longer) >= max(shorter) for longer, shorter in pairwise(lengths))
        assert [len(micro) for micro in lengths[:-1]] == [ranks * batch] * (len(lengths) - 1)


@pytest.mark.parametrize(("ranks", "batch", "accumulate"), [(1, 64, 1), (1, 2, 32), (8, 2, 4), (8, 8, 1), (2, 4, 8)])
def test_1380_examples_at_64_are_22_windows(ranks: int, batch: int, accumulate: int) -> None:
    windows = steps([(5, 2)] * 1380, ranks=ranks, batch=batch, accumulate=accumulate, seed=0, epoch=0)
    assert [len(members(window)) for window in windows] == [64] * 21 + [36]
    assert [flat(window)[0].window_targets for window in windows] == [128] * 21 + [72]


def test_a_small_window_is_dealt_out_as_written_by_hand() -> None:
    sizes = [(3, 1), (9, 2), (5, 4), (7, 8), (1, 16)]  # by length: 1, 3, 2, 0, 4
    ((first, second),) = steps(sizes, ranks=2, batch=2, accumulate=2, seed=0, epoch=0)

    def row(example: int, valid: bool = True) -> Slot:
        return Slot(example, valid, 31, window_batches=2)

    assert first == [[row(1), row(2)], [row(3), row(0)]]
    assert second == [[row(4), row(4, False)], [row(4, False), row(4, False)]]


def test_examples_of_one_length_keep_the_order_of_their_indices() -> None:
    assert [slot.example for slot in sampler([(5, 1)] * 6, batch=6)] == [0, 1, 2, 3, 4, 5]


def order_of(**settings: Any) -> list[list[int]]:
    """Windows of 4 out of 40 examples."""
    return [members(step) for step in steps([(1 + i % 5, 1) for i in range(40)], **({"ranks": 1, "batch": 4, "accumulate": 1} | settings))]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    plain = order_of(seed=0, epoch=0)
    assert order_of(seed=0, epoch=0) == plain
    assert order_of(seed=0, epoch=0, ranks=2, batch=1, accumulate=2) == plain
    others = [order_of(seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(order) for order in others}) == 9
    assert plain != [list(range(start, start + 4)) for start in range(0, 40, 4)]


def test_neither_the_global_random_stream_nor_other_lengths_move_the_windows() -> None:
    plain = order_of(seed=7, epoch=2)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert order_of(seed=7, epoch=2) == plain
    assert torch.equal(torch.get_rng_state(), before)
    same_window = [members(step) for step in steps([(9 - i % 9, 1) for i in range(40)], ranks=1, batch=4, accumulate=1, seed=7, epoch=2)]
    assert same_window == plain


def test_lightning_leaves_both_samplers_alone() -> None:
    assert isinstance(sampler([(1, 1)]), DistributedSampler)
    assert isinstance(EvalSampler([1], num_replicas=1, rank=0), DistributedSampler)


@pytest.mark.parametrize(("value", "seed"), [("42", 42), (None, 0)])
def test_the_global_seed_is_what_seed_everything_was_given(value: str | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if value is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", value)
    assert global_seed() == seed


N = 21
SIZES_21 = [(1 + i * 5 % 7, 1 + i % 3) for i in range(N)]


def loader(*, sizes: list[tuple[int, int]] | None = None, **settings: Any) -> ResumableLoader:
    """21 examples in micro-batches of 2, 2 to a step, on the second of 2 processes: 6 batches an epoch."""
    sizes = SIZES_21 if sizes is None else sizes
    order = sampler(sizes, **({"ranks": 2, "rank": 1, "batch": 2, "accumulate": 2, "seed": 5} | settings))
    return ResumableLoader(Slots(len(sizes)), sampler=order, collate_fn=list)


def epoch_of(one: ResumableLoader, epoch: int) -> list[list[Slot]]:
    one.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
    return list(one)


@pytest.mark.parametrize("k", range(7))
def test_a_resumed_epoch_goes_on_behind_the_batches_handed_out(k: int) -> None:
    whole = epoch_of(loader(), 3)
    assert len(whole) == len(loader()) == 6
    interrupted = loader()
    interrupted.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert list(islice(interrupted, k)) == whole[:k]
    state = interrupted.state_dict()
    assert state == {"batches": k % 6, "records": 21, "processes": 2, "batch_size": 2, "accumulate": 2, "seed": 5}

    resumed = loader()
    resumed.load_state_dict(state)
    assert epoch_of(resumed, 3) == whole[k % 6 :]
    assert resumed.state_dict()["batches"] == 0
    assert epoch_of(resumed, 4) == epoch_of(loader(), 4)  # the next epoch is whole
    assert resumed.state_dict()["batches"] == 0


@pytest.mark.parametrize("k", range(1, 5))
def test_an_epoch_can_be_interrupted_twice(k: int) -> None:
    whole = epoch_of(loader(), 0)
    first = loader()
    list(islice(first, k))
    second = loader()
    second.load_state_dict(first.state_dict())
    assert list(islice(second, 1)) == whole[k : k + 1]
    assert second.state_dict()["batches"] == k + 1
    third = loader()
    third.load_state_dict(second.state_dict())
    assert list(third) == whole[k + 1 :]


def test_a_state_that_was_just_loaded_is_the_state() -> None:
    # A checkpoint may be written before the first batch is taken.
    resumed = loader()
    state = {"batches": 2, "records": 21, "processes": 2, "batch_size": 2, "accumulate": 2, "seed": 5}
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state


def test_a_fresh_and_a_finished_epoch_have_no_batches_behind_them() -> None:
    one = loader()
    assert one.state_dict()["batches"] == 0
    list(one)
    assert one.state_dict()["batches"] == 0


OTHERS = [
    ({"ranks": 3}, "processes 2 -> 3"),
    ({"batch": 4}, "batch_size 2 -> 4"),
    ({"accumulate": 1}, "accumulate 2 -> 1"),
    ({"seed": 6}, "seed 5 -> 6"),
    ({"sizes": SIZES_21[:-1]}, "records 21 -> 20"),
    ({"batch": 1, "accumulate": 4}, "batch_size 2 -> 1, accumulate 2 -> 4"),
]


@pytest.mark.parametrize(("settings", "said"), OTHERS)
def test_other_settings_are_refused_in_the_middle_of_an_epoch(settings: dict[str, Any], said: str) -> None:
    interrupted = loader()
    list(islice(interrupted, 1))
    with pytest.raises(UserError) as caught:
        loader(**settings).load_state_dict(interrupted.state_dict())
    assert str(caught.value) == (
        "the checkpoint stands in the middle of an epoch and its place depends on settings that now differ "
        f"({said}): resume with the same ones, or from a checkpoint at the end of an epoch."
    )


@pytest.mark.parametrize(("settings", "said"), OTHERS)
def test_other_settings_are_accepted_between_two_epochs(settings: dict[str, Any], said: str) -> None:
    finished = loader()
    list(finished)
    other = loader(**settings)
    other.load_state_dict(finished.state_dict())
    assert epoch_of(other, 1) == epoch_of(loader(**settings), 1), said


def test_every_rank_can_resume_from_one_ranks_state() -> None:
    interrupted = loader(rank=0)
    list(islice(interrupted, 4))
    resumed = loader(rank=1)
    resumed.load_state_dict(interrupted.state_dict())
    assert list(resumed) == list(loader(rank=1))[4:]


@pytest.mark.parametrize("n", [346, 1, 5, 8, 0])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_example_is_evaluated_exactly_once_over_all_ranks(ranks: int, n: int) -> None:
    lengths = [1 + i * 7 % 13 for i in range(n)]
    rows = [list(EvalSampler(lengths, num_replicas=ranks, rank=rank)) for rank in range(ranks)]
    assert {len(one) for one in rows} == {-(-n // ranks)}
    assert [len(EvalSampler(lengths, num_replicas=ranks, rank=rank)) for rank in range(ranks)] == [-(-n // ranks)] * ranks
    assert sorted(slot.example for one in rows for slot in one if slot.valid) == list(range(n))
    assert sum(not slot.valid for one in rows for slot in one) == -n % ranks
    assert all(0 <= slot.example < n for one in rows for slot in one)
    assert all([slot.valid for slot in one] == sorted((slot.valid for slot in one), reverse=True) for one in rows)
    seen = [[lengths[slot.example] for slot in one] for one in rows]
    assert all(one == sorted(one, reverse=True) for one in seen)
    assert all(max(step) <= min(before) for before, step in pairwise(zip(*seen, strict=True)))


def test_evaluation_goes_from_long_to_short_and_fills_up_with_the_shortest() -> None:
    assert list(EvalSampler([5, 9, 9], num_replicas=1, rank=0)) == [Slot(1, True), Slot(2, True), Slot(0, True)]
    assert list(EvalSampler([5, 9, 9], num_replicas=2, rank=1)) == [Slot(2, True), Slot(0, False)]


# ---------------------------------------------------------------------- options shuffled; as published


def turned(epoch: int, i: int) -> tuple[tuple[int, ...], int]:
    """An order and a number of answer tokens that tell epoch and example."""
    turn = (epoch + i) % 4
    return tuple((place + turn) % 4 for place in range(4)), 10 * epoch + i


@pytest.mark.parametrize("epoch", [0, 3])
def test_each_row_carries_the_order_of_its_options_and_its_window_their_answer_tokens(epoch: int) -> None:
    sizes = [(1 + i % 5, 100) for i in range(11)]
    made = TrainSampler(
        [a for a, _ in sizes], [b for _, b in sizes], batch_size=2, accumulate=2, num_replicas=1, rank=0, seed=1, options=turned
    )
    made.set_epoch(epoch)
    slots = list(made)
    for start in range(0, len(slots), 4):
        window = slots[start : start + 4]
        assert {slot.window_targets for slot in window} == {sum(10 * epoch + slot.example for slot in window if slot.valid)}
        assert all(slot.order == turned(epoch, slot.example)[0] for slot in window if slot.valid)


@pytest.mark.parametrize("ranks", [1, 2])
def test_as_published_an_epoch_has_whole_windows_only_in_the_order_drawn(ranks: int) -> None:
    lengths = [1 + i * 5 % 7 for i in range(21)]

    def rows(rank: int, *, as_published: bool) -> list[Slot]:
        made = TrainSampler(lengths, [1] * 21, batch_size=2, accumulate=2, num_replicas=ranks, rank=rank, seed=5, as_published=as_published)
        assert len(list(made)) == len(made)
        return list(made)

    published = [rows(rank, as_published=True) for rank in range(ranks)]
    window = 4 * ranks
    assert [len(one) for one in published] == [21 // window * 4] * ranks
    assert all(slot.valid for one in published for slot in one)
    drawn = torch.randperm(21, generator=torch.Generator().manual_seed(5 * 1_000_003)).tolist()
    dealt = [slot.example for step in zip(*published, strict=True) for slot in step]
    assert dealt == drawn[: 21 // window * window]
    assert sorted({slot.example for rank in range(ranks) for slot in rows(rank, as_published=False)}) == list(range(21))


def test_1380_examples_as_published_are_630_steps_in_30_epochs() -> None:
    settings = {"batch_size": 2, "accumulate": 4, "num_replicas": 8}
    assert batches_per_epoch(1380, **settings, whole_windows=True) / 4 * 30 == 630
    assert batches_per_epoch(1380, **settings, whole_windows=False) == 87


@settings(deadline=None)
@given(
    sizes=SIZES,
    ranks=RANKS,
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    limit=st.one_of(st.none(), st.integers(1, 40), st.floats(0.05, 1.0)),
    as_published=st.booleans(),
)
def test_a_step_counts_the_answers_it_trains_on(
    sizes: list[tuple[int, int]], ranks: int, batch: int, accumulate: int, limit: float | None, as_published: bool
) -> None:
    loaders = []
    for rank in range(ranks):
        order = TrainSampler(
            [tokens for tokens, _ in sizes],
            [targets for _, targets in sizes],
            batch_size=batch,
            accumulate=accumulate,
            num_replicas=ranks,
            rank=rank,
            seed=3,
            as_published=as_published,
            limit=limit,
        )
        loaders.append(list(order))
    taken = taken_batches(len(loaders[0]) // batch, limit)
    for first in range(0, taken, accumulate):
        last = min(first + accumulate, taken)
        step = [slot for rows in loaders for slot in rows[first * batch : last * batch]]
        trained = sum(sizes[slot.example][1] for slot in step if slot.valid)
        assert {slot.window_targets for slot in step} == {trained}
        assert {slot.window_batches for slot in step} == {last - first}


def test_an_epoch_after_a_limited_one_starts_at_its_beginning() -> None:
    def loader() -> ResumableLoader:
        order = TrainSampler([1] * 12, [1] * 12, batch_size=2, accumulate=2, num_replicas=1, rank=0, seed=0, limit=3)
        return ResumableLoader(Slots(12), sampler=order, collate_fn=list)

    limited = loader()
    assert len(list(islice(limited, 3))) == 3  # of 6
    resumed = loader()
    resumed.load_state_dict(limited.state_dict())
    assert next(iter(resumed)) == next(iter(loader()))
