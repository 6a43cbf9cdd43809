"""Two tasks of a Slurm job, started by this test with the variables of srun: notice, requeue, resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmcoref.run.checkpoint import read_stored
from tests.test_processes import free_port, newest_record

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@contextmanager
def job(*argv: str, tasks: int = 2, **variables: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The tasks of one job on one machine; what is left of them at the end of the block is killed."""
    shared = {
        "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NAME": "fit.sbatch",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "MASTER_PORT": str(free_port()),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mmcoref", *argv, *CPU],
            env=os.environ | shared | variables | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(tasks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ends(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each has said, when all have ended."""
    return [process.communicate(timeout=120)[1] for process in processes]


def until(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} does not come"
        time.sleep(0.1)


@pytest.fixture
def asked() -> Path:
    """What scontrol was asked, a line each time."""
    program, file = Path("bin/scontrol"), Path("asked").absolute()
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {file}\n')
    program.chmod(0o755)
    return file


def fit(llama_folder: Path, data_file: Path) -> list[str]:
    return [
        *("fit", "--ckpt_path", "last", "--model.name", str(llama_folder), "--data.path", str(data_file)),
        *("--trainer.devices", "2", "--trainer.max_epochs", "100000"),
    ]


def test_a_job_that_is_given_notice_is_saved_requeued_and_resumed(llama_folder: Path, data_file: Path, asked: Path) -> None:
    command = fit(llama_folder, data_file)
    with job(*command) as tasks:
        until(LAST)
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
        first, second = ends(tasks)
    assert [task.returncode for task in tasks] == [138, 138], first[-2000:] + second[-2000:]
    assert asked.read_text() == "requeue 12\n"
    step = read_stored(LAST).step
    assert f"SIGUSR1: stopped at step {step}, checkpoint saved" in first
    assert "job 12 is put back into the queue, and will resume" in first
    assert "Traceback" not in first + second
    assert "no checkpoint under lightning_logs: the training starts from the beginning" in first
    assert "stopped at" not in second  # one of them speaks
    assert list(Path().rglob("*hpc_ckpt*")) == []
    epochs = str(step)  # some more than were done
    with job(*command[:-1], epochs) as tasks:
        first, second = ends(tasks)
    assert [task.returncode for task in tasks] == [0, 0], first[-2000:] + second[-2000:]
    assert f"checkpoint: {LAST}" in first
    assert read_stored(LAST).step > step
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_notice_to_one_task_stops_all_and_a_run_told_not_to_does_not_requeue(llama_folder: Path, data_file: Path, asked: Path) -> None:
    with job(*fit(llama_folder, data_file), "--checkpoint.requeue", "false") as tasks:
        until(LAST)
        tasks[1].send_signal(signal.SIGUSR1)
        said = ends(tasks)
    assert [task.returncode for task in tasks] == [138, 138], said[0][-2000:] + said[1][-2000:]
    assert not asked.exists()


def test_two_tasks_test_each_record_once_and_one_of_them_speaks(llama_folder: Path, data_file: Path) -> None:
    command = ["--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.devices", "2"]
    for program in ("test", "validate"):
        with job(program, *command) as tasks:
            first, second = ends(tasks)
        assert [task.returncode for task in tasks] == [0, 0], first[-2000:] + second[-2000:]
        assert newest_record()["n"] == 3
        assert f"{program}: 3 records" in first
        assert second == ""


def test_tasks_that_are_not_those_of_the_settings_are_refused_by_all_and_told_once(llama_folder: Path, data_file: Path) -> None:
    with job("fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.devices", "4") as tasks:
        said = ends(tasks)
    assert [task.returncode for task in tasks] == [2, 2]
    assert "srun has started 2 processes (SLURM_NTASKS=2, SLURM_NTASKS_PER_NODE=2), and the settings ask for 4" in said[0]
    assert said[1] == ""
    assert not Path("lightning_logs").exists()
