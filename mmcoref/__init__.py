"""mmcoref: fine-tune and test causal language models on multimodal dialogue coreference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmcoref.resolver import Resolver

__version__ = "0.1.0"


def load(run: str | Path, *, best: bool = False, batch_size: int = 16, device: str | None = None) -> Resolver:
    """A trained model that answers records: `mmcoref.load("lightning_logs/version_3")(record)`.

    Args:
        run: a run's folder, of a fit or of a test, or a checkpoint file.
        best: whether to take the epoch that the validation part chose, instead of the last one.
        batch_size: records at once.
        device: where it runs, such as `cuda:1`; by default the first GPU, or the CPU where there is none.

    Raises:
        UserError: no such run, or no whole checkpoint in it.
    """
    from mmcoref.resolver import Resolver  # torch takes seconds to import

    return Resolver(run, best=best, batch_size=batch_size, device=device)
