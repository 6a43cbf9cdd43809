"""The first signal waits for a safe place, a second one does not, and before there is anything to lose none does."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcoref.run.signals import NOTICE, STOPPING, Signals


class Watched:
    """Signals whose process does not really end, with a clock of their own."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.said: list[str] = []
        self.now = 100.0
        self.signals = Signals(self.codes.append, self.said.append, lambda: self.now)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_at_start_ends_the_process_at_once_in_one_line(number: int) -> None:
    watched = Watched()
    ended: list[str] = []
    watched.signals.at_end = [lambda: ended.append("children")]
    watched.signals.arrived(number)
    assert watched.codes == [128 + number]
    assert watched.said == [f"mmcoref: stopped by {signal.Signals(number).name}"]
    assert ended == ["children"]


def test_the_first_signal_waits_and_a_second_one_does_not() -> None:
    watched = Watched()
    watched.signals.hold("after this batch")
    watched.signals.arrived(signal.SIGTERM)
    assert watched.signals.received == signal.SIGTERM
    assert watched.said == ["SIGTERM: stopping after this batch; a second signal stops at once"]
    watched.now += 1.9  # `timeout`, torchrun and a closing terminal send the same request twice
    watched.signals.arrived(signal.SIGHUP)
    assert watched.codes == []
    watched.now += 0.2
    watched.signals.arrived(signal.SIGINT)
    assert watched.codes == [130]
    assert watched.signals.received == signal.SIGTERM
    assert watched.said[1:] == ["mmcoref: stopped at once by SIGINT; what was not saved before is lost"]


def test_slurms_notice_always_waits_and_counts_as_no_request() -> None:
    watched = Watched()
    watched.signals.arrived(NOTICE)
    assert watched.signals.received == NOTICE
    watched.signals.hold("after this optimizer step")
    for _ in range(2):
        watched.now += 5
        watched.signals.arrived(NOTICE)
    watched.signals.arrived(signal.SIGTERM)  # the job's end comes while it is still being saved
    assert (watched.codes, watched.signals.received) == ([], NOTICE)
    watched.now += 5
    watched.signals.arrived(signal.SIGTERM)
    assert watched.codes == [143]


@given(st.lists(st.tuples(st.sampled_from([*STOPPING, NOTICE]), st.floats(0, 5)), max_size=8))
def test_a_process_ends_at_once_if_and_only_if_two_requests_are_apart(arriving: list[tuple[int, float]]) -> None:
    watched = Watched()
    watched.signals.hold("after this batch")
    first = None
    for number, later in arriving:
        watched.now += later
        before = len(watched.codes)
        watched.signals.arrived(number)
        asks = number != NOTICE
        apart = asks and first is not None and watched.now - first >= 2
        assert watched.codes[before:] == [128 + number] * apart
        if asks and first is None:
            first = watched.now
    assert watched.signals.received == (arriving[0][0] if arriving else 0)


def test_signals_are_heard_while_the_main_thread_is_inside_a_library(capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[tuple[int, float]] = []
    signals = Signals(lambda code: ended.append((code, time.monotonic())))
    before = [signal.getsignal(number) for number in STOPPING]
    with signals.taken():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"a collective", b"that waits for another process", 1_000_000)
        returned = time.monotonic()
        until(lambda: ended)
    ((code, at),) = ended
    assert code == 143
    assert at < returned - 0.05
    assert capfd.readouterr().err == "mmcoref: stopped by SIGTERM\n"
    assert [signal.getsignal(number) for number in STOPPING] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_main_thread_knows_of_a_signal_at_its_next_step() -> None:
    signals = Signals(lambda _: None, lambda _: None)
    with signals.taken():
        signals.hold("after this batch")
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_others_of_the_run_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    signals = Signals(lambda _: None)
    with signals.taken(first=False):
        signals.hold("after this batch")
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: signals._asked_at)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "a script's &"])
def test_a_signal_that_is_ignored_stays_ignored(number: int) -> None:
    watched = Watched()
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with watched.signals.taken():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: watched.codes)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert watched.codes == [143]


def test_the_notice_is_heard_in_a_slurm_job_only() -> None:
    before = signal.getsignal(NOTICE)
    for notice in (False, True):
        with Signals(lambda _: None, lambda _: None).taken(notice=notice):
            assert (signal.getsignal(NOTICE) == before) == (not notice)
    assert signal.getsignal(NOTICE) == before


def test_a_forked_worker_does_not_report_its_signals_to_its_parent() -> None:
    watched = Watched()
    with watched.signals.taken():
        watched.signals.hold("after this batch")
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches it, too; it lives on until its parent is done
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: watched.said)
    assert watched.said == ["SIGTERM: stopping after this batch; a second signal stops at once"]


def test_what_is_written_to_a_closed_terminal_goes_nowhere() -> None:
    ours, its = pty.openpty()
    watched = Watched()
    watched.signals._terminals = [its]
    watched.signals.hold("after this batch")
    os.close(ours)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(its, b"progress")
    watched.signals.arrived(signal.SIGHUP)
    assert os.write(its, b"progress") == 8
    os.close(its)


def test_another_thread_takes_nothing() -> None:
    seen = []

    def run() -> None:
        with Signals().taken():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
