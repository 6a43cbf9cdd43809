"""A job that Slurm gives notice of is put back into the queue, or it is said why not."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest

from mmcoref.lightning_cli import fit_settings
from mmcoref.run import slurm
from mmcoref.run.launchers import check_launcher

ROOT = Path(__file__).parent.parent.parent


def scontrol(folder: Path, body: str) -> str:
    """A PATH on which scontrol notes what it was asked, then does that."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{body}\n')
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("mmcoref"), "propagate", True)
    caplog.set_level(logging.INFO, "mmcoref")
    return caplog


@pytest.mark.parametrize(
    ("environment", "job"),
    [({"SLURM_JOB_ID": "12"}, "12"), ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"}, "12_2")],
)
def test_the_job_or_the_task_of_an_array_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture, environment: dict[str, str], job: str
) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path, "exit 0"))
    assert slurm.in_job(environment)
    assert slurm.requeue(environment)
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    assert said.messages == [f"job {job} is put back into the queue, and will resume"]


def test_a_job_that_may_not_be_requeued_is_to_be_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path, "echo 'Requested operation is presently disabled for job 12' >&2; exit 1"))
    assert not slurm.requeue({"SLURM_JOB_ID": "12"})
    assert "presently disabled for job 12): submit it again" in said.messages[0]


def test_without_scontrol_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.requeue({"SLURM_JOB_ID": "12"})
    assert "No such file or directory" in said.messages[0]


def test_nothing_but_a_number_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", scontrol(tmp_path, "exit 0"))
    assert not slurm.requeue({"SLURM_JOB_ID": "12; rm"})
    assert not (tmp_path / "asked").exists()
    assert not slurm.in_job({})


def sbatch_files() -> list[str]:
    text = (ROOT / "docs" / "slurm.md").read_text("utf-8")
    return re.findall(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_documented_jobs_start_the_processes_that_their_settings_ask_for(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = sbatch_files()[nodes - 1]
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", job))
    command = shlex.split(job[job.index("srun mmcoref") :].replace("\\\n", " "))
    settings = fit_settings(command[command.index("fit") + 1 :])
    trainer, data = settings["trainer"], settings["data"]
    assert (trainer["num_nodes"], trainer["devices"]) == (nodes, 8) == (int(asked["nodes"]), int(asked["gpus-per-node"]))
    tasks = int(asked["nodes"]) * int(asked["ntasks-per-node"])
    environment = {
        "SLURM_JOB_NAME": asked["job-name"],
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": asked["ntasks-per-node"],
        "SLURM_NNODES": asked["nodes"],
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    check_launcher(trainer["devices"], trainer["num_nodes"], environment)
    assert tasks * data["batch_size"] * trainer["accumulate_grad_batches"] == 64
    assert asked["signal"].startswith("SIGUSR1@")
    assert "--requeue" in job
    assert command[command.index("--ckpt_path") + 1] == "last"
