"""Programs stopped from outside, as users, terminals and schedulers do it: on all processes, with what was saved whole."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mmcoref.data.file import dump_records
from mmcoref.data.record import Record
from mmcoref.run.checkpoint import read_stored
from tests.test_processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
CPU = ["--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false"]


class Started:
    """A program in a process group of its own, with what it says in a file."""

    def __init__(self, command: list[str], **options: object) -> None:
        self.said_in = Path("said").absolute()
        with self.said_in.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
                **({"stdout": subprocess.DEVNULL, "stderr": said} | options),  # type: ignore[call-overload]
            )
        self.group: int = self.process.pid

    def said(self) -> str:
        return self.said_in.read_text("utf-8", errors="replace")

    def until(self, true: Callable[[], object], within: float = 150) -> None:
        deadline = time.monotonic() + within
        while not true():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.02)

    def child(self) -> int:
        """The second process of the run, which the first one has launched."""
        (child,) = (number for number, parent in processes(self.group).items() if parent == self.process.pid)
        return child

    def send(self, who: str, number: int) -> None:
        if who == "group":
            os.killpg(self.group, number)
        else:
            os.kill({"leader": self.process.pid, "child": 0}[who] or self.child(), number)

    def ends(self, within: float = 30) -> int:
        """The exit code, when all processes have ended."""
        code = self.process.wait(within)
        deadline = time.monotonic() + within
        while processes(self.group):
            assert time.monotonic() < deadline, f"left behind: {processes(self.group)}"
            time.sleep(0.05)
        return code


def processes(group: int) -> dict[int, int]:
    """The living processes of a group: number -> its parent's."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, of_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


@contextmanager
def started(*argv: str, launcher: tuple[str, ...] = (), **options: object) -> Iterator[Started]:
    """A program of ours; what is left of it at the end of the block is killed."""
    run = Started([sys.executable, *launcher, "-m", "mmcoref", *argv, *CPU], **options)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.group, signal.SIGKILL)
        run.process.wait()


@pytest.fixture
def many(dialogues: tuple[Record, ...], tmp_path: Path) -> Path:
    file = tmp_path / "many.json"
    file.write_text(dump_records([record for _ in range(400) for record in dialogues]), "utf-8")
    return file


@pytest.fixture
def long_test(llama_folder: Path, many: Path) -> list[str]:
    """A test on two processes that takes minutes, in batches of one record."""
    model = ["--model.name", str(llama_folder), "--model.max_new_tokens", "64"]
    return ["test", *model, "--data.path", str(many), "--data.eval_batch_size", "1", "--trainer.devices", "2", *QUIET]


@pytest.fixture
def endless_fit(llama_folder: Path, data_file: Path) -> list[str]:
    epochs = ["--trainer.max_epochs", "1000000", "--trainer.limit_val_batches", "0"]
    return ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), *epochs]


def answers(run: Started) -> bool:
    """Whether a test has met its other process and begins to answer."""
    if not any(RUN.glob("events*")):
        return False
    time.sleep(3)
    return True


@pytest.mark.parametrize("who", ["leader", "child", "group"])
def test_a_test_on_two_processes_stops_on_both(long_test: list[str], who: str) -> None:
    with started(*long_test) as run:
        run.until(lambda: answers(run))
        run.send(who, signal.SIGTERM)
        assert run.ends() == 143, run.said()
    assert run.said().count("SIGTERM: stopped after ") == 1
    assert "batches; nothing was written" in run.said()
    assert "Traceback" not in run.said()
    assert not (RUN / "record.json").exists()


def test_a_process_that_is_killed_in_a_test_is_named(long_test: list[str]) -> None:
    with started(*long_test) as run:
        run.until(lambda: answers(run))
        child = run.child()
        run.send("child", signal.SIGKILL)
        assert run.ends() == 1
    assert run.said().count("mmcoref: error: ") == 1
    assert f"mmcoref: error: process 1 of 2 (number {child}) was killed by SIGKILL" in run.said()
    assert "Traceback" not in run.said()


def has_child(run: Started) -> bool:
    return len(processes(run.group)) == 2


@pytest.mark.parametrize(
    ("who", "number", "code", "said"),
    [
        ("child", signal.SIGKILL, 1, "mmcoref: error: process 1 of 2 (number {child}) was killed by SIGKILL"),
        ("leader", signal.SIGKILL, -9, "mmcoref: error: process 0 (number {leader}) has ended before the others; the run ends."),
        ("leader", signal.SIGTERM, 143, "mmcoref: stopped by SIGTERM"),
        ("group", signal.SIGINT, 130, "mmcoref: stopped by SIGINT"),
    ],
)
def test_processes_that_are_stopped_before_they_have_met(long_test: list[str], who: str, number: int, code: int, said: str) -> None:
    with started(*long_test) as run:
        run.until(lambda: has_child(run))
        time.sleep(1)
        child = run.child()
        run.send(who, number)
        assert run.ends() == code, run.said()
    lines = [line for line in run.said().splitlines() if line.startswith("mmcoref: ")]
    assert len(lines) == 1
    assert lines[0].startswith(said.format(child=child, leader=run.process.pid))
    assert "Traceback" not in run.said()


