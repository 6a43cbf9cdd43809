"""Processes that a launcher has started are those that the settings ask for, or the sentence names the variable and the fix."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from mmcoref.errors import UserError
from mmcoref.run import launchers
from mmcoref.run.launchers import check_launcher, is_first, is_first_here
from mmcoref.run.peers import LEADER

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NAME": "fit.sbatch",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
JSRUN = {
    "LSB_JOBID": "12",
    "LSB_DJOB_RANKFILE": "/hosts",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_RANK": "0",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "0", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
PYTORCHJOB = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
ALL = {"torchrun": TORCHRUN, "srun": SRUN, "jsrun": JSRUN, "mpirun (Open MPI)": OPEN_MPI, "mpirun (MPICH)": MPICH}


@pytest.fixture(autouse=True)
def _with_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("name", ALL)
def test_processes_as_the_settings_ask_for_pass_and_all_others_are_refused(name: str) -> None:
    environment = ALL[name]
    check_launcher(2, 2, environment)
    for here, nodes in ((1, 1), (4, 1), (1, 4), (8, 1), (2, 1), (1, 2), (2, 4)):
        with pytest.raises(UserError) as refused:
            check_launcher(here, nodes, environment)
        said = str(refused.value)
        assert said.startswith(f"{name} has started 4 processes (")
        assert f"ask for {here} on each of {nodes} machine" in said
        assert f"{here * nodes} in all: use --trainer.devices 2 --trainer.num_nodes 2, or start them with " in said
        assert any(f"{variable}=4" in said for variable in environment)


@pytest.mark.parametrize("name", ALL)
def test_a_variable_that_is_missing_or_no_number_is_named(name: str) -> None:
    environment = ALL[name]
    launcher = launchers.launcher_of(environment)
    assert launcher is not None
    assert launcher.name == name
    for variable in {launcher.rank, launcher.local_rank} - set(launcher.signs):
        without = {key: value for key, value in environment.items() if key != variable}
        with pytest.raises(UserError, match=f"{launcher.size}=4 is set, and {variable} is not"):
            check_launcher(2, 2, without)
    for variable in filter(None, (launcher.size, launcher.rank, launcher.local_rank, launcher.local_size, launcher.nodes)):
        with pytest.raises(UserError, match=f"{variable}=2\\(x2\\): expected a whole number"):
            check_launcher(2, 2, environment | {variable: "2(x2)"})


@pytest.mark.parametrize("name", ALL)
def test_only_one_process_speaks_and_one_on_each_machine_looks_at_it(name: str) -> None:
    environment = ALL[name]
    launcher = launchers.launcher_of(environment)
    assert launcher is not None
    assert is_first(environment)
    assert is_first_here(environment)
    second = environment | {launcher.rank: "2", launcher.local_rank: "0"}
    assert not is_first(second)
    assert is_first_here(second)
    assert not is_first_here(environment | {launcher.local_rank: "1"})


def test_one_task_of_slurm_for_four_devices_names_both_ways_out() -> None:
    one = SRUN | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    for environment in (one, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}):
        with pytest.raises(UserError) as refused:
            check_launcher(4, 1, environment)
        said = str(refused.value)
        assert "srun has started 1 process (SLURM_NTASKS=1" in said
        assert "use --trainer.devices 1 --trainer.num_nodes 1" in said
        assert "#SBATCH --ntasks-per-node=4, and srun before mmcoref; or set SLURM_JOB_NAME=bash" in said
    check_launcher(1, 1, one)


@pytest.mark.parametrize(
    ("without", "changed", "said"),
    [
        ("SLURM_STEP_NUM_TASKS", {}, "SLURM_NTASKS=4, and srun has not started this process: it would wait for others for ever"),
        ("SLURM_NTASKS_PER_NODE", {}, r"without saying how many on each machine \(SLURM_NTASKS_PER_NODE\)"),
        ("", {"SLURM_JOB_NAME": "interactive"}, r"SLURM_STEP_NUM_TASKS=4\) in a job named interactive"),
        ("", {"SLURM_JOB_NAME": "bash"}, "Use srun --job-name=mmcoref, or start mmcoref without srun"),
    ],
)
def test_what_slurm_leaves_open_is_refused(without: str, changed: dict[str, str], said: str) -> None:
    environment = {key: value for key, value in (SRUN | changed).items() if key != without}
    with pytest.raises(UserError, match=said):
        check_launcher(2, 2, environment)


def test_slurm_alone_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="SLURM_NTASKS=2, and srun has not started this process"):
        check_launcher(2, 1, {"SLURM_NTASKS": "2"})


def test_a_shell_within_a_slurm_job_starts_processes_itself() -> None:
    environment = SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "1"}
    check_launcher(8, 1, environment)
    assert is_first(environment)
    assert not is_first(environment | {"LOCAL_RANK": "1"})


def test_processes_of_mpirun_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for environment in (OPEN_MPI, MPICH):
        with pytest.raises(UserError, match=r"mpi4py, which lets them find each other, is not installed: each would run for itself"):
            check_launcher(2, 2, environment)
        check_launcher(8, 1, {name: "1" if name.endswith("SIZE") else value for name, value in environment.items()})


def test_jsrun_outside_a_job_is_refused() -> None:
    for name in ("LSB_JOBID", "LSB_DJOB_RANKFILE"):
        with pytest.raises(UserError, match=r"outside an LSF job .* each would run for itself"):
            check_launcher(2, 2, {key: value for key, value in JSRUN.items() if key != name})


def test_a_pytorchjob_is_sent_to_torchrun() -> None:
    said = r"torchrun --nnodes 2 --node_rank \$RANK --nproc_per_node 8 --master_addr \$MASTER_ADDR -m mmcoref"
    with pytest.raises(UserError, match=said):
        check_launcher(8, 2, PYTORCHJOB)
    check_launcher(8, 1, PYTORCHJOB | {"WORLD_SIZE": "1"})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: expected less than --trainer.devices, 2; unset LOCAL_RANK, or use --trainer.devices 3"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1: expected less than --trainer.num_nodes, 1"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE=4 and LOCAL_RANK are set, and the settings ask for 2 processes"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK=one: expected a whole number"),
    ],
)
def test_variables_set_by_hand_do_not_contradict_the_settings(environment: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_launcher(2, 1, environment)


def test_what_the_run_has_started_itself_is_not_asked_again() -> None:
    check_launcher(2, 1, {LEADER: "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_NTASKS": "1"})
    check_launcher(2, 2, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"})
    check_launcher(2, 1, {"WORLD_SIZE": "4"})  # left behind by an earlier run of this process
    check_launcher(2, 1, {})


def test_the_first_process_of_the_second_machine_does_not_speak() -> None:
    assert is_first({})
    assert not is_first({"NODE_RANK": "1"})
    assert is_first_here({"NODE_RANK": "1"})
    assert not is_first({LEADER: "1", "LOCAL_RANK": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
