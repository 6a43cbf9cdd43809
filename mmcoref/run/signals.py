"""Signals that ask a run to stop: remembered when they come, obeyed at the next safe place."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Remembers the first signal; a second one interrupts the process at once.

    Attributes:
        received: number of the first signal, 0 if none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[int, Any] = {}

    def take(self) -> None:
        """Take the signals over, if this is the main thread; no other can."""
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in STOPPING}

    def give_back(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if self.received:
            self.give_back()
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        log.info("%s: stopping after this optimizer step; a second signal stops at once", name)
