"""How a run's processes on one machine are started: as Lightning does, watched as `peers` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from mmcoref.errors import UserError
from mmcoref.run.curves import tolerate
from mmcoref.run.peers import LEADER, PEERS


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher, whose processes are watched by us.

    Lightning's own watcher ends all processes by SIGKILL when one has failed, and says nothing.
    """

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start the other processes, unless a cluster has, and call the function."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ[LEADER] = str(os.getpid())
            try:
                self._call_children_scripts()
            finally:
                del os.environ[LEADER]
            PEERS.watch(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def take_over(trainer: pl.Trainer) -> None:
    """Let the processes, signals and loggers of a trainer be ours, whatever strategy it was given.

    Lightning's handlers broadcast from inside a signal, which hangs; under Slurm they save where no resume of ours looks.

    Raises:
        UserError: its strategy starts processes that we cannot watch.
    """
    tolerate(trainer.loggers)
    trainer._signal_connector.register_signal_handlers = _leave_signals  # type: ignore[method-assign]
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        raise UserError(
            "trainer.strategy: processes that share this one's memory (start_method spawn or fork) could not be stopped, nor named when "
            "they die: leave start_method out."
        )
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


def _leave_signals() -> None:
    """Set no handlers."""