def listens(run: Started) -> bool:
    """Whether a process has got from Python's own start to our first lines: Python leaves SIGTERM as it is."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{run.process.pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("after", [0.0, 1.0, 3.0])
def test_ctrl_c_at_start_is_one_line(endless_fit: list[str], after: float) -> None:
    with started(*endless_fit) as run:
        run.until(lambda: listens(run))
        time.sleep(after)
        run.send("group", signal.SIGINT)
        assert run.ends() == 130
    assert run.said() == "mmcoref: stopped by SIGINT\n"


def test_a_second_signal_ends_a_fit_at_once_and_damages_nothing(endless_fit: list[str]) -> None:
    # A step that takes for ever stands for a large model's; the run is saved before it.
    program = (
        "import sys, time; from mmcoref import cli; from mmcoref.model.module import MMCorefModule as M; step = M.training_step\n"
        "M.training_step = lambda self, *a: (time.sleep(60) if self.trainer.global_step == 7 else None, step(self, *a))[1]\n"
        "sys.argv[0] = 'mmcoref'; cli.command()"
    )
    run = Started([sys.executable, "-c", program, *endless_fit, *CPU, *QUIET, "--checkpoint.every_n_steps", "1"])
    try:
        run.until(LAST.exists)
        run.until(lambda: read_stored(LAST).step == 7)
        time.sleep(0.5)
        run.send("leader", signal.SIGTERM)
        time.sleep(2.5)
        assert run.process.poll() is None
        run.send("leader", signal.SIGTERM)
        assert run.ends(within=5) == 143
    finally:
        run.process.kill()
    assert "SIGTERM: stopping after this optimizer step; a second signal stops at once" in run.said()
    assert "mmcoref: stopped at once by SIGTERM; what was not saved before is lost" in run.said()
    assert "Traceback" not in run.said()
    assert read_stored(LAST).step == 7


def test_a_fit_outlives_its_terminal_until_it_is_saved(endless_fit: list[str]) -> None:
    # With the progress bar, which writes to the terminal without end.
    ours, its = pty.openpty()
    shell = (
        "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    run = Started([sys.executable, "-c", shell, "-m", "mmcoref", *endless_fit, *CPU], stdin=its, stdout=its, stderr=its)
    os.close(its)
    try:
        deadline = time.monotonic() + 120
        os.set_blocking(ours, False)
        while not LAST.exists() and time.monotonic() < deadline:
            with suppress(BlockingIOError):
                os.read(ours, 65536)
            time.sleep(0.01)
        before = read_stored(LAST).step
        os.close(ours)  # the terminal is gone
        assert run.ends() == 129
    finally:
        run.process.kill()
    assert read_stored(LAST).step >= before
    assert list(LAST.parent.iterdir()) == [LAST]


def test_a_job_in_a_scripts_background_ignores_ctrl_c_and_stops_by_sigterm(endless_fit: list[str]) -> None:
    command = " ".join([sys.executable, "-m", "mmcoref", *endless_fit, *CPU, *QUIET])
    run = Started(["/bin/sh", "-c", f"{command} & echo $! > number; wait $!"])
    try:
        run.until(LAST.exists)
        number = int(Path("number").read_text())
        os.kill(number, signal.SIGINT)
        time.sleep(2)
        assert number in processes(run.group)
        os.kill(number, signal.SIGTERM)
        assert run.ends() == 143
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.group, signal.SIGKILL)
    assert "SIGTERM: stopped at step" in run.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_group_with_workers_of_a_data_loader_is_saved(llama_folder: Path, many: Path, number: int) -> None:
    fit = ["fit", "--model.name", str(llama_folder), "--data.path", str(many), "--trainer.limit_val_batches", "0", *QUIET]
    workers = ["--data.num_workers", "2", "--trainer.devices", "1", "--checkpoint.every_n_steps", "1"]
    with started(*fit, *workers, "--trainer.max_epochs", "1000") as run:
        run.until(LAST.exists)
        assert len(processes(run.group)) == 3
        run.send("group", number)
        assert run.ends() == 128 + number, run.said()
    assert "checkpoint saved" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("who", ["leader", "group"])
def test_processes_of_torchrun_are_saved(endless_fit: list[str], who: str) -> None:
    meeting = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", str(free_port()))
    with started(*endless_fit, *QUIET, "--trainer.devices", "2", launcher=meeting) as run:
        run.until(LAST.exists)
        run.send(who, signal.SIGTERM)
        run.ends(within=60)
    assert run.said().count("checkpoint saved") == 1, run.said()
    step = read_stored(LAST).step
    assert f"SIGTERM: stopped at step {step}, checkpoint saved" in run.said()
