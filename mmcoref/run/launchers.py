"""What has started this process: which of how many it is, and whether those are the processes that the settings ask for.

Lightning asks the same variables in the same order. Where they contradict the settings it trains on a part of the
records, lets each process run for itself, or waits for ever.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mmcoref.errors import UserError
from mmcoref.run.peers import LEADER

_ITSELF = "set SLURM_JOB_NAME=bash, so that mmcoref starts the processes of this machine itself"
_INTERACTIVE = ("bash", "interactive")  # names of Slurm jobs in which Lightning starts processes itself


@dataclass(frozen=True)
class Launcher:
    """A program that starts the processes of a run, and the variables in which it says so.

    Attributes:
        name: the program's.
        signs: variables that are all set if and only if it has started this process.
        size: variable: processes of the run.
        rank: variable: which of them this is.
        local_rank: variable: which of this machine's.
        local_size: variable: how many this machine has; empty if it sets none.
        nodes: variable: machines; empty if it sets none.
        start: how to start so many processes, with the fields `here`, `nodes` and `all`.
        alone_counts: whether Lightning asks it for a single process, too, and starts no others itself.
    """

    name: str
    signs: tuple[str, ...]
    size: str
    rank: str
    local_rank: str
    local_size: str
    nodes: str
    start: str
    alone_counts: bool = True


_LAUNCHERS = (
    Launcher(
        name="torchrun",
        signs=("TORCHELASTIC_RUN_ID",),
        size="WORLD_SIZE",
        rank="RANK",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_WORLD_SIZE",
        nodes="",
        start="torchrun --nnodes {nodes} --nproc_per_node {here}",
    ),
    Launcher(
        name="srun",
        signs=("SLURM_NTASKS",),
        size="SLURM_NTASKS",
        rank="SLURM_PROCID",
        local_rank="SLURM_LOCALID",
        local_size="SLURM_NTASKS_PER_NODE",
        nodes="SLURM_NNODES",
        start="#SBATCH --nodes={nodes} and #SBATCH --ntasks-per-node={here}, and srun before mmcoref",
    ),
    Launcher(
        name="jsrun",
        signs=("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
        size="JSM_NAMESPACE_SIZE",
        rank="JSM_NAMESPACE_RANK",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        local_size="JSM_NAMESPACE_LOCAL_SIZE",
        nodes="",
        start="jsrun --np {all} --tasks_per_rs {here}",
    ),
    Launcher(
        name="mpirun (Open MPI)",
        signs=("OMPI_COMM_WORLD_SIZE",),
        size="OMPI_COMM_WORLD_SIZE",
        rank="OMPI_COMM_WORLD_RANK",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        nodes="",
        start="mpirun -np {all} --npernode {here}",
        alone_counts=False,
    ),
    Launcher(
        name="mpirun (MPICH)",
        signs=("PMI_SIZE", "PMI_RANK"),
        size="PMI_SIZE",
        rank="PMI_RANK",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        nodes="",
        start="mpirun -np {all} -ppn {here}",
        alone_counts=False,
    ),
    Launcher(
        name="a PyTorchJob (Kubeflow)",
        signs=("WORLD_SIZE", "RANK", "MASTER_ADDR"),
        size="WORLD_SIZE",
        rank="RANK",
        local_rank="",
        local_size="",
        nodes="WORLD_SIZE",
        start="torchrun --nnodes {nodes} --node_rank $RANK --nproc_per_node {here} --master_addr $MASTER_ADDR -m mmcoref",
        alone_counts=False,
    ),
)


def launcher_of(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Find the launcher that has started this process; None if it was started by hand, or by the run's first process."""
    if LEADER in environment:
        return None
    for launcher in _LAUNCHERS:
        if not all(environment.get(sign) for sign in launcher.signs):
            continue
        if launcher.name == "srun" and _interactive(environment):
            continue
        if not launcher.alone_counts and environment[launcher.size] == "1":
            continue
        if not launcher.local_rank and "LOCAL_RANK" in environment:
            continue  # processes that the user starts one by one
        return launcher
    return None


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the run's first process, which tells the user."""
    launcher = launcher_of(environment)
    if launcher is not None:
        return environment.get(launcher.rank, "0") == "0"
    node = environment.get("NODE_RANK", environment.get("GROUP_RANK", "0"))
    return is_first_here(environment) and node == "0"


