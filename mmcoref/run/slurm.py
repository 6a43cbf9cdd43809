"""A Slurm job whose time is nearly over, or that makes room for another, is put back into the queue."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping

log = logging.getLogger(__name__)

_SECONDS = 30
wanted = True
"""Whether a fit that was given notice asks for its job to be run again; `checkpoint.requeue` decides."""


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to a Slurm job, which may be given notice."""
    return bool(environment.get("SLURM_JOB_ID"))


def requeue(environment: Mapping[str, str] = os.environ) -> bool:
    """Have Slurm run this job again, and say how that went.

    Returns:
        Whether Slurm has agreed.
    """
    job = environment.get("SLURM_JOB_ID", "")
    if environment.get("SLURM_ARRAY_JOB_ID"):
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    if re.fullmatch(r"[0-9]+(_[0-9]+)?", job) is None:
        log.warning("the job is not put back into the queue: SLURM_JOB_ID is %r, which is no job's number", job)
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("the job is not put back into the queue (scontrol requeue %s: %s): submit it again", job, error)
        return False
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        log.warning("the job is not put back into the queue (scontrol requeue %s: %s): submit it again", job, said)
        return False
    log.info("job %s is put back into the queue, and will resume", job)
    return True
