"""The end of a process that was one of several: an exit code, and nothing lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from torch import distributed

from mmcoref import cli
from mmcoref.run import ending

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
from mmcoref.run import ending

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
