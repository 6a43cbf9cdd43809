"""The strategies that this program adds to, or sets up otherwise than, Lightning's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mmcoref.atomic import cannot_write, temporary_of
from mmcoref.errors import UserError
from mmcoref.run.files import cannot_read, cause, kept, meta_of, read_file, replace
from mmcoref.run.integrity import check_together, sums_of, write_sums
from mmcoref.run.sharded_folder import load_into

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
        """Reads this process's parts; nothing that the checkpoint holds is run, whatever `weights_only` says.

        Raises:
            UserError: the checkpoint is not whole.
        """
        try:
            path = Path(self.broadcast(str(checkpoint_path)))
            check_together(path, training=bool(self.optimizers))
            return self._load_folder(path) if path.is_dir() else super().load_checkpoint(path, weights_only=True)
        except UserError:
            raise
        except (Exception, CheckpointException) as error:  # whatever torch makes of hostile or broken files
            raise cannot_read(Path(checkpoint_path), error) from error

    def _load_folder(self, folder: Path) -> dict[str, Any]:
        model, lightning_module = self.model, self.lightning_module
        assert model is not None
        assert lightning_module is not None
        weights = {"state_dict": get_model_state_dict(model)}
        load_into(weights, folder)
        model.load_state_dict(weights["state_dict"], strict=lightning_module.strict_loading)
        for number, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{number}"
            state = {name: get_optimizer_state_dict(model, optimizer)}
            load_into(state, folder)
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state[name], options=StateDictOptions(cpu_offload=True))
        return read_file(meta_of(folder))

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
            self.barrier()  # the first process has written for all, too
            sums = sums_of(temporary, self.global_rank)
        except (CheckpointException, OSError, RuntimeError) as error:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(target, cause(error), kept(target)) from error
        every: list[dict[str, str]] = [{}] * self.world_size
        distributed.all_gather_object(every, sums)
        if self.is_global_zero:
            try:
                write_sums(temporary, every)
                replace(target, temporary)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise cannot_write(target, error, kept(target)) from error
        self.barrier()


def check_strategy(name: Any) -> None:
    """Whether a strategy's name is one that this program can train with.

    Raises:
        UserError: it is not.
    """
    known = ("auto", *StrategyRegistry.available_strategies())
    # The last three start processes that share this one's memory, for notebooks: they could not be stopped, nor named when they die.
    others = ("fsdp", "deepspeed", "spawn", "fork", "notebook")
    if isinstance(name, str) and (name not in known or any(other in name for other in others)):
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
