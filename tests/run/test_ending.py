"""The end of a process that was one of several: an exit code, and nothing lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from torch import distributed

from mmcoref import cli
from mmcoref.errors import Stopped
from mmcoref.run import ending, slurm
from mmcoref.run.signals import SIGNALS

_ROOT = Path(__file__).parent.parent.parent
# The groups are still referred to, as a device mesh refers to them. The first process's are done with when it has parted already: their
# threads then want the interpreter's lock, to let go of a tensor, and are caught at it, as the loop withholds it from them.
_ONE_OF_TWO = """
import sys, time
import torch
from torch import distributed
from mmcoref.run.ending import leave, part

torch.set_num_threads(1)
distributed.init_process_group("gloo")
sys.kept = [distributed.group.WORLD] + [distributed.new_group() for _ in range(4)]
distributed.barrier()
if distributed.get_rank() == 1:
    time.sleep(0.5)
first = distributed.get_rank() == 0
for group in sys.kept:
    distributed.all_reduce(torch.ones(4), group=group, async_op=first)
part()
sys.setswitchinterval(1e6)
end = time.monotonic() + first
while time.monotonic() < end:
    pass
leave(int(distributed.is_initialized()) + 3)
"""
_WITH_SOMETHING_LEFT_TO_DO = """
import atexit, sys, threading, time
from mmcoref.errors import Stopped
from mmcoref.run import ending, slurm
from mmcoref.run.signals import SIGNALS

ending._one_of_several = True
atexit.register(print, "exit handler", end="")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread", end=", "))).start()
ending.leave(5)
"""


def _pair(code: str) -> list[int]:
    """What both processes end with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | meeting | {"RANK": str(rank), "PYTHONPATH": str(_ROOT)},
        )
        for rank in range(2)
    ]
    return [process.wait(timeout=120) for process in processes]


def test_one_of_several_ends_with_its_exit_code_whatever_its_groups_still_hold() -> None:
    assert _pair(_ONE_OF_TWO) == [3, 3]


def test_its_threads_exit_handlers_and_output_are_not_lost() -> None:
    command = [sys.executable, "-c", _WITH_SOMETHING_LEFT_TO_DO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(_ROOT)})
    assert (done.returncode, done.stdout) == (5, "thread, exit handler")


def test_the_command_ends_so(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(cli, "leave", left.append)
    monkeypatch.setattr(cli, "main", lambda: 3)
    cli.command()
    assert left == [3]
    (script,) = metadata.entry_points(group="console_scripts", name="mmcoref")
    assert script.value == "mmcoref.cli:command"


def test_a_fit_of_several_processes_parts(llama_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_one_of_several", False)
    options = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.max_epochs", "1"]
    strategy = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    assert cli.main(["fit", *options, *strategy]) == 0
    assert not distributed.is_initialized()
    assert ending._one_of_several


def test_a_process_of_its_own_ends_as_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_one_of_several", False)
    with pytest.raises(SystemExit) as ended:
        ending.leave(2)
    assert ended.value.code == 2


def _ends(monkeypatch: pytest.MonkeyPatch, program: str, run: Callable[[], int]) -> int:
    """The exit code of a command whose program does that."""
    monkeypatch.setattr(cli, "_run", lambda argv: run())
    return cli.main([program])


def test_a_signal_after_the_last_batch_keeps_what_is_written_and_stops_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        SIGNALS.hold("after this batch")
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert _ends(monkeypatch, "test", run) == 143
    assert "SIGTERM came when all was done and written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "stops", "wanted", "code", "requeues"),
    [("fit", True, True, 138, 1), ("fit", True, False, 138, 0), ("fit", False, True, 0, 0), ("test", True, True, 138, 0)],
)
def test_slurms_notice_requeues_a_fit_that_it_has_stopped(
    monkeypatch: pytest.MonkeyPatch, program: str, stops: bool, wanted: bool, code: int, requeues: int
) -> None:
    asked: list[bool] = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(slurm, "requeue", lambda: asked.append(True))
    monkeypatch.setattr(slurm, "wanted", wanted)

    def run() -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        if stops:
            raise Stopped("stopped at step 3", signal.SIGUSR1)
        return 0

    assert _ends(monkeypatch, program, run) == code
    assert len(asked) == requeues


def test_a_process_that_fails_at_the_end_fails_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.PEERS, "close", lambda seconds: ("process 1 of 2 (number 7) ended with exit code 1", 1))
    assert _ends(monkeypatch, "test", lambda: 0) == 1
    assert capsys.readouterr().err == "mmcoref: error: process 1 of 2 (number 7) ended with exit code 1.\n"
    assert _ends(monkeypatch, "test", lambda: 2) == 2
    assert capsys.readouterr().err == ""


def test_a_lost_connection_is_one_sentence_and_any_other_error_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(message: str) -> Callable[[], int]:
        def run() -> int:
            raise RuntimeError(message)

        return run

    assert _ends(monkeypatch, "test", fails("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711")) == 1
    said = capsys.readouterr().err
    assert said.startswith("mmcoref: error: the connection to another process of this run is lost")
    assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="shapes"):
        _ends(monkeypatch, "test", fails("shapes do not match"))
    left: list[int] = []
    monkeypatch.setattr(cli, "leave", left.append)
    monkeypatch.setattr(cli, "main", fails("shapes do not match"))
    cli.command()
    assert left == [1]
    assert "RuntimeError: shapes do not match" in capsys.readouterr().err


def test_a_run_leaves_the_environment_variables_as_they_were(llama_folder: Path, data_file: Path) -> None:
    before = dict(os.environ)
    quick = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    fit = ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), *quick, "--trainer.strategy", "sharded"]
    assert cli.main(fit) == 0
    assert dict(os.environ) == before
