"""Signals that ask a program to stop, from its first line to its last.

Until work begins that could be lost, a signal ends the process at once. From then on the first one is remembered, and
obeyed at the next place that all processes share; a second one ends the process at once.

Python runs a handler only between two steps of the main thread, which may be waiting for another process inside a
library for minutes. So a thread listens: the interpreter writes each signal's number into a socket the moment it comes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOTICE = signal.SIGUSR1  # from Slurm: the job's time is nearly over
# One request often comes twice: `timeout`, torchrun and a closing terminal each send a signal to the group and to its members.
_SAME_REQUEST_SECONDS = 2.0


def say(message: str) -> None:
    """Print a line on standard error past Python's buffers and locks, which another thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode(errors="replace"))


class Signals:
    """Remembers the signal that asks this program to stop.

    Args:
        end: ends the process with an exit code.
        say: tells the user.
        clock: seconds.

    Attributes:
        received: number of the signal that asked first; 0 if none did.
        at_end: what is done before the process is ended at once, such as ending the processes that it has started.
    """

    listening = False  # whether any of them does, in this process

    def __init__(
        self,
        end: Callable[[int], object] = os._exit,
        say: Callable[[str], object] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.received = 0
        self.at_end: list[Callable[[], object]] = []
        self._end, self._say, self._clock = end, say, clock
        self._first = True
        self._handlers: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._holding = ""
        self._asked_at: float | None = None

    # ------------------------------------------------------------------ of the process

    @contextmanager
    def taken(self, *, first: bool = True, notice: bool = False, to_the_end: bool = False) -> Iterator[None]:
        """Listen for signals within the block, in a program's main thread; in another thread do nothing.

        A signal that is ignored stays ignored: SIGHUP under `nohup`, SIGINT in a script's `&`.

        Args:
            first: whether this is the first process of the run, which tells the user.
            notice: whether Slurm's notice is listened for, too.
            to_the_end: whether to listen on after the block, as the process ends with it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._start(first=first, notice=notice, own=to_the_end)
        try:
            yield
        finally:
            if not to_the_end:
                self._stop()

    def _start(self, *, first: bool, notice: bool, own: bool) -> None:
        self.received, self._holding, self._asked_at, self._first = 0, "", None, first
        numbers = [*STOPPING, *([NOTICE] if notice else [])]
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        self._terminals = [number for number in range(3) if os.isatty(number)] if own else []
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._remember) for number in heard}
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        Signals.listening = True

    def _stop(self) -> None:
        Signals.listening = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._writing.close()  # ends the listener
        self._listener.join()
        self._reading.close()

    def _remember(self, number: int, frame: object) -> None:
        """Note the signal in the main thread, so that its next step knows; the listener does all else."""
        if self._holding:
            self.received = self.received or number

    def _listen(self) -> None:
        while numbers := self._reading.recv(64):
            for number in numbers:
                if number in self._handlers:  # others' handlers write their signals here, too
                    self.arrived(number)

    # ------------------------------------------------------------------ states

    def hold(self, until: str) -> None:
        """Let the first signal from now on wait for a safe place.

        Args:
            until: the place, such as `after this batch`.
        """
        self._holding = until

    def release(self) -> None:
        """Let the next signal end the process at once again."""
        self._holding = ""

    def arrived(self, number: int) -> None:
        """Act on a signal; the listening thread calls this.

        Args:
            number: the signal's.
        """
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            self._leave_terminals()
        if number == NOTICE:  # which leaves time: it can wait for the first safe place, and more of them mean nothing new
            self._tell(f"{name}: stopping at the next safe place")
            self.received = self.received or number
        elif not self._holding:
            self._end_at_once(number, f"mmcoref: stopped by {name}")
        elif self._asked_at is None:
            self._asked_at = self._clock()
            self.received = self.received or number
            self._tell(f"{name}: stopping {self._holding}; a second signal stops at once")
        elif self._clock() - self._asked_at >= _SAME_REQUEST_SECONDS:
            self._end_at_once(number, f"mmcoref: stopped at once by {name}; what was not saved before is lost")

    def _leave_terminals(self) -> None:
        """Let what is written to a terminal go nowhere, as it is closed: a progress bar would end the run with an error."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def _tell(self, message: str) -> None:
        if self._first:
            self._say(message)

    def _end_at_once(self, number: int, message: str) -> None:
        self._tell(message)
        for action in self.at_end:
            action()
        self._end(128 + number)


SIGNALS = Signals()
"""Of this process."""


def _forget() -> None:
    """Keep a forked process, such as a data loader's worker, from writing into its parent's socket."""
    if Signals.listening:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