def is_first_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first process of this machine, which looks at what the machine has."""
    launcher = launcher_of(environment)
    variable = launcher.local_rank if launcher is not None else "LOCAL_RANK"
    return environment.get(variable, "0") == "0"


def check_launcher(here: int, nodes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Check that the processes that were started are those that the settings ask for.

    Args:
        here: processes on each machine, by the settings.
        nodes: machines, by the settings.
        environment: variables of the process.

    Raises:
        UserError: they are others; the sentence names the variable and the options that would be right.
    """
    if LEADER in environment:
        return
    launcher = launcher_of(environment)
    if launcher is None:
        _check_by_hand(here, nodes, environment)
        return
    size = _number(launcher.size, environment)
    start = launcher.start.format(here=here, nodes=nodes, all=here * nodes)
    _check_ignored(launcher, environment, start)
    for variable in filter(None, (launcher.rank, launcher.local_rank)):
        _number(variable, environment, of=launcher)
    each = _number(launcher.local_size, environment) if environment.get(launcher.local_size) else None
    started_nodes = _number(launcher.nodes, environment) if environment.get(launcher.nodes) else None
    if (size, each or here, started_nodes or nodes) == (here * nodes, here, nodes):
        return
    each = each or max(1, size // (started_nodes or nodes))
    variables = f"{launcher.size}={size}" + (f", {launcher.local_size}={each}" if launcher.local_size else "")
    itself = f"; or {_ITSELF}" if launcher.name == "srun" and nodes == 1 else ""
    raise UserError(
        f"{launcher.name} has started {size} process{'es' * (size != 1)} ({variables}), and the settings ask for {here} on each of "
        f"{nodes} machine{'s' * (nodes != 1)}, {here * nodes} in all: use --trainer.devices {each} "
        f"--trainer.num_nodes {max(1, size // each)}, or start them with {start}{itself}."
    )


def _check_ignored(launcher: Launcher, environment: Mapping[str, str], start: str) -> None:
    """Find what makes Lightning ignore a launcher, or wait for processes that nobody starts.

    Raises:
        UserError: it would.
    """
    size = int(environment[launcher.size])
    if launcher.name == "srun" and size > 1:
        if "SLURM_STEP_NUM_TASKS" not in environment:
            raise UserError(
                f"Slurm has set SLURM_NTASKS={size}, and srun has not started this process: it would wait for others for ever. "
                f"Use {start}; or {_ITSELF}."
            )
        if "SLURM_NTASKS_PER_NODE" not in environment:
            raise UserError(
                f"srun has started {size} processes (SLURM_NTASKS={size}) without saying how many on each machine "
                f"(SLURM_NTASKS_PER_NODE): use {start}."
            )
    elif launcher.name == "jsrun" and not all(environment.get(name) for name in ("LSB_JOBID", "LSB_DJOB_RANKFILE")):
        raise UserError(
            f"jsrun has started {size} processes (JSM_NAMESPACE_SIZE={size}) outside an LSF job (LSB_JOBID, LSB_DJOB_RANKFILE): "
            "each would run for itself. Start jsrun in a job of bsub."
        )
    elif "mpirun" in launcher.name and importlib.util.find_spec("mpi4py") is None:
        raise UserError(
            f"{launcher.name} has started {size} processes ({launcher.size}={size}), and mpi4py, which lets them find each other, is "
            "not installed: each would run for itself. Install it (python -m pip install mpi4py), or start with torchrun."
        )
    elif not launcher.local_rank:
        raise UserError(
            f"{launcher.name} has started {size} processes (WORLD_SIZE={size}) that would each run for themselves: use {start}."
        )


def _check_by_hand(here: int, nodes: int, environment: Mapping[str, str]) -> None:
    """Check the variables with which a user starts processes one by one, or one on each machine.

    Raises:
        UserError: they contradict the settings, or each other.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if _interactive(environment) and tasks != "1":
        name = environment["SLURM_JOB_NAME"]
        raise UserError(
            f"srun has started {tasks} processes (SLURM_STEP_NUM_TASKS={tasks}) in a job named {name}, in which Lightning does not "
            f"ask srun: each would run for itself. Use srun --job-name=mmcoref, or start mmcoref without srun."
        )
    limits = {"LOCAL_RANK": ("devices", here), "NODE_RANK": ("num_nodes", nodes)}
    for variable, (option, limit) in limits.items():
        if environment.get(variable) and _number(variable, environment) >= limit:
            raise UserError(
                f"{variable}={environment[variable]}: expected less than --trainer.{option}, {limit}; "
                f"unset {variable}, or use --trainer.{option} {_number(variable, environment) + 1} or more."
            )
    if environment.get("LOCAL_RANK") and environment.get("WORLD_SIZE"):
        size = _number("WORLD_SIZE", environment)
        if size != here * nodes:
            raise UserError(
                f"WORLD_SIZE={size} and LOCAL_RANK are set, and the settings ask for {here * nodes} processes: unset both, so that "
                "mmcoref starts its processes itself, or let --trainer.devices and --trainer.num_nodes make that number."
            )


def _interactive(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_JOB_NAME") in _INTERACTIVE


def _number(variable: str, environment: Mapping[str, str], of: Launcher | None = None) -> int:
    value = environment.get(variable, "")
    if value.isdecimal():
        return int(value)
    if not value and of is not None:
        raise UserError(
            f"{of.size}={environment[of.size]} is set, and {variable} is not: {of.name} sets both. Start this process with "
            f"{of.name}, or unset {of.size}, so that mmcoref starts its processes itself."
        )
    raise UserError(f"{variable}={value}: expected a whole number; unset it, so that mmcoref starts its processes itself.")
