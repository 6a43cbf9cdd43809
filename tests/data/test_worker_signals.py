"""A data loader's process lives through the signals that stop a run, and ends when its main process says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection

import pytest

from mmcoref.data.workers import leave_signals_to_the_main_process


def work(asked: Connection) -> None:
    leave_signals_to_the_main_process(0)
    while True:
        asked.send(asked.recv())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_worker_lives_until_its_main_process_ends_it(start: str) -> None:
    context = multiprocessing.get_context(start)
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there,), daemon=True)  # type: ignore[attr-defined]
    worker.start()

    def answers() -> bool:
        here.send("batch")
        return here.poll(20) and here.recv() == "batch"

    try:
        assert answers()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(worker.pid, number)
        program = f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"
        subprocess.run([sys.executable, "-S", "-E", "-c", program], check=True)  # from elsewhere
        assert answers()
        worker.terminate()  # from here
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join()
