"""Work that one process of a machine does for all of its processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mmcoref.errors import UserError

T = TypeVar("T")


class _Outcome(NamedTuple):
    """What a process tells the others.

    Attributes:
        machine: its name.
        did: whether this process has done the work.
        value: the result.
        problem: lines of the message, if it could not be done.
    """

    machine: str
    did: bool
    value: object = None
    problem: tuple[str, ...] | None = None


def once_per_machine(work: Callable[[], T]) -> T:
    """Do something on the first process of each machine, and give its result to all processes there.

    Every process of the run must call this, at the same place.

    Args:
        work: what is to be done; its result is sent between processes.

    Raises:
        UserError: on every process, if the work has raised it on one.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return work()
    machine = platform.node()
    mine = _Outcome(machine, False)
    if _is_first():
        try:
            mine = _Outcome(machine, True, work())
        except UserError as error:
            mine = _Outcome(machine, True, None, error.args)
    every: list[_Outcome] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(every, mine)
    for outcome in every:
        if outcome.problem is not None:
            raise UserError(*outcome.problem)
    done = [outcome for outcome in every if outcome.did]
    (value, *_) = [outcome.value for outcome in done if outcome.machine == machine] or [done[0].value]
    return value  # type: ignore[return-value]  # of the same work


def _is_first() -> bool:
    """Whether this is the first process of its machine, as its launcher's variables say."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
