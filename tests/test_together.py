"""One process of a machine works for all of its processes; several real ones are in test_processes.py and test_sharded.py."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest
from torch import distributed

from mmcoref.errors import UserError
from mmcoref.together import _Outcome, once_per_machine

HERE, THERE = "here", "there"


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Outcome]]:
    """What the other processes tell this one."""
    told: list[_Outcome] = []

    def gather(every: list[Any], mine: _Outcome) -> None:
        every[:] = [*told, mine]

    with monkeypatch.context() as patched:  # undone before the group that is not there is ended
        patched.setattr(distributed, "is_initialized", lambda: True)
        patched.setattr(distributed, "get_world_size", lambda: len(told) + 1)
        patched.setattr(distributed, "all_gather_object", gather)
        patched.setattr(platform, "node", lambda: HERE)
        yield told


def never() -> str:
    raise AssertionError("this process was not to work")


def test_the_first_process_of_a_machine_works_and_the_others_take_its_result(
    others: list[_Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    others += [_Outcome(THERE, True, "theirs"), _Outcome(THERE, False)]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert once_per_machine(lambda: "ours") == "ours"
    monkeypatch.setenv("LOCAL_RANK", "1")
    others += [_Outcome(HERE, True, "ours")]
    assert once_per_machine(never) == "ours"
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert once_per_machine(never) == "ours"


def test_what_is_wrong_on_one_process_is_raised_on_all(others: list[_Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise UserError("a line", "and another")

    others += [_Outcome(THERE, True, None)]
    with pytest.raises(UserError, match="a line\nand another"):
        once_per_machine(fails)
    others += [_Outcome(THERE, True, None, ("damaged",))]
    with pytest.raises(UserError, match="damaged"):
        once_per_machine(lambda: None)
