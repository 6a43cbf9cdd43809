"""What Lightning, torch, transformers and the hub's client say and need not."""

from __future__ import annotations

import logging
import sys
import warnings

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from mmcoref.text import PrintableFormatter, printable

_LIBRARIES = ("lightning.pytorch", "lightning.fabric", "lightning", "transformers", "huggingface_hub")


def quiet() -> None:
    """Silence it in this process; what they still say, which may quote a path or a config, is printable."""
    warnings.formatwarning = _one_line
    for name in _LIBRARIES:
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(PrintableFormatter("%(message)s"))
    # Lightning's own information (which accelerators exist, what it restores) would stand before our first line.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of five tries to reach it: what came of them is told
    if not sys.stderr.isatty():  # bars of loaded weights and downloads would fill a log
        disable_progress_bar()  # type: ignore[no-untyped-call]
        disable_progress_bars()
    for message in (
        ".*does not have many workers.*",  # collating takes microseconds: workers only cost
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run goes on in its folder
        ".*It is recommended to use `self.log\\('.*sync_dist=True.*",  # our metrics are the same on every process already
        ".*callbacks used to create the checkpoint need to be provided.*",  # a test keeps no best checkpoint
        ".*torch.distributed is disabled, unavailable or uninitialized.*",  # one process reads what several wrote: that is meant
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # inside Lightning
    ):
        warnings.filterwarnings("ignore", message)


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning without the line of code that gave it, which says nothing to a user."""
    return f"{printable(filename)}:{lineno}: {category.__name__}: {printable(message)}\n"
