"""The processes of a run on one machine: each knows who has died, says so, and does not stay behind.

Lightning's launcher watches the processes that it starts, but when one dies it kills all others and itself, without a word.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from mmcoref.errors import UserError, first_line
from mmcoref.run.signals import STOPPING, say

LEADER = "MMCOREF_LEADER"
"""Environment variable: the number of the process that has launched this one."""

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0  # in which a process may still say itself what is wrong
_JUDGEMENT_SECONDS = 10.0  # in which the first process finds out who has died
_TRANSPORT = re.compile(r"gloo|NCCL|TCPStore|Connection (closed|reset|refused)|Broken pipe|clients joined|listen on any local network")


class Peers:
    """The processes that this one has launched, or the one that has launched it.

    Args:
        end: ends the process with an exit code.
        say: tells the user.
    """

    def __init__(self, end: Callable[[int], object] = os._exit, say: Callable[[str], object] = say) -> None:
        self._end, self._say = end, say
        self._children: list[subprocess.Popen[bytes]] = []
        self._closing = threading.Event()

    # ------------------------------------------------------------------ of the first process

    def watch(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Watch processes that this one has launched: when one fails, say which, and end this one and the others."""
        self._children = list(children)
        self._closing.clear()
        threading.Thread(target=self._watch_children, name="children", daemon=True).start()

    def _watch_children(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            failed = self._failed()
            if failed is None:
                continue
            if not self._closing.wait(_GRACE_SECONDS):
                self._say(f"mmcoref: error: {failed[0]}; the run ends.")
                self.kill()
                self._end(failed[1])
            return

    def _failed(self) -> tuple[str, int] | None:
        """Which child has failed, in words, and the exit code that follows."""
        codes = [child.poll() for child in self._children]
        # One that was killed comes first: the others fail because it is gone.
        order = sorted(range(len(codes)), key=lambda place: (codes[place] or 0) >= 0)
        for place in order:
            code = codes[place]
            if code:
                who = f"process {place + 1} of {len(codes) + 1} (number {self._children[place].pid})"
                return f"{who} {_how(code)}", _follows(code)
        return None

    def kill(self) -> None:
        """End the launched processes at once."""
        for child in self._children:
            with contextlib.suppress(OSError):
                child.kill()

    def close(self, seconds: float) -> tuple[str, int] | None:
        """Wait for the launched processes, and end those that are not done in time.

        Args:
            seconds: how long.

        Returns:
            Which one failed, in words, and the exit code that follows; None if none did by itself.
        """
        self._closing.set()
        deadline = time.monotonic() + seconds
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        failed = self._failed()
        self.kill()
        for child in self._children:
            child.wait()
        self._children = []
        return failed

    # ------------------------------------------------------------------ of a launched process

    @property
    def launched(self) -> bool:
        """Whether another process of the run has launched this one."""
        return LEADER in os.environ

    def watch_leader(self) -> None:
        """End this process when the one that has launched it is gone; do nothing in others."""
        leader = os.environ.get(LEADER, "")
        if leader.isdecimal():
            self._closing.clear()
            threading.Thread(target=self._watch_leader, args=(int(leader),), name="leader", daemon=True).start()

    def _watch_leader(self, leader: int) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            if os.getppid() == leader:
                continue
            if os.environ.get("LOCAL_RANK") == "1":  # one of them is enough
                self._say(f"mmcoref: error: process 0 (number {leader}) has ended before the others; the run ends.")
            self._end(1)

    def let_leader_speak(self) -> None:
        """Wait a moment before this process says what is wrong: if all have met the same, the first one says it, and ends this one."""
        if self.launched:
            self._closing.wait(_GRACE_SECONDS / 2)

    # ------------------------------------------------------------------ of both

    def explained(self, error: BaseException) -> UserError | None:
        """Name the process whose end made a connection fail, instead of how the connection failed.

        Args:
            error: what this process met.

        Returns:
            A sentence; None if the error is not one of a connection.
        """
        if not _of_transport(error):
            return None
        if self.launched:
            self._closing.wait(_JUDGEMENT_SECONDS)  # the first process says who it was, and ends this one
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._children and time.monotonic() < deadline:
            failed = self._failed()
            if failed is not None:
                return UserError(f"{failed[0]}; the run ends.")
            time.sleep(_POLL_SECONDS)
        return UserError(
            f"the connection to another process of this run is lost, or was never made ({first_line(error)}): "
            "what that process printed says why."
        )


def _of_transport(error: BaseException) -> bool:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in kinds or (isinstance(error, RuntimeError) and _TRANSPORT.search(str(error)) is not None)


def _how(code: int) -> str:
    """How a process ended."""
    if code < 0:
        why = " (by someone, or as the machine has no memory left)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{why}"
    if code - 128 in STOPPING:
        return f"was stopped by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}; what it printed says why"


def _follows(code: int) -> int:
    """The exit code of a run whose process ended with `code`: a signal that asks to stop is passed on, all else is a failure."""
    asked = -code if code < 0 else code - 128
    return 128 + asked if asked in STOPPING else max(code, 1)


PEERS = Peers()
"""Of this process."""
