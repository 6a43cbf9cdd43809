"""The strategies that this program adds to, or sets up otherwise than, Lightning's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch.distributed.checkpoint.api import CheckpointException

from mmcoref.atomic import cannot_write, temporary_of
from mmcoref.errors import UserError
from mmcoref.run.files import cannot_read, cause, kept, replace

SHARDED = "sharded"


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state cut over all processes (FSDP2), each of which sees records of its own.

    Lightning's strategy would cut nothing by default, and hand all processes the same records. Its checkpoints, folders with
    a file of each process, here are whole under their final name or not there.
    """

    def setup_environment(self) -> None:
        """Lets all processes be one data-parallel group."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Known before the processes have met, as in data parallelism: the fit's first line says how many there are."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads this process's parts.

        Raises:
            UserError: the checkpoint is not whole.
        """
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise cannot_read(Path(checkpoint_path), error) from error

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Writes a neighbouring folder, and renames it when all processes are done.

        Raises:
            UserError: a disk is full or cannot be written; what was there before stays.
        """
        target = Path(self.broadcast(str(filepath)))
        temporary = Path(self.broadcast(str(temporary_of(target))))  # the first process's name
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
        except (CheckpointException, OSError, RuntimeError) as error:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(target, cause(error), kept(target)) from error
        self.barrier()
        if self.is_global_zero:
            replace(target, temporary)
        self.barrier()


def check_strategy(name: Any) -> None:
    """Whether a strategy's name is one that this program can train with.

    Raises:
        UserError: it is not.
    """
    known = ("auto", *StrategyRegistry.available_strategies())
    if isinstance(name, str) and (name not in known or name.startswith(("fsdp", "deepspeed"))):
        raise UserError(f"trainer.strategy: expected auto, ddp or sharded, got {name}; sharded cuts the model as FSDP does.")


def strategy_of(name: Any, processes: int) -> Strategy | Any:
    """What a trainer is given for a strategy's name.

    Raises:
        UserError: one that this program cannot train with.
    """
    check_strategy(name)
    if name == SHARDED:
        return ShardedStrategy()
    if name == "ddp" or (name == "auto" and processes > 1):
        return DDPStrategy(gradient_as_bucket_view=True)  # or the buckets would be another copy of the gradients
    return name


StrategyRegistry.register(SHARDED, ShardedStrategy, description=(ShardedStrategy.__doc__ or "").split("\n")[0])
