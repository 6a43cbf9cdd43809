"""A process of a run that dies is named, with how it ended, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mmcoref.run import peers
from mmcoref.run.peers import LEADER, Peers

_WAITS = "import time; time.sleep(60)"


class Watched:
    """Peers whose process does not really end."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.said: list[str] = []
        self.ended = threading.Event()
        self.peers = Peers(self._end, self.said.append)

    def _end(self, code: int) -> None:
        self.codes.append(code)
        self.ended.set()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process that waits and one that has ended as its test says; no times of grace."""
    monkeypatch.setattr(peers, "_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(peers, "_JUDGEMENT_SECONDS", 0.05)
    monkeypatch.setattr(peers, "_POLL_SECONDS", 0.01)
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(processes: list[subprocess.Popen[bytes]], program: str) -> subprocess.Popen[bytes]:
    processes.append(subprocess.Popen([sys.executable, "-S", "-E", "-c", program]))
    return processes[-1]


@pytest.mark.parametrize(
    ("program", "said", "code"),
    [
        ("import sys; sys.exit(3)", "ended with exit code 3; what it printed says why", 3),
        ("import sys; sys.exit(143)", "was stopped by SIGTERM", 143),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL (by someone, or as the machine has no memory left)", 1),
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV", 1),
        ("import os; os.kill(os.getpid(), 15)", "was killed by SIGTERM", 143),
    ],
)
def test_a_process_that_dies_is_named_and_the_others_end(
    started: list[subprocess.Popen[bytes]], program: str, said: str, code: int
) -> None:
    watched = Watched()
    waiting, dead = start(started, _WAITS), start(started, program)
    watched.peers.watch(started)
    assert watched.ended.wait(10)
    assert watched.said == [f"mmcoref: error: process 2 of 3 (number {dead.pid}) {said}; the run ends."]
    assert watched.codes == [code]
    assert waiting.wait(10) == -signal.SIGKILL


def test_a_process_that_was_killed_is_named_before_those_that_failed_as_it_was(started: list[subprocess.Popen[bytes]]) -> None:
    watched = Watched()
    start(started, "import sys; sys.exit(1)").wait()
    start(started, "import os; os.kill(os.getpid(), 9)").wait()
    watched.peers.watch(started)
    assert watched.ended.wait(10)
    assert watched.said[0].startswith("mmcoref: error: process 2 of 3 ")


def test_nothing_is_said_when_all_end_well(started: list[subprocess.Popen[bytes]]) -> None:
    watched = Watched()
    start(started, "")
    watched.peers.watch(started)
    assert watched.peers.close(10) is None
    assert started[0].returncode == 0
    assert (watched.said, watched.codes) == ([], [])


def test_what_does_not_end_in_time_is_ended_and_no_failure_of_its_own(started: list[subprocess.Popen[bytes]]) -> None:
    watched = Watched()
    waiting = start(started, _WAITS)
    watched.peers.watch(started)
    assert watched.peers.close(0.05) is None
    assert waiting.returncode == -signal.SIGKILL
    assert watched.codes == []


def test_a_process_that_fails_at_the_very_end_is_named(started: list[subprocess.Popen[bytes]]) -> None:
    watched = Watched()
    failing = start(started, "import sys; sys.exit(1)")
    watched.peers.watch(started)
    expected = f"process 1 of 2 (number {failing.pid}) ended with exit code 1; what it printed says why"
    assert watched.peers.close(10) == (expected, 1)


def test_a_connection_that_is_lost_names_the_process_that_died(started: list[subprocess.Popen[bytes]]) -> None:
    watched = Watched()
    waiting, dead = start(started, _WAITS), start(started, "import os; os.kill(os.getpid(), 9)")
    dead.wait()
    watched.peers._children = started  # as if the watching thread had not looked yet
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31415")
    explained = watched.peers.explained(error)
    assert explained is not None
    assert str(explained).startswith(f"process 2 of 3 (number {dead.pid}) was killed by SIGKILL")
    dead.returncode = 0  # nobody of this machine
    explained = watched.peers.explained(error)
    assert explained is not None
    assert "the connection to another process of this run is lost" in str(explained)
    assert "Connection closed by peer" in str(explained)
    assert watched.peers.explained(RuntimeError("shapes do not match")) is None
    assert watched.peers.explained(ConnectionError("Connection reset by peer")) is None  # of a hub, say
    assert waiting.poll() is None


@pytest.mark.parametrize(("rank", "speaks"), [("1", True), ("2", False)])
def test_a_process_whose_leader_is_gone_ends_and_one_of_them_says_so(
    monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]], rank: str, speaks: bool
) -> None:
    watched = Watched()
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv(LEADER, str(os.getppid()))
    watched.peers.watch_leader()
    time.sleep(0.05)
    assert not watched.ended.is_set()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert watched.ended.wait(10)
    watched.peers.close(0)
    assert set(watched.codes) == {1}
    said = f"mmcoref: error: process 0 (number {os.environ[LEADER]}) has ended before the others; the run ends."
    assert watched.said[:1] == [said] * speaks


def test_a_process_without_a_leader_watches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEADER, raising=False)
    before = threading.active_count()
    Watched().peers.watch_leader()
    assert threading.active_count() == before
