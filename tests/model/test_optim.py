"""The learning rate: exact by hand, and continuous where a resumed run changes its length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.model.optim import Schedule

STEPS = st.integers(1, 60)
WARMUPS = st.integers(0, 60)


def test_warm_up_rises_from_the_first_step_and_decay_ends_at_zero() -> None:
    schedule = Schedule(warmup_steps=2, total_steps=6)
    assert [schedule.factor(step) for step in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_run_within_its_warm_up_only_rises() -> None:
    assert [Schedule(4, 2).factor(step) for step in range(2)] == [0.25, 0.5]


@given(warmup=WARMUPS, total=STEPS, step=STEPS)
def test_the_same_settings_give_the_same_schedule(warmup: int, total: int, step: int) -> None:
    schedule = Schedule(warmup, total)
    assert schedule.resumed(step, warmup_steps=warmup, total_steps=total) is schedule


@given(warmup=WARMUPS, total=STEPS, step=STEPS, new_warmup=WARMUPS, new_total=STEPS, later=STEPS, third=STEPS)
def test_another_length_does_not_jump_and_ends_at_zero(
    warmup: int, total: int, step: int, new_warmup: int, new_total: int, later: int, third: int
) -> None:
    old = Schedule(warmup, total)
    new = old.resumed(step, warmup_steps=new_warmup, total_steps=new_total)
    again = new.resumed(step + later, warmup_steps=new_warmup, total_steps=third)
    for before, after, at in ((old, new, step), (new, again, step + later)):
        if before.factor(at) and at < after.total_steps and (before.warmup_steps == after.warmup_steps or at > after.warmup_steps):
            assert after.factor(at) == pytest.approx(before.factor(at))
        assert all(0 <= after.factor(k) <= 1 for k in range(at, at + 80))
        assert not after.factor(max(after.total_steps, after.warmup_steps))


def test_an_extended_run_decays_to_its_new_end() -> None:
    schedule = Schedule(2, 10).resumed(6, warmup_steps=2, total_steps=14)
    assert [schedule.factor(step) for step in (6, 8, 10, 14)] == pytest.approx([0.5, 0.375, 0.25, 0.0])


def test_a_finished_run_is_extended_at_a_rate_above_zero() -> None:
    schedule = Schedule(2, 6).resumed(6, warmup_steps=2, total_steps=10)
    assert schedule == Schedule(2, 10)
    assert schedule.factor(6) == 0.5


def test_a_changed_warm_up_continues_to_rise() -> None:
    schedule = Schedule(10, 40).resumed(4, warmup_steps=7, total_steps=40)
    assert [schedule.factor(step) for step in range(4, 8)] == pytest.approx([0.5, 0.75, 1.0, 1.0])
