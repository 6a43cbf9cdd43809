"""A run killed at random moments and resumed ends as if it had never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
KILLS = 8


def start(*argv: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmcoref", *argv]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(*argv: str) -> str:
    process = start(*argv)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def await_checkpoints(process: subprocess.Popen[str], count: int) -> None:
    """Wait until the run has written so many checkpoints more."""
    file = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    seen = {file.stat().st_mtime_ns} if file.exists() else set()
    while len(seen) <= count and process.poll() is None:
        if file.exists():
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.002)


def test_a_run_killed_at_random_moments_ends_in_the_same_weights(llama_folder: Path, data_file: Path) -> None:
    fit = [
        *("fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--data.batch_size", "1"),
        *("--data.micro_batch_size", "1", "--data.val_size", "2", "--model.lr", "1e-2", "--model.warmup_steps", "2"),
        *("--trainer.max_epochs", "24", "--checkpoint.every_n_steps", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.devices", "1", "--trainer.enable_progress_bar", "false"),
    ]
    finish(*fit, "--trainer.default_root_dir", "straight")
    chance = random.Random(0)
    for number in range(KILLS):
        process = start(*fit, "--ckpt_path", "last") if number else start(*fit)
        await_checkpoints(process, chance.randint(3, 12))
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish("fit", "--ckpt_path", "last")
    folder = Path("lightning_logs/version_0/checkpoints")
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best.ckpt", "last.ckpt"):
        mine = torch.load(folder / name, weights_only=True)
        other = torch.load("straight" / folder / name, weights_only=True)
        assert mine["global_step"] == other["global_step"]
        assert mine["callbacks"]["Checkpoints"] == other["callbacks"]["Checkpoints"]
        assert all(torch.equal(mine["state_dict"][key], value) for key, value in other["state_dict"].items())
