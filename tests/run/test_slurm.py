"""A job that Slurm gives notice of is put back into the queue, or it is said why not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mmcoref.run import slurm


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
