"""Several processes, started as a user starts them: the same update, the same k of n, each record once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcoref.data.file import dump_records
from mmcoref.data.record import Record
from mmcoref.run.checkpoint import AtomicCheckpointIO, read_stored

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mmcoref(*argv: str, processes: int = 1) -> str:
    """Runs the command on that many CPU processes and gives what it said."""
    chosen = {"--trainer.strategy", "--config"} & set(argv)
    several = ["--trainer.strategy", "ddp"] if processes > 1 and not chosen else []
    command = [sys.executable, "-m", "mmcoref", *argv, "--trainer.accelerator", "cpu", "--trainer.devices", str(processes), *several]
    done = subprocess.run(
        [*command, "--trainer.enable_progress_bar", "false"],
        capture_output=True,
        text=True,
        env=os.environ | _ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def newest_record() -> dict[str, Any]:
    folder = max(Path("lightning_logs").iterdir(), key=lambda path: int(path.name.removeprefix("version_")))
    record: dict[str, Any] = json.loads((folder / "record.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    return record | {"lines": lines}


@pytest.fixture
def many(dialogues: tuple[Record, ...], tmp_path: Path) -> Path:
    """As many test records as were published, 346: a number that neither 3 nor 8 divides."""
    records = [record for _ in range(145) for record in dialogues][:1726]
    file = tmp_path / "many.json"
    file.write_text(dump_records(records), "utf-8")
    return file


@pytest.mark.slow
def test_one_two_three_and_eight_processes_test_the_same_346_records_each_once(llama_folder: Path, many: Path) -> None:
    # An untrained model says something else of every record: wrong counts would show in what it says, not in the accuracy.
    arguments = ["test", "--model.name", str(llama_folder), "--data.path", str(many), "--model.max_new_tokens", "4"]
    records = []
    for processes in (1, 2, 3, 8):
        mmcoref(*arguments, processes=processes)
        records.append(newest_record())
    first = records[0]
    assert first["n"] == 346
    assert len({line["text"] for line in first["lines"]}) > 1
    for record in records:
        assert [line["index"] for line in record["lines"]] == list(range(1380, 1726))
        assert record["metrics"] == first["metrics"]
        assert [line["text"] for line in record["lines"]] == [line["text"] for line in first["lines"]]
        assert not record["partial"]


def test_two_processes_train_to_the_same_weights_as_one_and_resume(llama_folder: Path, data_file: Path) -> None:
    # Nine train records in windows of eight: the second window has one record, so that one process has none of it.
    arguments = ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.max_epochs", "2"]
    arguments += ["--trainer.precision", "64-true", "--model.lr", "1e-2", "--model.warmup_steps", "2"]
    mmcoref(*arguments, "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "4", "--trainer.default_root_dir", "one")
    said = mmcoref(*arguments, "--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2", processes=2)
    assert said.count("12 records, train/test 9/3;") == 1  # one process speaks
    assert "8 records an optimizer step; 4 steps" in said
    states = [
        torch.load(Path(root, "lightning_logs/version_0/checkpoints/last.ckpt"), weights_only=True)["state_dict"] for root in ("one", ".")
    ]
    assert states[0].keys() == states[1].keys()
    for name, weights in states[0].items():
        assert weights.dtype == torch.float64
        assert (weights - states[1][name]).abs().max() < 1e-9, name
    said = mmcoref("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", processes=2)
    assert "trainer.max_epochs: 3 (given now) instead of 2 (checkpoint)" in said
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_machines_train_to_the_weights_of_one_with_two_processes(llama_folder: Path, data_file: Path, strategy: str) -> None:
    arguments = ["fit", "--model.name", str(llama_folder), "--data.path", str(data_file), "--trainer.max_epochs", "2"]
    arguments += ["--model.lr", "1e-2", "--model.warmup_steps", "2", "--trainer.strategy", strategy]
    mmcoref(*arguments, "--trainer.default_root_dir", "one", processes=2)
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "2", "--trainer.enable_progress_bar", "false"]
    environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meeting, "--node_rank", str(node), "-m", "mmcoref", *arguments, *cpu],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for node in range(2)
    ]
    said = [agent.communicate(timeout=200)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert "micro-batches of" in said[0]
    assert "micro-batches of" not in said[1]
    one, two = (
        AtomicCheckpointIO(training=False).load_checkpoint(Path(root, "lightning_logs/version_0/checkpoints/last.ckpt"))["state_dict"]
        for root in ("one", ".")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["SIGTERM to the first process", "Ctrl-C to all"])
def test_two_processes_told_to_stop_save_once_and_end(llama_folder: Path, data_file: Path, whole_group: bool) -> None:
    command = [sys.executable, "-m", "mmcoref", "fit", "--model.name", str(llama_folder), "--data.path", str(data_file)]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "100000"]
    environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.Popen(
        [*command, "--trainer.enable_progress_bar", "false"], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if whole_group:
        os.killpg(run.pid, signal.SIGINT)
    else:
        os.kill(run.pid, signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == (130 if whole_group else 143), said[-2000:]
    assert said.count("checkpoint saved") == 1
    assert "Traceback" not in said
    assert f"stopped at step {read_stored(last).step}," in said
    assert ends(run.pid, within=30), "a process is left waiting"


def ends(group: int, *, within: float) -> bool:
    """Whether a process group is gone in that many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False
