"""Processes of a data loader leave it to the main process when to stop."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_the_main_process(worker: int) -> None:
    """Let a data loader's process live through signals that ask the whole run to stop; the main process ends it in its time.

    Ctrl-C reaches all processes of a terminal, and Slurm, systemd and containers signal all processes that they know. A worker that
    died of it would end the main process with an error before that has saved.

    Args:
        worker: its number; the data loader gives it.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_the_main_process_asks, daemon=True).start()


def _end_when_the_main_process_asks() -> None:
    main = os.getppid()
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)
